"""Metres: the scale of a world that was aligned from pairs whose points are metric.

The optimiser's world has no unit: the geometric mean of the pairs' scales is held at 0.5 (see `state.pair_scales`). Of
a network whose points are in metres, each pair's scale says how long a metre is in the world, and their median undoes
the normalisation. Confident pairs count more, and wrong ones little.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.state import AlignState
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Float
from easi3r_jax.core.types import Geometry


def metres_per_unit(state: AlignState, weights: Float[np.ndarray, "pairs"]) -> float:
    """Metres in a unit of the alignment's world: the reciprocal of the weighted median of the pairs' scales.

    Args:
      state: of the alignment of pairs whose points are in metres; without known poses that fix the scale.
      weights: (E',) >= 0 of the pairs without padding, which are the state's first ones.
    """
    log_scales = np.asarray(sharding.on_host(state.pair_poses), np.float64)[: len(weights), 7]
    # Counted here, and not over padding: see `pair_scales`.
    scales = state_of.MEAN_PAIR_SCALE * np.exp(log_scales - log_scales.mean())
    return 1 / weighted_median(scales, weights)


def weighted_median(values: Float[np.ndarray, "K"], weights: Float[np.ndarray, "K"]) -> float:
    """The value below which lies half of the weight. Between two values in the middle: their geometric mean.

    Args:
      values: (K,) > 0.
      weights: (K,) >= 0, not all 0.
    """
    order = np.argsort(values)
    values, total = np.asarray(values, np.float64)[order], np.cumsum(np.asarray(weights, np.float64)[order])
    half = total[-1] / 2
    low, high = (min(int(np.searchsorted(total, half, side)), len(values) - 1) for side in ("left", "right"))
    return float(np.sqrt(values[low] * values[high]))


def scaled(geometry: Geometry, factor: float) -> Geometry:
    """The geometry in another unit: camera centres and depth times the factor."""
    return _scaled(geometry, np.float32(factor))


@jax.jit
def _scaled(geometry: Geometry, factor: jax.Array) -> Geometry:
    poses = geometry.world_from_cam
    return dataclasses.replace(
        geometry, world_from_cam=poses.at[:, :3, 3].multiply(factor), depth=geometry.depth * factor
    )
