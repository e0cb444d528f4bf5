"""Images, and lists of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.files.images import load_pixels, require_one_picture
from easi3r_jax.io.files.names import IMAGE_SUFFIXES, require_utf8
from easi3r_jax.io.video.clip import ASSUMED_RATE, ClipFrame, ClipReader
from easi3r_jax.io.video.heif import heif_picture, is_heif, is_sequence, read_heif
from easi3r_jax.io.video.profiles import in_srgb

_T = TypeVar("_T")

#: Suffixes of the images that are read.
SUFFIXES = IMAGE_SUFFIXES
# Pillow goes by a file's content, not its name, and runs external programs for some formats (Ghostscript for EPS).
_WIDTH, _LENGTH, _BITS = 256, 257, 258  # tags of a TIFF
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
        if isinstance(image, pathlib.Path):
            require_utf8(image)
            if not image.is_file():
                raise InputError(f"There is no image {image}: correct the list.")

    def frames() -> Generator[ClipFrame, None, None]:
        for index, image in enumerate(images):
            read = image.read if isinstance(image, StoredImage) else functools.partial(read_image, image)
            name = image.name if isinstance(image, pathlib.Path) else None
            yield ClipFrame(index, index / ASSUMED_RATE, str(image), read, name)

    return ClipReader(name, frames(), len(images), ASSUMED_RATE)


def is_image(path: pathlib.Path) -> bool:
    """Whether a file is an image that is read, whatever its name: not a video and not an animation.

    Files that cannot be read are not.
    """
    try:
        if is_heif(path):
            return not is_sequence(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large or oddly tagged images
            with Image.open(path, formats=_FORMATS) as image:
                is_clip = image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False)
                return not is_clip
    except Exception:  # on damaged bytes Pillow's readers raise almost anything
        return False


def read_image(path: pathlib.Path) -> Image.Image:
    """Reads an image as upright 8-bit sRGB: orientation and colour profile applied, alpha dropped, gray replicated.

    Raises:
      InputError: the file cannot be read or decoded, is too large or animated, or its channels are not 8 or 16 bit.
    """
    return decode_image(path, functools.partial(to_rgb, path=path), in_colors=True)


def image_shape(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) of the upright image, from the file's header.

    Raises:
      InputError: the file cannot be read or is not an image.
    """
    with reported(path):
        if is_heif(path):
            width, height = heif_picture(path).upright_size
            return height, width
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            tags: Any = getattr(image, "tag_v2", None)
            if tags is not None:  # from Pillow 12 on, a TIFF's size is the upright one already when it is opened
                width, height = tags[_WIDTH], tags[_LENGTH]
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (width, height) if is_turned else (height, width)


def decode_image(path: pathlib.Path, convert: Callable[[Image.Image], _T], *, in_colors: bool = False) -> _T:
    """Applies `convert` to the image of a file: upright, in the file's own mode, with its `format`.

    Args:
      path: the file.
      convert: function of the image.
      in_colors: colours are a picture's, and are converted to sRGB if the file has another profile.

    Raises:
      InputError: the file cannot be read, decoded or converted, is too large, or holds several pictures.
    """
    with reported(path):
        if is_heif(path):
            return convert(_decode_heif(path))
        with Image.open(path, formats=_FORMATS) as image:
            require_one_picture(image, path)
            load_pixels(image)
            form, tags = image.format, getattr(image, "tag_v2", {})
            if image.mode == "I" and image.format == "PPM":  # Pillow has stretched any range above 255 to 16 bits
                image = Image.fromarray(np.asarray(image).astype(np.uint16))
            elif image.mode == "I;16" and tags.get(_BITS) == (12,):
                image = Image.fromarray(np.asarray(image) << 4)
            profile = image.info.get("icc_profile")
            upright = (
                in_srgb(ImageOps.exif_transpose(image), profile, path) if in_colors else ImageOps.exif_transpose(image)
            )
            upright.format = form
            return convert(upright)


def _decode_heif(path: pathlib.Path) -> Image.Image:
    """The picture of a HEIC or AVIF file, upright."""
    if is_sequence(path):
        raise InputError(f"The image {path} is an animation: convert it to .mp4 or to a folder of images.")
    picture = heif_picture(path)
    if picture.num_pictures > 1:
        raise InputError(f"The image {path} has {picture.num_pictures} pictures: save each as a file of its own.")
    image = read_heif(path, picture)
    image.format = "HEIF"
    return image


@contextlib.contextmanager
def reported(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of reading an image into an InputError of one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large or oddly tagged images, which are read anyway
            yield
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
    elif image.mode in ("RGBa", "La"):  # colours multiplied by alpha
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    elif image.mode == "P":  # via RGBA, whose alpha is then dropped as always
        image = image.convert("RGBA")
    return image.convert("RGB")
