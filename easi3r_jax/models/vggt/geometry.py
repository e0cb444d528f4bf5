"""VGGT's encoding of cameras: translation, quaternion, and fields of view over height and width."""

from __future__ import annotations

import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.geometry import camera, se3


def cameras_of(
    encoding: Float[Array, "T 9"], size: tuple[int, int]
) -> tuple[Float[Array, "T 4 4"], Float[Array, "T 3 3"]]:
    """Poses and intrinsics of encoded cameras.

    Args:
      encoding: (T, 9): translation, quaternion (x, y, z, w) of any length, both world to camera, and the fields of view
        over the height and over the width, radians.
      size: (height, width) of the images.

    Returns:
      cam_from_world (T, 4, 4), and intrinsics (T, 3, 3) in pixels with the principal point at (W/2, H/2). A field of
      view of 0 gives an infinite focal length.
    """
    rotation = se3.matrix_from_quaternion(encoding[..., 3:7])
    height, width = size
    fy, fx = (0.5 * n / jnp.tan(encoding[..., k] / 2) for n, k in ((height, 7), (width, 8)))
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    rows = ((fx, zero, one * (width / 2)), (zero, fy, one * (height / 2)), (zero, zero, one))
    intrinsics = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    return se3.from_parts(rotation, encoding[..., :3]), intrinsics


def encoded_cameras(
    cam_from_world: Float[Array, "T 4 4"], intrinsics: Float[Array, "T 3 3"], size: tuple[int, int]
) -> Float[Array, "T 9"]:
    """Inverse of `cameras_of`, with quaternions of length 1 and w >= 0; the principal point is not encoded."""
    quaternion = se3.quaternion_from_matrix(cam_from_world[..., :3, :3])
    views = [2 * jnp.arctan(0.5 * n / intrinsics[..., k, k]) for n, k in ((size[0], 1), (size[1], 0))]
    return jnp.concatenate([cam_from_world[..., :3, 3], quaternion, jnp.stack(views, axis=-1)], axis=-1)


def points_from_depth(
    depth: Float[Array, "T H W"], cam_from_world: Float[Array, "T 4 4"], intrinsics: Float[Array, "T 3 3"]
) -> Float[Array, "T H W 3"]:
    """World points of all pixels, (T, H, W, 3). Pixel centres are whole numbers."""
    return se3.transform_points(se3.inverse(cam_from_world), camera.unproject(depth, intrinsics))
