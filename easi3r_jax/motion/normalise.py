"""Min-max normalisation, shared by all steps of the motion stage."""

from __future__ import annotations

import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float

#: Added to the range, as in the released program: a constant map becomes all zeros and never NaN.
EPSILON = 1e-6


def min_max(
    x: Float[Array, "*shape"],
    axis: int | tuple[int, ...] | None = None,
    where: Bool[Array, "*#shape"] | None = None,
) -> Float[Array, "*shape"]:
    """(x - min) / (max - min + 1e-6) over `axis` (all axes by default).

    Args:
      x: (...) float32.
      axis: axes that share one minimum and maximum.
      where: bool, with as many axes as `x`: only these entries count for the extremes, the others become 0.

    Returns:
      As `x`, in [0, 1); all 0 if no entry counts.
    """
    if where is None:
        low, high = jnp.min(x, axis, keepdims=True), jnp.max(x, axis, keepdims=True)
        return (x - low) / (high - low + EPSILON)
    low = jnp.min(x, axis, keepdims=True, where=where, initial=jnp.inf)
    high = jnp.max(x, axis, keepdims=True, where=where, initial=-jnp.inf)
    some = high >= low
    low, high = jnp.where(some, low, 0.0), jnp.where(some, high, 0.0)
    return jnp.where(where, (x - low) / (high - low + EPSILON), 0.0)
