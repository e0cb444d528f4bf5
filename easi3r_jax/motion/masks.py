"""Score maps to pixels, and pixel masks to tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.core.errors import InputError


def upsample(x: Float[Array, "T h w"], size: tuple[int, int]) -> Float[Array, "T H W"]:
    """Bilinear resampling with half-pixel centres, clamped at the border: (T, h, w) to (T, H, W).

    The output pixel y samples the input at (y + 1/2) · h / H - 1/2. Computed as two small matrix products, since
    gathers are slow on accelerators.
    """
    rows, columns = _interpolation(x.shape[-2], size[0]), _interpolation(x.shape[-1], size[1])
    x = jnp.einsum("thw,Ww->thW", x, columns, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("Hh,thW->tHW", rows, x, precision=jax.lax.Precision.HIGHEST)


def token_masks(masks: Bool[Array, "T H W"], patch_size: int) -> Bool[Array, "T N"]:
    """Max-pools pixel masks (T, H, W) to tokens, (T, N) bool: a token is dynamic if any of its pixels is.

    Raises:
      InputError: H or W is not a multiple of the patch size.
    """
    num_frames, height, width = masks.shape
    if height % patch_size or width % patch_size:
        raise InputError(
            f"Masks of {height}x{width} pixels do not divide into patches of {patch_size}: crop or resize them first."
        )
    patches = masks.reshape(num_frames, height // patch_size, patch_size, width // patch_size, patch_size)
    return jnp.any(patches, axis=(2, 4)).reshape(num_frames, -1)


def dilate(masks: Bool[Array, "T H W"], pixels: int) -> Bool[Array, "T H W"]:
    """Masks (T, H, W) bool, dilated by a square of side 2 `pixels` + 1."""
    side = 2 * pixels + 1
    return jax.lax.reduce_window(masks, False, jax.lax.bitwise_or, (1, side, side), (1, 1, 1), "SAME")


def _interpolation(old: int, new: int) -> Array:
    """(new, old) float32 matrix of bilinear weights, two per row (one where clamped)."""
    position = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0.0)
    low = position.astype(int)
    high = np.minimum(low + 1, old - 1)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), low), 1.0 - (position - low))
    np.add.at(weights, (np.arange(new), high), position - low)
    return jnp.asarray(weights, jnp.float32)
