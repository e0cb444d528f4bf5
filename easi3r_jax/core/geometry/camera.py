"""Pinhole cameras.

The conventions of the whole project, stated once:

- Camera axes are OpenCV's: x right, y down, z forward. `depth` is z, not the length of the ray.
- Pixel coordinates (u, v) are integers *at pixel centres*: the centre of the top left pixel is (0, 0), and the grid is
  0..W-1 by 0..H-1. DUSt3R's principal point is (W / 2, H / 2) on this grid.
- Intrinsics are [[f, 0, cx], [0, f, cy], [0, 0, 1]] in pixels; pixels are square, there is no distortion.

`rays`, `unproject` and `project` take NumPy arrays too, and compute on the host then, in their precision.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Float, Real


# One program each when called outside of a compiled function, as in `se3`.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def pixel_grid(height: int, width: int, dtype: jnp.dtype = jnp.float32) -> Float[Array, "H W 2"]:
    """(H, W, 2) pixel coordinates (u, v)."""
    u, v = jnp.meshgrid(jnp.arange(width, dtype=dtype), jnp.arange(height, dtype=dtype))
    return jnp.stack([u, v], axis=-1)


def default_principal_point(height: int, width: int, dtype: jnp.dtype = jnp.float32) -> Float[Array, "2"]:
    """(2,) DUSt3R's principal point, (W / 2, H / 2), in pixels; half a pixel off the image centre."""
    return np.array([width / 2, height / 2], dtype)  # a constant: no program of its own


def default_focal(height: int, width: int) -> float:
    """Fallback focal length in pixels: a 60 degree field of view along the longer side."""
    return max(height, width) * 3**0.5 / 2


@functools.partial(jax.jit, inline=True)
def intrinsics(focal: Float[Array, "*batch"], principal_point: Float[Array, "*batch 2"]) -> Float[Array, "*batch 3 3"]:
    """(...) focal lengths and (..., 2) principal points, in pixels -> (..., 3, 3)."""
    zero, one = jnp.zeros_like(focal), jnp.ones_like(focal)
    rows = ((focal, zero, principal_point[..., 0]), (zero, focal, principal_point[..., 1]), (zero, zero, one))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def rays(pixels: Real[Array, "*pixels 2"], cam_intrinsics: Float[Array, "*batch 3 3"]) -> Float[Array, "*points 3"]:
    """Pixels (B..., P..., 2) and intrinsics (B..., 3, 3) -> (B..., P..., 3) points of depth 1 in the camera's frame."""
    focal, offset = _focal_and_offset(cam_intrinsics, pixels.ndim)
    xy = (pixels - offset) / focal
    xp = xy.__array_namespace__()
    return xp.concat([xy, xp.ones_like(xy[..., :1])], axis=-1)


def unproject(
    depth: Float[Array, "*batch H W"], cam_intrinsics: Float[Array, "*batch 3 3"]
) -> Float[Array, "*batch H W 3"]:
    """(..., H, W) depth and (..., 3, 3) intrinsics -> (..., H, W, 3) points in the camera's frame."""
    xp = depth.__array_namespace__()
    height, width = depth.shape[-2:]
    u, v = xp.meshgrid(xp.arange(width, dtype=depth.dtype), xp.arange(height, dtype=depth.dtype), indexing="xy")
    grid = xp.stack([u, v], axis=-1).reshape(*(1,) * (depth.ndim - 2), height, width, 2)
    return rays(grid, cam_intrinsics) * depth[..., None]


def world_points(
    depth: Float[np.ndarray, "*batch H W"],
    cam_intrinsics: Float[np.ndarray, "*batch 3 3"],
    world_from_cam: Float[np.ndarray, "*batch 4 4"],
) -> Float[np.ndarray, "*batch H W 3"]:
    """(..., H, W) depth, (..., 3, 3) and (..., 4, 4) -> (..., H, W, 3) float64 points in the world; on the host."""
    depth, cam_intrinsics, world_from_cam = (np.asarray(x, np.float64) for x in (depth, cam_intrinsics, world_from_cam))
    turn, shift = np.swapaxes(world_from_cam[..., None, :3, :3], -1, -2), world_from_cam[..., None, None, :3, 3]
    return unproject(depth, cam_intrinsics) @ turn + shift


def world_coordinates(
    depth: Float[Array, "T H W"], cam_intrinsics: Float[Array, "T 3 3"], world_from_cam: Float[Array, "T 4 4"]
) -> Float[Array, "T 3 H*W"]:
    """(T, H, W) depth, (T, 3, 3) and (T, 4, 4) -> (T, 3, H W) points in the world, coordinates first; on the device.

    A ray is written as a term of its image column plus a term of its image row, and coordinate by coordinate: the
    gradient with respect to cameras is then a few sums over rows and columns. Value and gradient of 12 frames of
    512x288 on 2 CPU cores, on a busy machine: 56 ms; with a matrix product per pixel: 170 ms.
    """
    num_frames, height, width = depth.shape
    x = (jnp.arange(width, dtype=depth.dtype)[None] - cam_intrinsics[:, 0, 2, None]) / cam_intrinsics[:, 0, 0, None]
    y = (jnp.arange(height, dtype=depth.dtype)[None] - cam_intrinsics[:, 1, 2, None]) / cam_intrinsics[:, 1, 1, None]

    def coordinate(pose: Array) -> Array:  # (T, 4): one row of the matrices
        of_column, of_row = pose[:, 0, None] * x, pose[:, 1, None] * y + pose[:, 2, None]
        return (of_row[:, :, None] + of_column[:, None, :]) * depth + pose[:, 3, None, None]

    points = jnp.stack([coordinate(world_from_cam[:, axis]) for axis in range(3)], axis=1)
    return points.reshape(num_frames, 3, height * width)


def project(
    points: Float[Array, "*shape 3"], cam_intrinsics: Float[Array, "*batch 3 3"]
) -> tuple[Float[Array, "*shape 2"], Float[Array, "*shape"]]:
    """Points in the camera (B..., P..., 3), intrinsics (B..., 3, 3) -> pixels (B..., P..., 2), depth (B..., P...).

    Pixels are meaningful only where depth > 0; elsewhere they are finite but arbitrary.
    """
    depth = points[..., 2]
    focal, offset = _focal_and_offset(cam_intrinsics, points.ndim)
    xp = depth.__array_namespace__()
    return points[..., :2] / xp.where(depth > 0, depth, 1)[..., None] * focal + offset, depth


def _focal_and_offset(cam_intrinsics: Array, ndim: int) -> tuple[Array, Array]:
    """(B..., 1..., 2) focal lengths and principal points, of as many axes as what they are for."""
    shape = (*cam_intrinsics.shape[:-2], *(1,) * (ndim - cam_intrinsics.ndim + 1), 2)
    return cam_intrinsics[..., (0, 1), (0, 1)].reshape(shape), cam_intrinsics[..., :2, 2].reshape(shape)
