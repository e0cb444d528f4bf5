"""Exact optical flow: where the point under a pixel appears to another camera at another time.

There is no matching. The surface point moves with its object's rigid motion and is projected into the other camera. A
ray cast into the scene decides whether it is visible there; a sampled depth map would be ambiguous at object edges.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.synthetic.cameras import in_image, rays
from easi3r_jax.synthetic.cast import distance
from easi3r_jax.synthetic.render import View
from easi3r_jax.synthetic.scenes import Scene

# A point is occluded if a ray towards it hits something earlier, by more than this relative tolerance for rounding.
_OCCLUSION_TOLERANCE = 1e-3


def exact_flow(
    view: View, scene: Scene, other_view: View, other_scene: Scene
) -> tuple[Float[Array, "H W 2"], Bool[Array, "H W"]]:
    """Flow from one view to another of the same scene, whose objects may have moved in between.

    Args:
      view: the first view; its depth and instances must have been cast in `scene`.
      scene: the scene at the time of `view`.
      other_view: the other camera; only its intrinsics and pose are used.
      other_scene: the same objects at the time of `other_view`.

    Returns:
      flow: (H, W, 2) pixels (x, y): the point seen at x projects to x + flow in the other image, or outside of it. 0
        where the point is not in front of the other camera.
      visible: (H, W) bool: x + flow lies within the other image's outer edge, -0.5..W-0.5 by -0.5..H-0.5, and the point
        is not occluded there.
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
    # Up to the outer edge: at the outermost pixels' centres, rounding would decide about points that do not move.
    visible = in_image(pixels, depth, (height, width), border=0.5) & (reached > 1 - _OCCLUSION_TOLERANCE)
    return flow.reshape(height, width, 2), visible.reshape(height, width)


def carried(
    points: Float[Array, "P 3"],
    instance: Int[Array, "P"],
    world_from_object: Float[Array, "K 4 4"],
    other_world_from_object: Float[Array, "K 4 4"],
) -> Float[Array, "P 3"]:
    """Moves points with their objects.

    Args:
      points: (P, 3) world.
      instance: (P,) int, 0 for the room, which is static, k + 1 for object k.
      world_from_object, other_world_from_object: (K, 4, 4) before and after.

    Returns:
      (P, 3) world; exactly `points` where the object does not move.
    """
    motion = se3.compose(other_world_from_object, se3.inverse(world_from_object))
    still = jnp.all(world_from_object == other_world_from_object, axis=(1, 2))
    eye = jnp.eye(4, dtype=motion.dtype)
    motion = jnp.where(still[:, None, None], eye[None], motion)
    motion = jnp.concatenate([eye[None], motion])[instance]
    # Products and sums, as in `cast`: a GPU's matrix product may round more coarsely.
    return jnp.sum(motion[:, :3, :3] * points[:, None, :], axis=2) + motion[:, :3, 3]
