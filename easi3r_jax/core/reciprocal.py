"""Reciprocal nearest neighbours of two images' descriptors (MASt3R, arXiv 2406.09756, sec. 3.3).

Two pixels match if each one's descriptor is the other's nearest, by their dot product. Instead of searching for the
nearest neighbours of all pixels, a grid of pixels walks to and fro between the images until each stands still, which
most do after a few steps. The search holds one block of products at a time, never those of all pairs of pixels.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, Int, pytree_dataclass
from easi3r_jax.core.errors import ConfigError, InputError

#: Steps to and fro, after which points that still move are dropped.
_ROUNDS = 10
#: Rows and columns of the products held at a time.
_BLOCK = 2048


@pytree_dataclass
class Matches:
    """Matches of two images, or of many pairs of them, of a size that does not depend on how many there are.

    Sorted by the first image's pixel, then by the second's, each pair of pixels once; what is not valid is at the end.

    Attributes:
      index_i, index_j: (..., K) int32, pixels as y * W + x of their own image; 0 where not valid.
      valid: (..., K) bool.
    """

    index_i: Int[Array, "*batch K"]
    index_j: Int[Array, "*batch K"]
    valid: Bool[Array, "*batch K"]


@partial(jax.jit, static_argnames=("subsample", "tolerance", "both_ways", "block"))
def reciprocal_matches(
    descriptors_i: Float[Array, "H_i W_i D"],
    descriptors_j: Float[Array, "H_j W_j D"],
    *,
    subsample: int = 8,
    tolerance: float | None = None,
    both_ways: bool = False,
    block: int = _BLOCK,
) -> Matches:
    """Matches of two images from their descriptors. Pure; indices have no gradient.

    Args:
      descriptors_i, descriptors_j: (H, W, D) of length 1, as `model.describe` gives them. Sizes may differ.
      subsample: the walks start at every such pixel, from half of it on; at least one.
      tolerance: None: points walk until they stand still. A number of pixels: they walk to image j and back once, and
        the start is matched if its way back ends closer to it than this (0: at it).
      both_ways: also start in image j, and join what is found.
      block: rows and columns of the products held at a time; another one gives the same matches.

    Returns:
      the matches; K is the number of starting points.

    Raises:
      ConfigError: a subsampling or block below 1, a negative tolerance.
      InputError: descriptors of different lengths.
    """
    if subsample < 1 or block < 1 or (tolerance is not None and not tolerance >= 0):
        raise ConfigError(
            f"Subsampling and block must be at least 1 and the tolerance at least 0: got {subsample}, {block} and "
            f"{tolerance}."
        )
    if descriptors_i.shape[-1] != descriptors_j.shape[-1]:
        raise InputError(
            f"Descriptors of {descriptors_i.shape[-1]} and {descriptors_j.shape[-1]} channels cannot be compared."
        )
    index_i, index_j, valid = _walk(descriptors_i, descriptors_j, subsample, tolerance, block)
    if both_ways:
        back_j, back_i, back_valid = _walk(descriptors_j, descriptors_i, subsample, tolerance, block)
        index_i, index_j = jnp.concatenate([index_i, back_i]), jnp.concatenate([index_j, back_j])
        valid = jnp.concatenate([valid, back_valid])
    return _unique(index_i, index_j, valid)


@partial(jax.jit, static_argnames=("block",))
def nearest_descriptors(
    queries: Float[Array, "Q D"], keys: Float[Array, "M D"], *, block: int = _BLOCK
) -> Int[Array, "Q"]:
    """The first of the keys with the largest dot product, for each query: (Q,) int32.

    Args:
      queries, keys: (Q, D) and (M, D).
      block: rows and columns of the products held at a time.
    """
    rows, columns = min(block, len(queries)), min(block, len(keys))
    padded_keys = jnp.pad(keys, ((0, -len(keys) % columns), (0, 0)))
    key_blocks = padded_keys.reshape(-1, columns, keys.shape[-1])
    starts = jnp.arange(len(key_blocks), dtype=jnp.int32) * columns
    column = jnp.arange(columns, dtype=jnp.int32)[None]

    def of_rows(part: Array) -> Array:
        def step(best: tuple[Array, Array], key_block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            keys_here, start = key_block
            products = jnp.matmul(part, keys_here.T, precision=jax.lax.Precision.HIGHEST)
            products = jnp.where(start + column < len(keys), products, -jnp.inf)
            first = jnp.argmax(products, axis=1).astype(jnp.int32)
            largest = jnp.take_along_axis(products, first[:, None], axis=1)[:, 0]
            better = largest > best[0]  # strictly: of equal ones the first counts
            return (jnp.where(better, largest, best[0]), jnp.where(better, start + first, best[1])), None

        none = (jnp.full(rows, -jnp.inf, part.dtype), jnp.zeros(rows, jnp.int32))
        return jax.lax.scan(step, none, (key_blocks, starts))[0][1]

    query_blocks = jnp.pad(queries, ((0, -len(queries) % rows), (0, 0))).reshape(-1, rows, queries.shape[-1])
    return jax.lax.map(of_rows, query_blocks).reshape(-1)[: len(queries)]


def _walk(here: Array, there: Array, subsample: int, tolerance: float | None, block: int) -> tuple[Array, Array, Array]:
    """Pixels of both images, and which of them match, for every start in the first image."""
    height, width = here.shape[:2]
    # An image smaller than half the subsampling has its start at its last row or column.
    ys, xs = (jnp.arange(min(subsample // 2, n - 1), n, subsample, dtype=jnp.int32) for n in (height, width))
    starts = (ys[:, None] * width + xs[None]).reshape(-1)
    here, there = (jax.lax.stop_gradient(d.reshape(-1, d.shape[-1])) for d in (here, there))
    if tolerance is not None:
        across = nearest_descriptors(here[starts], there, block=block)
        back = nearest_descriptors(there[across], here, block=block)
        apart = jnp.hypot(*(part.astype(jnp.float32) for part in _offset(starts, back, width)))
        return starts, across, apart < tolerance if tolerance else back == starts

    def moves(walk: tuple[Array, Array, Array, Array]) -> Array:
        rounds, _, _, active = walk
        return (rounds < _ROUNDS) & jnp.any(active)

    def to_and_fro(walk: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        rounds, p, q, active = walk
        across = jnp.where(active, nearest_descriptors(here[p], there, block=block), q)
        active = active & (across != q)
        back = jnp.where(active, nearest_descriptors(there[across], here, block=block), p)
        return rounds + 1, back, across, active & (back != p)

    begin = (jnp.int32(0), starts, jnp.full(starts.shape, -1, jnp.int32), jnp.ones(starts.shape, bool))
    _, p, q, active = jax.lax.while_loop(moves, to_and_fro, begin)
    return p, q, ~active


def _offset(a: Array, b: Array, width: int) -> tuple[Array, Array]:
    return a % width - b % width, a // width - b // width


def _unique(index_i: Array, index_j: Array, valid: Array) -> Matches:
    """The valid pairs once each, sorted; the others behind them."""
    order = jnp.lexsort((index_j, index_i, ~valid))
    index_i, index_j, valid = index_i[order], index_j[order], valid[order]
    same = (index_i[1:] == index_i[:-1]) & (index_j[1:] == index_j[:-1])
    valid = valid.at[1:].set(valid[1:] & ~same)
    order = jnp.argsort(~valid, stable=True)
    valid = valid[order]
    return Matches(jnp.where(valid, index_i[order], 0), jnp.where(valid, index_j[order], 0), valid)
