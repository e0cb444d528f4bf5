"""Unordered images for a multi-view network, as VGGT's released program takes them (arXiv 2503.11651).

Clips go through `load_frames`; this is for a few images of any sizes, with transparency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from easi3r_jax.core.arrays import UInt8
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video.resize import frame_geometry, resize_image

_WHITE = 255


def multiview_images(
    images: Sequence[Image.Image], config: FrameConfig, mode: Literal["crop", "pad"] = "crop"
) -> UInt8[np.ndarray, "T H W 3"]:
    """Resized images of one size, (T, H, W, 3) uint8. Transparent parts become white.

    Args:
      images: upright images.
      config: `size` and `patch_size`.
      mode: "crop": as `FrameConfig(fit="width")`. "pad": the longer side becomes `size`, the other one a multiple of
        the patch, then white padding on both sides to a square. Smaller results are padded to the largest ones' size.

    Raises:
      InputError: no images, or one that is too small or too narrow.
    """
    if not images:
        raise InputError("There are no images.")
    cropped = dataclasses.replace(config, fit="width")
    resized = [_on_white(image) for image in images]
    if mode == "crop":
        resized = [resize_image(image, frame_geometry(*image.size, cropped)) for image in resized]
    else:
        resized = [_squared(image, config) for image in resized]
    size = max(image.width for image in resized), max(image.height for image in resized)
    return np.stack([_padded(np.asarray(image), size) for image in resized])


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (_WHITE,) * 4)
    return Image.alpha_composite(white, image).convert("RGB")


def _squared(image: Image.Image, config: FrameConfig) -> Image.Image:
    size, patch = config.size, config.patch_size
    other = round(min(image.size) * size / max(image.size) / patch) * patch
    if other < 1:
        raise InputError(f"an image of {image.width}x{image.height} pixels is narrower than a patch of the network.")
    resized = (size, other) if image.width >= image.height else (other, size)
    small = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
    return Image.fromarray(_padded(small, (size, size)))


def _padded(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """White on both sides of an image (h, w, 3), to (width, height)."""
    rows, columns = size[1] - image.shape[0], size[0] - image.shape[1]
    sides = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.pad(image, sides, constant_values=_WHITE)
