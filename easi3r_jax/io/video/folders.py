"""A folder of images: which of its files are frames, in which order, and what is left out."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Sequence

import absl.logging

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.files.names import IMAGE_SUFFIXES, canonical, natural_order, printable, require_utf8, stem_of
from easi3r_jax.io.video.images import is_image

# Files that Windows and network drives leave in folders, in lower case.
_OF_SYSTEMS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx", "icon\r"})
_MAX_NAMED = 3
_NUMBERS = re.compile(r"\d+", re.ASCII)


def list_images(folder: pathlib.Path, *, name_others: bool = False) -> list[pathlib.Path]:
    """The images of a folder in natural order (`files.names.natural_order`). Hidden files and other files are skipped.

    Files without a suffix, or with a number for one (`shot.0001`), are judged by their content; if no file has the
    suffix of an image, all are.

    Args:
      folder: of images.
      name_others: log one line that counts and names the visible files and folders that are skipped.

    Raises:
      InputError: the folder cannot be read or has no image, or an image's name is not UTF-8.
    """
    try:
        visible = [p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in _OF_SYSTEMS]
        entries = [p for p in visible if p.is_file()]
    except OSError as error:
        raise InputError(f"Cannot read the folder {folder}: {error.strerror}.") from error
    paths = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES]
    unnamed = [p for p in entries if p.suffix.lower() not in IMAGE_SUFFIXES]
    if paths:
        unnamed = [p for p in unnamed if not p.suffix or p.suffix[1:].isdigit()]
    paths += [p for p in unnamed if is_image(p)]
    if not paths:
        found = f"its {len(entries)} files are not images" if entries else "it has no files"
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise InputError(f"No images in {folder}: {found}. Give a folder of {kinds}, or a video file.")
    for path in paths:
        require_utf8(path)
    others = natural_order(set(visible) - set(paths))
    if others and name_others:
        absl.logging.warning("%s", _left_out(folder, others, len(paths)))
    return natural_order(paths)


def _left_out(folder: pathlib.Path, others: Sequence[pathlib.Path], count: int) -> str:
    """One line on what a folder has beside its images."""
    named = [f"{path.name}/" if path.is_dir() else path.name for path in others]
    shown = ", ".join(printable(name) for name in named[:_MAX_NAMED]) + (", ..." if len(named) > _MAX_NAMED else "")
    return f"{folder}: {len(others)} of {len(others) + count} entries are not images that are read, left out: {shown}"


def require_one_kind(paths: Iterable[pathlib.Path], folder: pathlib.Path) -> None:
    """Refuses a folder in which images have companions: copies in another format, depth, masks, a second camera.

    Raises:
      InputError: two images have one name but for the suffix, or two patterns of names have mostly the same numbers.
    """
    by_stem: dict[str, pathlib.Path] = {}
    numbers: dict[str, set[tuple[int, ...]]] = {}
    named: dict[str, str] = {}
    for path in paths:
        stem = canonical(stem_of(path.name))
        if stem in by_stem:
            raise InputError(
                f"{folder} has {printable(by_stem[stem].name)} and {printable(path.name)}, one picture twice: move "
                "those of one kind to another folder."
            )
        by_stem[stem] = path
        pattern = _NUMBERS.sub("#", stem)
        found = tuple(int(number) for number in _NUMBERS.findall(stem))
        if found:
            numbers.setdefault(pattern, set()).add(found)
            named.setdefault(pattern, _NUMBERS.sub("#", path.name))
    patterns = sorted(numbers, key=lambda pattern: -len(numbers[pattern]))
    for number, pattern in enumerate(patterns):
        for other in patterns[number + 1 :]:
            both = numbers[pattern] & numbers[other]
            if len(both) > 1 and 2 * len(both) >= len(numbers[other]):
                raise InputError(
                    f"{folder} has two kinds of images, {printable(named[pattern])} and {printable(named[other])} (# is"
                    " a number), of the same frames: move those of one kind to another folder."
                )
