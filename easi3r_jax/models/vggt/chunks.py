"""Applies a function to a few rows at a time, so that what it needs in between is in memory for these only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def by_chunks(function: Callable[[Any], Any], rows: Any, most: int) -> Any:
    """`function(rows)` for a function that treats each row (leading axis of every array) alone.

    It is traced once, for chunks of one size; the last one repeats a row.

    Args:
      function: from a pytree of arrays to another.
      rows: pytree of arrays (R, ...).
      most: rows of a chunk, at most.
    """
    count = len(jax.tree.leaves(rows)[0])
    if count <= most:
        return function(rows)
    groups = -(-count // most)
    size = -(-count // groups)

    def grouped(x: jax.Array) -> jax.Array:
        last = jnp.broadcast_to(x[-1:], (groups * size - count, *x.shape[1:]))
        return jnp.concatenate([x, last]).reshape(groups, size, *x.shape[1:])

    done = jax.lax.map(function, jax.tree.map(grouped, rows))
    return jax.tree.map(lambda x: x.reshape(groups * size, *x.shape[2:])[:count], done)
