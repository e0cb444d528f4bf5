"""VGGT4D's cue (arXiv 2511.19971): how similar a token's queries and keys are to those of other frames.

Five factors, each a statistic of the products of one kind, averaged over the heads and layers of a band and over the
other frames. In VGGT, for which the cue was made, queries and keys belong to a frame, and the others are the frames 2,
4 and 6 before and after. In DUSt3R's decoder they belong to a pair, and the others are all partners of the frame. So
statistics are taken in each pair and head, and then averaged: the means are the same, but a deviation is the mean of
deviations, not the deviation of a mean. And the two views' projections differ: a product of two queries compares
vectors that DUSt3R was not trained to compare.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.core.config import GRAM_STATISTICS
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import MotionResidual
from easi3r_jax.motion.aggregate import TemporalState
from easi3r_jax.motion.normalise import min_max


@dataclasses.dataclass(frozen=True)
class GramFactor:
    """A factor of the cue.

    Attributes:
      statistic: one of `GRAM_STATISTICS`.
      layers: first and last layer of its band in a decoder of 24 layers, from 0.
      high_if_dynamic: whether the factor is f; otherwise it is 1 - f.
      squared: take the statistic's square: a variance.
    """

    statistic: str
    layers: tuple[int, int]
    high_if_dynamic: bool
    squared: bool = False

    def band(self, depth: int) -> slice:
        """The layers of a decoder of another depth: every layer that the band touches."""
        first, last = self.layers
        return slice(first * depth // 24, -(-(last + 1) * depth // 24))


#: The factors as released (not as in the paper, from which the release differs).
GRAM_FACTORS = (
    GramFactor("qq_mean", (3, 7), False),
    GramFactor("qq_std", (18, 19), False),
    GramFactor("qq_mean", (17, 21), True),
    GramFactor("kk_mean", (0, 0), False),
    GramFactor("qk_std", (0, 0), True),
)

#: One reading (a of the reference arrays) of the paper's formulas, as others quote them: variances, and one band of
#: deep layers.
PAPER_FACTORS = (
    GramFactor("kk_mean", (0, 0), False),
    GramFactor("qk_std", (0, 0), True, squared=True),
    GramFactor("qq_mean", (3, 7), False),
    GramFactor("qq_std", (17, 21), False, squared=True),
    GramFactor("qq_mean", (17, 21), True),
)


def gram_bands(depth: int, factors: tuple[GramFactor, ...] = GRAM_FACTORS) -> tuple[tuple[str, int, int], ...]:
    """Statistic, first layer and last layer + 1 of each factor, in a network of so many layers."""
    bands = [(factor.statistic, factor.band(depth)) for factor in factors]
    return tuple((statistic, band.start, band.stop) for statistic, band in bands)


def gram_score(
    statistics: Float[Array, "F T h w"],
    where: Bool[Array, "T h w"] | None = None,
    factors: tuple[GramFactor, ...] = GRAM_FACTORS,
) -> Float[Array, "T h w"]:
    """Product of the factors, each normalised in each frame: (T, h, w) float32 in [0, 1], not normalised. Pure.

    Args:
      statistics: (F, T, h, w), of the factors in their order, of any scale.
      where: (T, h, w) bool, which tokens count; the score of others is 0.
      factors: as released, or `PAPER_FACTORS`.
    """
    score = jnp.ones(statistics.shape[1:], statistics.dtype)
    for factor, values in zip(factors, statistics, strict=True):
        f = min_max(values * values if factor.squared else values, axis=(-2, -1), where=where)
        score = score * (f if factor.high_if_dynamic else 1 - f)
    return score if where is None else jnp.where(where, score, 0)


def gram_residual(state: TemporalState, grid: tuple[int, int]) -> MotionResidual:
    """The cue of a clip's Gram statistics: the mean over all pairs in which a frame is. Pure.

    Args:
      state: statistics of all pairs, with Gram statistics.
      grid: (h, w) tokens.

    Returns:
      the score (T, h, w), normalised in each frame by `motion_maps`; frames without pairs are not observed.

    Raises:
      ConfigError: Gram statistics were not computed.
    """
    if state.gram is None:
        raise ConfigError("Gram statistics were not computed: mark the cue by reads_gram, or pass gram=True.")
    src, ref = state.gram.src, state.gram.ref
    counts = [m.count.astype(jnp.float32)[:, None, None, None] for m in (src, ref)]
    total = jnp.maximum(counts[0] + counts[1], 1)
    mean = (counts[0] * src.mean + counts[1] * ref.mean) / total
    num_frames, depth, channels, tokens = mean.shape
    mean = mean.reshape(num_frames, depth, len(GRAM_STATISTICS), channels // len(GRAM_STATISTICS), tokens)
    parts = [
        jnp.mean(mean[:, factor.band(depth), GRAM_STATISTICS.index(factor.statistic)], axis=(1, 2))
        for factor in GRAM_FACTORS
    ]
    observed = jnp.broadcast_to((src.count + ref.count > 0)[:, None, None], (num_frames, *grid))
    return MotionResidual(gram_score(jnp.stack(parts).reshape(-1, num_frames, *grid), observed), observed)
