"""Images that store numbers, for example depth; and whether a file holds one picture."""

from __future__ import annotations

import os
import pathlib
import re
import warnings
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from easi3r_jax.core.errors import InputError


def read_gray16(path: pathlib.Path) -> np.ndarray:
    """Reads the values of a 16-bit gray image, in which depth is often stored.

    Returns:
      (H, W) int32 or uint16.

    Raises:
      InputError: the file is missing or damaged, or is another kind of image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # about large images: their size is compared with the frame's later
            require_one_picture(image, path)
            load_pixels(image)
            mode, values = image.mode, np.asarray(image)
            if image.format == "PPM" and mode == "I":
                values = _unscaled(values, path)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"No file {path}: restore it, or remove the sequence.") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read {path}: {reason}. Restore it, or remove the sequence.") from error
    if mode != "I" and not mode.startswith("I;16"):
        raise InputError(f"{path} has pixels of mode {mode}, but a 16-bit gray image is needed: restore it.")
    return values


def load_pixels(image: ImageFile.ImageFile) -> None:
    """Decodes an open image. Pillow maps the pixels of plain TIFFs into memory, and then gets their orientation wrong.

    Args:
      image: as Pillow opened it.
    """
    if image.format == "TIFF":
        image.filename = ""  # without a name they are not mapped
    image.load()


def require_one_picture(image: Image.Image, path: pathlib.Path) -> None:
    """Raises InputError if an open file holds several pictures, of which viewers show all or let one choose.

    Previews do not count: pages that a TIFF marks as reduced or as masks, and what cameras put behind a JPEG.

    Args:
      image: as Pillow opened it, nothing decoded yet.
      path: of the file, for the message.
    """
    if image.format in ("WEBP", "PNG", "GIF", "AVIF") and getattr(image, "is_animated", False):
        raise InputError(f"The image {path} is an animation: convert it to .mp4 or to a folder of images.")
    count = _pages(image) if image.format == "TIFF" else _concatenated(path) if image.format == "PPM" else 1
    if count > 1:
        raise InputError(f"The image {path} has {count} pictures: save each as a file of its own.")


_SUBFILE, _OLD_SUBFILE = 254, 255  # tags of a TIFF page: what it is to the others
_REDUCED, _MASK = 1, 4


def _pages(image: Image.Image) -> int:
    """Number of full pages of a TIFF. The first one is left open."""
    pages: Any = image
    count = 0
    for page in range(getattr(pages, "n_frames", 1)):
        pages.seek(page)
        kind = pages.tag_v2.get(_SUBFILE, 0)
        count += not (kind & (_REDUCED | _MASK) or pages.tag_v2.get(_OLD_SUBFILE) == 2)
    pages.seek(0)
    return count


def _concatenated(path: pathlib.Path) -> int:
    """Number of pictures in a binary PGM or PPM, which may follow each other; 1 if only one, or in another form."""
    size, count = path.stat().st_size, 0
    with path.open("rb") as file:
        while (header := _pnm_header(file)) is not None:
            count += 1
            if header.length is None or file.tell() + header.length >= size:
                break
            file.seek(header.length, os.SEEK_CUR)
    return max(count, 1)


class _PnmHeader(NamedTuple):
    maximum: int
    length: int | None  # bytes of the pixels; None in the text forms


def _pnm_header(file: BinaryIO) -> _PnmHeader | None:
    """Reads a header, and leaves the file at the pixels; None if there is none."""
    begin = file.tell()
    head = file.read(1 << 12)
    kind = re.match(rb"\s*(P[1-6])\s", head)
    if kind is None:
        return None
    numbers, position = [], kind.end()
    while len(numbers) < (2 if kind[1] in (b"P1", b"P4") else 3):
        word = re.compile(rb"(?:\s+|#[^\n]*\n)*(\d+)\s").match(head, position)
        if word is None:
            return None
        numbers.append(int(word[1]))
        position = word.end()
    file.seek(begin + position)
    width, height, maximum = (*numbers, 1)[:3]
    depth = 1 if maximum < 256 else 2
    lengths = {b"P4": (width + 7) // 8 * height, b"P5": width * height * depth, b"P6": width * height * 3 * depth}
    return _PnmHeader(maximum, lengths.get(kind[1]))


def _unscaled(values: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Pillow stretches values up to a file's maximum, for example 4095, to 65535: here they are as stored."""
    with path.open("rb") as file:
        header = _pnm_header(file)
    if header is None or not 255 < header.maximum <= 65535:
        raise ValueError("its header is damaged")
    return np.rint(values * (header.maximum / 65535)).astype(np.int32)
