"""Matches of descriptors of all pairs, for networks that have them (MASt3R)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.reciprocal import Matches, reciprocal_matches
from easi3r_jax.core.types import Progress, silent


def descriptor_matches(
    model: Any,
    features: Float[Array, "T N C"],
    edges: Int[np.ndarray, "E 2"],
    grid: tuple[int, int],
    *,
    dynamic_tokens: Bool[Array, "T N"] | None = None,
    subsample: int = 8,
    progress: Progress = silent,
) -> Matches:
    """Reciprocal matches of every pair's descriptors, a pair at a time. Runs on the host.

    Args:
      model: a network with descriptors.
      features: (T, N, C) of all frames, from `encode`.
      edges: (E, 2) int, frames (i, j) of the pairs.
      grid: (h, w) tokens.
      dynamic_tokens: (T, N) bool, for masked re-attention; None for plain attention.
      subsample: see `reciprocal_matches`.
      progress: called before each pair and at the end.

    Returns:
      the matches, with a leading axis E.

    Raises:
      ConfigError: a network without descriptors.
    """
    check_descriptors(model)
    found = []
    for done, edge in enumerate(np.asarray(edges, np.int32)):
        progress("match", done, len(edges), "")
        found.append(jax.block_until_ready(_pair(model, features, edge, dynamic_tokens, grid, subsample)))
    progress("match", len(edges), len(edges), "")
    return jax.tree.map(lambda *each: jnp.stack(each), *found)


def check_descriptors(model: Any) -> None:
    """Refuses a network without descriptors.

    Raises:
      ConfigError: it has none.
    """
    if not getattr(model.config, "descriptor_dim", 0):
        raise ConfigError("The network has no descriptors to match: load MASt3R, or set match_weight=0.")


@partial(jax.jit, static_argnames=("grid", "subsample"))
def _pair(
    model: Any, features: Array, edge: Array, dynamic_tokens: Array | None, grid: tuple[int, int], subsample: int
) -> Matches:
    one, two = features[edge[0]][None], features[edge[1]][None]
    masks = None if dynamic_tokens is None else (dynamic_tokens[edge[0]][None], dynamic_tokens[edge[1]][None])
    descriptors_i, _, descriptors_j, _ = model.describe(one, two, model.decode(one, two, grid, masks), grid)
    return reciprocal_matches(descriptors_i[0], descriptors_j[0], subsample=subsample)
