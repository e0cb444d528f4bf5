"""Rooms with a few objects at known positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.geometry import camera
from easi3r_jax.synthetic.scenes import WALLS, Scene
from easi3r_jax.synthetic.texture import Texture, random_textures

#: Half extents of the room: nothing about it is symmetric.
ROOM = (4.0, 3.0, 5.0)
DIAGONAL = 2 * float(np.linalg.norm(ROOM))


def at(x: float, y: float, z: float) -> np.ndarray:
    """A pose that only shifts."""
    pose = np.eye(4, dtype=np.float32)
    pose[:3, 3] = (x, y, z)
    return pose


def turned(axis: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3) rotation by an angle in radians (Rodrigues), float64."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def room_with(kinds: list[int], half_sizes: list, poses: list[np.ndarray]) -> Scene:
    """A room with these objects, lit evenly: colours do not depend on where a surface faces."""
    return Scene(
        kind=np.asarray(kinds, np.int32),
        half_size=np.asarray(half_sizes, np.float32),
        world_from_object=np.stack(poses).astype(np.float32),
        room_half_size=np.asarray(ROOM, np.float32),
        texture=_textures(len(kinds) + WALLS),
        light=np.asarray([0, -2, 0], np.float32),
        ambient=np.float32(1),
    )


@functools.partial(jax.jit, static_argnums=0)
def _textures(count: int) -> Texture:
    return random_textures(jax.random.key(3), count)


def intrinsics(size: tuple[int, int], focal: float) -> jax.Array:
    """(3, 3) with the project's principal point."""
    return camera.intrinsics(jnp.float32(focal), camera.default_principal_point(*size))
