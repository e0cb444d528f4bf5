"""Temporal aggregation: attention statistics of many pairs to four maps per frame (Easi3R, arXiv 2503.24391, sec. 3.2).

A frame occurs in several pairs. Its *source* statistics are from the pairs where it is j, its *reference* statistics
from those where it is i. Their mean and standard deviation over the pairs measure how consistently the network attends
to each of its tokens.

The moments are kept as running count, mean and sum of squared deviations, merged a batch at a time (Chan, Golub &
LeVeque 1979). Sums of squares would need less code, but the logits' means are large compared with their deviation over
pairs, and in float32 `E[x²] - E[x]²` would lose every digit. Memory is O(T), independent of the number of pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, Int, pytree_dataclass
from easi3r_jax.core.config import GRAM_STATISTICS
from easi3r_jax.core.statistics import AttentionStats, GramStats
from easi3r_jax.core.types import TemporalMaps
from easi3r_jax.motion.normalise import min_max


@pytree_dataclass
class Moments:
    """Running moments over the observations of each frame.

    Attributes:
      count: (T,) int32 observations so far.
      mean: (T, L, A, N) float32, 0 without observations; of Gram statistics (T, L, 6 A, N).
      squares: of the same shape, sum of squared deviations from `mean`.
    """

    count: Int[Array, "T"]
    mean: Float[Array, "T L _ N"]
    squares: Float[Array, "T L _ N"]


@pytree_dataclass
class TemporalState:
    """Attention statistics of all pairs so far.

    Attributes:
      src: moments over the pairs where the frame is j (branch 1's keys).
      ref: moments over the pairs where the frame is i (branch 2's keys).
      gram: the same of the Gram statistics, with axes (T, L, 6 A, N): channel `s * A + head` is statistic s of
        `core.config.GRAM_STATISTICS`. None unless a cue reads them.
    """

    src: Moments
    ref: Moments
    gram: TemporalState | None = None


class RawMoments(NamedTuple):
    """Mean and deviation before any normalisation; channel = layer * heads + head.

    Attributes:
      mean_src, std_src, mean_ref, std_ref: (T, h, w, L * A) float32.
      count_src, count_ref: (T,) int32 observations.
    """

    mean_src: Float[Array, "T h w channels"]
    std_src: Float[Array, "T h w channels"]
    mean_ref: Float[Array, "T h w channels"]
    std_ref: Float[Array, "T h w channels"]
    count_src: Int[Array, "T"]
    count_ref: Int[Array, "T"]


def init_temporal(
    num_frames: int, num_layers: int, num_heads: int, num_tokens: int, *, gram: bool = False
) -> TemporalState:
    """The state without any pair; with `gram`, it holds Gram statistics, too."""

    def empty() -> Moments:
        # A buffer for each field: callers donate the state, and a buffer can be donated only once.
        shape = (num_frames, num_layers, num_heads, num_tokens)
        return Moments(jnp.zeros(num_frames, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    of_gram = init_temporal(num_frames, num_layers, len(GRAM_STATISTICS) * num_heads, num_tokens) if gram else None
    return TemporalState(src=empty(), ref=empty(), gram=of_gram)


def update_temporal(
    state: TemporalState,
    stats: AttentionStats | GramStats,
    edges: Int[Array, "E 2"],
    valid: Bool[Array, "E"],
    grid: tuple[int, int],
) -> TemporalState:
    """Adds a batch of pairs. Work and memory traffic are O(E), not O(T), when the state is donated.

    Args:
      state: over T frames.
      stats: (E, L, A, N) statistics of the batch's pairs, with Gram statistics if the state holds them.
      edges: (E, 2) int, frames (i, j) of each pair; a frame may occur many times.
      valid: (E,) bool, False for the padding of a last batch, which is ignored whatever it contains.
      grid: (h, w) tokens, N = h * w.
    """
    chex.assert_equal_shape((stats.src, stats.ref))
    chex.assert_tree_shape_prefix((stats, edges, valid), (len(edges),))
    gram = None
    if state.gram is not None:
        assert isinstance(stats, AttentionStats) and stats.gram is not None
        gram = update_temporal(state.gram, stats.gram, edges, valid, grid)
    return TemporalState(
        src=_merge(state.src, _replace_first_token(stats.src, grid), edges[:, 1], valid),
        ref=_merge(state.ref, _replace_first_token(stats.ref, grid), edges[:, 0], valid),
        gram=gram,
    )


def raw_moments(state: TemporalState, grid: tuple[int, int]) -> RawMoments:
    """Mean and unbiased standard deviation over pairs.

    The deviation of a single observation is 0 (the reference divides by zero), as are mean and deviation of none. Where
    a deviation is 0, it is not differentiable, and its derivative is taken as 0.
    """
    (mean_src, std_src), (mean_ref, std_ref) = _mean_std(state.src, grid), _mean_std(state.ref, grid)
    return RawMoments(mean_src, std_src, mean_ref, std_ref, state.src.count, state.ref.count)


def fuse_temporal(
    state: TemporalState, grid: tuple[int, int], weights: Float[Array, "L A"] | None = None
) -> TemporalMaps:
    """Fuses the moments over layers and heads: min-max over everything, mean over channels, min-max again.

    A frame without observations (deviation: with fewer than two) carries no information: it is excluded from the
    extremes, and its map is 0. Its dynamic score is then 0 through `std_src` or `mean_ref`: no evidence of motion.

    Args:
      state: over T frames.
      grid: (h, w) tokens.
      weights: (L, A) float >= 0, of layers and heads in the mean; None: all 1. With weight 0 a head has no influence.
    """
    raw = raw_moments(state, grid)
    return TemporalMaps(
        mean_src=_fuse(raw.mean_src, raw.count_src >= 1, weights),
        std_src=_fuse(raw.std_src, raw.count_src >= 2, weights),
        mean_ref=_fuse(raw.mean_ref, raw.count_ref >= 1, weights),
        std_ref=_fuse(raw.std_ref, raw.count_ref >= 2, weights),
    )


def _replace_first_token(x: Array, grid: tuple[int, int]) -> Array:
    """Replaces token (0, 0), an attention sink, by the mean of its right and lower neighbours.

    This is done on each pair's map, since the deviation of a mean is not the mean of deviations. With a single row or
    column there is one neighbour; a single token has none and is kept.
    """
    height, width = grid
    x = x.astype(jnp.float32)
    neighbours = ([1] if width > 1 else []) + ([width] if height > 1 else [])
    if not neighbours:
        return x
    return x.at[..., 0].set(sum(x[..., n] for n in neighbours) / len(neighbours))


def _merge(moments: Moments, x: Array, frame: Array, valid: Array) -> Moments:
    """Merges observations `x` (E, L, A, N) float32 of frames `frame` (E,) into the moments.

    Pairs of the batch that observe the same frame are first reduced to one; the first of them writes the frame's entry.
    Only the entries of observed frames are read and written.

    Sums are of differences from the frame's mean so far, or from its first observation: equal observations, as of
    frames that repeat, have a deviation of exactly 0. Its rounding error would be all that normalisation finds.
    """
    num_frames = moments.count.shape[0]
    x = jnp.where(valid[:, None, None, None], x, 0.0)
    same = (frame[:, None] == frame[None, :]) & valid[:, None] & valid[None, :]
    first = valid & ~jnp.any(jnp.tril(same, -1), axis=1)

    def over_same_frame(y: Array) -> Array:
        return jnp.einsum("ef,flan->elan", same.astype(jnp.float32), y, precision=jax.lax.Precision.HIGHEST)

    def column(n: Array) -> Array:
        return n.astype(jnp.float32)[:, None, None, None]

    batch_count, old_count = jnp.sum(same, axis=1, dtype=jnp.int32), moments.count[frame]
    count = old_count + batch_count
    origin = jnp.where(column(old_count) > 0, moments.mean[frame], x[jnp.argmax(same, axis=1)])
    away = jnp.where(valid[:, None, None, None], x - origin, 0.0)
    batch_mean = over_same_frame(away) / jnp.maximum(column(batch_count), 1.0)  # from the origin
    batch_squares = over_same_frame(jnp.square(jnp.where(valid[:, None, None, None], away - batch_mean, 0.0)))

    fraction = column(batch_count) / jnp.maximum(column(count), 1.0)
    mean = origin + batch_mean * fraction
    squares = moments.squares[frame] + batch_squares + jnp.square(batch_mean) * column(old_count) * fraction

    target = jnp.where(first, frame, num_frames)  # out of range: dropped
    return Moments(
        count=moments.count.at[target].set(count, mode="drop"),
        mean=moments.mean.at[target].set(mean, mode="drop"),
        squares=moments.squares.at[target].set(squares, mode="drop"),
    )


def _mean_std(moments: Moments, grid: tuple[int, int]) -> tuple[Array, Array]:
    """Mean and unbiased deviation, (T, h, w, L * A) each."""
    freedom = jnp.maximum(moments.count - 1, 1).astype(jnp.float32)[:, None, None, None]
    variance = moments.squares / freedom  # a single observation has no squares: 0
    std = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)

    def as_grid(x: Array) -> Array:
        num_frames, num_layers, num_heads, _ = x.shape
        return jnp.moveaxis(x.reshape(num_frames, num_layers * num_heads, *grid), 1, -1)

    return as_grid(moments.mean), as_grid(std)


def _fuse(x: Array, observed: Array, weights: Array | None = None) -> Array:
    """(T, h, w, channels) to (T, h, w) in [0, 1)."""
    channels = min_max(x, where=observed[:, None, None, None])
    if weights is None:
        fused = jnp.mean(channels, axis=-1)
    else:  # the first normalisation is one for all channels, so the second undoes it for those that are left
        total = jnp.sum(weights)
        share = weights.ravel() / jnp.where(total > 0, total, 1)
        fused = jnp.sum(channels * share[None, None, None], axis=-1)
    return min_max(fused, where=observed[:, None, None])
