"""Text files of numbers, in the forms in which programs and people write them."""

from __future__ import annotations

import codecs
import re

from easi3r_jax.core.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # it begins like UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMENT = re.compile(r"#|%|//")
_BRACKETS = str.maketrans(dict.fromkeys("[](){}", " "))
_NAME = re.compile(r"[A-Za-z_\"']")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


def decoded(data: bytes, errors: str = "strict") -> str:
    """Text in UTF-8, or in the encoding that its byte-order mark names.

    Raises:
      UnicodeDecodeError: it is neither, and `errors` is not "replace".
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding, errors)


def numbers_of(line: str, label: str) -> list[float]:
    """The numbers of a line; empty for an empty line or a comment (from #, % or // on).

    Numbers are separated by spaces, commas or semicolons, at the end too, and may stand in brackets; `-` stands for
    NaN.

    Raises:
      InputError: a word is not a number, or numbers have decimal commas. `label` names the line.
    """
    content = _COMMENT.split(line, maxsplit=1)[0].translate(_BRACKETS).replace(";", " ")
    pairs = content.split()
    if len(pairs) > 1 and all(_DECIMAL_COMMA.fullmatch(pair) for pair in pairs):
        raise InputError(f"{label} has decimal commas: write points, {line.strip()[:60].replace(',', '.')!r}.")
    try:
        return [float("nan" if word == "-" else word) for word in content.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"{label} is not a list of numbers: {line.strip()[:60]!r}.") from error


def is_header(line: str) -> bool:
    """Whether a line, the first one of a table, names its columns: words, none of them a number."""
    words = re.split(r"[\s,;]+", _COMMENT.split(line, maxsplit=1)[0].strip())
    return all(_NAME.match(word) and word.lower() not in ("nan", "inf", "infinity") for word in words)
