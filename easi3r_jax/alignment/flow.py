"""The optical-flow term of the alignment (MonST3R, eq. 5): cameras and depth must explain the flow of static pixels."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.derivatives import instantiated, is_wanted, values_of, without_derivative
from easi3r_jax.alignment.pixel_sums import pixel_sums
from easi3r_jax.alignment.problem import UNKNOWN_FLOW, AlignProblem
from easi3r_jax.alignment.state import AlignState
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.sharding import REPLICATED, ROWS

# The released programs' guards against division by zero; needed to match the reference values.
_EPSILON = 1e-6
_HIGHEST = jax.lax.Precision.HIGHEST


def ego_flow(
    j_from_i: Float[Array, "*batch 4 4"],
    depth: Float[Array, "*batch H W"],
    intrinsics_i: Float[Array, "*batch 3 3"],
    intrinsics_j: Float[Array, "*batch 3 3"],
) -> Float[Array, "*batch 2 H*W"]:
    """Flow induced by camera motion alone.

    Args:
      j_from_i: (..., 4, 4) rigid, camera j from camera i.
      depth: (..., H, W) z of view i.
      intrinsics_i, intrinsics_j: (..., 3, 3) pixels.

    Returns:
      (..., 2, H W): position of each pixel of view i in view j, minus its position in view i, pixels (x, y).
    """
    lead, (height, width) = depth.shape[:-2], depth.shape[-2:]
    pixels = camera.pixel_grid(height, width, depth.dtype).reshape(-1, 2).T
    pixels = jnp.broadcast_to(pixels.reshape(*(1 for _ in lead), *pixels.shape), (*lead, *pixels.shape))
    # Points divided by their depth, so that distant points need no large numbers.
    focal, centre = intrinsics_i[..., :1, :1], intrinsics_i[..., :2, 2:]
    rays = jnp.concatenate([(pixels - centre) / focal, jnp.ones_like(pixels[..., :1, :])], axis=-2)
    disparity = (1 / (depth + _EPSILON)).reshape(*lead, 1, height * width)
    moved = jnp.matmul(j_from_i[..., :3, :3], rays, precision=_HIGHEST) + j_from_i[..., :3, 3:] * disparity
    seen = jnp.matmul(intrinsics_j, moved, precision=_HIGHEST)
    return seen[..., :2, :] / (seen[..., 2:, :] + _EPSILON) - pixels


def robust_sum(
    error: Float[Array, "*batch 2 P"], counts: Bool[Array, "*batch P"], outlier: Float[Array, ""] | float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of smooth-L1 losses and their number, () float each.

    Args:
      error: (..., 2, P) pixels. The loss of a coordinate is half its square below 1, its size minus a half above.
      counts: (..., P) bool, which pixels are used.
      outlier: coordinates whose loss is at or above this value are ignored.
    """
    size = jnp.abs(error)
    loss = jnp.where(size < 1, 0.5 * size * size, size - 0.5)
    kept = (loss < outlier) & counts[..., None, :]
    return jnp.sum(jnp.where(kept, loss, 0)), jnp.sum(kept.astype(loss.dtype))


def flow_loss(state: AlignState, problem: AlignProblem) -> Float[Array, ""]:
    """Twice the mean smooth-L1 distance between the pairs' ego flow and their optical flow, () float.

    The mean is over the coordinates of static pixels whose loss is below the outlier threshold. Twice, because the
    released programs add the same term for the j sides, and pairs come in both directions. 0 while flow is switched
    off, and where the result exceeds the limit: flow that cameras and depth cannot explain would tear them apart.

    Differentiable with respect to the state and the flow, as `points_loss` is. The set of coordinates used is piecewise
    constant: it jumps at `outlier` and `limit`, so these have no derivative.

    Raises:
      ConfigError: the problem has no flow.
      GradientError: differentiated with respect to `outlier` or `limit`.
    """
    targets = problem.flow
    if targets is None:
        raise ConfigError("The problem has no optical flow: give it to make_problem.")
    reason = "The loss jumps at the flow's {}: it has no derivative with respect to it. Compare values instead."
    outlier = without_derivative(targets.outlier, reason.format("outlier"))
    limit = without_derivative(targets.limit, reason.format("limit"))

    def compute(state: AlignState) -> Array:
        sums: Any = _robust_distance(
            _projections(state, problem),
            1 / (state_of.depth(state) + _EPSILON),
            targets.flow,
            (problem.edges[..., 0], targets.static, outlier),
            problem.mesh,
        )
        total, kept = sums
        both = 2 * total / (kept + _EPSILON)
        return jnp.where(both > limit, 0, both)

    return jax.lax.cond(targets.counts, compute, lambda s: jnp.zeros((), s.log_depth.dtype), state)


def _projections(state: AlignState, problem: AlignProblem) -> Array:
    """(G, B, 3, 4), padded like the problem: each pair's projection matrix, shared by all its pixels.

    It maps (x, y, 1, 1 / z), a pixel of frame i relative to the image centre and its depth, to the point's homogeneous
    position in frame j, also relative to the centre: focal_j R / focal_i and focal_j t, with the principal points'
    offsets from the centre.
    """
    poses = state_of.world_from_cam(state)
    i, j = problem.edges[..., 0].ravel(), problem.edges[..., 1].ravel()
    j_from_i = se3.compose(se3.inverse(poses)[j], poses[i])[:, :3]
    intrinsics = state_of.intrinsics(state, problem.principal_point)
    focals, height, width = intrinsics[:, 0, 0], *state.log_depth.shape[1:]
    offset = intrinsics[:, :2, 2] - camera.default_principal_point(height, width, focals.dtype)[None]
    one = jnp.ones_like(focals)
    scaled = jnp.stack([focals, focals, one], axis=1)[j][:, :, None] * j_from_i
    scaled = scaled / jnp.stack([focals, focals, one, one], axis=1)[i][:, None, :]
    shift = jnp.sum(scaled[:, :, :2] * offset[i][:, None, :], axis=2)
    scaled = scaled.at[:, :, 2].add(-shift)
    scaled = scaled.at[:, :2].add(offset[j][:, :, None] * scaled[:, 2:])
    return scaled.reshape(*problem.edges.shape[:2], 3, 4)


# --- the streaming kernel -------------------------------------------------------------------------------------------
#
# As for the pairs' points (see `residuals`): one pass over the flow yields the value and its gradient. Nothing of size
# E H W is written except the gradient with respect to the flow, if requested.


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _robust_distance(
    projections: Array, disparity: Array, flow: Array, others: tuple[Array, Array, Array], mesh: Mesh | None
) -> tuple[Array, Array]:
    """Sum of smooth-L1 losses over pairs and pixels, and the number of coordinates used, () float each.

    Args:
      projections: (G, B, 3, 4), see `_projections`.
      disparity: (T, H, W), 1 / z of the frames.
      flow: (G, B, 2, P).
      others: frames i (G, B), static pixels (T, P), and `outlier`: not differentiable.
      mesh: over which blocks are sharded.
    """
    return _values_and_gradients(projections, disparity, flow, others, mesh, flow_wanted=False)[0]


@partial(jax.jit, static_argnames=("mesh", "flow_wanted"))  # as in `residuals`
def _values_and_gradients(projections, disparity, flow, others, mesh: Mesh | None, *, flow_wanted: bool):
    """Both values, and the gradients of the first with respect to projections, disparity and, if requested, flow."""
    frames_i, static, outlier = others

    def share(disparity: Array, static: Array, outlier: Array, *inputs: Array):
        sums, projections_grad, flow_grad = _streamed(disparity, static, outlier, inputs, flow_wanted)
        total, kept, disparity_grad = sharding.psum(sums, mesh)
        return (total, kept), (projections_grad, disparity_grad, flow_grad)

    inputs = (projections, frames_i, flow)
    specs = (REPLICATED, REPLICATED, REPLICATED, *(ROWS for _ in inputs))
    out_specs = ((REPLICATED, REPLICATED), (ROWS, REPLICATED, ROWS))
    return sharding.shard_map(share, mesh, specs, out_specs)(disparity, static, outlier, *inputs)


def _streamed(disparity: Array, static: Array, outlier: Array, inputs: tuple[Array, ...], flow_wanted: bool):
    """The sum, the number of coordinates and the gradients of some blocks.

    Args:
      disparity: (T, H, W).
      static: (T, P) bool.
      outlier: see `AlignConfig`.
      inputs: projections (G, B, 3, 4), frames i (G, B) and flow (G, B, 2, P).
      flow_wanted: whether the gradient with respect to the flow is requested.

    Returns:
      () sum, () number and (T, H, W) gradient of disparity; gradients of projections and of flow (or None).
    """
    height, width = disparity.shape[1:]
    disparity = disparity.reshape(len(disparity), -1)
    centre = camera.default_principal_point(height, width, disparity.dtype)
    pixels = (camera.pixel_grid(height, width, disparity.dtype).reshape(-1, 2) - centre[None]).T
    shape, flow_shape = inputs[0].shape, inputs[2].shape

    def edge(projection: Array, i: Array, flow: Array):
        return _losses_and_gradients(projection, disparity[i], flow, static[i], pixels, centre, outlier, flow_wanted)

    side = jax.vmap(edge)
    if shape[1] == 1:  # blocks of one edge lose their axis: batched products are slow on a CPU
        inputs, side = jax.tree.map(lambda x: x[:, 0], inputs), edge

    @jax.checkpoint  # as in `residuals`
    def block(carry, inputs):
        total, kept, gradient = carry
        more, number, projection_grad, disparity_grad, flow_grad = side(*inputs)
        gradient = gradient.at[inputs[1]].add(disparity_grad)
        return (total + jnp.sum(more), kept + jnp.sum(number), gradient), (projection_grad, flow_grad)

    zero = jnp.zeros((), disparity.dtype)
    start = (zero, zero, jnp.zeros_like(disparity))
    (total, kept, gradient), (projections_grad, flow_grad) = jax.lax.scan(block, start, inputs)
    flow_grad = None if flow_grad is None else flow_grad.reshape(flow_shape)
    return (total, kept, gradient.reshape(-1, height, width)), projections_grad.reshape(shape), flow_grad


def _losses_and_gradients(
    projection: Array,
    disparity: Array,
    flow: Array,
    counts: Array,
    pixels: Array,
    centre: Array,
    outlier: Array,
    flow_wanted: bool,
) -> tuple[Array, Array, Array, Array, Array | None]:
    """One pair's () loss and () number of coordinates, with its gradients.

    The gradients are with respect to the (3, 4) projection, (P,) disparity and, if requested, (2, P) flow.
    """
    x, y = pixels
    seen = [
        projection[a, 0] * x + projection[a, 1] * y + projection[a, 2] + projection[a, 3] * disparity for a in range(3)
    ]
    inverse = 1 / (seen[2] + _EPSILON)
    losses, numbers = jnp.zeros_like(x), jnp.zeros_like(x)
    pulls, flow_pulls, depth_pull = [], [], jnp.zeros_like(disparity)
    for a in range(2):
        # The centre is added inside the quotient, and the guard to the denominator, as in `ego_flow`.
        there = (seen[a] + centre[a] * seen[2]) * inverse
        error = there - (pixels[a] + centre[a] + flow[a])
        size = jnp.abs(error)
        loss = jnp.where(size < 1, 0.5 * size * size, size - 0.5)
        kept = counts & (loss < outlier) & (jnp.abs(flow[a]) < UNKNOWN_FLOW)
        losses, numbers = losses + jnp.where(kept, loss, 0), numbers + kept.astype(flow.dtype)
        slope = jnp.clip(error, -1, 1)
        flow_pulls.append(jnp.where(kept, -slope, 0))
        pulls.append(jnp.where(kept, slope * inverse, 0))
        depth_pull = depth_pull + jnp.where(kept, pulls[a] * (centre[a] - there), 0)
    pulls.append(depth_pull)
    constant = jnp.stack([x, y, jnp.ones_like(x)])
    projection_grad = jnp.concatenate([pixel_sums(constant, pulls), pixel_sums(disparity[None], pulls)]).T
    disparity_grad = sum(projection[a, 3] * pulls[a] for a in range(3))
    flow_grad = jnp.stack(flow_pulls).astype(flow.dtype) if flow_wanted else None
    return jnp.sum(losses), jnp.sum(numbers), projection_grad, disparity_grad, flow_grad


def _forward(projections, disparity, flow, others, mesh: Mesh | None):
    arrays: Any = values_of((projections, disparity, flow, others))
    projections, disparity, flow_values, others = arrays
    return _values_and_gradients(projections, disparity, flow_values, others, mesh, flow_wanted=is_wanted(flow))


def _backward(mesh: Mesh | None, gradients, cotangents):
    del mesh
    cotangent = instantiated(cotangents[0])  # the number of coordinates has no gradient
    return (*jax.tree.map(lambda g: cotangent.astype(g.dtype) * g, gradients), None)


_robust_distance.defvjp(_forward, _backward, symbolic_zeros=True)
