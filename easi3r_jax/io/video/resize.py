"""The network's resize and crop (DUSt3R, arXiv 2312.14132; the released programs' sizes and filters).

The long side is resized to `size`, with Pillow's Lanczos filter when that shrinks the image and bicubic otherwise. Then
follows a centred crop to multiples of the patch, or (`crop=False`) a second resize to them, Lanczos. A square becomes
4:3 unless `square_ok`. The 224 checkpoints see the centred square of an image whose *short* side is 224.

With `fit="width"` (VGGT, arXiv 2503.11651) the width becomes `size` and the height the nearest multiple of the patch,
by Pillow's bicubic filter; of a taller image the `size` rows in the middle remain.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import ConfigError, InputError

#: Largest enlargement. Beyond it the network would see the filter rather than the image: a 1x1 image is a mistake.
MAX_ENLARGEMENT = 16


@dataclasses.dataclass(frozen=True)
class FrameGeometry:
    """How an image becomes a frame: resize, crop and, with `crop=False`, a second resize. Sizes are (width, height).

    Attributes:
      source: size of the upright original.
      resized: size after the first resize.
      box: (left, top, right, bottom) of the crop, in pixels of the resized image.
      size: size of the frame; it differs from the box's if the crop is stretched to multiples of the patch.
      bicubic: the filter of the first resize, also where it shrinks the image.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    bicubic: bool = False

    @property
    def frame_from_source(self) -> np.ndarray:
        """(3, 3) float64, maps homogeneous pixels of the original (integers at pixel centres) to those of the frame.

        A resize by s maps *edges* to edges, x_out = (x_in + 0.5) s - 0.5; the crop subtracts its corner.
        """
        matrix = np.eye(3)
        for axis in range(2):
            stretch = self.size[axis] / (self.box[axis + 2] - self.box[axis])
            scale = self.resized[axis] / self.source[axis] * stretch
            matrix[axis, axis] = scale
            matrix[axis, 2] = 0.5 * scale - self.box[axis] * stretch - 0.5
        return matrix


def frame_geometry(width: int, height: int, config: FrameConfig) -> FrameGeometry:
    """How an upright image of width x height pixels is resized and cropped for the network.

    Everything that must follow the frames (masks, depth, intrinsics) uses the same geometry. For a square with
    `crop=False` and without `square_ok`, where the published program fails, the 4:3 image is cropped and not squeezed:
    pixels stay square.

    Raises:
      ConfigError: a size or patch below 1, or a size below the patch.
      InputError: the image is too small or too narrow for a frame.
    """
    if not 1 <= config.patch_size <= config.size:
        raise ConfigError(f"The frames' size {config.size} must be at least one patch ({config.patch_size} pixels).")
    if width < 1 or height < 1:
        raise InputError(f"an image of {width}x{height} pixels is empty.")
    resized = _resized(width, height, config)
    enlargement = max(resized) / max(width, height)
    if enlargement > MAX_ENLARGEMENT:
        raise InputError(
            f"an image of {width}x{height} pixels is too small: it would be enlarged {enlargement:.0f} times "
            f"(at most {MAX_ENLARGEMENT}); take larger images or a smaller size than {config.size}."
        )
    target = _target(resized, config)
    if min(target) < 1:
        raise InputError(
            f"an image of {width}x{height} pixels becomes {resized[0]}x{resized[1]}, narrower than a patch of the "
            f"network ({config.patch_size} pixels): crop it to a less extreme shape."
        )
    fits_width = config.fit == "width"
    box = target if fits_width or config.crop or config.size == 224 else _stretched(resized, target, config)
    left, top = resized[0] // 2 - box[0] // 2, resized[1] // 2 - box[1] // 2
    return FrameGeometry((width, height), resized, (left, top, left + box[0], top + box[1]), target, fits_width)


def resize_image(image: Image.Image, geometry: FrameGeometry) -> Image.Image:
    """Resizes and crops an upright 8-bit image of the geometry's source size. For the filters see the module."""
    shrinks = max(geometry.resized) < max(geometry.source) and not geometry.bicubic
    resampling = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    return (
        image.resize(geometry.resized, resampling)
        .crop(geometry.box)
        .resize(geometry.size, Image.Resampling.LANCZOS)  # a copy if the size is the same
    )


def _resized(width: int, height: int, config: FrameConfig) -> tuple[int, int]:
    if config.fit == "width":
        size = _multiple(config.size, config.patch_size)
        return size, round(height * size / width / config.patch_size) * config.patch_size
    long_side = config.size
    if config.size == 224:  # this is the short side; the long side follows
        long_side = round(config.size * max(width / height, height / width))
    largest = max(width, height)
    # Python's round, half to even, as in the published program.
    return round(width * long_side / largest), round(height * long_side / largest)


def _target(resized: tuple[int, int], config: FrameConfig) -> tuple[int, int]:
    width, height = (_multiple(side, config.patch_size) for side in resized)
    if config.fit == "width":
        return width, min(width, height)
    if config.size == 224:
        return min(width, height), min(width, height)
    if resized[0] == resized[1] and not config.square_ok:
        return width, _multiple(3 * width // 4, config.patch_size)
    return width, height


def _multiple(side: int, patch_size: int) -> int:
    return side // patch_size * patch_size


def _stretched(resized: tuple[int, int], target: tuple[int, int], config: FrameConfig) -> tuple[int, int]:
    """The size that is stretched to the target with `crop=False`: the whole image, or the 4:3 part of a square."""
    if resized[0] != resized[1] or config.square_ok:
        return resized
    return resized[0], math.ceil(resized[0] * target[1] / target[0])
