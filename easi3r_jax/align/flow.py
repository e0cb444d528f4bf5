"""The optical-flow term of the alignment (MonST3R, eq. 5): cameras and depth explain the flow where nothing moves."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.align import state as state_of
from easi3r_jax.align.state import UNKNOWN_FLOW, AlignProblem, AlignState
from easi3r_jax.geometry import camera, se3
from easi3r_jax.types import Array

# The released programs' guards against division by zero; the golden numbers have them.
_EPSILON = 1e-6
_HIGHEST = jax.lax.Precision.HIGHEST


def ego_flow(j_from_i: Array, depth: Array, intrinsics_i: Array, intrinsics_j: Array) -> Array:
    """Flow that the camera's motion alone gives.

    Args:
      j_from_i: (..., 4, 4) rigid, camera j from camera i.
      depth: (..., H, W) z of view i.
      intrinsics_i, intrinsics_j: (..., 3, 3) pixels.

    Returns:
      (..., 2, H W): where each pixel of view i is in view j, less where it is in view i, pixels (x, y).
    """
    lead, (height, width) = depth.shape[:-2], depth.shape[-2:]
    pixels = camera.pixel_grid(height, width, depth.dtype).reshape(-1, 2).T
    pixels = jnp.broadcast_to(pixels.reshape(*(1 for _ in lead), *pixels.shape), (*lead, *pixels.shape))
    # Points over their depth: what is far away needs no large numbers.
    focal, centre = intrinsics_i[..., :1, :1], intrinsics_i[..., :2, 2:]
    rays = jnp.concatenate([(pixels - centre) / focal, jnp.ones_like(pixels[..., :1, :])], axis=-2)
    disparity = (1 / (depth + _EPSILON)).reshape(*lead, 1, height * width)
    moved = jnp.matmul(j_from_i[..., :3, :3], rays, precision=_HIGHEST) + j_from_i[..., :3, 3:] * disparity
    seen = jnp.matmul(intrinsics_j, moved, precision=_HIGHEST)
    return seen[..., :2, :] / (seen[..., 2:, :] + _EPSILON) - pixels


def robust_sum(error: Array, counts: Array, outlier: Array | float) -> tuple[Array, Array]:
    """Sum of smooth-L1 losses and their number, () float each.

    Args:
      error: (..., 2, P) pixels. The loss of a coordinate is half its square below 1, its size less a half above.
      counts: (..., P) bool, which pixels do.
      outlier: coordinates whose loss is not below it do not.
    """
    size = jnp.abs(error)
    loss = jnp.where(size < 1, 0.5 * size * size, size - 0.5)
    kept = (loss < outlier) & counts[..., None, :]
    return jnp.sum(jnp.where(kept, loss, 0)), jnp.sum(kept.astype(loss.dtype))


def flow_loss(state: AlignState, problem: AlignProblem) -> Array:
    """Mean smooth-L1 distance of the pairs' ego flow from their optical flow, twice, () float.

    Means are over the coordinates of static pixels whose loss is below the outliers'. Twice, because the released
    programs add the same for the j sides, and pairs come in both directions. 0 while the flow's weight is, and where
    the result is above the limit: flow that cameras and depth explain nowhere would tear them apart.
    """
    targets = problem.flow
    assert targets is not None
    count = len(state.pair_poses)

    def compute(state: AlignState) -> Array:
        poses, depth = state_of.world_from_cam(state), state_of.depth(state)
        intrinsics = state_of.intrinsics(state, problem)
        inverse_poses = se3.inverse(poses)

        @jax.checkpoint  # a block's pixels are computed again for the gradient: none of size E H W is kept
        def block(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            total, kept = carry
            edges, flow, real = inputs
            i, j = edges[:, 0], edges[:, 1]
            expected = ego_flow(se3.compose(inverse_poses[j], poses[i]), depth[i], intrinsics[i], intrinsics[j])
            counts = targets.static[i] & real[:, None] & (jnp.abs(flow[:, 0]) < UNKNOWN_FLOW)
            more, number = robust_sum(expected - flow, counts, targets.outlier)
            return (total + more, kept + number), None

        groups, size = problem.edges.shape[:2]
        real = (jnp.arange(groups * size) < count).reshape(groups, size)
        zero = jnp.zeros((), depth.dtype)
        (total, kept), _ = jax.lax.scan(block, (zero, zero), (problem.edges, targets.flow, real))
        both = 2 * total / (kept + _EPSILON)
        return jnp.where(both > targets.limit, 0, both)

    return jax.lax.cond(targets.weight > 0, compute, lambda s: jnp.zeros((), s.log_depth.dtype), state)
