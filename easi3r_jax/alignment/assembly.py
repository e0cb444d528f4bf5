"""Frames put together along a spanning tree of their pairs: a world to start from.

Array work runs on the device in three batched calls; the walk along the tree and RANSAC run on the host. Batching is
possible because registration commutes with similarities: a pair can be registered to a frame's untransformed points
first, and the frame's world similarity applied afterwards.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from easi3r_jax.alignment.confidence import edge_scores, frame_confidence, pnp_pose
from easi3r_jax.alignment.graph import SpanningTree, check_edges, nearest_first, spanning_tree
from easi3r_jax.alignment.known import known_focals, principal_points
from easi3r_jax.alignment.narrow import in_bits, widened
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Float, Int
from easi3r_jax.core.batches import padded
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.geometry.focal import weiszfeld_focal
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.core.sharding import REPLICATED, ROWS
from easi3r_jax.core.types import KnownCameras, PairPredictions

_FRAME_I, _FRAME_J = 0, 1
# Bounds of a pair's scale, for point maps that are nearly a single point.
_SCALE_RANGE = (1e-6, 1e6)


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A clip's frames and pairs in one world, before it is scaled. T' and E' are without padding.

    Attributes:
      points: (T, H, W, 3) float32, world points of every frame.
      world_from_cam: (T', 4, 4) float64, rigid, on the host.
      world_from_pair: (E', 4, 4) float64, similarities from the pair's camera i, on the host.
      focals: (T',) float64, pixels.
      shared_focal: whether all frames share one.
    """

    points: Float[Array, "T H W 3"]
    world_from_cam: Float[np.ndarray, "frames 4 4"]
    world_from_pair: Float[np.ndarray, "pairs 4 4"]
    focals: Float[np.ndarray, "frames"]
    shared_focal: bool

    @property
    def scales(self) -> Float[np.ndarray, "pairs"]:
        """(E',) of the pairs."""
        return _scales(self.world_from_pair)

    @property
    def pairs_without_scale(self) -> Float[np.ndarray, "pairs 4 4"]:
        """(E', 4, 4) rigid."""
        return _without_scale(self.world_from_pair)


def assemble(
    predictions: PairPredictions, config: AlignConfig, known: KnownCameras | None = None, seed: int = 0
) -> Assembly:
    """Puts frames together: steps 1 to 3 of `initial_state`, and the registration of all pairs to the result.

    Args:
      predictions: pairs that connect all frames, at least two of them.
      config: `initialisation`, `shared_focal`, `min_confidence`, `pnp_iterations`.
      known: cameras known beforehand, of which intrinsics count here.
      seed: of RANSAC.

    Raises:
      ConfigError, InputError: as `check_edges`.
    """
    edges, num_frames, total = predictions.clip_edges, predictions.clip_length, predictions.total_frames
    check_edges(edges, num_frames)
    scores = edge_scores(predictions)
    if config.initialisation == "chain":
        scores = nearest_first(edges, scores)
    tree = spanning_tree(edges, scores, num_frames)
    home = _homes(tree, edges, num_frames)
    focals, shared_focal = known_focals(_frame_focals(tree, predictions, total), known, config)

    home_points, _ = frame_maps(predictions, home, total)
    of_pairs = _similarities(*_register_pairs(predictions, home_points))
    world_from_edge = _walk(tree, home, _joins(tree, predictions, home_points, of_pairs), edges)
    world_from_home = np.stack([world_from_edge[int(e)] for e in home[:, 0]])
    world_from_pair = world_from_home[edges[:, 0]] @ of_pairs[: len(edges)]
    points = _world_points(home_points, padded(world_from_home, total))

    # The camera of a tree edge is that of its frame i: the first one counts.
    from_tree = {int(edges[e, 0]): _without_scale(world_from_edge[int(e)]) for e in tree.edges[::-1]}
    missing = [t for t in range(num_frames) if t not in from_tree]
    poses = from_tree | _other_poses(missing, predictions, points, world_from_pair, focals, known, config, seed)
    world_from_cam = np.stack([poses[t] for t in range(num_frames)])
    host = sharding.agreed((world_from_cam, world_from_pair, focals), sharding.mesh_of_rows(predictions))
    return Assembly(points, *host, shared_focal)


def _joins(tree: SpanningTree, predictions: PairPredictions, home_points: Array, of_pairs: np.ndarray) -> np.ndarray:
    """(T - 1, 4, 4) registrations of the tree's edges to the home map of their known frame."""
    edges, total = predictions.clip_edges, predictions.total_frames
    by_j = np.flatnonzero(~tree.joins_i)
    out = of_pairs[tree.edges]
    if len(by_j):
        sides_j = np.stack([tree.edges[by_j], np.full(len(by_j), _FRAME_J)], axis=1)
        targets = np.resize(edges[tree.edges[by_j], 1], total)
        registered = _register(*frame_maps(predictions, sides_j, total), home_points, targets)
        out[by_j] = _similarities(*registered)[: len(by_j)]
    return out


def _walk(tree: SpanningTree, home: np.ndarray, joins: np.ndarray, edges: np.ndarray) -> dict[int, np.ndarray]:
    """World from the camera i of every edge of the tree, by its number."""
    world_from_edge = {int(tree.edges[0]): np.eye(4)}
    for e, joins_i, local in zip(tree.edges[1:], tree.joins_i[1:], joins[1:], strict=True):
        known_frame = edges[e, _FRAME_I if joins_i else _FRAME_J]
        world_from_edge[int(e)] = world_from_edge[int(home[known_frame, 0])] @ local
    return world_from_edge


def _other_poses(
    frames: list[int],
    predictions: PairPredictions,
    points: Array,
    world_from_pair: np.ndarray,
    focals: np.ndarray,
    known: KnownCameras | None,
    config: AlignConfig,
    seed: int,
) -> dict[int, np.ndarray]:
    """Poses of frames that are the i side of no tree edge: RANSAC-PnP; else a pair's; else the world's camera."""
    if not frames:
        return {}
    edges = predictions.clip_edges
    of_pairs = {int(i): _without_scale(pose) for i, pose in zip(edges[:, 0], world_from_pair, strict=True)}
    centre = camera.default_principal_point(*points.shape[1:3])
    centres = principal_points(centre, predictions.clip_length, known)
    on_host, confidence = sharding.on_host((points, frame_confidence(predictions)))
    poses = {}
    for t in frames:
        options = {"min_confidence": config.min_confidence, "iterations": config.pnp_iterations, "seed": seed}
        pose = pnp_pose(on_host[t], confidence[t], focals[t], centres[t], **options)
        poses[t] = of_pairs.get(t, np.eye(4)) if pose is None else pose
    return poses


def _homes(tree: SpanningTree, edges: np.ndarray, num_frames: int) -> np.ndarray:
    """(T, 2) edge and side of each frame's home point map, which gives its world points: the edge that placed it."""
    home = np.empty((num_frames, 2), int)
    first = tree.edges[0]
    home[edges[first, 0]], home[edges[first, 1]] = (first, _FRAME_I), (first, _FRAME_J)
    for e, joins_i in zip(tree.edges[1:], tree.joins_i[1:], strict=True):
        side = _FRAME_J if joins_i else _FRAME_I
        home[edges[e, side]] = (e, side)
    return home


def _frame_focals(tree: SpanningTree, predictions: PairPredictions, total: int) -> np.ndarray:
    """(T,) focal lengths; a frame that is never frame i gets the mean of the others."""
    known = tree.focal_edges >= 0
    sides = np.stack([np.maximum(tree.focal_edges, 0), np.full(len(known), _FRAME_I)], axis=1)
    points, _ = frame_maps(predictions, sides, total)
    focals = sharding.on_host(_focals(points, tuple(predictions.points_i.shape[1:3])))
    focals = np.asarray(focals, np.float64)[: len(known)]
    return np.where(known, focals, focals[known].mean())


@partial(jax.jit, static_argnames=("size",))
def _focals(points: Array, size: tuple[int, int]) -> Array:
    principal_point = camera.default_principal_point(*size)
    return jax.lax.map(lambda x: weiszfeld_focal(x.reshape(*size, 3), principal_point), points)


def frame_maps(
    predictions: PairPredictions, sides: Int[np.ndarray, "K 2"], count: int
) -> tuple[Float[Array, "count H W 3"], Float[Array, "count H W"]]:
    """Point maps of selected sides of pairs, replicated on every device.

    Args:
      predictions: of all pairs.
      sides: (K, 2) row of the pair, and its side (0: i, 1: j).
      count: number of maps returned, at least K: the last one is repeated.

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
            row = side[0] - sharding.shard_index(mesh) * rows
            mine = (row >= 0) & (row < rows)

            def chosen(i: Array, j: Array) -> Array:
                of_side = jnp.where(side[1] == _FRAME_I, i[row], j[row])
                return jnp.where(mine, widened(of_side, jnp.float32), 0)

            return chosen(*points), chosen(*confidence)

        return sharding.psum(jax.lax.map(one, sides), mesh)

    specs = (ROWS, ROWS, ROWS, ROWS, REPLICATED)
    return sharding.shard_map(share, mesh, specs, REPLICATED)(points_i, points_j, confidence_i, confidence_j, sides)


def _register_pairs(predictions: PairPredictions, home_points: Array) -> tuple[Array, Array, Array]:
    """Similarities (R,), (R, 3, 3), (R, 3) from all pairs' i sides to their frames' home point maps (T, H, W, 3)."""
    mesh = sharding.mesh_of_rows(predictions)
    frames = sharding.shard_rows(np.asarray(predictions.edges, np.int32)[:, 0], mesh)
    return _register(predictions.points_i, predictions.confidence_i, home_points, frames, mesh)


@partial(jax.jit, static_argnames=("mesh",))
def _register(points: Array, confidence: Array, home_points: Array, frames: Array, mesh: Mesh | None = None):
    """Similarities (K,), (K, 3, 3), (K, 3) from K point maps to the home maps of (K,) frames, one at a time."""

    def share(points, confidence, frames, home_points):
        def one(inputs):
            source, weights, frame = inputs
            source, weights = widened(source, jnp.float32), widened(weights, jnp.float32)
            return register_similarity(source.reshape(-1, 3), home_points[frame].reshape(-1, 3), weights.reshape(-1))

        return jax.lax.map(one, (in_bits(points), in_bits(confidence), frames))

    specs = (ROWS, ROWS, ROWS, REPLICATED)
    return sharding.shard_map(share, mesh, specs, ROWS)(points, confidence, frames, home_points)


def _similarities(scale: Array, rotation: Array, translation: Array) -> np.ndarray:
    """(K, 4, 4) float64."""
    scale, rotation, translation = (np.asarray(x, np.float64) for x in sharding.on_host((scale, rotation, translation)))
    out = np.tile(np.eye(4), (len(scale), 1, 1))
    out[:, :3, :3] = np.clip(scale, *_SCALE_RANGE)[:, None, None] * rotation
    out[:, :3, 3] = translation
    return out


@jax.jit
def _world_points(home_points: Array, world_from_home: Array) -> Array:
    """(T, H, W, 3) world points, before normalising the world's scale."""
    transforms = world_from_home.astype(jnp.float32)
    return jax.lax.map(lambda inputs: se3.transform_points(*inputs), (transforms, home_points))


def _scales(similarity: np.ndarray) -> np.ndarray:
    return np.cbrt(np.linalg.det(similarity[..., :3, :3]))


def _without_scale(similarity: np.ndarray) -> np.ndarray:
    rigid = similarity.copy()
    rigid[..., :3, :3] /= _scales(similarity)[..., None, None]
    return rigid
