"""One or two frames, solved in closed form from the predictions."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.alignment.confidence import edge_scores, frame_confidence, pnp_pose
from easi3r_jax.alignment.initialise import positive_depth
from easi3r_jax.alignment.known import known_focals, principal_points, with_known_poses
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.geometry.focal import weiszfeld_focal
from easi3r_jax.core.types import Geometry, KnownCameras, PairPredictions

_PNP_ITERATIONS = 100


def one_frame(predictions: PairPredictions, *, known: KnownCameras | None = None) -> Geometry:
    """A frame paired with itself, edge (0, 0): its camera is the world, depth is z of its own map. On the host."""
    height, width = predictions.points_i.shape[1:3]
    estimate = sharding.on_host(_focals(predictions.points_i, np.zeros(1, np.int32)))
    focal = estimate if known is None else np.where(known.intrinsics_known, known.focal, estimate)
    centres = principal_points(camera.default_principal_point(height, width), 1, known)
    cameras = (np.asarray(x, np.float32) for x in (np.eye(4)[None], focal, centres))
    return _alone(predictions.points_i, *cameras, frame_confidence(predictions))


def two_frames(
    predictions: PairPredictions,
    config: AlignConfig = AlignConfig(),
    *,
    known: KnownCameras | None = None,
    seed: int = 0,
) -> Geometry:
    """Two frames in closed form (as DUSt3R's released program shows a pair).

    Runs on the host (PnP).

    The more confident direction is used (of equals, (1, 0)). Its camera i is the world, and frame i's depth is z of its
    point map. The other camera is found by RANSAC-PnP (100 iterations) from its pixels and its world points, which also
    give its depth. Focal lengths come from each frame's own point map as frame i; with `config.shared_focal` both
    frames get their mean. If one direction is missing, the other is used for both. If PnP finds no pose, both cameras
    are the same.

    Scale is that of the pair's prediction. Known intrinsics are used unchanged.
    """
    edges, scores = predictions.clip_edges, edge_scores(predictions)
    best = {frame: _best(edges, scores, frame) for frame in (0, 1)}
    forward = best[1] is None or (best[0] is not None and scores[best[0]] > scores[best[1]])
    reference, other = (0, 1) if forward else (1, 0)
    pair = best[reference]
    assert pair is not None, "check_edges lets no pair of unconnected frames through"

    height, width = predictions.points_i.shape[1:3]
    own_maps = [pair if best[frame] is None else best[frame] for frame in (0, 1)]
    estimates = sharding.on_host(_focals(predictions.points_i, np.array(own_maps, np.int32)))
    focals, shared = known_focals(estimates, known, config)
    if shared:
        focals = np.full_like(focals, focals.mean())
    centres = principal_points(camera.default_principal_point(height, width), 2, known)

    confidence = frame_confidence(predictions)
    points_i, points_j = _maps(predictions.points_i, predictions.points_j, np.int32(pair))
    pose = pnp_pose(
        sharding.on_host(points_j),
        sharding.on_host(confidence)[other],
        focals[other],
        centres[other],
        min_confidence=config.min_confidence,
        iterations=_PNP_ITERATIONS,
        seed=seed,
    )
    poses = np.tile(np.eye(4), (2, 1, 1))
    if pose is not None:
        poses[other] = pose
    poses = sharding.agreed(with_known_poses(poses, known), sharding.mesh_of(predictions))
    # Relative pose: known poses may have moved both cameras.
    other_from_reference = np.linalg.inv(poses[other]) @ poses[reference]
    cameras = (np.asarray(x, np.float32) for x in (poses, focals, centres, other_from_reference))
    return _both(points_i, points_j, *cameras, confidence, forward=forward)


def _best(edges: np.ndarray, scores: np.ndarray, frame: int) -> int | None:
    """The most confident pair with `frame` as frame i and the other as frame j."""
    candidates = np.flatnonzero((edges[:, 0] == frame) & (edges[:, 1] == 1 - frame))
    return int(candidates[np.argmax(scores[candidates])]) if len(candidates) else None


# --- compiled ------------------------------------------------------------------------------------------------------


@jax.jit
def _focals(points: Array, rows: Array) -> Array:
    """Focal lengths of the point maps in these rows."""
    centre = camera.default_principal_point(*points.shape[1:3])
    return jax.lax.map(lambda row: weiszfeld_focal(points[row].astype(jnp.float32), centre), rows)


@jax.jit
def _maps(points_i: Array, points_j: Array, row: Array) -> tuple[Array, Array]:
    return points_i[row].astype(jnp.float32), points_j[row].astype(jnp.float32)


@jax.jit
def _alone(points: Array, poses: Array, focals: Array, centres: Array, confidence: Array) -> Geometry:
    return _geometry(poses, focals, centres, points[:1, ..., 2].astype(jnp.float32), confidence)


@partial(jax.jit, static_argnames=("forward",))
def _both(
    points_i: Array,
    points_j: Array,
    poses: Array,
    focals: Array,
    centres: Array,
    other_from_reference: Array,
    confidence: Array,
    *,
    forward: bool,
) -> Geometry:
    depths = points_i[..., 2], se3.transform_points(other_from_reference, points_j)[..., 2]
    return _geometry(poses, focals, centres, jnp.stack(depths if forward else depths[::-1]), confidence)


def _geometry(poses: Array, focals: Array, centres: Array, depth: Array, confidence: Array) -> Geometry:
    return Geometry(poses, camera.intrinsics(focals, centres), positive_depth(depth), confidence.astype(jnp.float32))
