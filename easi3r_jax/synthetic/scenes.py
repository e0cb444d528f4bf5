"""Random rooms: objects, textures, light."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float, Int, Key, pytree_dataclass
from easi3r_jax.core.geometry import se3
from easi3r_jax.synthetic.draws import between, log_between, one_of, rotations, uniforms
from easi3r_jax.synthetic.texture import Texture, random_textures

BOX, BALL, CYLINDER, PANEL = range(4)
WALLS = 6
#: Objects are placed within this fraction of the room's half extents.
PLACED_WITHIN = 0.6


@pytree_dataclass
class Scene:
    """A room with K objects.

    Attributes:
      kind: (K,) int32, BOX, BALL (an ellipsoid), CYLINDER or PANEL.
      half_size: (K, 3) half extents along the object's own axes; a panel ignores the third.
      world_from_object: (K, 4, 4) rigid.
      room_half_size: (3,) half extents of the room, centred at the origin.
      texture: of K + 6 surfaces: the objects and the walls (-x, +x, -y, +y, -z, +z; +y is the floor).
      light: (3,) position of the lamp in the world.
      ambient: () fraction of ambient light.
    """

    kind: Int[Array, "K"]
    half_size: Float[Array, "K 3"]
    world_from_object: Float[Array, "K 4 4"]
    room_half_size: Float[Array, "3"]
    texture: Texture
    light: Float[Array, "3"]
    ambient: Float[Array, ""]


def random_scene(key: Key[Array, ""], num_objects: int = 10) -> Scene:
    """A random room. Every second object stands on the floor; the others float around the middle.

    Sizes, kinds, positions and textures are independent of each other.
    """
    K = num_objects
    own_key, texture_key = jax.random.split(key)
    u = uniforms(
        own_key,
        room=(3,),
        kind=(K,),
        size=(K, 1),
        shape=(K, 3),
        turn=(K,),
        tumble=(K, 4),
        place=(K, 3),
        lamp=(3,),
        light=(),
    )
    room = between(jnp.array([2.5, 1.5, 2.5]), jnp.array([4.5, 2.5, 4.5]), u["room"])
    half_size = log_between(0.2, 0.7, u["size"]) * jnp.exp(between(-0.4, 0.4, u["shape"]))

    stands = jnp.asarray(standing(K))
    upright = jax.vmap(about_vertical)(between(0.0, 2 * np.pi, u["turn"]))
    rotation = jnp.where(stands[:, None, None], upright, rotations(u["tumble"]))

    place = between(-PLACED_WITHIN, PLACED_WITHIN, u["place"]) * room[None]
    on_floor = room[1] - half_size[:, 1]
    place = place.at[:, 1].set(jnp.where(stands, on_floor, place[:, 1]))
    lamp = between(jnp.array([-0.7, -0.9, -0.7]), jnp.array([0.7, -0.5, 0.7]), u["lamp"])
    return Scene(
        kind=one_of(4, u["kind"]),
        half_size=half_size,
        world_from_object=se3.from_parts(rotation, place),
        room_half_size=room,
        texture=random_textures(texture_key, K + WALLS),
        light=lamp * room,
        ambient=between(0.35, 0.75, u["light"]),
    )


def standing(num_objects: int) -> Bool[np.ndarray, "K"]:
    """(K,) bool: which objects of a random scene stand on its floor; the others float.

    An object that is later shrunk, to keep clear of the cameras, keeps its centre and no longer touches the floor.
    """
    return np.arange(num_objects) % 2 == 0


def about_vertical(angle: Float[Array, ""]) -> Float[Array, "3 3"]:
    """(3, 3) rotation by () radians about the vertical axis (y)."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    zero, one = jnp.zeros_like(c), jnp.ones_like(c)
    return jnp.stack([jnp.stack([c, zero, s]), jnp.stack([zero, one, zero]), jnp.stack([-s, zero, c])])


def clear_of(scene: Scene, points: Float[Array, "P 3"], clearance: float) -> Scene:
    """The scene with every object shrunk until it is at least `clearance` away from all `points` (P, 3).

    So no camera is inside an object, or has its whole view blocked by one.
    """
    centre = scene.world_from_object[:, :3, 3]
    offset = points[None] - centre[:, None]
    return shrunk(scene, jnp.min(jnp.sqrt(jnp.sum(offset * offset, axis=-1)), axis=1) - clearance)


def shrunk(scene: Scene, reach: Float[Array, "K"]) -> Scene:
    """The scene with every object shrunk until it lies within `reach` (K,) of its centre.

    Objects shrink to a hundredth of their size at most, so that none vanishes.
    """
    radius = jnp.sqrt(jnp.sum(scene.half_size * scene.half_size, axis=1))
    factor = jnp.clip(reach / radius, 0.01, 1)
    return dataclasses.replace(scene, half_size=scene.half_size * factor[:, None])
