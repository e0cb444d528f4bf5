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
    u, v = pixels[..., 0], pixels[..., 1]
    # One image for x and one for y: with (H, W, 2), XLA on a CPU takes ten times as long (65 and 6 ms of two maps of
    # 512x288).
    x, y = (_quotient(points[..., axis], points[..., 2]) for axis in (0, 1))
    across, along = x * u + y * v, x * x + y * y

    def reweighted(_, focal):
        distance = se3.safe_root((u - focal * x) ** 2 + (v - focal * y) ** 2)
        return fitted(1 / jnp.maximum(distance, 1e-8))

    def fitted(weights):
        total = jnp.sum(weights * along)
        return jnp.sum(weights * across) / jnp.where(total > 0, total, 1)

    focal = jax.lax.fori_loop(0, iterations, reweighted, fitted(jnp.ones_like(along)))
    return _plausible(focal, height, width)


def _quotient(a: Array, b: Array) -> Array:
    """A / b where that is finite, else 0, also of the derivative: not infinity times zero."""
    finite = jnp.isfinite(a / b)
    return jnp.where(finite, a, 0) / jnp.where(finite, b, 1)


def _plausible(focal: Array, height: int, width: int) -> Array:
    side = max(height, width)
    good = (focal > _PLAUSIBLE_RANGE[0] * side) & (focal < _PLAUSIBLE_RANGE[1] * side)
    return jnp.where(good, focal, camera.default_focal(height, width))
