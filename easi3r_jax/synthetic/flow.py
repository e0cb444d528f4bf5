"""Exact optical flow: where the point under a pixel is seen from another camera at another moment.

Nothing is matched or searched: the point on the surface is carried along by its object's rigid motion and projected
into the other camera. Whether that camera sees it is asked of the scene, by a ray, not of a sampled depth map: at the
edge of an object a depth map does not know.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.synthetic.cameras import in_image, rays
from easi3r_jax.synthetic.cast import distance
from easi3r_jax.synthetic.render import View
from easi3r_jax.synthetic.scenes import Scene

Array = jax.Array

# A point is hidden where something is met earlier on the way to it, by more than rounding explains.
_ROUNDING = 1e-3


def exact_flow(view: View, scene: Scene, other_view: View, other_scene: Scene) -> tuple[Array, Array]:
    """Flow from one view to another of the same scene, whose objects may have moved between.

    Args:
      view: where the pixels are; its depth and instances must have been cast in `scene`.
      scene: the scene as `view` sees it.
      other_view: the other camera; only its intrinsics and pose are used.
      other_scene: the same objects where they are when `other_view` is taken.

    Returns:
      flow: (H, W, 2) pixels (x, y): the point seen at x is at x + flow in the other image, inside it or not. 0 where
        the point is not in front of the other camera.
      visible: (H, W) bool, x + flow lies within the other image's outer edge, -0.5..W-0.5 by -0.5..H-0.5, and nothing
        hides the point there.
    """
    height, width = view.depth.shape
    grid = camera.pixel_grid(height, width).reshape(-1, 2)
    origin, directions = rays(view.world_from_cam, view.intrinsics, grid)
    points = origin[None] + view.depth.reshape(-1, 1) * directions
    moved = carried(points, view.instance.reshape(-1), scene.world_from_object, other_scene.world_from_object)

    pixels, depth = camera.project(
        se3.transform_points(se3.inverse(other_view.world_from_cam), moved), other_view.intrinsics
    )
    flow = jnp.where((depth > 0)[:, None], pixels - grid, 0)
    start = other_view.world_from_cam[:3, 3]
    reached, _ = jax.vmap(lambda p: distance(other_scene, start, p - start))(moved)
    # Up to the edge, not to the last pixels' centres: there rounding would decide about what stays where it is.
    visible = in_image(pixels, depth, (height, width), border=0.5) & (reached > 1 - _ROUNDING)
    return flow.reshape(height, width, 2), visible.reshape(height, width)


def carried(points: Array, instance: Array, world_from_object: Array, other_world_from_object: Array) -> Array:
    """Where points on objects go when the objects move.

    Args:
      points: (P, 3) world.
      instance: (P,) int, 0 for the room, which stays, k + 1 for object k.
      world_from_object, other_world_from_object: (K, 4, 4) before and after.

    Returns:
      (P, 3) world; exactly `points` for what does not move.
    """
    motion = se3.compose(other_world_from_object, se3.inverse(world_from_object))
    still = jnp.all(world_from_object == other_world_from_object, axis=(1, 2))
    eye = jnp.eye(4, dtype=motion.dtype)
    motion = jnp.where(still[:, None, None], eye[None], motion)
    motion = jnp.concatenate([eye[None], motion])[instance]
    # Products and sums, as in `cast`: a matrix product may round to a GPU's shorter precision.
    return jnp.sum(motion[:, :3, :3] * points[:, None, :], axis=2) + motion[:, :3, 3]
