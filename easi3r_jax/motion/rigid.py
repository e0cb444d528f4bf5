"""Motion from rigid registration of a frame's point map as predicted in its own and in a partner's camera.

The network predicts a frame's pixels twice: as points in the frame's own camera (pair (i, j)) and as points in the
partner's camera (pair (j, i)). Static points differ between the two by one similarity: the camera motion and the
pairs' scales. Dynamic points do not follow it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.core.pairs import reverse_edges
from easi3r_jax.core.types import MotionResidual, PairPredictions
from easi3r_jax.motion.partners import mean_over_partners

# Pairs registered at a time.
_BATCH = 16
_ITERATIONS = 10
# Errors beyond this multiple of the median error lose their weight. The second number is added to that, so that exact
# maps do not divide by 0.
_WIDTH, _EXTRA_WIDTH = 1.5, 1e-4
# Nearer points get the weight of this distance, relative to the root mean square distance.
_MIN_DISTANCE = 0.1


@partial(jax.jit, static_argnames=("grid",))
def rigid_residual(
    predictions: PairPredictions, features: Float[Array, "T N C"], grid: tuple[int, int], *, seed: int = 0
) -> MotionResidual:
    """Distance between a frame's points predicted in its own and in a partner's camera, after registration.

    For frame i and partner j, x are the points of i in camera i by pair (i, j), y the same pixels' points in camera j
    by pair (j, i), and c the geometric mean of the two confidences. The similarity (s, R, t) minimises

        sum_p c_p ρ(|s R y_p + t - x_p| / |x_p|),    ρ(e) = e² / (1 + (e / σ)²),   σ = 1.5 median(e)

    (Geman & McClure's function, by ten reweighted registrations of the means of x and y over patches; a similarity
    maps means to means). A token's residual is the mean of |s R y + t - x| / |x|, at most 1, over its pixels and then
    over partners. It is invariant to the scale of a pair and of the world.

    A network trained on dynamic scenes (MonST3R) need not leave a residual: it may predict that the object has moved.

    Args:
      predictions: of E pairs; a pair whose reverse is missing, or of a frame with itself, is ignored.
      features: (T, N, C), of which only T is used.
      grid: (h, w) tokens.
      seed: unused, as nothing is random.

    Returns:
      Residuals relative to the distance of a point.
    """
    del seed
    edges = jnp.asarray(predictions.edges)
    reverse, exists = reverse_edges(edges, len(features))
    known = exists & (edges[:, 0] != edges[:, 1])

    def of_pair(pair: tuple[Array, Array]) -> Array:
        edge, back = pair
        points = predictions.points_i[edge].astype(jnp.float32)
        seen = predictions.points_j[back].astype(jnp.float32)
        weights = jnp.sqrt(predictions.confidence_i[edge] * predictions.confidence_j[back]).astype(jnp.float32)
        scale, rotation, translation = _register_robustly(
            _pool(seen, grid).reshape(-1, 3),
            _pool(points, grid).reshape(-1, 3),
            _pool(weights[..., None], grid).reshape(-1),
        )
        moved = scale * jnp.matmul(seen, rotation.T, precision=jax.lax.Precision.HIGHEST) + translation[None, None]
        return _pool(_relative_distance(moved, points)[..., None], grid)[..., 0]

    residual = jax.lax.map(of_pair, (jnp.arange(len(edges)), reverse), batch_size=_BATCH)
    observed = known[:, None, None] & jnp.isfinite(residual)
    return mean_over_partners(residual, observed, edges, len(features))


def _register_robustly(source: Array, target: Array, confidence: Array) -> tuple[Array, Array, Array]:
    """The similarity of `rigid_residual`, from (P, 3) points and (P,) weights."""
    # Errors are relative to the distance, so squared errors are weighted by its inverse square. A stray point close to
    # the camera must not get all the weight.
    squares = jnp.sum(jnp.square(target), axis=-1)
    squares = jnp.maximum(squares, _MIN_DISTANCE**2 * jnp.mean(squares))
    base = jnp.where(squares > 0, confidence / jnp.where(squares > 0, squares, 1.0), 0.0)

    def reweighted(_, weights: Array) -> Array:
        scale, rotation, translation = register_similarity(source, target, weights)
        moved = scale * jnp.matmul(source, rotation.T, precision=jax.lax.Precision.HIGHEST) + translation[None]
        error = _relative_distance(moved, target)
        width = _WIDTH * jnp.median(error) + _EXTRA_WIDTH
        return base / jnp.square(1.0 + jnp.square(error / width))

    return register_similarity(source, target, jax.lax.fori_loop(0, _ITERATIONS, reweighted, base))


def _relative_distance(found: Array, points: Array) -> Array:
    """|found - points| / |points| of (..., 3) points, at most 1."""
    distance, reach = se3.safe_norm(found - points), se3.safe_norm(points)
    return jnp.where(distance < reach, distance / jnp.where(reach > 0, reach, 1.0), jnp.sign(distance))


def _pool(x: Array, grid: tuple[int, int]) -> Array:
    """(H, W, C) pixels -> (h, w, C) means over patches."""
    height, width = grid
    patches = x.reshape(height, x.shape[0] // height, width, x.shape[1] // width, x.shape[2])
    return jnp.mean(patches, axis=(1, 3))
