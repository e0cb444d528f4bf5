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

    In comments, bytes that are not UTF-8 are replaced: older editors write accents in other encodings.

    Raises:
      UnicodeDecodeError: it is neither, and `errors` is not "replace".
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
        if (
            encoding != "utf-8"
            or "\0" in text
            or any("\ufffd" in _COMMENT.split(line, 1)[0] for line in text.split("\n"))
        ):
            raise
        return text


def numbers_of(line: str, label: str) -> list[float]:
    """The numbers of a line; empty for an empty line or a comment (from #, % or // on).

    Numbers are separated by spaces, commas or semicolons, at the end too, and may stand in brackets; `-` stands for
    NaN.

    Raises:
      InputError: a word is not a number, or commas may be decimal or separate numbers. `label` names the line.
    """
    content = _COMMENT.split(line, maxsplit=1)[0].translate(_BRACKETS).replace(";", " ")
    pairs = content.split()
    if len(pairs) > 1 and all(_DECIMAL_COMMA.fullmatch(pair) for pair in pairs):
        raise InputError(
            f"{label} has commas within words, which may be decimal commas or separate numbers: write points, or a "
            f"space after each comma: {line.strip()[:60]!r}."
        )
    try:
        return [float("nan" if word == "-" else word) for word in content.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"{label} is not a list of numbers: {line.strip()[:60]!r}.") from error


def foreign_format(text: str) -> str | None:
    """The name of a format of cameras that is not read, if a text has it; with what to do."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    content = [line for line in lines if not _COMMENT.match(line)]
    if any(re.match(r"\d+\s+[A-Z][A-Z_]{5,}\s+\d+\s+\d+\s", line) for line in content[:3]):
        return "COLMAP's cameras.txt: write fx fy cx cy, the numbers after width and height"
    if any(
        re.match(r"\d+(\s+[-+.\deE]+){7}\s+\d+\s+[^#%]*\.(jpe?g|png|tiff?|bmp|webp|hei[cf])$", line, re.I)
        for line in content[:3]
    ):
        return (
            "COLMAP's images.txt, whose poses are world to camera: convert it to transforms.json, or to lines of "
            "'timestamp tx ty tz qx qy qz qw', camera to world"
        )
    if any(re.match(r"(P\d|P_rect_\d+|K_\d+|R0?_rect(_\d+)?|Tr\w*)\s*:", line) for line in content):
        return "KITTI's calibration: write fx fy cx cy, numbers 1, 6, 3 and 7 of the camera's line P"
    return None


def is_header(line: str) -> bool:
    """Whether a line, the first one of a table, names its columns: words, none of them a number."""
    words = re.split(r"[\s,;]+", _COMMENT.split(line, maxsplit=1)[0].strip())
    return all(_NAME.match(word) and word.lower() not in ("nan", "inf", "infinity") for word in words)
