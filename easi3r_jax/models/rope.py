"""Rotary position embedding in two dimensions (RoPE2D of CroCo v2, arXiv 2211.10408, with base 100)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.layers import at_least_float32


def rope_table(
    grid: tuple[int, int], head_dim: int, base: float
) -> tuple[Float[Array, "N 2 angles"], Float[Array, "N 2 angles"]]:
    """Cosines and sines of every token's rotation angles.

    The first half of a head's channels is rotated by the row, the second half by the column. Within a half of D
    channels, channels c and c + D/2 form a pair, rotated by position * base**(-2c/D).

    Args:
      grid: (h, w) tokens; token n is at row n // w, column n % w.
      head_dim: channels per head, a multiple of 4.
      base: base of the frequencies.

    Returns:
      cos, sin: (h*w, 2, head_dim/4) float32; the middle axis is (row, column).
    """
    half = head_dim // 2
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    positions = np.stack([rows, columns], axis=1)[:, :, None]
    frequencies = base ** (-np.arange(0, half, 2) / half)
    angles = (positions * frequencies).astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "*batch N A D"], table: tuple[Float[Array, "N 2 angles"], Float[Array, "N 2 angles"]]
) -> Float[Array, "*batch N A D"]:
    """Rotates queries or keys, (..., N, A, D), by the angles of `rope_table`, in float32 or wider; keeps the dtype."""
    dtype = at_least_float32(x.dtype)
    cos, sin = (t[:, None].astype(dtype) for t in table)  # (N, 1, 2, D/4): the same for every head
    pairs = x.astype(dtype).reshape(*x.shape[:-1], 2, 2, x.shape[-1] // 4)  # (row or column, first or second of a pair)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    cos, sin = (jnp.broadcast_to(t, first.shape) for t in (cos, sin))
    rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return rotated.reshape(x.shape).astype(x.dtype)
