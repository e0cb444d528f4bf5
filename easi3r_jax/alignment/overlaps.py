"""What two windows that share frames have in common: the same points and cameras, in both worlds.

`join_windows` finds the transformations between windows' worlds from them, and how far to trust each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Float, Int
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.geometry.procrustes import robust_similarity, robust_weights
from easi3r_jax.core.types import Scene4D

# Numbers of scene points and camera points that tie two windows together, and the cameras' share of the weight.
_NUM_POINTS, _NUM_CAMERA_POINTS = 8192, 512
_CAMERA_SHARE = 0.25
# Mean residual, relative to the points' extent, at which an overlap has half its weight, and from which it is rejected.
# The embedded network has .003 to .025 on a clip of 300 frames; unrelated windows are above .3.
_HALF_TRUST_RESIDUAL, MAX_RESIDUAL = 0.1, 0.3


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """Corresponding points of each two windows that share frames, R pairs of windows.

    Attributes:
      numbers: (R, 2) of the windows a < b; the window of keyframes comes last.
      points_a, points_b: (R, P, 3) the same points in both worlds.
      weights: (R, P).
      a_from_b: (R, 4, 4) float64, the similarity that most points agree on.
    """

    numbers: Int[np.ndarray, "R 2"]
    points_a: Float[Array, "R P 3"]
    points_b: Float[Array, "R P 3"]
    weights: Float[Array, "R P"]
    a_from_b: Float[np.ndarray, "R 4 4"]


def find_overlaps(
    scenes: Sequence[Scene4D],
    ranges: Sequence[tuple[int, int]],
    keyframes: tuple[Scene4D, Int[np.ndarray, "keyframes"]] | None,
    seed: int,
) -> Overlaps:
    """The overlaps of all windows; arguments as in `join_windows`. Keyframes count as one more window."""
    frames = [np.arange(*range_) for range_ in ranges] + ([] if keyframes is None else [keyframes[1]])
    numbers, shared = [], []
    for a, b in _sharing(ranges, keyframes is not None):
        _, in_a, in_b = np.intersect1d(frames[a], frames[b], assume_unique=True, return_indices=True)
        if len(in_a):
            rng = np.random.default_rng([seed, a, b])
            numbers.append((a, b))
            scene = scenes[a]
            other = keyframes[0] if keyframes is not None and b == len(ranges) else scenes[b]
            shared.append(_shared_points(scene, other, in_a, in_b, rng))
    points_a, points_b, weights = (np.stack(x).astype(np.float32) for x in zip(*shared, strict=True))
    a_from_b = np.stack([_robust(*x) for x in zip(points_b, points_a, weights, strict=True)])
    return Overlaps(np.array(numbers), points_a, points_b, weights, a_from_b.astype(np.float64))


def _sharing(ranges: Sequence[tuple[int, int]], with_keyframes: bool) -> Iterator[tuple[int, int]]:
    """Pairs of windows a < b that may share frames, by a: as many for each window, however long the clip is."""
    for a, (_, end) in enumerate(ranges):
        for b in range(a + 1, len(ranges)):
            if ranges[b][0] >= end:
                break
            yield a, b
        if with_keyframes:
            yield a, len(ranges)


def overlap_residuals(overlaps: Overlaps, a_from_b: Float[np.ndarray, "R 4 4"]) -> Float[np.ndarray, "R"]:
    """(R,) robust mean distance between the points of each overlap, relative to their extent."""
    arrays = (np.asarray(a_from_b, np.float32), overlaps.points_a, overlaps.points_b, overlaps.weights)
    return np.asarray(_residuals(*arrays), np.float64)


def overlap_trust(residuals: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    """(R,) weight in 0..1 of overlaps with these residuals; 0 for rejected ones."""
    return np.where(residuals < MAX_RESIDUAL, 1 / (1 + (residuals / _HALF_TRUST_RESIDUAL) ** 2), 0)


def a_from_b_of(transforms: Float[np.ndarray, "windows 4 4"], overlaps: Overlaps) -> Float[np.ndarray, "R 4 4"]:
    """(R, 4, 4) a_from_b of the overlaps, given the windows' transforms into one world."""
    return np.linalg.inv(transforms[overlaps.numbers[:, 0]]) @ transforms[overlaps.numbers[:, 1]]


def _shared_points(
    a: Scene4D, b: Scene4D, in_a: np.ndarray, in_b: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World points of the same pixels in two windows, and their weights: (P, 3), (P, 3), (P,)."""
    static = np.asarray(a.static_mask[in_a]) & np.asarray(b.static_mask[in_b])
    confidence = np.minimum(a.confidence[in_a], b.confidence[in_b])
    weight = np.where(static, np.log(np.maximum(confidence, 1)), 0)
    if not weight.any():  # everything is dynamic or uncertain: weight all pixels equally
        weight = np.ones_like(weight)
    flat = weight.ravel().astype(np.float64)
    chosen = rng.choice(flat.size, _NUM_POINTS, p=flat / flat.sum())
    frame, row, column = np.unravel_index(chosen, weight.shape)
    points, cameras, reach = [], [], np.median(np.asarray(a.depth[in_a], np.float64), axis=(1, 2))
    # Ratio of the two windows' scales, as the median over pixels, so that camera points have equal length in both.
    ratio = np.median(np.asarray(b.depth[in_b], np.float64) / a.depth[in_a])
    for scene, part in ((a, in_a), (b, in_b)):
        depth = np.asarray(scene.depth[part], np.float64)
        poses = np.asarray(scene.world_from_cam[part], np.float64)
        matrices = np.asarray(scene.intrinsics[part], np.float64)
        z = depth[frame, row, column]
        local = camera.rays(np.stack([column, row], axis=-1), matrices[frame]) * z[:, None]
        points.append(np.einsum("pab,pb->pa", poses[frame, :3, :3], local) + poses[frame, :3, 3])
        # A camera is represented by four points: its centre, and one at its median depth along each axis.
        ends = (reach if scene is a else ratio * reach)[:, None, None] * np.eye(3)
        axes = np.einsum("tab,tcb->tca", poses[:, :3, :3], ends) + poses[:, None, :3, 3]
        cameras.append(np.concatenate([poses[:, None, :3, 3], axes], axis=1).reshape(-1, 3))
    weights = np.repeat(
        [(1 - _CAMERA_SHARE) / _NUM_POINTS, _CAMERA_SHARE / _NUM_CAMERA_POINTS], [_NUM_POINTS, _NUM_CAMERA_POINTS]
    )
    # The same number for every overlap, whatever its length.
    spread = np.arange(_NUM_CAMERA_POINTS) * len(cameras[0]) // _NUM_CAMERA_POINTS
    in_worlds = [np.concatenate([p, c[spread]]) for p, c in zip(points, cameras, strict=True)]
    return in_worlds[0], in_worlds[1], weights


_robust = jax.jit(robust_similarity)


@jax.jit
def _residuals(a_from_b: Array, points_a: Array, points_b: Array, weights: Array) -> Array:
    moved = jax.vmap(se3.transform_points)(a_from_b, points_b)
    agreeing = jax.vmap(robust_weights)(moved, points_a, weights)
    distance = jnp.sum(agreeing * se3.safe_norm(moved - points_a), axis=1)
    middle = jnp.mean(points_a, axis=1, keepdims=True)
    extent = jnp.sum(agreeing * se3.safe_norm(points_a - middle), axis=1)
    return distance / jnp.maximum(extent, 1e-30)
