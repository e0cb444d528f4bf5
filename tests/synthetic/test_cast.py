"""Ray casting against closed forms, and against points sampled along the rays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.synthetic.cast import _slabs, cast, distance
from easi3r_jax.synthetic.scenes import BALL, BOX, CYLINDER, PANEL, random_scene
from tests.rooms import DIAGONAL, ROOM, at, room_with, turned

KINDS = (BOX, BALL, CYLINDER, PANEL)
HALF = np.array([0.6, 0.4, 0.5])


@jax.jit
def cast_many(scene, origins, directions):
    return jax.vmap(lambda o, d: cast(scene, o, d))(origins, directions)


def cast_one(scene, origin, direction):
    hits = cast_many(scene, jnp.asarray([origin], jnp.float32), jnp.asarray([direction], jnp.float32))
    return jax.tree.map(lambda a: np.asarray(a)[0], hits)


@pytest.mark.parametrize(
    ("kind", "depth", "normal"),
    [(BOX, 2 - 0.5, (0, 0, -1)), (BALL, 2 - 0.5, (0, 0, -1)), (CYLINDER, 2 - 0.5, (0, 0, -1)), (PANEL, 2, (0, 0, -1))],
)
def test_a_ray_through_the_middle(kind, depth, normal):
    """All components but one are exactly 0: parallel to faces, to the cylinder's caps, to the room's walls."""
    hit = cast_one(room_with([kind], [HALF], [at(0.5, 1, 1)]), (0.5, 1, -1), (0, 0, 1))
    assert hit.instance == 1
    assert hit.surface == 0
    np.testing.assert_allclose(hit.depth, depth, rtol=1e-6)
    np.testing.assert_allclose(hit.normal, normal, atol=1e-6)
    np.testing.assert_allclose(hit.local, (0, 0, depth - 2), atol=1e-6)


@pytest.mark.parametrize("kind", [BOX, BALL, CYLINDER])
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [-1, 1])
def test_a_ray_along_each_axis(kind, axis, side):
    direction = side * np.eye(3)[axis]
    hit = cast_one(room_with([kind], [HALF], [at(0, 0, 0)]), -2 * direction, direction)
    assert hit.instance == 1
    np.testing.assert_allclose(hit.depth, 2 - HALF[axis], rtol=1e-6)
    np.testing.assert_allclose(hit.normal, -direction, atol=1e-6)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [-1, 1])
def test_walls_and_their_surfaces(axis, side):
    scene = room_with([BALL], [[0.01] * 3], [at(3, 2, 4)])
    hit = cast_one(scene, (0.5, 0.25, -0.5), side * np.eye(3)[axis])
    assert hit.instance == 0
    assert hit.surface == 1 + 2 * axis + (side > 0)
    np.testing.assert_allclose(hit.depth, ROOM[axis] - side * (0.5, 0.25, -0.5)[axis], rtol=1e-6)
    np.testing.assert_allclose(hit.normal, -side * np.eye(3)[axis], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_objects_behind_the_ray_or_around_its_origin_are_not_hit(kind):
    scene = room_with([kind], [HALF], [at(0, 0, 0)])
    assert cast_one(scene, (0, 0, 1), (0, 0, 1)).instance == 0
    assert cast_one(scene, (0, 0, 0), (0.3, 0.2, 1)).instance == 0


@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-30, -1e-30, 1e-12, -1e-12, 1e-8, -1e-8, 3e-7, -3e-7])
@pytest.mark.parametrize("kind", KINDS)
def test_components_close_to_zero_of_either_sign(kind, tiny):
    """They must not reverse the ray or put hits behind the camera: the result is as for exactly 0."""
    scene = room_with([kind], [HALF], [at(0, 0, 1)])
    for origin in ((0.2, 0.1, -1), (0, 0, -1), (-3.9, 2.9, -4.9), (1.5, 1.5, -1)):
        for components in ((tiny, 0, 1), (0, tiny, 1), (tiny, tiny, 1), (tiny, -tiny, 1)):
            hit, straight = cast_one(scene, origin, components), cast_one(scene, origin, (0, 0, 1))
            assert hit.instance == straight.instance
            np.testing.assert_allclose(hit.depth, straight.depth, rtol=1e-4)


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("lean", [1e-30, 1e-9, 3e-7, 1e-3])
def test_slabs_behind_and_in_front_of_an_almost_parallel_ray(side, lean):
    """Tested on slabs: in a room, a wrong sign goes unnoticed, since a wall is closer than a million units."""
    origin = jnp.asarray([2 * side, 0, 0], jnp.float32)
    for direction, ahead in ((side * lean, False), (-side * lean, True)):
        entry, leave = _slabs(origin, jnp.asarray([direction, 0, 1], jnp.float32))
        assert entry[0] < leave[0]
        assert (entry[0] > 0) == (leave[0] > 0) == ahead


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_ray_along_a_face(sign):
    """Just outside the face it misses, just inside it hits the front, whichever way it is slightly tilted."""
    scene = room_with([BOX], [HALF], [at(0, 0, 1)])
    for lean in (0.0, sign * 1e-9):
        assert cast_one(scene, (sign * 0.601, 0, -1), (lean, 0, 1)).instance == 0
        inside = cast_one(scene, (sign * 0.599, 0, -1), (lean, 0, 1))
        assert inside.instance == 1
        np.testing.assert_allclose(inside.depth, 1.5, rtol=1e-5)


def inside_shape(kind, local):
    """Implicit functions of the unit solids: > 0 inside."""
    x, y, z = np.moveaxis(local, -1, 0)
    if kind == BOX:
        return 1 - np.max(np.abs(local), axis=-1)
    if kind == BALL:
        return 1 - (x * x + y * y + z * z)
    return np.minimum(1 - (x * x + z * z), 1 - np.abs(y))


@pytest.mark.parametrize("kind", [BOX, BALL, CYLINDER])
def test_rotated_solids_against_points_along_the_ray(kind):
    rng = np.random.default_rng(kind)
    pose = at(0.3, -0.4, 0.2)
    pose[:3, :3] = turned(rng.normal(size=3), 1.1)
    scene = room_with([kind], [HALF], [pose])
    origins = rng.uniform(-1, 1, (400, 3)) * (3, 2, 4)
    aims = pose[:3, 3] + rng.normal(size=(400, 3)) * 0.5
    directions = (aims - origins) * rng.uniform(0.2, 2, (400, 1))

    def local(t):
        points = origins[:, None] + t[..., None] * directions[:, None] - pose[:3, 3].astype(np.float64)
        return points @ pose[:3, :3].astype(np.float64) / HALF

    apart = inside_shape(kind, local(np.zeros((400, 1))))[:, 0] < -0.05
    origins, directions = origins[apart], directions[apart]
    hits = jax.tree.map(np.asarray, cast_many(scene, *(jnp.asarray(a, jnp.float32) for a in (origins, directions))))
    met = hits.instance == 1
    assert 0.2 < met.mean() < 0.9

    on_surface = inside_shape(kind, local(hits.depth[:, None].astype(np.float64)))[:, 0]
    np.testing.assert_allclose(on_surface[met], 0, atol=1e-4)
    before = inside_shape(kind, local(hits.depth[:, None] * np.linspace(0, 0.999, 1000)[None]))
    assert before.max() < 2e-3  # the ray is outside before the hit, and up to the wall if it misses
    np.testing.assert_allclose(np.linalg.norm(hits.normal, axis=1), 1, atol=1e-5)
    assert (np.sum(hits.normal * directions, axis=1) < 1e-5).all()
    # A step along the normal leaves the object, a step against it enters it.
    for step in (-1e-2, 1e-2):
        moved = hits.local[met] + step * hits.normal[met] @ pose[:3, :3]
        assert (np.sign(inside_shape(kind, moved / HALF)) == -np.sign(step)).mean() > 0.95  # except next to edges


def test_a_rotated_panel_is_a_rectangle():
    rng = np.random.default_rng(5)
    pose = at(0.3, -0.4, 0.2)
    pose[:3, :3] = turned(rng.normal(size=3), 0.8)
    scene = room_with([PANEL], [HALF], [pose])
    origins = np.array([[0.0, 0, -3]]) + rng.uniform(-1, 1, (300, 3))
    uv = rng.uniform(-1.5, 1.5, (300, 2))
    on_plane = pose[:3, 3] + np.concatenate([uv * HALF[:2], np.zeros((300, 1))], axis=1) @ pose[:3, :3].T
    hits = cast_many(scene, *(jnp.asarray(a, jnp.float32) for a in (origins, on_plane - origins)))
    expected = (np.abs(uv) < 1).all(axis=1)
    clear = (np.abs(np.abs(uv) - 1) > 1e-3).all(axis=1)
    np.testing.assert_array_equal(np.asarray(hits.instance == 1)[clear], expected[clear])
    np.testing.assert_allclose(np.asarray(hits.depth)[expected & clear], 1, rtol=1e-5)


def test_the_nearest_object_is_hit():
    poses = [at(0, 0, 2), at(0, 0, 1), at(0, 0, 3)]
    hit = cast_one(room_with([BOX, BALL, CYLINDER], [HALF] * 3, poses), (0, 0, -1), (0.01, 0, 1))
    assert hit.instance == 2
    assert hit.surface == 1


def test_depths_of_random_scenes_are_positive_and_below_the_rooms_diagonal():
    """A wrong sign shows as isolated extreme depths. Many rays, a fifth of them with components close to zero."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(40, 600, 3))
    next_to_zero = rng.choice([0.0, 1e-12, -1e-12, 1e-7, -1e-7, 1e-6, -1e-6], directions.shape)
    directions = np.where(rng.random(directions.shape) < 0.2, next_to_zero, directions)
    directions[..., 2] = np.where(np.abs(directions).max(-1) < 0.01, 1, directions[..., 2])
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    places = rng.uniform(-0.95, 0.95, (40, 3))

    @jax.jit
    def depths(keys, places, directions):
        scenes = jax.vmap(random_scene)(keys)
        origins = places * scenes.room_half_size
        cast_all = jax.vmap(jax.vmap(distance, (None, None, 0)))
        return *cast_all(scenes, origins, directions), origins, scenes.room_half_size

    depth, instance, origins, room = jax.tree.map(
        np.asarray,
        depths(jax.random.split(jax.random.key(0), 40), *(jnp.asarray(a, jnp.float32) for a in (places, directions))),
    )
    assert np.isfinite(depth).all()
    assert (depth > 0).all()
    assert (depth <= 2 * np.linalg.norm(room, axis=1)[:, None]).all()
    points = origins[:, None] + depth[..., None] * directions
    assert (np.abs(points) <= room[:, None] + 1e-4).all()
    on_wall = np.abs(np.max(np.abs(points) / room[:, None], axis=-1) - 1) < 1e-5
    assert on_wall[instance == 0].all()
    assert 0.05 < (instance > 0).mean() < 0.9
    assert depth.max() < DIAGONAL * 2
