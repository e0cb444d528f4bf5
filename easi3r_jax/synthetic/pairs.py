"""Training pairs: two views of a static scene, with a chosen overlap."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Float, Key, pytree_dataclass
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.synthetic import cameras
from easi3r_jax.synthetic.draws import between, normal, uniforms
from easi3r_jax.synthetic.render import Sensor, View, random_sensor, render
from easi3r_jax.synthetic.scenes import Scene, clear_of, random_scene


@dataclasses.dataclass(frozen=True)
class PairSampling:
    """How pairs are sampled.

    Attributes:
      size: (H, W) of the images.
      num_objects: number of objects in a scene.
      overlap: range of the target overlap, the fraction of common pixels.
      arc_deg: largest angle between the two cameras, around the target of the first.
      candidates: number of second cameras, of which the one closest to the target overlap is used.

    Raises:
      ConfigError: a value outside its range.
    """

    size: tuple[int, int] = (64, 96)
    num_objects: int = 10
    overlap: tuple[float, float] = (0.4, 0.9)
    arc_deg: float = 20.0
    candidates: int = 6

    def __post_init__(self):
        check_size(self.size)
        if self.num_objects < 1 or self.candidates < 1:
            raise ConfigError(f"num_objects={self.num_objects} and candidates={self.candidates} must be at least 1.")
        if not 0 <= self.overlap[0] <= self.overlap[1] <= 1:
            raise ConfigError(
                f"overlap={self.overlap[0]:g}..{self.overlap[1]:g}: not a range within 0..1, lower end first."
            )
        if not 0 <= self.arc_deg <= 90:
            raise ConfigError(f"arc_deg={self.arc_deg:g}: must be from 0 to 90.")


def check_size(size: tuple[int, int]) -> None:
    """Refuses images that are too small to show anything or to measure overlap.

    Raises:
      ConfigError: a side of fewer than 16 pixels.
    """
    if min(size) < 16:
        raise ConfigError(f"size={size[0]}x{size[1]}: images need at least 16 pixels a side.")


@pytree_dataclass
class Viewpoint:
    """A camera that looks at a target (3,); angles () in radians, distance ()."""

    target: Float[Array, "3"]
    azimuth: Float[Array, ""]
    elevation: Float[Array, ""]
    radius: Float[Array, ""]
    roll: Float[Array, ""]


def random_viewpoint(key: Key[Array, ""], room_half_size: Float[Array, "3"]) -> Viewpoint:
    """A camera that looks at the middle of the room from a random direction."""
    u = uniforms(key, target=(3,), azimuth=(), elevation=(), radius=(), roll=())
    spread = jnp.asarray([0.25, 0.3, 0.25]) * room_half_size
    reach = jnp.minimum(room_half_size[0], room_half_size[2])
    return Viewpoint(
        target=between(-1.0, 1.0, u["target"]) * spread,
        azimuth=between(0.0, 2 * np.pi, u["azimuth"]),
        elevation=between(-0.1, 0.4, u["elevation"]),
        radius=between(0.7, 1.05, u["radius"]) * reach,
        roll=0.08 * normal(u["roll"]),
    )


def camera_at(view: Viewpoint, room_half_size: Float[Array, "3"]) -> Float[Array, "4 4"]:
    """(4, 4) `world_from_cam` of a viewpoint, kept inside the room."""
    position = cameras.on_sphere(view.target, view.azimuth, view.elevation, view.radius)
    return cameras.look_at(cameras.inside(room_half_size, position), view.target, view.roll)


def moved(key: Key[Array, ""], view: Viewpoint, arc: float | Float[Array, ""]) -> Viewpoint:
    """The viewpoint after a random camera motion of up to about `arc` radians around the target."""
    u = uniforms(key, turn=(2,), target=(3,), radius=(), roll=())
    turn = arc * between(-1.0, 1.0, u["turn"])
    return Viewpoint(
        target=view.target + 0.55 * arc * view.radius * normal(u["target"]),
        azimuth=view.azimuth + turn[0],
        elevation=view.elevation + 0.4 * turn[1],
        radius=view.radius * jnp.exp(0.4 * arc * normal(u["radius"])),
        roll=view.roll + 0.15 * arc * normal(u["roll"]),
    )


@pytree_dataclass
class Arrangement:
    """A pair before it is rendered.

    Attributes:
      scene: the scene.
      world_from_cam: (2, 4, 4).
      intrinsics: (3, 3) of both cameras.
      sensors: with a leading axis of 2.
      noise_key: of the images' noise.
    """

    scene: Scene
    world_from_cam: Float[Array, "2 4 4"]
    intrinsics: Float[Array, "3 3"]
    sensors: Sensor
    noise_key: Key[Array, ""]


def arrange_pair(key: Key[Array, ""], sampling: PairSampling) -> Arrangement:
    """The scene and the two cameras of a pair; see `sample_pair`."""
    scene_key, view_key, focal_key, overlap_key, move_key, sensor_key, noise_key = jax.random.split(key, 7)
    scene = random_scene(scene_key, sampling.num_objects)
    room = scene.room_half_size
    first = random_viewpoint(view_key, room)
    intrinsics = cameras.random_intrinsics(focal_key, sampling.size)
    start = camera_at(first, room)
    arc = np.float32(np.radians(sampling.arc_deg))
    others = jax.vmap(lambda k: camera_at(moved(k, first, arc), room))(jax.random.split(move_key, sampling.candidates))
    scene = clear_of(scene, jnp.concatenate([start[None, :3, 3], others[:, :3, 3]]), clearance=0.9)

    wanted = between(*sampling.overlap, jax.random.uniform(overlap_key))
    common = jax.vmap(lambda c: cameras.overlap(scene, sampling.size, (intrinsics, intrinsics), (start, c)))(others)
    chosen = others[jnp.argmin(jnp.abs(common - wanted))]
    return Arrangement(
        scene=scene,
        world_from_cam=jnp.stack([start, chosen]),
        intrinsics=intrinsics,
        sensors=jax.vmap(random_sensor)(jax.random.split(sensor_key)),
        noise_key=noise_key,
    )


def sample_pair(key: Key[Array, ""], sampling: PairSampling) -> View:
    """Two views of a new random static scene.

    Args:
      key: determines everything.
      sampling: how pairs are sampled.

    Returns:
      A `View` whose leaves have a leading axis of 2.
    """
    pair = arrange_pair(key, sampling)
    return jax.vmap(lambda k, pose, sensor: render(k, pair.scene, pose, pair.intrinsics, sampling.size, sensor))(
        jax.random.split(pair.noise_key), pair.world_from_cam, pair.sensors
    )
