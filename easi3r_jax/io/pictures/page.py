"""A self-contained HTML page: embedded pictures and videos, no scripts, no requests, all text escaped.

A content security policy in the page forbids everything else.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import unicodedata
from collections.abc import Sequence

_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1d2026; --faint: #646b78; --line: #dfe2e8;
  --mark: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --back: #17191e; --text: #e6e8ec; --faint: #9aa1ae; --line: #343842; --mark: #4a3f14; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); font-size: 1.15rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.faint, figcaption, .note { color: var(--faint); }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: .6rem 0; min-width: 0; }
.row figure { flex: 1 1 20rem; max-width: 40rem; }
figure img, figure video { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.row figure img { width: 100%; }
figcaption { margin-top: .3rem; font-size: .87rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .9rem .22rem .4rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
thead th { color: var(--faint); font-weight: 600; }
td.number, th.number { text-align: right; }
tbody th { font-weight: 400; }
tr.marked { background: var(--mark); }
tr.marked th { font-weight: 600; }
footer { margin-top: 2.5rem; color: var(--faint); font-size: .85rem; }
@media print {
  :root { --back: #fff; --text: #000; --faint: #444; --line: #bbb; --mark: #eee; }
  body { max-width: none; padding: 0; font-size: 11px; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } section:has(video) { display: none; } }
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Media:
    """A picture or a video.

    Attributes:
      kind: media type of the data, `image/png` for instance.
      data: the content of the file.
      text: the caption and the alternative text.
    """

    kind: str
    data: bytes
    text: str

    def html(self) -> str:
        source = f"data:{self.kind};base64,{base64.b64encode(self.data).decode('ascii')}"
        if self.kind.startswith("video/"):
            shown = f'<video controls loop muted autoplay playsinline aria-label="{escaped(self.text)}" src="{source}">'
            shown += "</video>"
        else:
            shown = f'<img alt="{escaped(self.text)}" src="{source}">'
        return f"<figure>{shown}<figcaption>{escaped(self.text)}</figcaption></figure>"


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """Pictures side by side if the page is wide enough."""

    media: Sequence[Media]

    def html(self) -> str:
        return f'<div class="row">{"".join(media.html() for media in self.media)}</div>'


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table.

    Attributes:
      header: of the columns.
      rows: cells as text, one per column.
      marked: indices of highlighted rows.
      numbers: the cells are numbers: all columns except the first are aligned right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    numbers: bool = False

    def html(self) -> str:
        kind = ' class="number"' if self.numbers else ""
        head = "".join(f'<th scope="col"{kind if c else ""}>{escaped(cell)}</th>' for c, cell in enumerate(self.header))
        body = []
        for number, (first, *others) in enumerate(self.rows):
            cells = f'<th scope="row">{escaped(first)}</th>' + "".join(
                f"<td{kind}>{escaped(cell)}</td>" for cell in others
            )
            body.append(f'<tr class="marked">{cells}</tr>' if number in self.marked else f"<tr>{cells}</tr>")
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        return f'<div class="wide">{table}</div>'


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> str:
        return f'<p class="note">{escaped(self.text)}</p>'


Part = Media | Row | Table | Text


def page(title: str, lead: Sequence[str], sections: Sequence[tuple[str, Sequence[Part]]], footer: str) -> str:
    """The HTML text of the page, to be written as UTF-8.

    Args:
      title: heading of the page.
      lead: lines below the title.
      sections: headings, each with its content.
      footer: text at the end.
    """
    body = [f"<h1>{escaped(title)}</h1>", *(f'<p class="faint">{escaped(line)}</p>' for line in lead)]
    for heading, parts in sections:
        body.append(f"<section><h2>{escaped(heading)}</h2>")
        body += [part.html() for part in parts]
        body.append("</section>")
    body.append(f"<footer>{escaped(footer)}</footer>")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def escaped(text: str) -> str:
    """Text escaped for HTML, for elements and attributes.

    Characters that UTF-8 cannot encode (file names may have them) and control characters become U+FFFD.
    """
    plain = (c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else "\ufffd" for c in text)
    return html.escape("".join(plain), quote=True)
