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
from jax.sharding import Mesh

from easi3r_jax.alignment.graph import SpanningTree, nearest_first, spanning_tree
from easi3r_jax.alignment.known import known_focals, principal_points, scale_is_known, with_known_poses
from easi3r_jax.alignment.narrow import in_bits, widened
from easi3r_jax.alignment.state import MEAN_PAIR_SCALE, AlignState, make_state
from easi3r_jax.core import sharding
from easi3r_jax.core.batches import padded
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.geometry.focal import weiszfeld_focal
from easi3r_jax.core.geometry.pnp import solve_pnp
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.core.sharding import ROWS, WHOLE
from easi3r_jax.core.types import Array, Bool, Float, Int, KnownCameras, PairPredictions

_FRAME_I, _FRAME_J = 0, 1
# Bounds of a pair's scale, for point maps that are all but one point.
_SCALE_RANGE = (1e-6, 1e6)
# Least share of a frame's pixels that must pass `min_confidence`, and the most confident share taken otherwise.
_FEW, _BEST = 0.01, 0.25


def initial_state(
    predictions: PairPredictions,
    config: AlignConfig = AlignConfig(),
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
      predictions: pairs that connect all frames, of which there are two at least.
      config: `initialisation`, `shared_focal`, `free_principal_point`, `min_confidence`, `pnp_iterations`.
      known: cameras known beforehand.
      seed: of RANSAC.

    Returns:
      the state of all frames and pairs of the predictions, padding included. Runs on the host: the spanning tree, the
      walk along it and PnP are not differentiable.
    """
    edges, scores = predictions.clip_edges, edge_scores(predictions)
    if config.initialisation == "chain":
        scores = nearest_first(edges, scores)
    tree = spanning_tree(edges, scores, predictions.clip_length)
    return _state_along(tree, predictions, config, known, seed)


def edge_scores(predictions: PairPredictions) -> Float[np.ndarray, "pairs"]:
    """(E',) mean confidence of frame i times that of frame j, of the pairs that are not padding."""
    scores = _mean_confidence(predictions.confidence_i) * _mean_confidence(predictions.confidence_j)
    return np.asarray(scores)[: len(predictions.clip_edges)]


@jax.jit
def _mean_confidence(confidence: Array) -> Array:
    return jnp.mean(_wide(confidence), axis=(1, 2))


def frame_confidence(predictions: PairPredictions) -> Float[Array, "T H W"]:
    """(T, H, W): every pixel's largest confidence over the pairs its frame is in; 0 for a frame in none."""
    return _largest_confidence(
        np.asarray(predictions.edges, np.int32),
        predictions.confidence_i,
        predictions.confidence_j,
        predictions.total_frames,
        sharding.mesh_of_rows(predictions),
    )


@partial(jax.jit, static_argnames=("num_frames", "mesh"))
def _largest_confidence(
    edges: Array, confidence_i: Array, confidence_j: Array, num_frames: int, mesh: Mesh | None
) -> Array:
    def share(edges: Array, confidence_i: Array, confidence_j: Array) -> Array:
        out = jnp.zeros((num_frames, *confidence_i.shape[1:]), confidence_i.dtype)
        out = out.at[edges[:, 0]].max(confidence_i).at[edges[:, 1]].max(confidence_j)
        return sharding.maximum(_wide(out), mesh)

    return sharding.divided(share, mesh, (ROWS, ROWS, ROWS), WHOLE)(edges, confidence_i, confidence_j)


def _wide(x: Array) -> Array:
    """In float32 at least: predictions may be kept in half."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def confident_pixels(confidence: Float[np.ndarray, "H W"], min_confidence: float) -> Bool[np.ndarray, "H W"]:
    """(H, W) confidence -> (H, W) bool: pixels above `min_confidence`; the best quarter where they are under 1 %."""
    mask = confidence > min_confidence
    if mask.mean() < _FEW:
        mask = confidence >= np.quantile(confidence, 1 - _BEST)
    return mask


def positive_depth(depth: Float[Array, "*batch H W"]) -> Float[Array, "*batch H W"]:
    """(..., H, W) z -> the same, no less than a thousandth of the image's mean |z|: a log-depth must exist."""
    floor = 1e-3 * jnp.mean(jnp.abs(depth), axis=(-2, -1), keepdims=True)
    return jnp.maximum(depth, jnp.maximum(floor, 1e-6))


def _state_along(
    tree: SpanningTree,
    predictions: PairPredictions,
    config: AlignConfig,
    known: KnownCameras | None,
    seed: int,
) -> AlignState:
    edges, num_frames, total = predictions.clip_edges, predictions.clip_length, predictions.total_frames
    home = _homes(tree, edges, num_frames)
    focals, shared_focal = known_focals(_frame_focals(tree, predictions, total), known, config)

    # Registrations to the frames' home point maps: of all pairs' i sides, and of the j sides that tree edges join by.
    home_points, _ = frame_maps(predictions, home, total)
    of_pairs = _similarities(*_register_pairs(predictions, home_points))
    by_j = np.flatnonzero(~tree.joins_i)
    sides_j = np.stack([tree.edges[by_j], np.full(len(by_j), _FRAME_J)], axis=1)
    of_joins = of_pairs[tree.edges]
    if len(by_j):
        targets = np.resize(edges[tree.edges[by_j], 1], total)
        of_joins[by_j] = _similarities(*_register(*frame_maps(predictions, sides_j, total), home_points, targets))[
            : len(by_j)
        ]

    world_from_edge = {int(tree.edges[0]): np.eye(4)}
    for e, joins_i, local in zip(tree.edges[1:], tree.joins_i[1:], of_joins[1:], strict=True):
        known_frame = edges[e, _FRAME_I if joins_i else _FRAME_J]
        world_from_edge[int(e)] = world_from_edge[int(home[known_frame, 0])] @ local
    world_from_home = np.stack([world_from_edge[int(e)] for e in home[:, 0]])
    world_from_pair = world_from_home[edges[:, 0]] @ of_pairs[: len(edges)]

    points = _home_points(home_points, padded(world_from_home, total))
    tree_poses = {}
    for e in tree.edges:  # the first tree edge of which a frame is the i side
        tree_poses.setdefault(int(edges[e, 0]), _without_scale(world_from_edge[int(e)]))
    pair_poses = {int(edges[e, 0]): _without_scale(world_from_pair[e]) for e in range(len(edges))}
    confidence = np.asarray(frame_confidence(predictions))
    centres = principal_points(np.asarray(camera.default_principal_point(*points.shape[1:3])), num_frames, known)
    on_host = np.asarray(points)
    poses = np.empty((num_frames, 4, 4))
    for t in range(num_frames):
        pose = tree_poses.get(t)
        if pose is None:
            pose = _pnp_pose(on_host[t], confidence[t], focals[t], centres[t], config, seed)
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
    pairs = len(predictions.edges)
    pair_params = np.concatenate([_rigid_params(padded(pair_rigid, pairs)), padded(log_scales, pairs)[:, None]], 1)
    poses = padded(poses, total)
    depth = _depth(points, np.asarray(poses, np.float32), np.float32(factor))
    as_float32 = partial(np.asarray, dtype=np.float32)
    return make_state(
        jnp.asarray(as_float32(pair_params)),
        jnp.asarray(as_float32(_rigid_params(poses))),
        depth,
        jnp.asarray(as_float32(np.full(1, focals.mean()) if shared_focal else padded(focals, total))),
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


def _frame_focals(tree: SpanningTree, predictions: PairPredictions, total: int) -> np.ndarray:
    """(T,) focal lengths; a frame that no pair has as frame i gets the mean of the others."""
    known = tree.focal_edges >= 0
    sides = np.stack([np.maximum(tree.focal_edges, 0), np.full(len(known), _FRAME_I)], axis=1)
    points, _ = frame_maps(predictions, sides, total)
    focals = np.asarray(_focals(points, tuple(predictions.points_i.shape[1:3])), np.float64)[: len(known)]
    return np.where(known, focals, focals[known].mean())


@partial(jax.jit, static_argnames=("size",))
def _focals(points: Array, size: tuple[int, int]) -> Array:
    principal_point = camera.default_principal_point(*size)
    return jax.lax.map(lambda x: weiszfeld_focal(x.reshape(*size, 3), principal_point), points)


def frame_maps(
    predictions: PairPredictions, sides: Int[np.ndarray, "K 2"], count: int
) -> tuple[Float[Array, "count H W 3"], Float[Array, "count H W"]]:
    """Point maps of some sides of pairs, on every device.

    Args:
      predictions: of all pairs.
      sides: (K, 2) row of the pair, and which side of it (0: i, 1: j).
      count: how many are returned, at least K: the last one is repeated.

    Returns:
      (count, H, W, 3) float32 points and (count, H, W) confidence.
    """
    sides = padded(np.asarray(sides, np.int32), count)
    arrays = (predictions.points_i, predictions.points_j, predictions.confidence_i, predictions.confidence_j)
    return _frame_maps(*arrays, sides, sharding.mesh_of_rows(predictions))


@partial(jax.jit, static_argnames=("mesh",))
def _frame_maps(points_i, points_j, confidence_i, confidence_j, sides: Array, mesh: Mesh | None):
    def share(points_i, points_j, confidence_i, confidence_j, sides):
        rows = len(points_i)
        points, confidence = in_bits(((points_i, points_j), (confidence_i, confidence_j)))

        def one(side: Array) -> tuple[Array, Array]:
            row = side[0] - sharding.share_number(mesh) * rows
            mine = (row >= 0) & (row < rows)

            def chosen(i: Array, j: Array) -> Array:
                of_side = jnp.where(side[1] == _FRAME_I, i[row], j[row])
                return jnp.where(mine, widened(of_side, jnp.float32), 0)

            return chosen(*points), chosen(*confidence)

        return sharding.summed(jax.lax.map(one, sides), mesh)

    specs = (ROWS, ROWS, ROWS, ROWS, WHOLE)
    return sharding.divided(share, mesh, specs, WHOLE)(points_i, points_j, confidence_i, confidence_j, sides)


def _register_pairs(predictions: PairPredictions, home_points: Array) -> tuple[Array, Array, Array]:
    """Similarities (R,), (R, 3, 3), (R, 3) of all pairs' i sides to their frames' home point maps (T, H, W, 3)."""
    mesh = sharding.mesh_of_rows(predictions)
    frames = sharding.by_rows(np.asarray(predictions.edges, np.int32)[:, 0], mesh)
    return _register(predictions.points_i, predictions.confidence_i, home_points, frames, mesh)


@partial(jax.jit, static_argnames=("mesh",))
def _register(points: Array, confidence: Array, home_points: Array, frames: Array, mesh: Mesh | None = None):
    """Similarities (K,), (K, 3, 3), (K, 3) of K point maps to the home maps of (K,) frames, one at a time."""

    def share(points, confidence, frames, home_points):
        def one(inputs):
            source, weights, frame = inputs
            source, weights = widened(source, jnp.float32), widened(weights, jnp.float32)
            return register_similarity(source.reshape(-1, 3), home_points[frame].reshape(-1, 3), weights.reshape(-1))

        return jax.lax.map(one, (in_bits(points), in_bits(confidence), frames))

    specs = (ROWS, ROWS, ROWS, WHOLE)
    return sharding.divided(share, mesh, specs, ROWS)(points, confidence, frames, home_points)


def _similarities(scale: Array, rotation: Array, translation: Array) -> np.ndarray:
    """(K, 4, 4) float64."""
    scale, rotation, translation = (np.asarray(x, np.float64) for x in (scale, rotation, translation))
    out = np.tile(np.eye(4), (len(scale), 1, 1))
    out[:, :3, :3] = np.clip(scale, *_SCALE_RANGE)[:, None, None] * rotation
    out[:, :3, 3] = translation
    return out


@jax.jit
def _home_points(home_points: Array, world_from_home: Array) -> Array:
    """(T, H, W, 3) world points, before the world is scaled."""
    transforms = world_from_home.astype(jnp.float32)
    return jax.lax.map(lambda inputs: se3.transform_points(*inputs), (transforms, home_points))


@jax.jit
def _depth(points: Array, world_from_cam: Array, factor: Array) -> Array:
    in_camera = se3.transform_points(se3.inverse(world_from_cam), factor * points)
    return positive_depth(in_camera[..., 2])


def _pnp_pose(points, confidence, focal, principal_point, config: AlignConfig, seed: int) -> np.ndarray | None:
    mask = confident_pixels(confidence, config.min_confidence)
    rows, columns = np.nonzero(mask)
    pixels = np.stack([columns, rows], axis=-1).astype(np.float32)
    matrix = np.array([[focal, 0, principal_point[0]], [0, focal, principal_point[1]], [0, 0, 1]])
    return solve_pnp(points[mask], pixels, matrix, iterations=config.pnp_iterations, seed=seed)


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
