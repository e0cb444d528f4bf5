"""The dynamic score, from four temporal maps (Easi3R, arXiv 2503.24391, eq. 7-8)."""

from __future__ import annotations

from easi3r_jax.core.types import Array, TemporalMaps
from easi3r_jax.motion.normalise import min_max


def dynamic_score(maps: TemporalMaps) -> Array:
    """(1 - mean_src) · std_src · mean_ref · (1 - std_ref), min-max per frame: (T, h, w) float32 in [0, 1).

    In a source view, dynamic regions are attended to little (no match) and unsteadily over pairs; in a reference
    view, much and steadily.
    """
    score = (1.0 - maps.mean_src) * maps.std_src * maps.mean_ref * (1.0 - maps.std_ref)
    return min_max(score, axis=(-2, -1))
