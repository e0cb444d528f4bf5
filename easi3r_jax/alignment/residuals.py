"""Distances between the pairs' points and the frames' (DUSt3R, eq. 5): the main alignment term, as a streaming kernel.

The other terms and their sum are in `terms`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from easi3r_jax.alignment.derivatives import instantiated, is_wanted, values_of
from easi3r_jax.alignment.narrow import forbid_half_gradient, widened
from easi3r_jax.alignment.pixel_sums import pixel_sums
from easi3r_jax.alignment.problem import AlignProblem, blocked_like
from easi3r_jax.alignment.state import AlignState, pair_transforms, unit_length, world_coordinates
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.sharding import REPLICATED, ROWS

_HIGHEST = jax.lax.Precision.HIGHEST


def pair_terms(state: AlignState, problem: AlignProblem) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """DUSt3R's eq. 5 for the i and the j sides, separately.

    Log-confidence-weighted distances between each pair's points and the frames' points, in units of `unit_length`,
    summed over edges and pixels, divided by the number of pixels of all edges.

    A direct implementation, differentiable in every mode; it holds all residuals in memory. `points_loss` is their sum.
    """
    transforms, frames = _transforms_and_frames(state, problem)
    edges = problem.edges.reshape(-1, 2)
    transforms = transforms.reshape(-1, 3, 4)

    def side(index: Array, points: _Points, weights: Array) -> Array:
        observed = jnp.stack([widened(x.reshape(len(edges), -1), frames.dtype) for x in points], axis=1)
        moved = jnp.einsum("eab,ebp->eap", transforms[:, :, :3], observed, precision=_HIGHEST) + transforms[:, :, 3:]
        distance = se3.safe_norm(jnp.moveaxis(moved - frames[index], 1, -1))
        return jnp.sum(widened(weights.reshape(distance.shape), distance.dtype) * distance) / _divisor(state, problem)

    pair_i = side(edges[:, 0], problem.points_i, problem.weights_i)
    pair_j = side(edges[:, 1], problem.points_j, problem.weights_j)
    return pair_i, pair_j


def points_loss(state: AlignState, problem: AlignProblem, softness: float = 0.0) -> Float[Array, ""]:
    """Sum of the two `pair_terms`, () float, computed by a streaming kernel with a custom gradient.

    Differentiable in reverse mode (repeatedly, and forward over reverse) with respect to the state and everything that
    the problem holds in float32 or float64.

    Args:
      state, problem: of the alignment.
      softness: s >= 0 in the world's units: a distance d becomes sqrt(d^2 + s^2) - s, which is smooth at 0. Static
        under `jit`.

    Raises:
      GradientError: differentiated with respect to observations in half precision.
    """
    transforms, frames = _transforms_and_frames(state, problem)
    observed = (problem.points_i, problem.weights_i, problem.points_j, problem.weights_j)
    observed = jax.tree.map(forbid_half_gradient, observed)
    total = _weighted_distance(transforms, frames, problem.edges, observed, problem.mesh, float(softness))
    return total / _divisor(state, problem)


def _divisor(state: AlignState, problem: AlignProblem) -> Array:
    counts = problem.pair_counts
    num_edges = len(state.pair_poses) if counts is None else jnp.sum(counts)
    return unit_length(state, problem.scale_known, counts) * (num_edges * state.log_depth[0].size)


def _transforms_and_frames(state: AlignState, problem: AlignProblem) -> tuple[Array, Array]:
    """(G, B, 3, 4) pair transforms, padded like the problem, and (T, 3, P) points of the frames in the world."""
    transforms = pair_transforms(state, problem.scale_known, problem.pair_counts)[:, :3]
    return blocked_like(transforms, problem), world_coordinates(state, problem.principal_point)


# --- the streaming kernel -------------------------------------------------------------------------------------------
#
# This sum dominates the alignment's run time. Its gradient only needs values that are in registers anyway, so one pass
# over the observations yields both: nothing of size E H W is written, and each observation is read once per iteration.
# Milliseconds per value and gradient, 800 edges of 56 x 96 pixels, 86 frames, 2 CPU cores, measured in a loop inside
# jit, with an earlier kernel that took 52: autodiff of all edges at once 111, rematerialised 119; autodiff of the scan,
# rematerialised 382; one-pass gradient of all edges at once with segment sums 172; in blocks of 16 edges 81.
# Points come as three arrays, so that a step slices each array once. XLA's CPU compiler does not vectorise code that
# reads several rows of one slice (it loads the loop's counter again for every element): 12 instead of 5.5 ms for 108
# edges of 64 x 96 pixels, in blocks of 12 edges.
# Unrolling the scan 4 times speeds up no step by more than a tenth, slows down steps at 512 x 288 pixels by a quarter,
# and makes compilation with flow half as long again.
# The gradient with respect to the observations, as large as they are, is computed in the same pass only if requested,
# so alignment steps do not pay for it. Second derivatives go through the pass by autodiff, which recomputes each block
# instead of storing its intermediates.

_Points = tuple[Array, ...]  # x, y, z
_Observed = tuple[_Points, Array, _Points, Array]
_Wanted = tuple[bool, bool, bool, bool]
_NONE: _Wanted = (False, False, False, False)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted_distance(
    transforms: Array, frames: Array, edges: Array, observed: _Observed, mesh: Mesh | None, softness: float
) -> Array:
    """Sum over sides, edges, pixels of weight * |transform @ point - frame point|, () float.

    Args:
      transforms: (G, B, 3, 4), world from the pair's points.
      frames: (T, 3, P) points in the world.
      edges: (G, B, 2).
      observed: points' x, y, z (G, B, P) and weights (G, B, P) of the i sides, and of the j sides.
      mesh: over which blocks are sharded.
      softness: see `points_loss`.
    """
    return _value_and_gradients(transforms, frames, edges, observed, mesh, softness, _NONE)[0]


# Compiled here and not around `points_loss`: of a custom rule in a compiled function whose reverse-mode derivative was
# taken before, JAX 0.10 refuses forward mode with a StopIteration instead of an explanation.
@partial(jax.jit, static_argnames=("mesh", "softness", "wanted"))
def _value_and_gradients(
    transforms, frames, edges, observed: _Observed, mesh: Mesh | None, softness: float, wanted: _Wanted
) -> tuple[Array, Array, Array, tuple[_Points | Array | None, ...]]:
    """The value and its gradients with respect to transforms, frames and the requested observations."""
    inputs = (transforms, edges, *observed)

    def share(frames: Array, *inputs: Array):
        value, transforms_grad, frames_grad, observed_grads = _streamed(frames, inputs, softness, wanted)
        return sharding.psum(value, mesh), transforms_grad, sharding.psum(frames_grad, mesh), observed_grads

    specs = (REPLICATED, *(ROWS for _ in inputs))
    return sharding.shard_map(share, mesh, specs, (REPLICATED, ROWS, REPLICATED, ROWS))(frames, *inputs)


def _streamed(frames: Array, inputs: tuple[Any, ...], softness: float, wanted: _Wanted):
    """Value, and gradients of transforms (G, B, 3, 4), frames (T, 3, P) and observations, of some blocks."""
    shape = inputs[0].shape
    sides = [partial(_distance_and_gradients, softness=softness, wanted=w) for w in (wanted[:2], wanted[2:])]
    if shape[1] == 1:  # blocks of one edge lose their axis: batched products are slow on a CPU
        inputs = jax.tree.map(lambda x: x[:, 0], inputs)
    else:
        sides = [jax.vmap(side) for side in sides]

    @jax.checkpoint
    def block(carry, inputs):
        value, frames_grad = carry
        transform, edges, points_i, weights_i, points_j, weights_j = inputs
        value_i, pull_i, grad_i, observed_i = sides[0](transform, frames[edges[..., 0]], points_i, weights_i)
        value_j, pull_j, grad_j, observed_j = sides[1](transform, frames[edges[..., 1]], points_j, weights_j)
        frames_grad = frames_grad.at[edges[..., 0]].add(-pull_i).at[edges[..., 1]].add(-pull_j)
        return (value + jnp.sum(value_i + value_j), frames_grad), (grad_i + grad_j, (*observed_i, *observed_j))

    start = (jnp.zeros((), frames.dtype), jnp.zeros_like(frames))
    (value, frames_grad), (transforms_grad, observed_grads) = jax.lax.scan(block, start, inputs)
    observed_grads = jax.tree.map(lambda x: x.reshape(*shape[:2], -1), observed_grads)
    return value, transforms_grad.reshape(shape), frames_grad, observed_grads


def _distance_and_gradients(
    transform: Array, frame: Array, points: _Points, weights: Array, *, softness: float, wanted: tuple[bool, bool]
) -> tuple[Array, Array, Array, tuple[_Points | None, Array | None]]:
    """The weighted sum of distances of one side of one pair, with its gradients.

    Returns:
      () sum; gradients with respect to the transformed points (3, P), the transform (3, 4) and, if requested, the
      points' x, y, z (P,) and the weights (P,); 0 where a distance is 0.
    """
    dtypes = (points[0].dtype, weights.dtype)
    x, y, z = (widened(p, frame.dtype)[None] for p in points)
    weights = widened(weights, frame.dtype)
    # Written out by coordinates: a (3, 3) x (3, P) product is a slow library call on a CPU.
    residual = transform[:, :1] * x + transform[:, 1:2] * y + transform[:, 2:3] * z + transform[:, 3:] - frame
    squared = residual[0] * residual[0] + residual[1] * residual[1] + residual[2] * residual[2]
    if softness:
        squared = squared + softness**2
        inverse = jax.lax.rsqrt(squared)
        distance = squared * inverse - softness
    else:
        positive = squared > 0
        inverse = jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, squared, 1)), 0)
        distance = squared * inverse
    pull = (weights * inverse)[None] * residual
    transform_grad = jnp.concatenate([pixel_sums(pull, (x[0], y[0], z[0])), jnp.sum(pull, axis=1, keepdims=True)], 1)
    points_grad = weights_grad = None
    if wanted[0]:
        points_grad = tuple(jnp.sum(transform[:, b, None] * pull, axis=0).astype(dtypes[0]) for b in range(3))
    if wanted[1]:
        weights_grad = distance.astype(dtypes[1])
    return jnp.sum(weights * distance), pull, transform_grad, (points_grad, weights_grad)


def _forward(transforms, frames, edges, observed, mesh: Mesh | None, softness: float):
    wanted: Any = tuple(any(map(is_wanted, jax.tree.leaves(x))) for x in observed)
    arrays: Any = values_of((transforms, frames, edges, observed))
    transforms, frames, edges, observed = arrays
    value, *gradients = _value_and_gradients(transforms, frames, edges, observed, mesh, softness, wanted)
    return value, gradients


def _backward(mesh: Mesh | None, softness: float, gradients, cotangent):
    del mesh, softness
    cotangent = instantiated(cotangent)
    by_transforms, by_frames, by_observed = jax.tree.map(lambda g: cotangent.astype(g.dtype) * g, gradients)
    return by_transforms, by_frames, None, by_observed


_weighted_distance.defvjp(_forward, _backward, symbolic_zeros=True)
