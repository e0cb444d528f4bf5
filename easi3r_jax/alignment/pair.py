"""One or two frames, solved in closed form from the predictions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from easi3r_jax.alignment.confidence import confident_pixels, edge_scores, frame_confidence
from easi3r_jax.alignment.initialise import positive_depth
from easi3r_jax.alignment.known import known_focals, principal_points, with_known_poses
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.geometry.focal import weiszfeld_focal
from easi3r_jax.core.geometry.pnp import solve_pnp
from easi3r_jax.core.types import Geometry, KnownCameras, PairPredictions

_PNP_ITERATIONS = 100


def one_frame(predictions: PairPredictions, *, known: KnownCameras | None = None) -> Geometry:
    """A frame paired with itself, edge (0, 0): its camera is the world, depth is z of its own map. On the host."""
    points = predictions.points_i[0].astype(jnp.float32)
    centre = camera.default_principal_point(*points.shape[:2])
    estimate = np.asarray(weiszfeld_focal(points, centre))[None]
    focal = estimate if known is None else np.where(known.intrinsics_known, known.focal, estimate)
    intrinsics = camera.intrinsics(
        jnp.asarray(focal, jnp.float32), jnp.asarray(principal_points(np.asarray(centre), 1, known), jnp.float32)
    )
    return _result(predictions, np.eye(4)[None], intrinsics, points[None, ..., 2])


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
    centre = camera.default_principal_point(height, width)
    own_maps = [pair if best[frame] is None else best[frame] for frame in (0, 1)]
    estimates = [weiszfeld_focal(predictions.points_i[e].astype(jnp.float32), centre) for e in own_maps]
    focals, shared = known_focals(np.asarray(jnp.stack(estimates)), known, config)
    if shared:
        focals = np.full_like(focals, focals.mean())
    intrinsics = camera.intrinsics(
        jnp.asarray(focals, jnp.float32), jnp.asarray(principal_points(np.asarray(centre), 2, known), jnp.float32)
    )

    points = predictions.points_j[pair].astype(jnp.float32)
    mask = confident_pixels(np.asarray(frame_confidence(predictions)[other]), config.min_confidence)
    pose = solve_pnp(
        np.asarray(points)[mask],
        np.asarray(camera.pixel_grid(height, width))[mask],
        np.asarray(intrinsics[other]),
        iterations=_PNP_ITERATIONS,
        seed=seed,
    )
    poses = np.tile(np.eye(4), (2, 1, 1))
    if pose is not None:
        poses[other] = pose
    poses = with_known_poses(poses, known)
    # Relative pose: known poses may have moved both cameras.
    other_from_reference = np.asarray(np.linalg.inv(poses[other]) @ poses[reference], np.float32)
    in_camera = se3.transform_points(jnp.asarray(other_from_reference), points)
    depths = {reference: predictions.points_i[pair, ..., 2].astype(jnp.float32), other: in_camera[..., 2]}
    return _result(predictions, poses, intrinsics, jnp.stack([depths[0], depths[1]]))


def _best(edges: np.ndarray, scores: np.ndarray, frame: int) -> int | None:
    """The most confident pair with `frame` as frame i and the other as frame j."""
    candidates = np.flatnonzero((edges[:, 0] == frame) & (edges[:, 1] == 1 - frame))
    return int(candidates[np.argmax(scores[candidates])]) if len(candidates) else None


def _result(predictions: PairPredictions, poses: np.ndarray, intrinsics: Array, depth: Array) -> Geometry:
    return Geometry(
        world_from_cam=jnp.asarray(poses, jnp.float32),
        intrinsics=intrinsics,
        depth=positive_depth(depth),
        confidence=frame_confidence(predictions).astype(jnp.float32),
    )
