"""Matches of descriptors as a term of the alignment: points must be seen where they are matched."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.flow import robust_sum
from easi3r_jax.alignment.problem import AlignProblem, MatchTargets
from easi3r_jax.alignment.state import AlignState
from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.reciprocal import Matches
from easi3r_jax.core.types import PairPredictions

_HIGHEST = jax.lax.Precision.HIGHEST
#: Fraction of the image's width: points closer to the camera's plane are not projected.
_NEAREST = 1e-6


def with_matches(
    problem: AlignProblem,
    predictions: PairPredictions,
    matches: Matches | None,
    config: AlignConfig,
    dynamic_mask: Bool[Array, "T H W"] | None = None,
) -> AlignProblem:
    """Adds matches to the problem, if there are any and `config.match_weight` is set.

    Args:
      problem, predictions: of the alignment; only the predictions' pairs are read.
      matches: of every pair, with a leading axis E.
      config: `match_weight`, `flow_outlier`.
      dynamic_mask: (T, H, W) bool; matches that begin or end in dynamic regions are ignored.

    Raises:
      InputError: matches of another number of pairs.
    """
    if matches is None or not config.match_weight:
        return problem
    if len(matches.index_i) != len(predictions.edges):
        raise InputError(f"There are matches of {len(matches.index_i)} pairs, but {len(predictions.edges)} pairs.")
    dtype = problem.principal_point.dtype
    edges = jnp.asarray(predictions.edges, jnp.int32)
    counts = _counted(edges, matches, dynamic_mask, predictions.valid)
    targets = MatchTargets(
        edges=edges,
        index_i=matches.index_i,
        index_j=matches.index_j,
        counts=counts,
        weight=jnp.asarray(config.match_weight, dtype),
        outlier=jnp.asarray(config.flow_outlier, dtype),
    )
    return dataclasses.replace(problem, matches=targets)


@jax.jit
def _counted(edges: Array, matches: Matches, dynamic_mask: Array | None, valid: Array | None) -> Array:
    counts = matches.valid if valid is None else matches.valid & jnp.asarray(valid)[:, None]
    if dynamic_mask is None:
        return counts
    moving = dynamic_mask.reshape(len(dynamic_mask), -1)
    for side, index in ((0, matches.index_i), (1, matches.index_j)):
        counts = counts & ~moving[edges[:, side][:, None], index]
    return counts


@jax.jit
def match_loss(state: AlignState, problem: AlignProblem) -> Float[Array, ""]:
    """Mean smooth-L1 distance in pixels between where a matched point is seen and where its match is, () float.

    The point is that of frame i's pixel; it is projected into frame j. Coordinates whose loss is at or above the
    outlier threshold are ignored, as are points behind camera j. Differentiable by autodiff, in every mode.

    Raises:
      ConfigError: the problem has no matches.
    """
    targets = problem.matches
    if targets is None:
        raise ConfigError("The problem has no matches: add them by with_matches.")
    width = state.log_depth.shape[2]
    intrinsics = state_of.intrinsics(state, problem.principal_point)
    poses = state_of.world_from_cam(state)
    log_depth = state.log_depth.reshape(len(poses), -1)

    def one(edge: Array, index_i: Array, index_j: Array) -> tuple[Array, Array]:
        """(2, K) distances in pixels, and where the point is in front of camera j."""
        i, j = edge[0], edge[1]
        (from_i, to_j) = (_pixels(index, width, log_depth.dtype) for index in (index_i, index_j))
        (focal_i, centre_i), (focal_j, centre_j) = ((intrinsics[t, 0, 0], intrinsics[t, :2, 2:]) for t in (i, j))
        rays = jnp.concatenate([(from_i - centre_i) / focal_i, jnp.ones_like(from_i[:1])])
        j_from_i = se3.compose(se3.inverse(poses[j]), poses[i])
        # Divided by the point's depth, so that distant points need no large numbers.
        seen = jnp.matmul(j_from_i[:3, :3], rays, precision=_HIGHEST)
        seen = seen + j_from_i[:3, 3:] * jnp.exp(-log_depth[i][index_i])[None]
        before = seen[2] > _NEAREST
        projected = focal_j * seen[:2] / jnp.where(before, seen[2], 1)[None] + centre_j
        return projected - to_j, before

    error, before = jax.vmap(one)(targets.edges, targets.index_i, targets.index_j)
    total, number = robust_sum(error, targets.counts & before, targets.outlier)
    return total / jnp.maximum(number, 1)


def _pixels(index: Array, width: int, dtype: jnp.dtype) -> Array:
    """(2, K) x and y of pixels y * W + x."""
    return jnp.stack([index % width, index // width]).astype(dtype)
