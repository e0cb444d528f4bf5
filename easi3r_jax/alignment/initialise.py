"""The optimiser's initial state: an assembled clip, with known cameras in their place."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.assembly import Assembly, assemble
from easi3r_jax.alignment.known import decide_scale, scale_is_known, with_known_poses
from easi3r_jax.alignment.known_scale import known_scale
from easi3r_jax.alignment.state import MEAN_PAIR_SCALE, AlignState, make_state
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.batches import padded
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.types import KnownCameras, PairPredictions


def initial_state(
    predictions: PairPredictions,
    config: AlignConfig = AlignConfig(),
    *,
    known: KnownCameras | None = None,
    seed: int = 0,
) -> AlignState:
    """Start of the alignment (DUSt3R's released initialisation; sec. 3.4 says only that there is one).

    1. Maximum spanning tree over mean(conf_i) * mean(conf_j), or, for a chain, of the nearest frames. Along the tree, a
       pair joins the world by weighted registration (weights: confidence) of the side that is already placed, which
       also places its other side.
    2. A focal length per frame (Weiszfeld).
    3. Camera poses: from that registration for the i side of a tree edge, else by RANSAC-PnP on the confident points.
    4. All pairs are registered to the frames' world points; the world is scaled so that the geometric mean of the
       pairs' scales is 0.5.
    5. Known poses, aligned with the estimated ones, replace them; depth is z of the world points in the camera.

    Args:
      predictions: pairs that connect all frames, at least two of them.
      config: `initialisation`, `shared_focal`, `free_principal_point`, `min_confidence`, `pnp_iterations`.
      known: known cameras.
      seed: for RANSAC.

    Returns:
      the state of all frames and pairs of the predictions, padding included. Runs on the host: the spanning tree, the
      walk along it and PnP are not differentiable.
    """
    return start_state(assemble(predictions, config, known, seed), predictions, config, known)


def start_state(
    assembly: Assembly, predictions: PairPredictions, config: AlignConfig, known: KnownCameras | None = None
) -> AlignState:
    """The state of an assembled clip: steps 4 and 5 of `initial_state`."""
    log_scales = np.log(assembly.scales)
    factor = MEAN_PAIR_SCALE / np.exp(log_scales.mean())
    poses = assembly.world_from_cam.copy()
    poses[:, :3, 3] *= factor
    poses = with_known_poses(poses, known)
    pair_rigid = assembly.pairs_without_scale
    pair_rigid[:, :3, 3] /= np.exp(log_scales)[:, None]  # the scale also multiplies the translation
    if scale_is_known(known):  # see `pair_scales`
        log_scales = log_scales - log_scales.mean()
    total, pairs = predictions.total_frames, len(predictions.edges)
    pair_rigid, poses = padded(pair_rigid, pairs), padded(poses, total)
    focals = np.full(1, assembly.focals.mean()) if assembly.shared_focal else padded(assembly.focals, total)
    rigid = (*_rotations_and_translations(pair_rigid), *_rotations_and_translations(poses))
    host = (*rigid, padded(log_scales, pairs)[:, None], poses, focals, factor)
    return _state(
        assembly.points,
        *sharding.agreed(tuple(np.asarray(x, np.float32) for x in host), sharding.mesh_of_rows(predictions)),
        shared_focal=assembly.shared_focal,
        free_principal_point=config.free_principal_point,
    )


def with_scale(
    known: KnownCameras | None, assembly: Assembly, predictions: PairPredictions, config: AlignConfig
) -> KnownCameras | None:
    """Known poses, with the decision whether they fix the world's scale; it is based on a start without them."""
    if known is None or not np.any(known.poses_known) or known.scale_known is not None:  # or decided before
        return known
    unaware = dataclasses.replace(known, poses_known=np.zeros(len(known.poses_known), bool))
    found = start_state(assembly, predictions, config, unaware)
    known = decide_scale(known, *sharding.on_host(_poses_and_depth(found)))
    if known is not None and scale_is_known(known):
        known = dataclasses.replace(known, start_scale=known_scale(predictions, known, found))
    return known


def positive_depth(depth: Float[Array, "*batch H W"]) -> Float[Array, "*batch H W"]:
    """(..., H, W) z, clamped to at least a thousandth of the image's mean |z|: the log-depth must exist."""
    floor = 1e-3 * jnp.mean(jnp.abs(depth), axis=(-2, -1), keepdims=True)
    return jnp.maximum(depth, jnp.maximum(floor, 1e-6))


@partial(jax.jit, static_argnames=("shared_focal", "free_principal_point"))
def _state(
    points: Array,
    pair_rotations: Array,
    pair_translations: Array,
    rotations: Array,
    translations: Array,
    log_scales: Array,
    world_from_cam: Array,
    focals: Array,
    factor: Array,
    *,
    shared_focal: bool,
    free_principal_point: bool,
) -> AlignState:
    """The state of pairs and poses whose translations are parameters already; depth is z of the scaled points."""
    pair_quaternions, quaternions = se3.quaternion_from_matrix(pair_rotations), se3.quaternion_from_matrix(rotations)
    in_camera = se3.transform_points(se3.inverse(world_from_cam), factor * points)
    return make_state(
        jnp.concatenate([pair_quaternions, pair_translations, log_scales], axis=1),
        jnp.concatenate([quaternions, translations], axis=1),
        positive_depth(in_camera[..., 2]),
        focals,
        shared_focal=shared_focal,
        free_principal_point=free_principal_point,
    )


def _rotations_and_translations(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 4, 4) rigid -> (K, 3, 3) rotations, and (K, 3) parameters of the translations, in float64."""
    return poses[:, :3, :3], se3.signed_log1p(poses[:, :3, 3])


@jax.jit
def _poses_and_depth(state: AlignState) -> tuple[Array, Array]:
    return state_of.world_from_cam(state), state_of.depth(state)
