"""Focal length from a point map in its own camera: pixel - principal_point = f (x / z, y / z) for every pixel.

Integer pixel grid, see `camera`. Robust to outliers: the estimator is a geometric median.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.geometry import camera, se3

# Shortest and longest plausible focal length, in units of the longer side (fields of view of 168 and 0.6 degrees).
_PLAUSIBLE_RANGE = (0.05, 100.0)


def weiszfeld_focal(
    points: Float[Array, "H W 3"], principal_point: Float[Array, "2"], iterations: int = 10
) -> Float[Array, ""]:
    """Focal length that minimises the sum of pixel distances |p - f (x, y) / z| (DUSt3R, sec. 3.3).

    Weiszfeld's iteration: least squares weighted by the inverse of the previous distances. Points with z = 0 are
    treated as lying on the axis. A degenerate map (all points equal, or all behind the camera) gives the focal length
    of a 60 degree field of view.

    Args:
      points: (H, W, 3) in the camera, any scale.
      principal_point: (2,) pixels.
      iterations: number of reweightings after the unweighted start.

    Returns:
      () focal length in pixels.
    """
    height, width = points.shape[:2]
    pixels = camera.pixel_grid(height, width, points.dtype) - principal_point[None, None]
    # Divide only where the quotient is finite: elsewhere the derivative would be infinity times zero, NaN.
    finite = jnp.isfinite(points[..., :2] / points[..., 2:])
    rays = jnp.where(finite, points[..., :2], 0) / jnp.where(finite, points[..., 2:], 1)
    across, along = jnp.sum(rays * pixels, axis=-1), jnp.sum(rays * rays, axis=-1)

    def reweighted(_, focal):
        weights = 1 / jnp.maximum(se3.safe_norm(pixels - focal * rays), 1e-8)
        return fitted(weights)

    def fitted(weights):
        total = jnp.sum(weights * along)
        return jnp.sum(weights * across) / jnp.where(total > 0, total, 1)

    focal = jax.lax.fori_loop(0, iterations, reweighted, fitted(jnp.ones_like(along)))
    return _plausible(focal, height, width)


def _plausible(focal: Array, height: int, width: int) -> Array:
    side = max(height, width)
    good = (focal > _PLAUSIBLE_RANGE[0] * side) & (focal < _PLAUSIBLE_RANGE[1] * side)
    return jnp.where(good, focal, camera.default_focal(height, width))
