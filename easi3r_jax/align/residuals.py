"""Terms of the alignment's objective: pure functions of (state, problem), to be added to.

    total = pair term of the i sides + pair term of the j sides + smoothing_weight * temporal term
            + weight of the flow * flow term + weight of the depth prior * depth term
            + weight of the camera prior * camera term

Own terms go to `optimise(..., loss=lambda state, problem: total_loss(state, problem) + mine(state))`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.align.flow import flow_loss
from easi3r_jax.align.narrow import widened
from easi3r_jax.align.state import (
    FOCAL_PARAM_SCALE,
    AlignProblem,
    AlignState,
    CameraPrior,
    DepthPrior,
    blocked_like,
    pair_transforms,
    unit_length,
    unroll_of,
    world_from_cam,
    world_points,
)
from easi3r_jax.core import sharding
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.sharding import ROWS, WHOLE
from easi3r_jax.core.types import Array

_HIGHEST = jax.lax.Precision.HIGHEST


def total_loss(state: AlignState, problem: AlignProblem) -> Array:
    """The objective, () float. Differentiable in reverse mode."""
    return pair_loss(state, problem) + sum(weight * value for value, weight in _other_terms(state, problem).values())


def loss_terms(state: AlignState, problem: AlignProblem) -> dict[str, Array]:
    """The objective, "total", and its parts without weights.

    These are "pair_i", "pair_j", "temporal" and, where they are in use, "flow", "depth" and "camera".
    """
    pair_i, pair_j = pair_terms(state, problem)
    others = _other_terms(state, problem)
    total = pair_i + pair_j + sum(weight * value for value, weight in others.values())
    return {"total": total, "pair_i": pair_i, "pair_j": pair_j} | {name: value for name, (value, _) in others.items()}


def _other_terms(state: AlignState, problem: AlignProblem) -> dict[str, tuple[Array, Array]]:
    """Value and weight of the terms beside those of the pairs."""
    temporal = temporal_loss(state, problem.translation_weight, problem.frame_counts)
    terms = {"temporal": (temporal, problem.smoothing_weight)}
    if problem.flow is not None:
        terms["flow"] = flow_loss(state, problem), problem.flow.weight
    if problem.depth_prior is not None:
        terms["depth"] = depth_loss(state.log_depth, problem.depth_prior), problem.depth_prior.weight
    if problem.camera_prior is not None:
        terms["camera"] = camera_loss(state, problem, problem.camera_prior), problem.camera_prior.weight
    return terms


def temporal_loss(state: AlignState, translation_weight: Array, counts: Array | None = None) -> Array:
    """Change of pose between neighbouring frames (MonST3R, eq. 4): sum_t |R_rel - I|_F + weight * |t_rel|.

    `rel` is cam_t from cam_(t+1). `counts`: `AlignProblem.frame_counts`.
    """
    residual = relative_pose_residual(world_from_cam(state), translation_weight)
    return jnp.sum(residual if counts is None else counts[1:] * residual)


def relative_pose_residual(poses: Array, translation_weight: Array | float) -> Array:
    """(T, 4, 4) world_from_cam -> (T-1,) residuals of `temporal_loss`."""
    relative = se3.compose(se3.inverse(poses[:-1]), poses[1:])
    turn = (relative[:, :3, :3] - jnp.eye(3, dtype=poses.dtype)[None]).reshape(-1, 9)
    return se3.safe_norm(turn) + translation_weight * se3.safe_norm(relative[:, :3, 3])


def depth_loss(log_depth: Array, prior: DepthPrior) -> Array:
    """Variance of the change of every frame's log depth, pixels weighted, mean over frames, () float.

    A factor per frame costs nothing: of the change, its plain mean is taken off.
    """
    change = log_depth - prior.log_depth
    centred = change - jnp.mean(change, axis=(1, 2), keepdims=True)
    return jnp.mean(prior.pixel_weight * centred * centred)


def camera_loss(state: AlignState, problem: AlignProblem, prior: CameraPrior) -> Array:
    """Distance from known cameras, () float.

    Sums over frames of |R - R_known|_F, of the distance of the camera's centre (in units of `unit_length`) and of the
    difference of the logarithms of focal lengths.
    """
    difference = world_from_cam(state)[:, :3] - prior.world_from_cam[:, :3]
    turn = se3.safe_norm(difference[:, :, :3].reshape(-1, 9))
    moved = se3.safe_norm(difference[:, :, 3]) / _unit_length(state, problem)
    zoom = jnp.abs(state.log_focal - prior.log_focal) / FOCAL_PARAM_SCALE
    return jnp.sum(prior.poses_known * (turn + moved)) + jnp.sum(prior.focals_known * zoom)


def pair_terms(state: AlignState, problem: AlignProblem) -> tuple[Array, Array]:
    """DUSt3R's eq. 5 for the i and the j sides.

    Log-confidence-weighted distances between each pair's points and the frames' points, in units of `unit_length`,
    summed over edges and pixels, divided by the number of pixels of all edges.

    Straightforward and differentiable in every mode; holds all residuals at once. `pair_loss` is their sum.
    """
    transforms, frames = _transforms_and_frames(state, problem)
    edges = problem.edges.reshape(-1, 2)
    transforms = transforms.reshape(-1, 3, 4)

    def side(index: Array, points: Array, weights: Array) -> Array:
        points = widened(points.reshape(-1, *points.shape[2:]), frames.dtype)
        moved = jnp.einsum("eab,ebp->eap", transforms[:, :, :3], points, precision=_HIGHEST) + transforms[:, :, 3:]
        distance = se3.safe_norm(jnp.moveaxis(moved - frames[index], 1, -1))
        return jnp.sum(widened(weights.reshape(distance.shape), distance.dtype) * distance) / _divisor(state, problem)

    pair_i = side(edges[:, 0], problem.points_i, problem.weights_i)
    pair_j = side(edges[:, 1], problem.points_j, problem.weights_j)
    return pair_i, pair_j


def pair_loss(state: AlignState, problem: AlignProblem) -> Array:
    """Sum of the two `pair_terms`, by a streaming kernel with its own gradient: reverse mode only."""
    transforms, frames = _transforms_and_frames(state, problem)
    return _weighted_distance(transforms, frames, problem) / _divisor(state, problem)


def _divisor(state: AlignState, problem: AlignProblem) -> Array:
    counts = problem.pair_counts
    num_edges = len(state.pair_poses) if counts is None else jnp.sum(counts)
    return _unit_length(state, problem) * (num_edges * state.log_depth[0].size)


def _unit_length(state: AlignState, problem: AlignProblem) -> Array:
    return unit_length(state, problem.scale_known, problem.pair_counts)


def _transforms_and_frames(state: AlignState, problem: AlignProblem) -> tuple[Array, Array]:
    """(G, B, 3, 4) pair transforms, padded like the problem, and (T, 3, P) points of the frames in the world."""
    transforms = pair_transforms(state, problem.scale_known, problem.pair_counts)[:, :3]
    points = world_points(state, problem)
    frames = jnp.moveaxis(points.reshape(len(points), -1, 3), -1, 1)
    return blocked_like(transforms, problem), frames


# --- the streaming kernel -------------------------------------------------------------------------------------------
#
# The alignment's time is this sum. Its gradient needs just what its value has in registers, so one pass over the
# observations yields both: nothing of size E H W is written, each observation is read once an iteration.
# Milliseconds per value and gradient, 800 edges of 56 x 96 pixels, 86 frames, 2 CPU cores, measured in a loop inside
# jit: this scan, unrolled 4 times, 52 (not unrolled 76, 8 times 47 but twice the compile time, 16 times 74);
# autodiff of all edges at once 111, rematerialised 119; autodiff of the scan, rematerialised 382; one-pass gradient
# of all edges at once with segment sums 172; in blocks of 16 edges 81.


@jax.custom_vjp
def _weighted_distance(transforms: Array, frames: Array, problem: AlignProblem) -> Array:
    """Sum over sides, edges, pixels of weight * |transform @ point - frame point|, () float."""
    return _value_and_gradients(transforms, frames, problem)[0]


def _value_and_gradients(transforms: Array, frames: Array, problem: AlignProblem) -> tuple[Array, Array, Array]:
    mesh = problem.mesh
    inputs = (transforms, problem.edges, problem.points_i, problem.weights_i, problem.points_j, problem.weights_j)

    def share(frames: Array, *inputs: Array) -> tuple[Array, Array, Array]:
        value, transforms_grad, frames_grad = _streamed(frames, inputs)
        return sharding.summed(value, mesh), transforms_grad, sharding.summed(frames_grad, mesh)

    specs = (WHOLE, *(ROWS for _ in inputs))
    return sharding.divided(share, mesh, specs, (WHOLE, ROWS, WHOLE))(frames, *inputs)


def _streamed(frames: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """Value, (G, B, 3, 4) gradient by transforms and (T, 3, P) by frames of so many blocks."""
    shape = inputs[0].shape
    side = jax.vmap(_distance_and_gradients)
    if shape[1] == 1:  # blocks of one edge lose their axis: batched products are slow on a CPU
        inputs, side = jax.tree.map(lambda x: x[:, 0], inputs), _distance_and_gradients

    def block(carry, inputs):
        value, frames_grad = carry
        transform, edges, points_i, weights_i, points_j, weights_j = inputs
        value_i, pull_i, grad_i = side(transform, frames[edges[..., 0]], points_i, weights_i)
        value_j, pull_j, grad_j = side(transform, frames[edges[..., 1]], points_j, weights_j)
        frames_grad = frames_grad.at[edges[..., 0]].add(-pull_i).at[edges[..., 1]].add(-pull_j)
        return (value + jnp.sum(value_i + value_j), frames_grad), grad_i + grad_j

    start = (jnp.zeros((), frames.dtype), jnp.zeros_like(frames))
    (value, frames_grad), transforms_grad = jax.lax.scan(block, start, inputs, unroll=unroll_of(shape[0]))
    return value, transforms_grad.reshape(shape), frames_grad


def _distance_and_gradients(
    transform: Array, frame: Array, points: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """The weighted sum of distances of one side of one pair, with its gradients.

    Returns:
      () sum, (3, P) gradient by the transformed points and (3, 4) by the transform; 0 where a distance is 0.
    """
    points, weights = widened(points, frame.dtype), widened(weights, frame.dtype)
    # Written out by coordinates: a (3, 3) x (3, P) product is a slow library call on a CPU.
    residual = [
        transform[a, 0] * points[0] + transform[a, 1] * points[1] + transform[a, 2] * points[2] + transform[a, 3]
        - frame[a]
        for a in range(3)
    ]  # fmt: skip
    squared = residual[0] * residual[0] + residual[1] * residual[1] + residual[2] * residual[2]
    positive = squared > 0
    inverse = jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, squared, 1)), 0)
    scaled = weights * inverse
    pull = jnp.stack([scaled * r for r in residual])
    linear_grad = jnp.matmul(pull, points.T, precision=_HIGHEST)
    transform_grad = jnp.concatenate([linear_grad, jnp.sum(pull, axis=1, keepdims=True)], axis=1)
    return jnp.sum(weights * (squared * inverse)), pull, transform_grad


def _forward(transforms: Array, frames: Array, problem: AlignProblem):
    value, *gradients = _value_and_gradients(transforms, frames, problem)
    return value, gradients


def _backward(gradients, cotangent: Array):
    # None: the observations are constants. Differentiate `pair_terms` to learn what they do.
    return (*(cotangent * g for g in gradients), None)


_weighted_distance.defvjp(_forward, _backward)
