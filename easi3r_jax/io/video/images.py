"""Folders and lists of images."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video.clip import ASSUMED_RATE, ClipFrame, ClipReader

_T = TypeVar("_T")
_Path = TypeVar("_Path", bound=pathlib.PurePath)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
# Pillow goes by a file's content, not its name, and runs external programs for some formats (Ghostscript for EPS).
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image stored within a file, for example in an archive of arrays.

    Attributes:
      name: for messages.
      shape: (height, width).
      read: returns the image as 8-bit RGB; raises InputError if it cannot be read.
    """

    name: str
    shape: tuple[int, int]
    read: Callable[[], Image.Image]

    def __str__(self) -> str:
        return self.name


def open_images(images: Sequence[pathlib.Path | StoredImage], name: str) -> ClipReader:
    """A clip of images, in the given order."""
    if not images:
        raise InputError("The list of images is empty: give at least one.")
    for image in images:  # now, and not after an hour of work
        if isinstance(image, pathlib.Path) and not image.is_file():
            raise InputError(f"There is no image {image}: correct the list.")

    def frames() -> Generator[ClipFrame, None, None]:
        for index, image in enumerate(images):
            read = image.read if isinstance(image, StoredImage) else functools.partial(read_image, image)
            name = image.name if isinstance(image, pathlib.Path) else None
            yield ClipFrame(index, index / ASSUMED_RATE, str(image), read, name)

    return ClipReader(name, frames(), len(images), ASSUMED_RATE)


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images of a folder, sorted by `in_order`; hidden files, subfolders and other files are skipped.

    Raises:
      InputError: the folder cannot be read or has no image.
    """
    try:
        entries = [p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file()]
    except OSError as error:
        raise InputError(f"Cannot read the folder {folder}: {error.strerror}.") from error
    paths = [p for p in entries if p.suffix.lower() in SUFFIXES]
    if not paths:
        found = f"its {len(entries)} files have other suffixes" if entries else "it has no files"
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise InputError(f"No images in {folder}: {found}. Give a folder of {kinds}, or a video file.")
    return in_order(paths)


def in_order(paths: Iterable[_Path]) -> list[_Path]:
    """Sorts files by name.

    Names that differ only in a number at the end (1.png, 2.png, 10.png or frame_1.png, ...) are sorted by that number,
    padded with zeros or not. Other names are sorted as text, as in the published programs.
    """
    ordered = sorted(paths, key=lambda p: p.name)
    numbered = [match for p in ordered if (match := re.fullmatch(r"(.*?)(\d+)", p.stem, re.ASCII | re.DOTALL))]
    if len(numbered) == len(ordered) and len({match[1] for match in numbered}) == 1:
        numbers = {p: int(match[2]) for p, match in zip(ordered, numbered, strict=True)}
        ordered.sort(key=numbers.__getitem__)
    return ordered


def read_image(path: pathlib.Path) -> Image.Image:
    """Reads an image as upright 8-bit RGB: EXIF orientation applied, alpha dropped, gray replicated.

    Raises:
      InputError: the file cannot be read or decoded, is too large or animated, or its channels are not 8 or 16 bit.
    """
    return decode_image(path, functools.partial(to_rgb, path=path))


def image_shape(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) of the upright image, from the file's header.

    Raises:
      InputError: the file cannot be read or is not an image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=_FORMATS) as image:
            warnings.simplefilter("ignore")
            width, height = image.size
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception as error:  # as in `decode_image`
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read the image {path}: {reason}. Replace it or remove it.") from error
    return (width, height) if is_turned else (height, width)


def decode_image(path: pathlib.Path, convert: Callable[[Image.Image], _T]) -> _T:
    """Applies `convert` to the image of a file: upright, in the file's own mode.

    Raises:
      InputError: the file cannot be read, decoded or converted, or is too large or animated.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=_FORMATS) as image:
            warnings.simplefilter("ignore")  # about large or oddly tagged images, which are read anyway
            if image.format in ("WEBP", "PNG", "GIF") and getattr(image, "is_animated", False):
                raise InputError(f"The image {path} is an animation: convert it to .mp4 or to a folder of images.")
            image.load()
            return convert(ImageOps.exif_transpose(image))
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"The image {path} is too large to be read safely: shrink it. ({error})") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read the image {path}: {reason}. Replace it or remove it.") from error


def to_rgb(image: Image.Image, path: pathlib.Path) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB.

    Raises:
      InputError: the range of the pixel values is unknown; `path` is for the message.
    """
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255: it is all white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(
            f"The image {path} has pixels of mode {image.mode}, of unknown range: save it with 8 bits per channel."
        )
    elif image.mode == "P":  # via RGBA, whose alpha is then dropped as always
        image = image.convert("RGBA")
    return image.convert("RGB")
