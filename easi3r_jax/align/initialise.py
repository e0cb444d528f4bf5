"""Where the optimiser starts: frames put together along a spanning tree of their pairs.

Array work runs on the device in three batched calls; the walk along the tree and RANSAC run on the host. What makes
the batches possible: registering a pair's points to points that stand in the world by a similarity is registering
them to the untransformed points first, and applying the similarity after.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.align.graph import SpanningTree, nearest_first, spanning_tree
from easi3r_jax.align.known import known_focals, principal_points, scale_is_known, with_known_poses
from easi3r_jax.align.narrow import in_bits, widened
from easi3r_jax.align.state import MEAN_PAIR_SCALE, AlignState, make_state
from easi3r_jax.config import AlignConfig
from easi3r_jax.geometry import camera, se3
from easi3r_jax.geometry.focal import weiszfeld_focal
from easi3r_jax.geometry.pnp import solve_pnp
from easi3r_jax.geometry.procrustes import register_similarity
from easi3r_jax.types import Array, KnownCameras, PairPredictions

_FRAME_I, _FRAME_J = 0, 1
# Bounds of a pair's scale, for point maps that are all but one point.
_SCALE_RANGE = (1e-6, 1e6)
# Least share of a frame's pixels that must pass `min_confidence`, and the most confident share taken otherwise.
_FEW, _BEST = 0.01, 0.25


def initial_state(
    predictions: PairPredictions,
    num_frames: int,
    config: AlignConfig,
    *,
    known: KnownCameras | None = None,
    seed: int = 0,
) -> AlignState:
    """Start of the alignment (DUSt3R's released initialisation; sec. 3.4 says only that there is one).

    1. Maximum spanning tree over mean(conf_i) * mean(conf_j), or, for a chain, of the nearest frames. Walking it, a
       pair joins the world by weighted registration (weights: confidence) of its known side, and carries its other
       side there.
    2. A focal length per frame (Weiszfeld).
    3. Camera poses: from that registration for the i side of a tree edge, else by RANSAC-PnP on the confident points.
    4. All pairs are registered to the frames' world points; the world is scaled so that the geometric mean of the
       pairs' scales is 0.5.
    5. Known poses take the place of those found, brought to where these are; depth is z of the world points in the
       camera.

    Args:
      predictions: pairs that connect all frames.
      num_frames: T >= 2.
      config: `initialisation`, `shared_focal`, `free_principal_point`, `min_confidence`, `pnp_iterations`.
      known: cameras known beforehand.
      seed: of RANSAC.
    """
    edges, scores = np.asarray(predictions.edges), np.asarray(edge_scores(predictions))
    if config.initialisation == "chain":
        scores = nearest_first(edges, scores)
    tree = spanning_tree(edges, scores, num_frames)
    return _state_along(tree, predictions, num_frames, config, known, seed)


@jax.jit
def edge_scores(predictions: PairPredictions) -> Array:
    """(E,) mean confidence of frame i times that of frame j."""
    return jnp.mean(_wide(predictions.confidence_i), axis=(1, 2)) * jnp.mean(
        _wide(predictions.confidence_j), axis=(1, 2)
    )


@partial(jax.jit, static_argnames=("num_frames",))
def frame_confidence(predictions: PairPredictions, num_frames: int) -> Array:
    """(T, H, W): every pixel's largest confidence over the pairs its frame is in; 0 for a frame in none."""
    out = jnp.zeros((num_frames, *predictions.confidence_i.shape[1:]), predictions.confidence_i.dtype)
    out = out.at[predictions.edges[:, 0]].max(predictions.confidence_i)
    return _wide(out.at[predictions.edges[:, 1]].max(predictions.confidence_j))


def _wide(x: Array) -> Array:
    """In float32 at least: predictions may be kept in half."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def confident_pixels(confidence: np.ndarray, min_confidence: float) -> np.ndarray:
    """(H, W) confidence -> (H, W) bool: pixels above `min_confidence`; the best quarter where they are under 1 %."""
    mask = confidence > min_confidence
    if mask.mean() < _FEW:
        mask = confidence >= np.quantile(confidence, 1 - _BEST)
    return mask


def positive_depth(depth: Array) -> Array:
    """(..., H, W) z -> the same, no less than a thousandth of the image's mean |z|: a log-depth must exist."""
    floor = 1e-3 * jnp.mean(jnp.abs(depth), axis=(-2, -1), keepdims=True)
    return jnp.maximum(depth, jnp.maximum(floor, 1e-6))


def _state_along(
    tree: SpanningTree,
    predictions: PairPredictions,
    num_frames: int,
    config: AlignConfig,
    known: KnownCameras | None,
    seed: int,
) -> AlignState:
    edges = np.asarray(predictions.edges)
    home = _homes(tree, edges, num_frames)
    focals, shared_focal = known_focals(_frame_focals(tree, predictions), known, config)

    # Registrations: first of the tree edges' known sides, then of all pairs' i sides, to the frames' home point maps.
    side = np.concatenate([np.where(tree.joins_i, _FRAME_I, _FRAME_J), np.full(len(edges), _FRAME_I)])
    edge = np.concatenate([tree.edges, np.arange(len(edges))])
    target = home[edges[edge, side]]
    scale, rotation, translation = (np.asarray(x, np.float64) for x in _register(predictions, edge, side, target))
    local = np.tile(np.eye(4), (len(edge), 1, 1))
    local[:, :3, :3] = np.clip(scale, *_SCALE_RANGE)[:, None, None] * rotation
    local[:, :3, 3] = translation

    world_from_edge = {int(tree.edges[0]): np.eye(4)}
    for k, e in enumerate(tree.edges[1:], start=1):
        world_from_edge[int(e)] = world_from_edge[int(target[k, 0])] @ local[k]
    world_from_home = np.stack([world_from_edge[int(e)] for e in home[:, 0]])
    world_from_pair = world_from_home[edges[:, 0]] @ local[len(tree.edges) :]

    points = _home_points(predictions, home, np.asarray(world_from_home, np.float32))
    tree_poses = {}
    for e in tree.edges:  # the first tree edge of which a frame is the i side
        tree_poses.setdefault(int(edges[e, 0]), _without_scale(world_from_edge[int(e)]))
    pair_poses = {int(edges[e, 0]): _without_scale(world_from_pair[e]) for e in range(len(edges))}
    confidence = np.asarray(frame_confidence(predictions, num_frames))
    centres = principal_points(np.asarray(camera.centre(*points.shape[1:3])), num_frames, known)
    poses = np.empty((num_frames, 4, 4))
    for t in range(num_frames):
        pose = tree_poses.get(t)
        if pose is None:
            pose = _pnp_pose(points[t], confidence[t], focals[t], centres[t], config, seed)
        if pose is None:  # no confident pose from pixels: that of a pair it is the i side of, else the world's camera
            pose = pair_poses.get(t, np.eye(4))
        poses[t] = pose

    log_scales = np.log(_scales(world_from_pair))
    factor = MEAN_PAIR_SCALE / np.exp(log_scales.mean())
    poses[:, :3, 3] *= factor
    poses = with_known_poses(poses, known)
    pair_rigid = _without_scale(world_from_pair)
    pair_rigid[:, :3, 3] /= np.exp(log_scales)[:, None]  # the scale multiplies the translation, too
    if scale_is_known(known):  # see `pair_scales`
        log_scales = log_scales - log_scales.mean()
    pair_params = np.concatenate([_rigid_params(pair_rigid), log_scales[:, None]], axis=1)
    depth = _depth(points, np.asarray(poses, np.float32), np.float32(factor))
    as_float32 = partial(np.asarray, dtype=np.float32)
    return make_state(
        jnp.asarray(as_float32(pair_params)),
        jnp.asarray(as_float32(_rigid_params(poses))),
        depth,
        jnp.asarray(as_float32(focals)),
        shared_focal=shared_focal,
        free_principal_point=config.free_principal_point,
    )


def _homes(tree: SpanningTree, edges: np.ndarray, num_frames: int) -> np.ndarray:
    """(T, 2) edge and side of the point map that a frame's world points are made of: that of the edge it joined by."""
    home = np.empty((num_frames, 2), int)
    first = tree.edges[0]
    home[edges[first, 0]], home[edges[first, 1]] = (first, _FRAME_I), (first, _FRAME_J)
    for e, joins_i in zip(tree.edges[1:], tree.joins_i[1:], strict=True):
        side = _FRAME_J if joins_i else _FRAME_I
        home[edges[e, side]] = (e, side)
    return home


def _frame_focals(tree: SpanningTree, predictions: PairPredictions) -> np.ndarray:
    """(T,) focal lengths; a frame that no pair has as frame i gets the mean of the others."""
    known = tree.focal_edges >= 0
    focals = np.asarray(_edge_focals(predictions.points_i, np.maximum(tree.focal_edges, 0)), np.float64)
    return np.where(known, focals, focals[known].mean())


@jax.jit
def _edge_focals(points_i: Array, edges: Array) -> Array:
    principal_point = camera.centre(*points_i.shape[1:3])
    points_i = in_bits(points_i)
    return jax.lax.map(lambda e: weiszfeld_focal(widened(points_i[e], jnp.float32), principal_point), edges)


def _point_map(predictions: PairPredictions, edge: Array, side: Array) -> tuple[Array, Array]:
    """(P, 3) points and (P,) confidence of one side of one pair; the predictions `in_bits`."""
    points = jnp.where(side == _FRAME_I, predictions.points_i[edge], predictions.points_j[edge])
    confidence = jnp.where(side == _FRAME_I, predictions.confidence_i[edge], predictions.confidence_j[edge])
    return widened(points.reshape(-1, 3), jnp.float32), widened(confidence.reshape(-1), jnp.float32)


@jax.jit
def _register(predictions: PairPredictions, edges: Array, sides: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Similarities (K,), (K, 3, 3), (K, 3) of K point maps to the (K, 2) targets. One at a time: little memory."""
    predictions = in_bits(predictions)

    def one(inputs):
        edge, side, target = inputs
        source, weights = _point_map(predictions, edge, side)
        return register_similarity(source, _point_map(predictions, target[0], target[1])[0], weights)

    return jax.lax.map(one, (edges, sides, targets))


@jax.jit
def _home_points(predictions: PairPredictions, home: Array, world_from_home: Array) -> Array:
    """(T, H, W, 3) world points, before the world is scaled."""
    predictions = in_bits(predictions)

    def one(inputs):
        home, transform = inputs
        return se3.transform_points(transform, _point_map(predictions, home[0], home[1])[0])

    height, width = predictions.points_i.shape[1:3]
    return jax.lax.map(one, (home, world_from_home)).reshape(-1, height, width, 3)


@jax.jit
def _depth(points: Array, world_from_cam: Array, factor: Array) -> Array:
    in_camera = se3.transform_points(se3.inverse(world_from_cam), factor * points)
    return positive_depth(in_camera[..., 2])


def _pnp_pose(points, confidence, focal, principal_point, config: AlignConfig, seed: int) -> np.ndarray | None:
    mask = confident_pixels(confidence, config.min_confidence)
    rows, columns = np.nonzero(mask)
    pixels = np.stack([columns, rows], axis=-1).astype(np.float32)
    matrix = np.array([[focal, 0, principal_point[0]], [0, focal, principal_point[1]], [0, 0, 1]])
    return solve_pnp(np.asarray(points)[mask], pixels, matrix, iterations=config.pnp_iterations, seed=seed)


def _scales(similarity: np.ndarray) -> np.ndarray:
    return np.cbrt(np.linalg.det(similarity[..., :3, :3]))


def _without_scale(similarity: np.ndarray) -> np.ndarray:
    rigid = similarity.copy()
    rigid[..., :3, :3] /= _scales(similarity)[..., None, None]
    return rigid


def _rigid_params(poses: np.ndarray) -> np.ndarray:
    """(K, 4, 4) rigid -> (K, 7) parameters (float32 resolution: the rotation goes through the device)."""
    quaternion = se3.quaternion_from_matrix(jnp.asarray(poses[:, :3, :3], jnp.float32))
    return np.concatenate([quaternion, np.sign(poses[:, :3, 3]) * np.log1p(np.abs(poses[:, :3, 3]))], axis=1)
