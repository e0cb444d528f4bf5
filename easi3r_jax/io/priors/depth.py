"""A user's depth of some frames, in metres: from a sensor, or of another program.

whole numbers   (.png, .tif, .npy) millimetres; with a `scale.txt` beside them (as in a result's `depth/`), metres are
                value * its first number. 0, and the largest value of 16 bits: unknown
real numbers    (.tif, .npy) metres; not finite or not positive: unknown

A `scale.txt` that says "world units" is of a result that is not in metres, and is refused.
"""

from __future__ import annotations

import functools
import os
import pathlib

import numpy as np
from PIL import Image

from easi3r_jax.core.arrays import Float
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.types import Frames
from easi3r_jax.io.files.arrays import reported
from easi3r_jax.io.files.names import natural_order, stem_of
from easi3r_jax.io.priors.files import lines_of_numbers, read_text
from easi3r_jax.io.priors.matching import NONE, SourceFrames, by_name
from easi3r_jax.io.video.images import decode_image

_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
_MILLIMETRE = 0.001
# Largest relative difference between the aspect ratios of a depth map and of the original images.
_ASPECT_TOLERANCE = 0.02


def load_depth(folder: str | os.PathLike, frames: Frames) -> Float[np.ndarray, "T H W"]:
    """Reads a folder of depth maps of some or all frames, sampled and cropped like the frames.

    Files belong to frames by name, or by the number at the end of the name, or by order (`matching.by_name`). A map may
    have any size with the shape of the original images, or the size of the frames; each pixel takes the nearest value.

    Args:
      folder: of depth maps; see the module for the formats.
      frames: the clip.

    Returns:
      (T, H, W) float32, z in metres; NaN where it is unknown.

    Raises:
      InputError: no such folder, no depth maps, a file that cannot be read or has another shape, or maps of other
        frames.
    """
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: give a folder of depth maps.")
    paths = natural_order(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise InputError(f"No depth maps in {folder}: give files of {', '.join(_SUFFIXES)}.")
    scale = _scale(folder)
    source = SourceFrames.of(frames, stopped_early=True)
    if frames.names is not None and {stem_of(name) for name in frames.names} & {path.stem for path in paths}:
        source = SourceFrames(np.arange(len(frames.names)), source.time, True, frames.names)
    chosen = by_name([path.stem for path in paths], source, f"{folder}: depth")
    count, height, width = frames.rgb.shape[:3]
    depth = np.full((count, height, width), np.nan, np.float32)
    for number, entry in enumerate(chosen):
        if entry != NONE:
            depth[number] = _on_frame(_read(paths[entry], scale), frames, paths[entry])
    if (chosen == NONE).all():
        raise InputError(f"{folder}: depth of other frames than the clip's: name the files like its images.")
    return depth


def _scale(folder: pathlib.Path) -> float:
    path = folder / "scale.txt"
    if not path.is_file():
        return _MILLIMETRE
    text = read_text(path)
    if "world units" in text:
        raise InputError(
            f"{path} says world units: this depth is of a result that is not in metres. Give depth in metres."
        )
    for label, values in lines_of_numbers(text, path):
        if values[0] > 0:
            return values[0]
        raise InputError(f"{label}: the scale must be positive: metres per whole number of the files.")
    raise InputError(f"{path} has no number: write the metres per whole number of the files.")


def _read(path: pathlib.Path, scale: float) -> np.ndarray:
    """(h, w) float32 metres, NaN where unknown."""
    if path.suffix.lower() == ".npy":
        with reported(path):
            depth = np.load(path, allow_pickle=False)
        if depth.dtype.kind not in "fiu":
            raise InputError(f"{path} holds {depth.dtype}, not depth: save it as float32.")
        if depth.dtype.kind != "f":
            depth = _metres(depth, scale)
    else:
        depth = decode_image(path, functools.partial(_values, path=path, scale=scale))
    depth = np.squeeze(depth)
    if depth.ndim != 2:
        raise InputError(f"{path} has shape {depth.shape}: one depth map of height x width is needed.")
    depth = depth.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))


def _values(image: Image.Image, path: pathlib.Path, scale: float) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "F":
        return values
    if not image.mode.startswith("I"):
        raise InputError(f"{path} has pixels of mode {image.mode}, not depth: save it with 16 bits.")
    return _metres(values, scale)


def _metres(values: np.ndarray, scale: float) -> np.ndarray:
    return np.where(values == 65535, 0, values) * scale


def _on_frame(depth: np.ndarray, frames: Frames, path: pathlib.Path) -> np.ndarray:
    size = (int(frames.rgb.shape[1]), int(frames.rgb.shape[2]))
    if depth.shape == size:  # of the frames, which have no distortion, even if the originals have this size (as masks)
        return depth
    if frames.lens is not None:
        depth = frames.lens.undistort(depth, nearest=True)
    height, width = frames.original_size
    scale_y, scale_x = height / depth.shape[0], width / depth.shape[1]
    if abs(scale_y / scale_x - 1) > _ASPECT_TOLERANCE:
        raise InputError(
            f"The depth map {path} is {depth.shape[1]}x{depth.shape[0]} pixels, of another shape than the video "
            f"({width}x{height}) and its frames ({size[1]}x{size[0]}): crop it as the video."
        )
    # Edges to edges.
    source_from_depth = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])
    return resample_nearest(depth[None], np.asarray(frames.frame_from_source) @ source_from_depth, size)[0]
