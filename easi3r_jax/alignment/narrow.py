"""Observations that are kept in half the memory, read part by part.

XLA's compiler for CPUs brings a whole array of bfloat16 to float32 before a loop that reads its parts: three times the
memory instead of half. So bfloat16 goes into loops as its bits.

In half precision, observations have no derivative: see `kept`.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from easi3r_jax.alignment.derivatives import without_derivative
from easi3r_jax.core.types import Array, Float, Real, Shaped

_T = TypeVar("_T")


def in_bits(tree: _T) -> _T:
    """The same with arrays of bfloat16 as uint16, their bits; others as they are. See `kept` for derivatives."""

    def one(x: Array) -> Array:
        return jax.lax.bitcast_convert_type(kept(x), jnp.uint16) if x.dtype == jnp.bfloat16 else kept(x)

    return jax.tree.map(one, tree)


def kept(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """`x`; whoever differentiates by it in half precision gets a `GradientError`.

    A gradient has the type of what it is by. That of a mean over all pixels of all pairs is smaller than what float16
    holds, and bfloat16 is kept as integers, by which there is none: both would be 0 and wrong.
    """
    if x.dtype.itemsize >= 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return without_derivative(
        x,
        f"Predictions in {x.dtype} have no gradient: it would round to 0. Keep them in float32 where you "
        "differentiate by them.",
    )


def widened(x: Real[Array, "*shape"], dtype: jnp.dtype | type) -> Float[Array, "*shape"]:
    """What `in_bits` gave, or floats of any length, as they are computed with."""
    if x.dtype != jnp.uint16:
        return x.astype(dtype)
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << jnp.uint32(16), jnp.float32).astype(dtype)
