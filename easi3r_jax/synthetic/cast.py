"""Ray casting: the first hit of a ray with a scene's objects, else with the room's walls.

Every object is an affine image of a unit shape: the cube |x|, |y|, |z| <= 1, the ball of radius 1, the upright cylinder
x^2 + z^2 <= 1, |y| <= 1, the panel |x|, |y| <= 1 in the plane z = 0. Affine maps preserve a ray's parameter, so rays
are intersected with the unit shapes. A camera ray has z = 1 in the camera, so its parameter *is* the depth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float, Int, pytree_dataclass
from easi3r_jax.synthetic.scenes import BALL, BOX, CYLINDER, PANEL, Scene

# Components of directions are kept this far from 0, with their sign. `where(abs(d) < eps, eps, d)` would turn a ray
# that points slightly left into one that points right, and put isolated pixels behind the camera.
_EPSILON = 1e-6
#: Hits below this ray parameter do not count: the ray starts on or in the object.
_MIN_PARAMETER = 1e-4


@pytree_dataclass
class Hit:
    """The first hit of a ray.

    Attributes:
      depth: () ray parameter: distance in units of the direction's length; for camera rays, the depth z.
      instance: () int32, 0 for the room, k + 1 for object k.
      surface: () int32, index of the texture: k for object k, K + wall for the room's six walls.
      local: (3,) the point in the frame of the object (or room), in world units: coordinates of the texture.
      normal: (3,) unit normal in the world, towards the ray's origin.
    """

    depth: Float[Array, "*rays"]
    instance: Int[Array, "*rays"]
    surface: Int[Array, "*rays"]
    local: Float[Array, "*rays 3"]
    normal: Float[Array, "*rays 3"]


def _away_from_zero(x: Array) -> Array:
    return jnp.where(jnp.abs(x) < _EPSILON, jnp.where(x < 0, -_EPSILON, _EPSILON), x)


def _slabs(origin: Array, direction: Array) -> tuple[Array, Array]:
    """Entry and exit of the three slabs |x| <= 1, |y| <= 1, |z| <= 1: (3,) each."""
    inverse = 1 / _away_from_zero(direction)
    low, high = (-1 - origin) * inverse, (1 - origin) * inverse
    return jnp.minimum(low, high), jnp.maximum(low, high)


def _roots(a: Array, half_b: Array, c: Array) -> tuple[Array, Array]:
    """Entry and exit of a t^2 + 2 half_b t + c <= 0, for a >= 0. Without a solution, the exit precedes the entry."""
    a = jnp.maximum(a, _EPSILON**2)  # for a ray along a tube's axis, which never leaves the tube
    discriminant = half_b * half_b - a * c
    root = jnp.sqrt(jnp.maximum(discriminant, 0))
    missed = discriminant < 0
    return jnp.where(missed, jnp.inf, (-half_b - root) / a), jnp.where(missed, -jnp.inf, (-half_b + root) / a)


def _entry(kind: Array, origin: Array, direction: Array) -> Array:
    """Ray parameter () at which a ray enters a unit shape; infinite if it misses it, or starts inside or behind it."""
    near, far = _slabs(origin, direction)
    od, oo, dd = origin * direction, origin * origin, direction * direction
    ball = _roots(jnp.sum(dd), jnp.sum(od), jnp.sum(oo) - 1)
    tube = _roots(dd[0] + dd[2], od[0] + od[2], oo[0] + oo[2] - 1)
    plane = -origin[2] / _away_from_zero(direction[2])
    entries = jnp.stack([jnp.max(near), ball[0], jnp.maximum(tube[0], near[1]), plane])
    inside = (near[0] <= plane) & (plane <= far[0]) & (near[1] <= plane) & (plane <= far[1])
    exits = jnp.stack(
        [jnp.min(far), ball[1], jnp.minimum(tube[1], far[1]), jnp.where(inside, plane, -jnp.inf)],
    )
    # Selected by comparison: a gather per ray and object would cost more than computing all four shapes.
    chosen = kind == jnp.asarray([BOX, BALL, CYLINDER, PANEL])
    entry, leave = (jnp.sum(jnp.where(chosen, t, 0)) for t in (entries, exits))
    return jnp.where((entry <= leave) & (entry > _MIN_PARAMETER), entry, jnp.inf)


def _unit_normal(kind: Array, point: Array) -> Array:
    """Gradient direction (3,) of a unit shape's surface at a point on it."""
    face = (jnp.arange(3) == jnp.argmax(jnp.abs(point))).astype(point.dtype) * jnp.sign(point)
    radial = jnp.asarray([1, 0, 1], point.dtype) * point
    cap = jnp.asarray([0, 1, 0], point.dtype) * jnp.sign(point)
    tube = jnp.where(jnp.abs(point[1]) > jnp.sqrt(jnp.sum(radial * radial)), cap, radial)
    panel = jnp.asarray([0, 0, 1], point.dtype)
    return jnp.where(kind == BOX, face, jnp.where(kind == BALL, point, jnp.where(kind == CYLINDER, tube, panel)))


def _affine(scene: Scene) -> tuple[Array, Array]:
    """For each object, the (3, 3) matrix and (3,) offset from the world to its unit shape."""
    rotation, position = scene.world_from_object[:, :3, :3], scene.world_from_object[:, :3, 3]
    matrix = jnp.swapaxes(rotation, 1, 2) / scene.half_size[:, :, None]
    return matrix, -jnp.sum(matrix * position[:, None, :], axis=2)


def _apply(matrix: Array, vector: Array) -> Array:
    """(3, 3) by (3,) as products and sums: a GPU's matrix product may round too coarsely for rays."""
    return matrix[:, 0] * vector[0] + matrix[:, 1] * vector[1] + matrix[:, 2] * vector[2]


def distance(
    scene: Scene, origin: Float[Array, "3"], direction: Float[Array, "3"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Ray parameter () float and instance () int32 of a ray's first hit.

    Args:
      scene: the scene.
      origin, direction: (3,) world; the origin is inside the room.
    """
    matrix, offset = _affine(scene)
    entry = jax.vmap(lambda k, m, o: _entry(k, _apply(m, origin) + o, _apply(m, direction)))(scene.kind, matrix, offset)
    wall = jnp.min(_slabs(origin / scene.room_half_size, direction / scene.room_half_size)[1])
    nearest = jnp.argmin(entry)
    on_object = entry[nearest] < wall
    return jnp.where(on_object, entry[nearest], wall), jnp.where(on_object, nearest + 1, 0).astype(jnp.int32)


def cast(scene: Scene, origin: Float[Array, "3"], direction: Float[Array, "3"]) -> Hit:
    """The first hit of one ray from `origin` (3,) in the room along `direction` (3,), world. For many: `jax.vmap`."""
    depth, instance = distance(scene, origin, direction)
    point = origin + depth * direction
    on_object = instance > 0
    index = jnp.maximum(instance - 1, 0)
    kind, half_size, world_from_object = (a[index] for a in (scene.kind, scene.half_size, scene.world_from_object))
    rotation = world_from_object[:3, :3]
    local = _apply(rotation.T, point - world_from_object[:3, 3])
    normal = _apply(rotation, _unit_normal(kind, local / half_size) / half_size)

    in_room = point / scene.room_half_size
    axis = jnp.argmax(jnp.abs(in_room))
    towards = jnp.where(in_room[axis] < 0, 0, 1)
    wall_normal = (jnp.arange(3) == axis).astype(point.dtype) * jnp.sign(in_room)

    normal = jnp.where(on_object, normal, wall_normal)
    normal = normal / jnp.maximum(jnp.sqrt(jnp.sum(normal * normal)), _EPSILON)
    normal = jnp.where(jnp.sum(normal * direction) > 0, -normal, normal)
    surface = jnp.where(on_object, index, len(scene.kind) + 2 * axis + towards)
    return Hit(
        depth=depth,
        instance=instance,
        surface=surface.astype(jnp.int32),
        local=jnp.where(on_object, local, point),
        normal=normal,
    )
