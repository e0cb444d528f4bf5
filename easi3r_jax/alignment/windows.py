"""Long clips: joins windows of frames, reconstructed one by one, into one scene.

    scenes of the windows ──similarities of those that share frames──▶ start ──refine──▶ one world ──blend──▶ Scene4D

Each window has its own world and scale. The points and cameras of frames in two windows determine the transformation
between their worlds. Errors accumulate along a chain of windows; an additional window of keyframes, spread over the
whole clip, ties them together. The join needs memory for the result, for few scenes at a time (they may be read from
files when they are needed), and for a bounded number of points for each two windows that share frames.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from easi3r_jax.alignment.known import decide_scale, transformed_poses, world_from_known
from easi3r_jax.alignment.overlaps import (
    MAX_RESIDUAL,
    Overlaps,
    a_from_b_of,
    find_overlaps,
    overlap_residuals,
    overlap_trust,
)
from easi3r_jax.core.arrays import Array, Int
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.geometry.procrustes import robust_weights
from easi3r_jax.core.types import KnownCameras, Scene4D

_HIGHEST = jax.lax.Precision.HIGHEST
_STEPS, _RATE = 200, 3e-3


def window_ranges(num_frames: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """First frame and end (exclusive) of every window; the last window starts earlier to have full length.

    Raises:
      ConfigError: windows of fewer than three frames, or an overlap that is not between 1 and `window` - 1.
    """
    if window < 3:
        raise ConfigError(f"Windows need at least 3 frames, got {window}.")
    if not 1 <= overlap < window:
        raise ConfigError(
            f"Windows of {window} frames overlap by 1 to {window - 1} frames, got {overlap}: choose a shorter overlap "
            "or longer windows."
        )
    if num_frames <= window:
        return [(0, num_frames)]
    starts = [*range(0, num_frames - window, window - overlap), num_frames - window]
    return [(start, start + window) for start in starts]


def keyframe_numbers(num_frames: int, window: int) -> Int[np.ndarray, "window"]:
    """(window,) numbers of evenly spaced frames, including the first and the last."""
    return np.unique(np.linspace(0, num_frames - 1, window).round().astype(int))


def join_windows(
    scenes: Sequence[Scene4D],
    ranges: Sequence[tuple[int, int]],
    *,
    keyframes: tuple[Scene4D, Int[np.ndarray, "keyframes"]] | None = None,
    cameras: KnownCameras | None = None,
    fixed: bool = True,
    keep_scale: bool = False,
    seed: int = 0,
) -> Scene4D:
    """Joins the windows' scenes into one.

    1. For each two windows that share frames, find the similarity between their worlds that most points of static,
       confident pixels and most cameras agree on. Its weight decreases with its residual.
    2. With keyframes, a window has up to three candidate placements: by its own keyframes and by its two neighbours.
       The one that agrees best with the others is used. Without keyframes, or if this rejects more overlaps, each
       window is placed by the one before.
    3. Optimise the similarities of all windows but the first jointly, minimising the robust distances in all overlaps.
    4. In an overlap, interpolate poses, focal lengths and depth linearly from one window to the other; masks, scores
       and confidence switch in the middle.

    Args:
      scenes: host arrays, in order. Each is accessed a few times, neighbours one after another.
      ranges: from `window_ranges`.
      keyframes: scene of frames from all over the clip, and their numbers, increasing; every window contains some.
      cameras: of the whole clip, if poses are known.
      fixed: known poses are returned exactly.
      keep_scale: the windows have a common unit: the result has the median of their scales, not the first one's.
      seed: for sampling points.

    Returns:
      the scene of all frames, host arrays, in the world of the first window or of the known poses.
    """
    joined = scenes[0] if len(scenes) == 1 else _joined(scenes, ranges, keyframes, keep_scale, seed)
    if cameras is None or not np.any(cameras.poses_known):
        return joined
    cameras = decide_scale(cameras, joined.world_from_cam, joined.depth) or cameras
    joined = _moved(joined, np.linalg.inv(world_from_known(joined.world_from_cam, cameras)))
    if not fixed:
        return joined
    poses = np.where(np.asarray(cameras.poses_known)[:, None, None], cameras.world_from_cam, joined.world_from_cam)
    return dataclasses.replace(joined, world_from_cam=poses.astype(np.float32))


def _joined(
    scenes: Sequence[Scene4D],
    ranges: Sequence[tuple[int, int]],
    keyframes: tuple[Scene4D, np.ndarray] | None,
    keep_scale: bool,
    seed: int,
) -> Scene4D:
    overlaps = find_overlaps(scenes, ranges, keyframes, seed)
    trust = overlap_trust(overlap_residuals(overlaps, overlaps.a_from_b))
    starts = _starts(overlaps, len(scenes))
    rejected = [np.sum(trust * (overlap_residuals(overlaps, a_from_b_of(s, overlaps)) > MAX_RESIDUAL)) for s in starts]
    refined = _refine(starts[int(np.argmin(rejected))], overlaps, trust)
    if keep_scale:
        scales = np.cbrt(np.linalg.det(refined[: len(scenes), :3, :3]))
        refined[:, :3] /= np.median(scales)
    return _blended(scenes, ranges, refined)


def _starts(overlaps: Overlaps, num_windows: int) -> list[np.ndarray]:
    """Candidate transforms of the windows into the first one's world, (K, 4, 4); with keyframes (K + 1, 4, 4).

    In order of preference: by the keyframes, where errors do not accumulate; then along the chain.
    """
    pairs = {tuple(pair): e for e, pair in enumerate(overlaps.numbers.tolist())}
    neighbours = [overlaps.a_from_b[pairs[b - 1, b]] for b in range(1, num_windows)]
    chain = np.stack(list(itertools.accumulate(neighbours, np.matmul, initial=np.eye(4))))
    if overlaps.numbers.max() < num_windows:
        return [chain]
    of_keyframes = [pairs[k, num_windows] for k in range(num_windows)]
    window_from_keyframes = overlaps.a_from_b[of_keyframes]
    votes = list(chain @ window_from_keyframes)
    chain = np.concatenate([chain, _agreed(votes, overlaps.points_b[of_keyframes[0]])[None]])
    own = np.linalg.inv(window_from_keyframes)
    agreed = []
    for k in range(num_windows):
        votes = [own[k]]
        votes += [own[k - 1] @ neighbours[k - 1]] if k else []
        votes += [own[k + 1] @ np.linalg.inv(neighbours[k])] if k < num_windows - 1 else []
        agreed.append(_agreed(votes, overlaps.points_a[of_keyframes[k]]))
    return [np.linalg.inv(agreed[0]) @ np.stack([*agreed, np.eye(4)]), chain]


def _agreed(votes: list[np.ndarray], points: Array) -> np.ndarray:
    """The one of some similarities (4, 4) that maps points (P, 3) closest to where the others map them."""
    moved = np.stack([np.asarray(points, np.float64) @ vote[:3, :3].T + vote[:3, 3] for vote in votes])
    apart = [np.linalg.norm(moved - one, axis=-1).mean(axis=1).sum() for one in moved]
    return votes[int(np.argmin(apart))]


def _refine(start: np.ndarray, overlaps: Overlaps, trust: np.ndarray) -> np.ndarray:
    """(K, 4, 4) similarities after joint optimisation over all overlaps from `start`; the first one is fixed."""
    numbers, points_a, points_b = overlaps.numbers, overlaps.points_a, overlaps.points_b
    fitting = trust * overlap_trust(overlap_residuals(overlaps, a_from_b_of(start, overlaps)))
    # Corrections rotate about the mean of points in each window (from its last overlap), so that a rotation does not
    # translate the window.
    middle = np.zeros((len(start), 3))
    for (a, b), p, q in zip(numbers, np.asarray(points_a), np.asarray(points_b), strict=True):
        middle[a], middle[b] = p.mean(0), q.mean(0)
    as_float32 = (np.asarray(x, np.float32) for x in (start[numbers[:, 0]], start[numbers[:, 1]], fitting))
    weights = _weights(*as_float32, points_a, points_b, overlaps.weights)
    base, middle = start[:, :3].astype(np.float32), middle.astype(np.float32)
    out = np.tile(np.eye(4), (len(start), 1, 1))
    out[:, :3] = _descend(base, middle, np.asarray(numbers, np.int32), points_a, points_b, weights)
    return out


@jax.jit
def _weights(
    world_from_a: Array, world_from_b: Array, trust: Array, points_a: Array, points_b: Array, weights: Array
) -> Array:
    """(R, P) robust weights of points that are brought into one world, times the trust in their overlap."""
    there_a, there_b = (
        jax.vmap(se3.transform_points)(*pair) for pair in ((world_from_a, points_a), (world_from_b, points_b))
    )
    return jax.vmap(robust_weights)(there_a, there_b, weights) * trust[:, None]


@jax.jit
def _descend(base: Array, middle: Array, numbers: Array, points_a: Array, points_b: Array, weights: Array) -> Array:
    """(K, 3, 4) best transforms: `base`, each followed by a small similarity about its window's mean."""
    count = len(base)
    centre = jnp.einsum("kab,kb->ka", base[:, :, :3], middle, precision=_HIGHEST) + base[:, :, 3]
    size = jnp.mean(se3.safe_norm(points_b - jnp.mean(points_b, axis=1, keepdims=True))) * jnp.mean(
        jnp.cbrt(jnp.linalg.det(base[:, :, :3]))
    )

    def transforms(params: Array) -> Array:
        """Parameters (K, 8): quaternion minus the identity, translation in units of `size`, log scale."""
        params = params * (jnp.arange(count) > 0).astype(params.dtype)[:, None]
        unit = jnp.asarray([[0, 0, 0, 1]], params.dtype)
        turn = jnp.exp(params[:, 7])[:, None, None] * se3.matrix_from_quaternion(unit + params[:, :4])
        linear = jnp.einsum("kab,kbc->kac", turn, base[:, :, :3], precision=_HIGHEST)
        about = jnp.einsum("kab,kb->ka", turn, base[:, :, 3] - centre, precision=_HIGHEST)
        moved = about + centre + size * params[:, 4:7]
        return jnp.concatenate([linear, moved[..., None]], axis=2)

    def loss(params: Array) -> Array:
        each = transforms(params)
        ends = [
            jnp.einsum("eab,epb->epa", each[n][:, :, :3], points, precision=_HIGHEST) + each[n][:, None, :, 3]
            for n, points in ((numbers[:, 0], points_a), (numbers[:, 1], points_b))
        ]
        # In units of the windows' scale, so that shrinking the world does not reduce the loss.
        unit = size * jnp.exp(jnp.mean(params[:, 7]))
        return jnp.sum(weights * se3.safe_norm(ends[0] - ends[1])) / unit

    optimiser = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))

    def step(carry, _: None):
        params, state, best, least = carry
        value, gradient = jax.value_and_grad(loss)(params)
        best, least = jnp.where(value < least, params, best), jnp.minimum(value, least)
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimiser.update(gradient, state)
        return (params + update, state, best, least), None

    zero = jnp.zeros((count, 8), base.dtype)
    start = (zero, optimiser.init(zero), zero, jnp.asarray(jnp.inf, base.dtype))
    return transforms(jax.lax.scan(step, start, None, length=_STEPS)[0][2])


def _moved(scene: Scene4D, world_from_window: np.ndarray) -> Scene4D:
    """The scene in another world: the similarity transforms its cameras, and its scale multiplies depth."""
    scale = np.cbrt(np.linalg.det(world_from_window[:3, :3]))
    poses = transformed_poses(np.asarray(scene.world_from_cam, np.float64), world_from_window)
    return dataclasses.replace(
        scene, world_from_cam=poses.astype(np.float32), depth=(np.asarray(scene.depth) * scale).astype(np.float32)
    )


def _blended(scenes: Sequence[Scene4D], ranges: Sequence[tuple[int, int]], transforms: np.ndarray) -> Scene4D:
    """Joins scenes by their (K, 4, 4) transforms into one world: `join_windows`, step 4. One scene at a time."""
    whole: dict[str, np.ndarray] = {}
    have = 0
    for k, (first, last) in enumerate(ranges):
        scene = {name: np.asarray(value) for name, value in vars(_moved(scenes[k], transforms[k])).items()}
        if not whole:
            whole = {name: np.empty((ranges[-1][1], *x.shape[1:]), x.dtype) for name, x in scene.items()}
        overlap = have - first
        for t in range(first, have):
            share = (t - first + 1) / (overlap + 1)
            old, new = ({name: x[at] for name, x in of.items()} for of, at in ((whole, t), (scene, t - first)))
            for name, value in _between(old, new, share).items():
                whole[name][t] = value
        for name, value in scene.items():
            whole[name][have:last] = value[overlap : last - first]
        have = last
    return Scene4D(**whole)


def _between(old: dict[str, np.ndarray], new: dict[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """A frame's arrays, interpolated by `share` from one window's to the other's."""
    from scipy.spatial.transform import Rotation

    out = dict(new if share > 0.5 else old)
    turn = Rotation.from_matrix(old["world_from_cam"][:3, :3].T @ new["world_from_cam"][:3, :3]).as_rotvec()
    pose = np.eye(4)
    pose[:3, :3] = old["world_from_cam"][:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix()
    pose[:3, 3] = (1 - share) * old["world_from_cam"][:3, 3] + share * new["world_from_cam"][:3, 3]
    out["world_from_cam"] = pose
    out["intrinsics"] = (1 - share) * old["intrinsics"] + share * new["intrinsics"]
    out["depth"] = np.exp((1 - share) * np.log(old["depth"]) + share * np.log(new["depth"])).astype(np.float32)
    return out
