"""Gathers per-pair results for each frame, over its partners."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.types import MotionResidual


def mean_over_partners(
    residual: Float[Array, "E h w"], observed: Bool[Array, "E h w"], edges: Int[Array, "E 2"], num_frames: int
) -> MotionResidual:
    """Mean residual of each frame over the pairs in which it is the first.

    Args:
      residual: (E, h, w) float32 >= 0, of the tokens of frame i; arbitrary where not observed.
      observed: (E, h, w) bool, which of them count.
      edges: (E, 2) int.
      num_frames: T.
    """
    # A product and not a scattered sum, which is unordered on a GPU.
    of_frame = jax.nn.one_hot(edges[:, 0], num_frames, dtype=jnp.float32)
    values = jnp.where(observed, residual, 0.0)

    def gathered(x: Array) -> Array:
        return jnp.einsum("et,ehw->thw", of_frame, x, precision=jax.lax.Precision.HIGHEST)

    count = gathered(observed.astype(jnp.float32))
    return MotionResidual(value=gathered(values) / jnp.maximum(count, 1.0), observed=count > 0)
