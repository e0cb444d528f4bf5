"""Focal length from a point map in its own camera: pixel - principal_point = f (x / z, y / z) for every pixel.

Integer pixel grid, see `camera`. Robust to outliers: the estimator is a geometric median.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.geometry import camera

Array = jax.Array

# Shortest and longest focal length, in units of the longer side, that is taken for a camera (168 to 0.6 degrees).
_BELIEVABLE = (0.05, 100.0)


def weiszfeld_focal(points: Array, principal_point: Array, iterations: int = 10) -> Array:
    """Focal length that minimises the sum of pixel distances |p - f (x, y) / z| (DUSt3R, sec. 3.3).

    Weiszfeld's iteration: least squares weighted by the inverse of the last distances. Points with z = 0 count as on
    the axis. A map that shows no camera (all points one, all behind) gives the focal length of a 60 degree view.

    Args:
      points: (H, W, 3) in the camera, any scale.
      principal_point: (2,) pixels.
      iterations: of reweighting, after the unweighted start.

    Returns:
      () focal length in pixels.
    """
    height, width = points.shape[:2]
    pixels = camera.pixel_grid(height, width, points.dtype) - principal_point[None, None]
    rays = _finite(points[..., :2] / points[..., 2:])
    across, along = jnp.sum(rays * pixels, axis=-1), jnp.sum(rays * rays, axis=-1)

    def reweighted(_, focal):
        weights = 1 / jnp.maximum(jnp.linalg.norm(pixels - focal * rays, axis=-1), 1e-8)
        return jnp.sum(weights * across) / jnp.sum(weights * along)

    focal = jax.lax.fori_loop(0, iterations, reweighted, jnp.sum(across) / jnp.sum(along))
    return _believable(focal, height, width)


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _believable(focal: Array, height: int, width: int) -> Array:
    side = max(height, width)
    # NaN fails both comparisons.
    good = (focal > _BELIEVABLE[0] * side) & (focal < _BELIEVABLE[1] * side)
    return jnp.where(good, focal, camera.default_focal(height, width))
