"""Observations that are kept in half the memory, read part by part.

XLA's compiler for CPUs brings a whole array of bfloat16 to float32 before a loop that reads its parts: three times the
memory instead of half. So bfloat16 goes into loops as its bits.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from easi3r_jax.core.types import Array

_T = TypeVar("_T")


def in_bits(tree: _T) -> _T:
    """The same with arrays of bfloat16 as uint16, their bits; others as they are."""
    return jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x, tree)


def widened(x: Array, dtype: jnp.dtype | type) -> Array:
    """What `in_bits` gave, or floats of any length, as they are computed with."""
    if x.dtype != jnp.uint16:
        return x.astype(dtype)
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << jnp.uint32(16), jnp.float32).astype(dtype)
