"""Solid textures: hashed value noise in an object's own frame.

A texture is a function of the point in the object's frame, so it moves with the object and does not depend on the view.
Its lattice is hashed, so it does not repeat. Octaves with cells smaller than a pixel fade out.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Float, Key, UInt32, pytree_dataclass
from easi3r_jax.synthetic.draws import between, log_between, one_of, rotations, uniforms

OCTAVES = 4
_LACUNARITY = 2.17  # not 2: the cells of two octaves would share edges
#: Of every octave: what is added to the seed, its frequency relative to the first, the exponent of the persistence.
_OCTAVES = (
    np.arange(OCTAVES, dtype=np.uint32) * np.uint32(0x9E3779B9),
    (_LACUNARITY ** np.arange(OCTAVES)).astype(np.float32),
    np.arange(OCTAVES, dtype=np.float32),
)


@pytree_dataclass
class Texture:
    """Parameters of solid noise. With a leading axis, one texture per surface.

    Attributes:
      seed: (...) uint32, of the hash.
      lattice: (..., 3, 3) rotation of the cells relative to the object, so that their edges are not parallel to its
        faces.
      frequency: (...) cells of the coarsest octave per world unit.
      persistence: (...) amplitude of an octave relative to the one before.
      sharpness: (...) 1 interpolates linearly between cell centres; larger values give cells with hard edges.
      base: (..., 3) mean colour in [0, 1].
      contrast: (..., 3) amplitude by channel.
      chroma: (...) in [0, 1]: with 0, channels vary together, with 1 independently.
    """

    seed: UInt32[Array, "*surfaces"]
    lattice: Float[Array, "*surfaces 3 3"]
    frequency: Float[Array, "*surfaces"]
    persistence: Float[Array, "*surfaces"]
    sharpness: Float[Array, "*surfaces"]
    base: Float[Array, "*surfaces 3"]
    contrast: Float[Array, "*surfaces 3"]
    chroma: Float[Array, "*surfaces"]


def random_textures(key: Key[Array, ""], count: int) -> Texture:
    """`count` varied textures: coarse and fine, smooth and tiled, grey and colourful."""
    n, three = (count,), (count, 3)
    u = uniforms(
        key, seed=n, lattice=(count, 4), frequency=n, persistence=n, sharpness=n, base=three, contrast=three, chroma=n
    )
    return Texture(
        seed=one_of(2**24, u["seed"]).astype(jnp.uint32),
        lattice=rotations(u["lattice"]),
        frequency=log_between(0.7, 3.0, u["frequency"]),
        persistence=between(0.5, 0.95, u["persistence"]),
        sharpness=log_between(1.0, 8.0, u["sharpness"]),
        base=between(0.15, 0.75, u["base"]),
        contrast=between(0.25, 0.9, u["contrast"]),
        chroma=u["chroma"],
    )


def _hash(x: Array, y: Array, z: Array, seed: Array) -> Array:
    """uint32 hash of a lattice point: products with large primes, then the finaliser of MurmurHash3."""
    h = seed ^ (x.astype(jnp.uint32) * np.uint32(0x8DA6B343))
    h = h ^ (y.astype(jnp.uint32) * np.uint32(0xD8163841))
    h = h ^ (z.astype(jnp.uint32) * np.uint32(0xCB1AB31F))
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def _noise(seed: Array, sharpness: Array, point: Array) -> Array:
    """(3,) value noise in [-1, 1] at a point (3,) in lattice coordinates, trilinear between hashed corners."""
    cell = jnp.floor(point)
    inside = point - cell
    weight = jnp.clip((inside - 0.5) * sharpness + 0.5, 0, 1)
    corner = cell.astype(jnp.int32)
    total = jnp.zeros(3, point.dtype)
    for dx, dy, dz in itertools.product((0, 1), repeat=3):
        h = _hash(corner[0] + dx, corner[1] + dy, corner[2] + dz, seed)
        channels = (h >> jnp.asarray([0, 10, 20], jnp.uint32)) & np.uint32(1023)
        wx, wy, wz = (w if d else 1 - w for d, w in zip((dx, dy, dz), weight, strict=True))
        total = total + (wx * wy * wz) * channels.astype(point.dtype)
    return total * (2 / 1023) - 1


def colour(texture: Texture, point: Float[Array, "3"], footprint: Float[Array, ""]) -> Float[Array, "3"]:
    """Colour (3,) in [0, 1] of one texture at `point` (3,), in the object's frame.

    Args:
      texture: without leading axes.
      point: (3,) world units.
      footprint: () width of a pixel on the surface, world units.
    """

    def add_octave(total: Array, octave: tuple[Array, Array, Array]) -> tuple[Array, None]:
        seed, scale, exponent = octave
        frequency = texture.frequency * scale
        visible = jnp.clip(2 - 2.5 * footprint * frequency, 0, 1)  # 0 where a cell is smaller than 1.25 pixels
        noise = _noise(texture.seed + seed, texture.sharpness, rotated * frequency)
        return total + visible * texture.persistence**exponent * noise, None

    rotated = texture.lattice[:, 0] * point[0] + texture.lattice[:, 1] * point[1] + texture.lattice[:, 2] * point[2]
    # A scan compiles in a quarter of the time that four copies of the hashes take.
    total, _ = jax.lax.scan(add_octave, jnp.zeros(3, point.dtype), _OCTAVES)
    grey = jnp.broadcast_to(jnp.mean(total), (3,))
    mixed = grey + texture.chroma * (total - grey)
    return jnp.clip(texture.base + 0.5 * texture.contrast * mixed, 0.02, 1)
