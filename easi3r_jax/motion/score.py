"""Dynamic score: four temporal maps to one (Easi3R, arXiv 2503.24391, eq. 7-8)."""

from __future__ import annotations

from easi3r_jax.core.types import Array, TemporalMaps
from easi3r_jax.motion.normalise import min_max


def dynamic_score(maps: TemporalMaps) -> Array:
    """(1 - mean_src) · std_src · mean_ref · (1 - std_ref), min-max per frame: (T, h, w) float32 in [0, 1).

    As a source view, what moves is attended to little (it has no match) and unsteadily over pairs; as a reference
    view, much and steadily.
    """
    score = (1.0 - maps.mean_src) * maps.std_src * maps.mean_ref * (1.0 - maps.std_ref)
    return min_max(score, axis=(-2, -1))
