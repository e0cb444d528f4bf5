"""Rendering: rays through pixel centres, Lambertian shading, exposure, noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float, Int, Key, UInt8, pytree_dataclass
from easi3r_jax.core.geometry import camera
from easi3r_jax.synthetic import texture
from easi3r_jax.synthetic.cameras import rays
from easi3r_jax.synthetic.cast import cast
from easi3r_jax.synthetic.draws import between, normal, uniforms
from easi3r_jax.synthetic.scenes import Scene


@pytree_dataclass
class View:
    """A rendered image and its ground truth.

    Attributes:
      rgb: (H, W, 3) uint8.
      depth: (H, W) float32, z in the camera, world units; > 0 everywhere.
      instance: (H, W) int32, 0 for the room, k + 1 for object k.
      intrinsics: (3, 3) float32, pixels.
      world_from_cam: (4, 4) float32.
    """

    rgb: UInt8[Array, "*views H W 3"]
    depth: Float[Array, "*views H W"]
    instance: Int[Array, "*views H W"]
    intrinsics: Float[Array, "*views 3 3"]
    world_from_cam: Float[Array, "*views 4 4"]


@pytree_dataclass
class Sensor:
    """A camera's sensor.

    Attributes:
      gain: (3,) exposure and white balance.
      noise: () standard deviation of the noise, where white is 1.
    """

    gain: Float[Array, "*cameras 3"]
    noise: Float[Array, "*cameras"]


def random_sensor(key: Key[Array, ""]) -> Sensor:
    """Exposure within about a quarter stop, white balance within 5 %, noise up to 2 %."""
    u = uniforms(key, exposure=(1,), balance=(3,), noise=())
    log_gain = 0.15 * normal(u["exposure"]) + 0.04 * normal(u["balance"])
    return Sensor(gain=jnp.exp(log_gain), noise=between(0.0, 0.02, u["noise"]))


def render(
    key: Key[Array, ""],
    scene: Scene,
    world_from_cam: Float[Array, "4 4"],
    cam_intrinsics: Float[Array, "3 3"],
    size: tuple[int, int],
    sensor: Sensor | None = None,
) -> View:
    """Renders one view. Use `jax.vmap` for many.

    Args:
      key: of the noise.
      scene: the scene.
      world_from_cam, cam_intrinsics: the camera.
      size: (H, W).
      sensor: exposure and noise; None for an ideal sensor.
    """
    grid = camera.pixel_grid(*size).reshape(-1, 2)
    origin, directions = rays(world_from_cam, cam_intrinsics, grid)
    hits = jax.vmap(lambda d: cast(scene, origin, d))(directions)
    pixel = 1 / cam_intrinsics[0, 0]

    def shade(hit, direction):
        surface = jax.tree.map(lambda a: a[hit.surface], scene.texture)
        length = jnp.sqrt(jnp.sum(direction * direction))
        slant = jnp.maximum(-jnp.sum(hit.normal * direction) / length, 0.2)
        albedo = texture.colour(surface, hit.local, hit.depth * length * pixel / slant)
        to_light = scene.light - (origin + hit.depth * direction)
        cosine = jnp.sum(to_light * hit.normal) / jnp.maximum(jnp.sqrt(jnp.sum(to_light * to_light)), 1e-6)
        return albedo * (scene.ambient + (1 - scene.ambient) * jnp.maximum(cosine, 0))

    rgb = jax.vmap(shade)(hits, directions).reshape(*size, 3)
    if sensor is not None:
        rgb = rgb * sensor.gain.reshape(1, 1, 3) + sensor.noise * jax.random.normal(key, rgb.shape)
    return View(
        rgb=jnp.round(255 * jnp.clip(rgb, 0, 1)).astype(jnp.uint8),
        depth=hits.depth.reshape(size),
        instance=hits.instance.reshape(size),
        intrinsics=cam_intrinsics,
        world_from_cam=world_from_cam,
    )
