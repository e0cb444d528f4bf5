"""Cameras: sampling, rays, and the overlap of two views."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, Key
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.synthetic.cast import distance
from easi3r_jax.synthetic.draws import log_between
from easi3r_jax.synthetic.scenes import Scene

#: Minimum distance of cameras from every wall.
WALL_MARGIN = 0.35
#: Range of focal lengths relative to the image's longer side: fields of view from 67 to 44 degrees.
FOCAL_RANGE = (0.75, 1.25)


def random_intrinsics(key: Key[Array, ""], size: tuple[int, int]) -> Float[Array, "3 3"]:
    """(3, 3) intrinsics of a camera of (H, W) pixels with a log-uniform focal length."""
    focal = max(size) * log_between(*FOCAL_RANGE, jax.random.uniform(key))
    return camera.intrinsics(focal, camera.default_principal_point(*size))


def look_at(position: Float[Array, "3"], target: Float[Array, "3"], roll: Float[Array, ""]) -> Float[Array, "4 4"]:
    """(4, 4) `world_from_cam` at `position` (3,), facing `target` (3,), rotated by `roll` () radians about its axis.

    Without roll, the camera's x axis is horizontal. The line between the two points must not be vertical.
    """
    forward = target - position
    forward = forward / jnp.sqrt(jnp.sum(forward * forward))
    right = jnp.cross(jnp.asarray([0, 1, 0], forward.dtype), forward)
    right = right / jnp.sqrt(jnp.sum(right * right))
    down = jnp.cross(forward, right)
    c, s = jnp.cos(roll), jnp.sin(roll)
    rotation = jnp.stack([c * right + s * down, c * down - s * right, forward], axis=1)
    return se3.from_parts(rotation, position)


def on_sphere(
    target: Float[Array, "3"], azimuth: Float[Array, ""], elevation: Float[Array, ""], radius: Float[Array, ""]
) -> Float[Array, "3"]:
    """(3,) the point at distance `radius` from `target` in the direction of two angles; positive elevation is up."""
    level = jnp.cos(elevation)
    direction = jnp.stack([level * jnp.sin(azimuth), -jnp.sin(elevation), level * jnp.cos(azimuth)])
    return target + radius * direction


def inside(
    scene_half_size: Float[Array, "3"], position: Float[Array, "3"], margin: float = WALL_MARGIN
) -> Float[Array, "3"]:
    """The nearest point to `position` (3,) that is at least `margin` away from every wall."""
    room = scene_half_size - margin
    return jnp.clip(position, -room, room)


def rays(
    world_from_cam: Float[Array, "4 4"], cam_intrinsics: Float[Array, "3 3"], pixels: Float[Array, "*shape 2"]
) -> tuple[Float[Array, "3"], Float[Array, "*shape 3"]]:
    """Origin (3,) and directions (..., 3), world, of the rays through `pixels` (..., 2); with z = 1 in the camera."""
    focal = jnp.diagonal(cam_intrinsics)[:2]
    shape = (1,) * (pixels.ndim - 1)
    offset = (pixels - cam_intrinsics[:2, 2].reshape(*shape, 2)) / focal.reshape(*shape, 2)
    axes = [world_from_cam[:3, k].reshape(*shape, 3) for k in range(3)]
    return world_from_cam[:3, 3], offset[..., :1] * axes[0] + offset[..., 1:] * axes[1] + axes[2]


def in_image(
    pixels: Float[Array, "P 2"], depth: Float[Array, "P"], size: tuple[int, int], border: float = 0.0
) -> Bool[Array, "P"]:
    """(P,) bool: which points are in front of a camera and inside its image.

    Args:
      pixels: (P, 2) projections.
      depth: (P,) z in the camera.
      size: (H, W).
      border: extent of the image beyond the centres of its outermost pixels, in pixels; 0.5 is its outer edge.
    """
    limit = jnp.asarray([[size[1] - 1 + border, size[0] - 1 + border]], pixels.dtype)
    return (depth > 0) & jnp.all((pixels >= -border) & (pixels <= limit), axis=1)


def overlap(
    scene: Scene,
    size: tuple[int, int],
    intrinsics: tuple[Float[Array, "3 3"], Float[Array, "3 3"]],
    world_from_cam: tuple[Float[Array, "4 4"], Float[Array, "4 4"]],
) -> Float[Array, ""]:
    """() fraction of the first view's pixels that are visible in the second: inside its image and not occluded.

    Estimated on a grid of about 100 rays.

    Args:
      scene: the scene.
      size: (H, W) of each image.
      intrinsics: (3, 3) of each camera.
      world_from_cam: (4, 4) of each camera.
    """
    step = max(size) // 12
    first = [min(step // 2, side // 2) for side in size]
    grid = camera.pixel_grid(*size)[first[0] :: step, first[1] :: step].reshape(-1, 2)
    origin, directions = rays(world_from_cam[0], intrinsics[0], grid)
    depth, _ = jax.vmap(lambda d: distance(scene, origin, d))(directions)
    points = origin[None] + depth[:, None] * directions
    pixels, z = camera.project(se3.transform_points(se3.inverse(world_from_cam[1]), points), intrinsics[1])
    start = world_from_cam[1][:3, 3]
    reached, _ = jax.vmap(lambda p: distance(scene, start, p - start))(points)
    return jnp.mean((in_image(pixels, z, size) & (reached > 1 - 1e-3)).astype(jnp.float32))
