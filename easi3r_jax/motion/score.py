"""The dynamic score, from four temporal maps (Easi3R, arXiv 2503.24391, eq. 7-8)."""

from __future__ import annotations

from easi3r_jax.core.arrays import Array, Float, pytree_dataclass
from easi3r_jax.core.types import TemporalMaps
from easi3r_jax.motion.normalise import min_max


@pytree_dataclass
class CueWeights:
    """Weights of the parts of the attention cue; ones as in the paper. The score is differentiable in them.

    Attributes:
      channels: (L, A) float >= 0, of decoder layers and heads in the mean that fuses them.
      maps: (4,) float in [0, 1], of mean_src, std_src, mean_ref and std_ref: 1 as a factor of the score, 0 omitted.
    """

    channels: Float[Array, "L A"]
    maps: Float[Array, "4"]


def dynamic_score(maps: TemporalMaps, weights: Float[Array, "4"] | None = None) -> Float[Array, "T h w"]:
    """(1 - mean_src) · std_src · mean_ref · (1 - std_ref), min-max per frame: (T, h, w) float32 in [0, 1).

    Dynamic regions of a source view receive little attention (they have no match), which varies over pairs; those of a
    reference view receive much, and steadily.

    Args:
      maps: the four factors.
      weights: (4,) of them, see `CueWeights`: a factor f of weight w is 1 - w + w f. None: all 1.
    """
    factors = (1.0 - maps.mean_src, maps.std_src, maps.mean_ref, 1.0 - maps.std_ref)
    if weights is not None:
        factors = tuple(1.0 - weights[n] + weights[n] * factor for n, factor in enumerate(factors))
    score = factors[0] * factors[1] * factors[2] * factors[3]
    return min_max(score, axis=(-2, -1))
