"""Optical flow between frames of any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.models.flow_layers import STRIDE

Array = jax.Array


def pad_images(rgb: Array, multiple: int = STRIDE) -> tuple[Array, tuple[int, int]]:
    """Repeats the edge pixels of images (B, H, W, C) until both sides are multiples.

    Returns:
      The larger images, and where the original ones begin in them (row, column): half of the padding is before, rounded
      down.
    """
    (top, bottom), (left, right) = (
        (missing // 2, missing - missing // 2) for missing in (-side % multiple for side in rgb.shape[1:3])
    )
    return jnp.pad(rgb, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="edge"), (top, left)
