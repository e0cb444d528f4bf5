"""A user's masks of what moves."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.types import Frames
from easi3r_jax.io.priors.matching import Source, by_count
from easi3r_jax.io.video.images import decode_image, list_images, to_rgb

# Gray images whose brightest value in the whole clip is no more were meant as numbers of objects.
_MOST_LABELS = 15


def load_masks(
    folder: str | os.PathLike, frames: Frames, stopped_early: bool = False, source_names: Sequence[str] = ()
) -> np.ndarray:
    """Reads a folder of images that say what moves, and brings them to the frames: their choice, scaling and crop.

    One image for each frame of the source, in the order of a folder of frames (`video.images.in_order`), or one for
    each frame of the clip. They have the size of the original images, which are then sampled at the nearest pixel to
    each of the frame's, or the frames' own. What is bright moves: any of red, green and blue above half of its range
    (above 127 of 255). In images with a palette, everything but index 0 moves, as in DAVIS. Alpha does not count.

    Args:
      folder: of PNGs, or of other images that Pillow reads.
      frames: the clip.
      stopped_early: reading the source stopped before its end (`FrameConfig.first`): it may have any number of frames.
      source_names: file names of all the source's images, if it is a folder: so many frames the source has.

    Returns:
      (T, H, W) bool, True where the frame moves.

    Raises:
      InputError: no such folder, an image that cannot be read, another number of images, another size, a palette whose
        index 0 is bright, or gray values that are all 0 to 15 and so mark nothing.
    """
    folder = pathlib.Path(folder).expanduser()
    paths = list_images(folder)
    chosen = by_count(len(paths), Source.of(frames, stopped_early, source_names), f"{folder}: masks")
    own_size = (int(frames.rgb.shape[1]), int(frames.rgb.shape[2]))
    source_size = tuple(int(side) for side in frames.source_size)
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
                f"{_size(own_size)}: bring it to one of these sizes."
            )
    if 0 < brightest <= _MOST_LABELS and not masks.any():
        raise InputError(
            f"{folder}: no mask is brighter than {brightest}, so nothing would move: save what moves as 255, or "
            "numbers of objects with a palette."
        )
    return masks


def _moving(image: Image.Image, path: pathlib.Path) -> tuple[np.ndarray, int]:
    """(H, W) bool, and the brightest value (0 where values are no brightness)."""
    if image.mode == "P":
        if max((image.getpalette() or [0])[:3]) > 127:  # a picture in black and white that some program has packed
            raise InputError(
                f"The mask {path} has a palette whose index 0, the background's, is bright: save it as a gray image."
            )
        return np.asarray(image) != 0, 0
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        return values > 32767, int(values.max())
    values = np.asarray(to_rgb(image, path)).max(axis=-1)
    return values > 127, int(values.max())


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
