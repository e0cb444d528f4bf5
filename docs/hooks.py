"""Hooks of `mkdocs build`: pages from outside docs/, and links.

Links are written for readers of the repository: relative to the file that contains them, to any file. The hooks make
pages of some files outside docs/, publish other linked files as text, and adapt the links.
"""

from __future__ import annotations

import json
import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: File of the repository -> its page, of those that are not Markdown in docs/.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/quickstart.ipynb": "quickstart.md",
}
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for source, page in PAGES.items():
        text = (_root(config) / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=notebook_page(text) if source.endswith(".ipynb") else text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links to where the site has what the repository has. Broken ones stay, for mkdocs to report."""
    uri = page.file.src_uri
    source = _SOURCES.get(uri, f"docs/{uri}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        path = _root(config) / target
        if not path.is_file():
            return link[0]
        place = PAGES.get(target, target.removeprefix("docs/"))
        if not files.get_file_from_path(place):
            place = f"source/{target}.txt"  # which browsers show
            if not files.get_file_from_path(place):
                files.append(File.generated(config, place, abs_src_path=str(path)))
        return posixpath.relpath(place, posixpath.dirname(uri) or ".") + (link["anchor"] or "")

    return _LINK.sub(moved, markdown)


def notebook_page(text: str) -> str:
    """A notebook as Markdown: its text, its code, and what the code displayed."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "text/html" in data:
                parts.append(f"<div>{''.join(data['text/html'])}</div>")
            elif "image/png" in data:
                picture = "".join(data["image/png"]).strip()
                parts.append(f'<div><img alt="" src="data:image/png;base64,{picture}"></div>')
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _root(config: MkDocsConfig) -> pathlib.Path:
    return pathlib.Path(config.config_file_path).parent
