"""Scale between the world of known poses and the alignment's, from the parallax of the pairs' points."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.known import principal_points
from easi3r_jax.alignment.narrow import in_bits, widened
from easi3r_jax.alignment.state import AlignState
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.batches import padded
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.sharding import ROWS
from easi3r_jax.core.types import KnownCameras, PairPredictions

# Number of reweightings; lower bound on image distances, in units of the focal length, when used as weights.
_ROUNDS, _MIN_ERROR = 10, 1e-3


def known_scale(predictions: PairPredictions, known: KnownCameras, found: AlignState) -> float | None:
    """Units of the alignment's world per unit of the known world.

    For each pair of known cameras, the baseline is multiplied by the factor for which camera j sees the points of frame
    j, given in camera i, closest to their own pixels (least sum of distances in the image). The pair's scale converts
    the factor to the alignment's world; the result is the median over pairs, weighted by parallax. Comparing the path's
    length with poses estimated without the known ones would need good estimates, which an initial state does not have.

    Args:
      predictions: point maps of the pairs.
      known: the poses.
      found: an initial state without the known poses: provides focal lengths and pair scales.

    Returns:
      the scale, or None if no pair determines it.
    """
    edges = predictions.clip_edges
    both = np.asarray(known.poses_known)[edges].all(axis=1) & (edges[:, 0] != edges[:, 1])
    if not both.any():
        return None
    poses = np.asarray(known.world_from_cam, np.float64)
    j_from_i = np.linalg.inv(poses[edges[:, 1]]) @ poses[edges[:, 0]]
    height, width = predictions.points_j.shape[1:3]
    centres = principal_points(camera.default_principal_point(height, width), len(poses), known)
    per_pair = (
        padded(np.asarray(x, np.float32), len(predictions.edges))
        for x in (j_from_i, sharding.on_host(_focals(found))[edges[:, 1]], centres[edges[:, 1]])
    )
    mesh = sharding.mesh_of_rows(predictions)
    factors, parallax = _baselines(
        predictions.points_j, predictions.confidence_j, *sharding.shard_rows(tuple(per_pair), mesh), mesh
    )
    which = np.flatnonzero(both)
    found_scales = _pair_scales(found)
    factors, parallax, found_scales = (
        np.asarray(x, np.float64)[which] for x in sharding.on_host((factors, parallax, found_scales))
    )
    scales = factors * found_scales
    weights = np.where(scales > 0, parallax, 0)
    if not (np.isfinite(scales).all() and weights.sum() > 0):
        return None
    order = np.argsort(scales)
    half = np.searchsorted(np.cumsum(weights[order]), 0.5 * weights.sum())
    return float(scales[order][half])


_pair_scales, _focals = jax.jit(state_of.pair_scales), jax.jit(state_of.focals)


@partial(jax.jit, static_argnames=("mesh",))
def _baselines(
    points_j: Array, confidence_j: Array, j_from_i: Array, focals: Array, centres: Array, mesh: Mesh | None
) -> tuple[Array, Array]:
    """Factors (R,) of the known baselines, and the mean parallax angle (R,) that they cause, radians."""
    share = sharding.shard_map(_baselines_of, mesh, (ROWS,) * 5, ROWS)
    return share(points_j, confidence_j, j_from_i, focals, centres)


def _baselines_of(
    points_j: Array, confidence_j: Array, j_from_i: Array, focals: Array, centres: Array
) -> tuple[Array, Array]:
    height, width = points_j.shape[1:3]
    pixels = camera.pixel_grid(height, width).reshape(-1, 2)

    def one(inputs):
        points, confidence, motion, focal, centre = inputs
        points = widened(points.reshape(-1, 3), jnp.float32)
        confidence = widened(confidence.reshape(-1), jnp.float32)
        turned = jnp.matmul(points, motion[:3, :3].T, precision=jax.lax.Precision.HIGHEST)
        ray = (pixels - centre[None]) / focal
        # A point is seen at its pixel if turned + factor * translation is along the ray. Divided by depth: angles.
        depth = jnp.where(turned[:, 2:] > 0, turned[:, 2:], jnp.inf)
        missing = (ray * turned[:, 2:] - turned[:, :2]) / depth
        moved = (motion[None, :2, 3] - ray * motion[2, 3]) / depth
        weights = jnp.where(turned[:, 2] > 0, jnp.log(jnp.maximum(confidence, 1)), 0)

        def fit(w: Array) -> Array:
            strength = jnp.sum(w * jnp.sum(moved * moved, axis=1))
            return jnp.sum(w * jnp.sum(moved * missing, axis=1)) / jnp.where(strength > 0, strength, 1)

        def again(factor: Array, _: None) -> tuple[Array, None]:
            error = se3.safe_norm(missing - factor * moved)
            return fit(weights / jnp.maximum(error, _MIN_ERROR)), None

        factor = jax.lax.scan(again, fit(weights), None, length=_ROUNDS)[0]
        total = jnp.sum(weights)
        return factor, jnp.abs(factor) * jnp.sum(weights * se3.safe_norm(moved)) / jnp.where(total > 0, total, 1)

    return jax.lax.map(one, (in_bits(points_j), in_bits(confidence_j), j_from_i, focals, centres))
