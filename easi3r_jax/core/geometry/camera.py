"""Pinhole cameras.

The conventions of the whole project, stated once:

- Camera axes are OpenCV's: x right, y down, z forward. `depth` is z, not the length of the ray.
- Pixel coordinates (u, v) are integers *at pixel centres*: the centre of the top left pixel is (0, 0), and the grid is
  0..W-1 by 0..H-1. DUSt3R's principal point is (W / 2, H / 2) on this grid.
- Intrinsics are [[f, 0, cx], [0, f, cy], [0, 0, 1]] in pixels; pixels are square, there is no distortion.
"""

from __future__ import annotations

import jax.numpy as jnp

from easi3r_jax.core.types import Array, Float


def pixel_grid(height: int, width: int, dtype: jnp.dtype = jnp.float32) -> Float[Array, "H W 2"]:
    """(H, W, 2) pixel coordinates (u, v)."""
    u, v = jnp.meshgrid(jnp.arange(width, dtype=dtype), jnp.arange(height, dtype=dtype))
    return jnp.stack([u, v], axis=-1)


def default_principal_point(height: int, width: int, dtype: jnp.dtype = jnp.float32) -> Float[Array, "2"]:
    """(2,) DUSt3R's principal point, (W / 2, H / 2), in pixels; half a pixel off the image centre."""
    return jnp.asarray([width / 2, height / 2], dtype)


def default_focal(height: int, width: int) -> float:
    """Focal length in pixels of a 60 degree field of view along the longer side: the fallback."""
    return max(height, width) * 3**0.5 / 2


def intrinsics(focal: Float[Array, "*batch"], principal_point: Float[Array, "*batch 2"]) -> Float[Array, "*batch 3 3"]:
    """(...) focal lengths and (..., 2) principal points, in pixels -> (..., 3, 3)."""
    zero, one = jnp.zeros_like(focal), jnp.ones_like(focal)
    rows = ((focal, zero, principal_point[..., 0]), (zero, focal, principal_point[..., 1]), (zero, zero, one))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def unproject(
    depth: Float[Array, "*batch H W"], cam_intrinsics: Float[Array, "*batch 3 3"]
) -> Float[Array, "*batch H W 3"]:
    """(..., H, W) depth and (..., 3, 3) intrinsics -> (..., H, W, 3) points in the camera's frame."""
    offset = cam_intrinsics[..., None, None, :2, 2]
    focal = jnp.diagonal(cam_intrinsics, axis1=-2, axis2=-1)[..., None, None, :2]
    height, width = depth.shape[-2:]
    grid = pixel_grid(height, width, depth.dtype).reshape(*(1,) * (depth.ndim - 2), height, width, 2)
    rays = (grid - offset) / focal
    return jnp.concatenate([rays * depth[..., None], depth[..., None]], axis=-1)


def project(
    points: Float[Array, "*shape 3"], cam_intrinsics: Float[Array, "*batch 3 3"]
) -> tuple[Float[Array, "*shape 2"], Float[Array, "*shape"]]:
    """Points in the camera (B..., P..., 3), intrinsics (B..., 3, 3) -> pixels (B..., P..., 2), depth (B..., P...).

    Pixels are meaningful only where depth > 0; elsewhere they are finite but arbitrary.
    """
    depth = points[..., 2]
    shape = (*cam_intrinsics.shape[:-2], *(1,) * (points.ndim - cam_intrinsics.ndim + 1), 2)
    focal = jnp.diagonal(cam_intrinsics, axis1=-2, axis2=-1)[..., :2].reshape(shape)
    offset = cam_intrinsics[..., :2, 2].reshape(shape)
    return points[..., :2] / jnp.where(depth > 0, depth, 1)[..., None] * focal + offset, depth
