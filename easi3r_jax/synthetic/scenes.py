"""What is in a room: objects, textures, light."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.geometry import se3
from easi3r_jax.synthetic.texture import Texture, random_rotation, random_textures
from easi3r_jax.types import pytree_dataclass

Array = jax.Array

BOX, BALL, CYLINDER, PANEL = range(4)
WALLS = 6
#: Objects are placed within this share of the room's half extents.
PLACED_WITHIN = 0.6


@pytree_dataclass
class Scene:
    """A room with K objects.

    Attributes:
      kind: (K,) int32, BOX, BALL (an ellipsoid), CYLINDER or PANEL.
      half_size: (K, 3) half extents along the object's own axes; a panel ignores the third.
      world_from_object: (K, 4, 4) rigid.
      room_half_size: (3,) half extents of the room, centred at the origin.
      texture: of K + 6 surfaces, the objects' and the walls' (-x, +x, -y, +y, -z, +z; +y is the floor).
      light: (3,) position of the lamp in the world.
      ambient: () share of the light that comes from everywhere.
    """

    kind: Array
    half_size: Array
    world_from_object: Array
    room_half_size: Array
    texture: Texture
    light: Array
    ambient: Array


def random_scene(key: Array, num_objects: int = 10) -> Scene:
    """A random room. Every second object stands on the floor, the others hang anywhere around the middle.

    Sizes, kinds, places and textures are independent of each other.
    """
    keys = jax.random.split(key, 9)
    room = jax.random.uniform(keys[0], (3,), minval=jnp.array([2.5, 1.5, 2.5]), maxval=jnp.array([4.5, 2.5, 4.5]))
    kind = jax.random.randint(keys[1], (num_objects,), 0, 4)
    size = jnp.exp(jax.random.uniform(keys[2], (num_objects, 1), minval=np.log(0.2), maxval=np.log(0.7)))
    shape = jnp.exp(jax.random.uniform(keys[3], (num_objects, 3), minval=-0.4, maxval=0.4))
    half_size = size * shape

    stands = jnp.asarray(standing(num_objects))
    turn = jax.random.uniform(keys[4], (num_objects,), maxval=2 * np.pi)
    upright = jax.vmap(about_vertical)(turn)
    tumbled = jax.vmap(random_rotation)(jax.random.split(keys[5], num_objects))
    rotation = jnp.where(stands[:, None, None], upright, tumbled)

    place = jax.random.uniform(keys[6], (num_objects, 3), minval=-PLACED_WITHIN, maxval=PLACED_WITHIN) * room[None]
    on_floor = room[1] - half_size[:, 1]
    place = place.at[:, 1].set(jnp.where(stands, on_floor, place[:, 1]))
    lamp = jax.random.uniform(keys[7], (3,), minval=jnp.array([-0.7, -0.9, -0.7]), maxval=jnp.array([0.7, -0.5, 0.7]))
    texture_key, ambient_key = jax.random.split(keys[8])
    return Scene(
        kind=kind.astype(jnp.int32),
        half_size=half_size,
        world_from_object=se3.from_parts(rotation, place),
        room_half_size=room,
        texture=random_textures(texture_key, num_objects + WALLS),
        light=lamp * room,
        ambient=jax.random.uniform(ambient_key, (), minval=0.35, maxval=0.75),
    )


def standing(num_objects: int) -> np.ndarray:
    """(K,) bool: which objects of a random scene stand on its floor; the others hang."""
    return np.arange(num_objects) % 2 == 0


def about_vertical(angle: Array) -> Array:
    """(3, 3) rotation by () radians about the vertical (y) axis."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    zero, one = jnp.zeros_like(c), jnp.ones_like(c)
    return jnp.stack([jnp.stack([c, zero, s]), jnp.stack([zero, one, zero]), jnp.stack([-s, zero, c])])


def clear_of(scene: Scene, points: Array, clearance: float) -> Scene:
    """The scene with every object shrunk so far that it stays `clearance` away from all `points` (P, 3).

    So that no camera starts inside an object or sees nothing else.
    """
    centre = scene.world_from_object[:, :3, 3]
    offset = points[None] - centre[:, None]
    return shrunk(scene, jnp.min(jnp.sqrt(jnp.sum(offset * offset, axis=-1)), axis=1) - clearance)


def shrunk(scene: Scene, reach: Array) -> Scene:
    """The scene with every object shrunk so far that all of it is within `reach` (K,) of its centre.

    Down to a hundredth of its size at most: what would have to vanish stays as a speck.
    """
    radius = jnp.sqrt(jnp.sum(scene.half_size * scene.half_size, axis=1))
    factor = jnp.clip(reach / radius, 0.01, 1)
    return dataclasses.replace(scene, half_size=scene.half_size * factor[:, None])
