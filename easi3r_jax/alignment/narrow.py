"""Observations stored in half precision and read slice by slice.

XLA's CPU compiler converts a whole bfloat16 array to float32 before a loop that reads slices of it: three times the
memory instead of half. So bfloat16 arrays are passed into loops as bits.

Observations in half precision have no derivative: see `forbid_half_gradient`.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from easi3r_jax.alignment.derivatives import without_derivative
from easi3r_jax.core.arrays import Array, Float, Real, Shaped

_T = TypeVar("_T")


def in_bits(tree: _T) -> _T:
    """Reinterprets bfloat16 arrays as uint16 bits; leaves others unchanged. Derivatives: see `forbid_half_gradient`."""

    def one(x: Array) -> Array:
        x = forbid_half_gradient(x)
        return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x

    return jax.tree.map(one, tree)


def forbid_half_gradient(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """`x`; differentiating with respect to it in half precision raises a `GradientError`.

    A gradient has the dtype of its argument. The gradient of a mean over all pixels of all pairs underflows in float16,
    and bfloat16 is stored as integers, which have none: both would silently be 0.
    """
    if x.dtype.itemsize >= 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return without_derivative(
        x,
        f"Predictions in {x.dtype} have no gradient: it would round to 0. Keep them in float32 to differentiate.",
    )


def widened(x: Real[Array, "*shape"], dtype: jnp.dtype | type) -> Float[Array, "*shape"]:
    """Converts the output of `in_bits`, or floats of any width, to the dtype used for computation."""
    if x.dtype != jnp.uint16:
        return x.astype(dtype)
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << jnp.uint32(16), jnp.float32).astype(dtype)
