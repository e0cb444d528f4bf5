"""A user's masks of dynamic regions.

What a pixel value means depends on the format, and is decided for all masks of a clip together:

    palette          every index except 0 is dynamic, as in DAVIS
    alpha            if some pixels of a clip's masks are transparent and others are not, opaque pixels (alpha above
                     half) are dynamic, whatever their colour
    black and white  white is dynamic
    gray, RGB        of 8 or 16 bits, RGB by the brightest of its channels: above half of the range is dynamic. But
                     numbers or colours of objects are flat regions of values up to half of the range: then every value
                     except 0 is dynamic.
    float            from 0 to 1: above 0.5 is dynamic
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import absl.logging
import numpy as np
from PIL import Image

from easi3r_jax.core.arrays import Bool
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.types import Frames
from easi3r_jax.io.priors.matching import SourceFrames, by_count
from easi3r_jax.io.video.images import decode_image, list_images, to_rgb

# Part of the dark pixels (above 0, up to half of the range) that have four neighbours of the same value: numbers of
# objects are flat regions, edges that were smoothed and heat maps are not.
_MIN_FLAT = 0.2
# Formats that change values a little.
_LOSSY = frozenset({"JPEG", "MPO", "WEBP", "HEIF"})
# Part of all pixels above which masks may be inverted.
_MANY = 0.75


def load_masks(
    folder: str | os.PathLike,
    frames: Frames,
    stopped_early: bool = False,
    source_names: Sequence[str] = (),
    *,
    marked: str = "as dynamic",
) -> Bool[np.ndarray, "T H W"]:
    """Reads a folder of mask images, and selects, scales and crops them like the frames.

    There is one image per frame of the source, in natural order (`files.names.natural_order`), or one per frame of the
    clip. Images have the size of the original images, and are then sampled at the pixel nearest to each of the frame's;
    or they have the size of the frames. What their pixels mean: see the module. If no mask marks anything, or all mark
    everything, or they mark most pixels, one line says so.

    Args:
      folder: of PNGs, or of other images that are read as frames are.
      frames: the clip. If its originals have a lens's distortion, masks of their size have it, too.
      stopped_early: reading the source stopped before its end (`FrameConfig.first`): it may have any number of frames.
      source_names: file names of all images of the source, if it is a folder; they give its number of frames.
      marked: what marked pixels are, for messages.

    Returns:
      (T, H, W) bool, True at dynamic pixels.

    Raises:
      InputError: the folder does not exist, an image cannot be read, the number or the size of the images is wrong, or
        it cannot be told what the values mean.
    """
    folder = pathlib.Path(folder).expanduser()
    paths = list_images(folder, name_others=True)
    chosen = by_count(len(paths), SourceFrames.of(frames, stopped_early, source_names), f"{folder}: masks")
    own_size = (int(frames.rgb.shape[1]), int(frames.rgb.shape[2]))
    source_size = frames.original_size
    readings = {name: np.empty((len(chosen), *own_size), bool) for name in ("bright", "nonzero", "opaque")}
    found = []
    for number, entry in enumerate(chosen):
        path = paths[entry]
        mask = decode_image(path, functools.partial(_read, path=path))
        if mask.bright.shape not in (source_size, own_size):
            raise InputError(
                f"The mask {path} is {_size(mask.bright.shape)} pixels, the video {_size(source_size)} and its frames "
                f"{_size(own_size)}: resize it to one of these sizes."
            )
        for name, reading in readings.items():
            values = getattr(mask, name)
            if frames.lens is not None and values.shape == source_size:
                values = frames.lens.undistort(values, nearest=True)
            if values.shape != own_size:
                values = resample_nearest(values[None], np.asarray(frames.frame_from_source), own_size)[0]
            reading[number] = values
        found.append(mask.statistics)
    masks = readings[_meaning(found, folder)]
    _say_if_suspicious(masks, folder, marked)
    return masks


@dataclasses.dataclass(frozen=True)
class _Statistics:
    """What one mask's values tell about their meaning.

    Attributes:
      is_lossy: the format changes values a little (JPEG).
      transparent, opaque: number of pixels with alpha up to half, and above.
      black, white: number of the opaque pixels with value 0, and with the largest of the range.
      dark, flat: number of pixels above 0 and up to half of the range; those of them in flat regions.
      zeros: number of pixels of value 0.
      brightest: the largest value, relative to the range.
    """

    is_lossy: bool = False
    transparent: int = 0
    opaque: int = 0
    black: int = 0
    white: int = 0
    dark: int = 0
    flat: int = 0
    zeros: int = 0
    brightest: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Mask:
    """The three readings of one mask, (h, w) bool each."""

    bright: np.ndarray
    nonzero: np.ndarray
    opaque: np.ndarray
    statistics: _Statistics


def _read(image: Image.Image, path: pathlib.Path) -> _Mask:
    if image.mode in ("P", "PA"):
        opaque = np.asarray(image.convert("RGBA"))[..., 3] > 127
        indices = np.asarray(image) if image.mode == "P" else np.asarray(image)[..., 0]
        if opaque.all():
            _check_palette(image.getpalette() or [0, 0, 0], indices, path)
        moving = indices != 0
        transparent = int((~opaque).sum())
        return _Mask(moving, moving, opaque, _Statistics(transparent=transparent, opaque=moving.size - transparent))
    if image.mode in ("RGBa", "La"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    opaque = np.asarray(image)[..., -1] > 127 if image.mode in ("RGBA", "LA") else np.ones(image.size[::-1], bool)
    values, largest = _values(image, path)
    bright, nonzero = values > largest / 2, values > 0
    dark = nonzero & ~bright
    inner = np.zeros_like(dark)
    same = [values[1:-1, 1:-1] == near for near in (values[2:, 1:-1], values[:-2, 1:-1], values[1:-1, 2:])]
    inner[1:-1, 1:-1] = np.logical_and.reduce([*same, values[1:-1, 1:-1] == values[1:-1, :-2]])
    return _Mask(
        bright,
        nonzero,
        opaque,
        _Statistics(
            is_lossy=image.format in _LOSSY,
            transparent=int((~opaque).sum()),
            opaque=int(opaque.sum()),
            black=int((opaque & ~nonzero).sum()),
            white=int((opaque & (values == largest)).sum()),
            dark=int(dark.sum()),
            flat=int((dark & inner).sum()),
            zeros=int((~nonzero).sum()),
            brightest=float(values.max()) / largest,
        ),
    )


def _values(image: Image.Image, path: pathlib.Path) -> tuple[np.ndarray, float]:
    """(h, w) values, of a colour the brightest channel, and the largest value of their range."""
    if image.mode.startswith("I;16"):
        return np.asarray(image), 65535
    if image.mode == "I":  # numbers of objects, in 32 bits: their range is unknown
        return np.asarray(image), 2.0**31 - 1
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise InputError(f"The mask {path} has real values that are not from 0 to 1: save it with 8 bits.")
        return values, 1.0
    return np.asarray(to_rgb(image, path)).max(axis=-1), 255


def _check_palette(palette: Sequence[int], indices: np.ndarray, path: pathlib.Path) -> None:
    """Raises InputError for a palette whose index 0 is not the background."""
    colors = np.array(palette).reshape(-1, 3)
    used = np.unique(indices)
    used = used[used < len(colors)]
    is_bright = colors[0].max() > 127  # a black-and-white image that a program saved with a palette
    is_sorted_otherwise = colors[0].any() and (colors[used] == 0).all(axis=1).any()
    if is_bright or is_sorted_otherwise:
        raise InputError(
            f"The mask {path} has a palette whose index 0, the background, is {'bright' if is_bright else 'not black'}:"
            " save it as a gray image."
        )


def _meaning(masks: Sequence[_Statistics], folder: pathlib.Path) -> str:
    """The reading that applies to a clip's masks.

    Raises:
      InputError: the values may mean one thing or another.
    """

    def total(name: str) -> int:
        return sum(getattr(mask, name) for mask in masks)

    if total("transparent") and total("opaque"):
        if total("black") and total("white") and total("black") + total("white") == total("opaque"):
            raise InputError(f"{folder}: the masks are black and white and also transparent: save them without alpha.")
        return "opaque"
    dark, flat, zeros = total("dark"), total("flat"), total("zeros")
    brightest = max(mask.brightest for mask in masks)
    is_lossy = any(mask.is_lossy for mask in masks)
    if not dark:
        return "bright"
    has_objects = flat >= _MIN_FLAT * dark and not is_lossy
    if has_objects and brightest < 1:
        if zeros:
            return "nonzero"
        raise InputError(f"{folder}: no pixel of any mask is 0: save static pixels as 0, dynamic ones as 255.")
    if has_objects:
        raise InputError(
            f"{folder}: the masks have numbers or colours of objects, and also white, which may be to ignore: save "
            "dynamic pixels as 255 and the others as 0, or object numbers with a palette."
        )
    if brightest <= 0.5:
        raise InputError(
            f"{folder}: no mask is brighter than half of the range, so no pixel would be dynamic: save dynamic pixels "
            "as 255, or object numbers with a palette."
        )
    return "bright"


def _say_if_suspicious(masks: np.ndarray, folder: pathlib.Path, marked: str) -> None:
    """One line on masks that mark nothing, everything, or nearly everything."""
    share = masks.mean(axis=(1, 2))
    if not share.any():
        absl.logging.warning("%s: all %d masks are empty: no pixel is marked %s.", folder, len(masks), marked)
    elif ((share == 0) | (share == 1)).all():
        full = int((share == 1).sum())
        absl.logging.warning("%s: %d of %d masks mark every pixel, the others none.", folder, full, len(masks))
    elif masks.mean() > _MANY:
        absl.logging.warning(
            "%s: the masks mark %.0f%% of all pixels %s; are they inverted?", folder, 100 * masks.mean(), marked
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
