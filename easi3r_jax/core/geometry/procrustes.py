"""Weighted registration of corresponding point sets.

`register_similarity` takes NumPy arrays too, and computes on the host then, in their precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.geometry import se3

_HIGHEST = jax.lax.Precision.HIGHEST
# Width c in `robust_similarity`, relative to the mean distance; and its minimum, relative to the target's extent.
_WIDTH, _MIN_WIDTH = 0.3, 1e-3


def register_similarity(
    source: Float[Array, "P 3"],
    target: Float[Array, "P 3"],
    weights: Float[Array, "P"] | None = None,
    *,
    with_scale: bool = True,
) -> tuple[Float[Array, ""], Float[Array, "3 3"], Float[Array, "3"]]:
    """The similarity that best aligns `source` with `target`: minimises sum_p w_p |s R x_p + t - y_p|^2.

    Umeyama (PAMI 1991), with weights. R is a proper rotation even if a reflection would fit better. The scale is
    undefined if the source's variance or its correlation with the target vanishes (coincident points, all weights 0):
    then s = 1, R = I, and t is the shift of the weighted means.

    Args:
      source, target: (P, 3) points; `jax.vmap` for batches.
      weights: (P,) >= 0; None: all count the same.
      with_scale: False for a rigid motion, s = 1.

    Returns:
      scale (), rotation (3, 3), translation (3,). For collinear points the roll about their line is arbitrary.
    """
    xp = source.__array_namespace__()
    weights = xp.ones_like(source[:, 0]) if weights is None else weights
    total = xp.sum(weights)
    w = weights / xp.where(total > 0, total, 1)
    mean_source, mean_target = (_product(w, points) for points in (source, target))
    x, y = source - mean_source[None], target - mean_target[None]
    covariance = _product((w[:, None] * y).T, x)
    rotation, correlation = (_rotation_and_factors if xp is np else _nearest_rotation)(covariance)[:2]
    variance = xp.sum(w[:, None] * x * x)
    # Relative to the means: centring leaves rounding noise if all points coincide.
    noise = (xp.finfo(source.dtype).eps * 8) ** 2
    tangible = (variance > noise * xp.sum(mean_source**2)) & (variance > 0)
    scale = correlation / xp.where(tangible, variance, 1)
    meaningful = tangible & (scale * scale * variance > noise * xp.sum(mean_target**2)) & (scale > 0)
    scale = xp.where(meaningful, scale, 1) if with_scale else xp.ones_like(scale)
    rotation = xp.where(meaningful, rotation, xp.eye(3, dtype=rotation.dtype))
    translation = mean_target - scale * _product(rotation, mean_source)
    return scale, rotation, translation


def _product(a: Array, b: Array) -> Array:
    """Matrix product, on accelerators at full precision."""
    return a @ b if isinstance(a, np.ndarray) else jnp.matmul(a, b, precision=_HIGHEST)


@jax.custom_jvp
def _nearest_rotation(matrix: Array) -> tuple[Array, Array]:
    """The rotation R with the largest trace(R^T M), and that trace."""
    return _rotation_and_factors(matrix)[:2]


def _rotation_and_factors(matrix: Array) -> tuple[Array, Array, Array, Array]:
    """The rotation and trace of `_nearest_rotation`, and V, s with R^T M = V diag(s) V^T."""
    xp = matrix.__array_namespace__()
    u, singular, vt = xp.linalg.svd(matrix)
    handedness = xp.linalg.det(_product(u, vt))
    signs = xp.stack([xp.ones_like(handedness), xp.ones_like(handedness), xp.sign(handedness)])
    rotation = _product(u * signs[None, :], vt)
    return rotation, xp.sum(singular * signs), vt.T, singular * signs


@_nearest_rotation.defjvp
def _nearest_rotation_jvp(primals: tuple[Array], tangents: tuple[Array]):
    """Uses the symmetry of R^T M: autodiff of the SVD divides by s_i - s_j, which is 0 for isotropic point clouds.

    With dR = R V W V^T and K = V^T R^T dM V, W_ij = (K_ij - K_ji) / (s_i + s_j). Where that sum is 0, every rotation
    about an axis fits equally well; the derivative is set to 0.
    """
    rotation, correlation, v, s = _rotation_and_factors(primals[0])
    turned = jnp.matmul(rotation.T, tangents[0], precision=_HIGHEST)
    k = jnp.matmul(v.T, jnp.matmul(turned, v, precision=_HIGHEST), precision=_HIGHEST)
    total = s[:, None] + s[None, :]
    w = jnp.where(total > 0, (k - k.T) / jnp.where(total > 0, total, 1), 0)
    turn = jnp.matmul(v, jnp.matmul(w, v.T, precision=_HIGHEST), precision=_HIGHEST)
    return (rotation, correlation), (jnp.matmul(rotation, turn, precision=_HIGHEST), jnp.trace(turned))


def robust_similarity(
    source: Float[Array, "P 3"], target: Float[Array, "P 3"], weights: Float[Array, "P"], rounds: int = 30
) -> Float[Array, "4 4"]:
    """A similarity that most points agree on: outliers, such as dynamic points, have little influence.

    Iteratively reweighted registration. The weight of a point whose distance d exceeds c is multiplied by (c / d)^2; c
    is proportional to the mean distance and so shrinks as the fit improves.

    Args:
      source, target: (P, 3) points.
      weights: (P,) >= 0.
      rounds: number of reweightings.

    Returns:
      (4, 4) target_from_source.
    """

    def again(matrix: Array, _: None) -> tuple[Array, None]:
        moved = se3.transform_points(matrix, source)
        return _registered(source, target, robust_weights(moved, target, weights)), None

    return jax.lax.scan(again, _registered(source, target, weights), None, length=rounds)[0]


def robust_weights(
    points: Float[Array, "P 3"], target: Float[Array, "P 3"], weights: Float[Array, "P"]
) -> Float[Array, "P"]:
    """(P,) weights, normalised and reduced for points far from `target`: see `robust_similarity`."""
    total = jnp.sum(weights)
    normalised = weights / jnp.where(total > 0, total, 1)
    middle = jnp.matmul(normalised, target, precision=_HIGHEST)
    min_width = _MIN_WIDTH * jnp.sum(normalised * se3.safe_norm(target - middle[None]))
    distance = se3.safe_norm(points - target)
    width = jnp.maximum(_WIDTH * jnp.sum(normalised * distance), min_width)
    near = width / jnp.maximum(jnp.maximum(distance, width), 1e-30)
    return normalised * near * near


def _registered(source: Array, target: Array, weights: Array) -> Array:
    scale, rotation, translation = register_similarity(source, target, weights)
    return se3.from_parts(scale * rotation, translation)
