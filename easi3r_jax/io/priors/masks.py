"""A user's masks of dynamic regions."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from easi3r_jax.core.arrays import Bool
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.types import Frames
from easi3r_jax.io.priors.matching import SourceFrames, by_count
from easi3r_jax.io.video.images import decode_image, list_images, to_rgb

# Gray images whose brightest value in the whole clip is at most this were meant as object numbers.
_MAX_LABEL = 15


def load_masks(
    folder: str | os.PathLike, frames: Frames, stopped_early: bool = False, source_names: Sequence[str] = ()
) -> Bool[np.ndarray, "T H W"]:
    """Reads a folder of mask images, and selects, scales and crops them like the frames.

    There is one image per frame of the source, in natural order (`files.names.natural_order`), or one per frame of the
    clip. Images have the size of the original images, and are then sampled at the pixel nearest to each of
    the frame's; or they have the size of the frames. Bright pixels are dynamic: red, green or blue above half of its
    range (above 127 of 255). In palette images every index except 0 is dynamic, as in DAVIS. Alpha is ignored.

    Args:
      folder: of PNGs, or of other images that Pillow reads.
      frames: the clip.
      stopped_early: reading the source stopped before its end (`FrameConfig.first`): it may have any number of frames.
      source_names: file names of all images of the source, if it is a folder; they give its number of frames.

    Returns:
      (T, H, W) bool, True at dynamic pixels.

    Raises:
      InputError: the folder does not exist, an image cannot be read, the number or the size of the images is wrong, a
        palette has a bright index 0, or all gray values are 0 to 15, which would mark nothing.
    """
    folder = pathlib.Path(folder).expanduser()
    paths = list_images(folder, name_others=True)
    chosen = by_count(len(paths), SourceFrames.of(frames, stopped_early, source_names), f"{folder}: masks")
    own_size = (int(frames.rgb.shape[1]), int(frames.rgb.shape[2]))
    source_size = frames.original_size
    masks = np.empty((len(chosen), *own_size), bool)
    brightest = 0
    for mask, entry in zip(masks, chosen, strict=True):
        path = paths[entry]
        moving, level = decode_image(path, functools.partial(_moving, path=path))
        brightest = max(brightest, level)
        if moving.shape == source_size:
            mask[:] = resample_nearest(moving[None], np.asarray(frames.frame_from_source), own_size)[0]
        elif moving.shape == own_size:
            mask[:] = moving
        else:
            raise InputError(
                f"The mask {path} is {_size(moving.shape)} pixels, the video {_size(source_size)} and its frames "
                f"{_size(own_size)}: resize it to one of these sizes."
            )
    if 0 < brightest <= _MAX_LABEL and not masks.any():
        raise InputError(
            f"{folder}: no mask is brighter than {brightest}, so no pixel would be dynamic: save dynamic pixels as "
            "255, or object numbers with a palette."
        )
    return masks


def _moving(image: Image.Image, path: pathlib.Path) -> tuple[np.ndarray, int]:
    """(H, W) bool, and the brightest value (0 for a palette, whose values are not brightnesses)."""
    if image.mode == "P":
        if max((image.getpalette() or [0])[:3]) > 127:  # a black-and-white image that a program saved with a palette
            raise InputError(
                f"The mask {path} has a palette whose index 0, the background, is bright: save it as a gray image."
            )
        return np.asarray(image) != 0, 0
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        return values > 32767, int(values.max())
    values = np.asarray(to_rgb(image, path)).max(axis=-1)
    return values > 127, int(values.max())


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
