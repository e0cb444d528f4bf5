"""Names of files: the order of a folder's files, and which name of a list means which file."""

from __future__ import annotations

import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

from easi3r_jax.core.errors import InputError

_Path = TypeVar("_Path", bound=pathlib.PurePath)

#: Suffixes of image files that are read, in lower case.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm"),
        *(".avif", ".heic", ".heif", ".hif"),
    }
)
# Steps of a counter, on average at most.
_MAX_GAP = 3
_DECIMAL = re.compile(r"(.*?)(-?\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?)", re.ASCII | re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)", re.ASCII)


def natural_order(paths: Iterable[_Path]) -> list[_Path]:
    """Sorts files as a person counts: by the numbers in their names, wherever they stand, padded with zeros or not.

    Names are compared without their image suffix, text and numbers in turn: `img (2).png` precedes `img (10).png`.
    Upper and lower case, and the two Unicode forms of an accented letter, are the same text. If each name is one number
    after the same text and some have decimals, as seconds have (0.25.png, 0.292.png), they are compared as decimals,
    unless a decimal part ends in a zero, which counters have (1.9, 1.10) and printed seconds do not, or the decimal
    parts count in small steps (1.8, 1.9, 1.11).
    """
    ordered = sorted(paths, key=lambda path: _natural_key(path.name))
    seconds = _as_decimals([stem_of(path.name) for path in ordered])
    if seconds is not None:
        by_path = {id(path): value for path, value in zip(ordered, seconds, strict=True)}
        ordered.sort(key=lambda path: by_path[id(path)])
    return ordered


def _natural_key(name: str) -> tuple:
    parts = _NUMBER.split(canonical(stem_of(name)))
    chunks = [(part, 0) if k % 2 == 0 else ("", int(part)) for k, part in enumerate(parts)]
    return chunks, canonical(name), name


def _as_decimals(stems: Sequence[str]) -> list[float] | None:
    """Values of stems that are one signed or decimal number each after a common text; None if they are not."""
    matches = [_DECIMAL.fullmatch(stem) for stem in stems]
    if not all(matches) or len({canonical(match[1]) for match in matches if match}) != 1:
        return None
    numbers = [match[2].lower() for match in matches if match]
    # After a text, a minus is a hyphen. Counters of two levels (1.9, 1.10) have no values.
    if matches[0] and matches[0][1] and any(number.startswith("-") for number in numbers):
        return None
    decimals = [number.split("e")[0].partition(".")[2] for number in numbers]
    padded = any(len(part) > 1 and part.endswith("0") for part in decimals)
    if padded and len({len(part) for part in decimals}) > 1:
        return None
    if _count_up(numbers, decimals):
        return None
    has_sign = any(number.startswith("-") for number in numbers)
    return [float(number) for number in numbers] if any(decimals) or has_sign else None


def _count_up(numbers: Sequence[str], decimals: Sequence[str]) -> bool:
    """Whether decimal parts of different lengths are the second level of a counter: nearly all of their numbers occur.

    Those of seconds have gaps: between 0.5 and 0.75 there is no 0.6.
    """
    parts: dict[str, set[int]] = {}
    for number, part in zip(numbers, decimals, strict=True):
        parts.setdefault(number.partition(".")[0], set()).add(int(part or 0))
    if len({len(part) for part in decimals}) == 1 or not all(decimals) or any(p[0] == "0" != p for p in decimals):
        return False
    return all(max(found) - min(found) < _MAX_GAP * len(found) for found in parts.values())


def stem_of(name: str) -> str:
    """A file's name without folders and without the suffix of an image; other dots belong to the name."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    suffix = pathlib.PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else name


def canonical(name: str) -> str:
    """A name for comparison: systems differ in upper and lower case and in Unicode's form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def require_utf8(path: str | os.PathLike[str]) -> None:
    """Raises InputError for a path that is not UTF-8: results record it, and JSON and HTML cannot hold it."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"The name of {printable(text)} is not UTF-8: rename it.") from error


def printable(name: str) -> str:
    """A name for messages: bytes that are not UTF-8 and line ends are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
