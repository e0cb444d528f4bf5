import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.synthetic.cameras import in_image, inside, look_at, on_sphere, overlap, random_intrinsics
from easi3r_jax.synthetic.scenes import BALL, PANEL
from tests.rooms import at, intrinsics, room_with

SIZE = (32, 48)


@pytest.fixture(scope="module")
def poses():
    """Random cameras: positions, targets, rolls and the resulting poses."""
    keys = jax.random.split(jax.random.key(0), 3)
    places = jax.random.uniform(keys[0], (50, 3), minval=-2, maxval=2)
    targets = jax.random.uniform(keys[1], (50, 3), minval=-2, maxval=2)
    rolls = jax.random.uniform(keys[2], (50,), minval=-3, maxval=3)
    return places, targets, rolls, jax.jit(jax.vmap(look_at))(places, targets, rolls)


def test_look_at_is_a_rigid_pose_at_its_position(poses):
    places, _, _, world_from_cam = poses
    rotation = np.asarray(world_from_cam[:, :3, :3])
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (50, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    np.testing.assert_array_equal(world_from_cam[:, :3, 3], places)
    np.testing.assert_array_equal(world_from_cam[:, 3], np.tile([0, 0, 0, 1], (50, 1)))


def test_look_at_faces_the_target(poses):
    places, targets, _, world_from_cam = poses
    seen = np.asarray(se3.transform_points(se3.inverse(world_from_cam), targets[:, None]))[:, 0]
    np.testing.assert_allclose(seen[:, :2], 0, atol=1e-5)
    np.testing.assert_allclose(seen[:, 2], np.linalg.norm(targets - places, axis=1), rtol=1e-5)


def test_roll_rotates_the_camera_about_its_axis(poses):
    """Without roll, x is horizontal and y points down. Roll rotates x towards y."""
    places, targets, rolls, world_from_cam = poses
    level = np.asarray(jax.vmap(look_at)(places, targets, jnp.zeros(50)))
    np.testing.assert_allclose(level[:, 1, 0], 0, atol=1e-6)
    assert (level[:, 1, 1] > 0).all()
    c, s = np.cos(rolls), np.sin(rolls)
    zero, one = np.zeros(50), np.ones(50)
    roll = np.stack([np.stack([c, -s, zero], 1), np.stack([s, c, zero], 1), np.stack([zero, zero, one], 1)], 1)
    np.testing.assert_allclose(world_from_cam[:, :3, :3], level[:, :3, :3] @ roll, atol=1e-5)


def test_on_sphere():
    target = jnp.asarray([1.0, 2, 3])
    np.testing.assert_allclose(on_sphere(target, jnp.float32(0), jnp.float32(0), jnp.float32(2)), (1, 2, 5), atol=1e-6)
    above = on_sphere(target, jnp.float32(0.7), jnp.float32(0.5), jnp.float32(2))
    np.testing.assert_allclose(np.linalg.norm(above - target), 2, rtol=1e-6)
    np.testing.assert_allclose(above[1], 2 - 2 * np.sin(0.5), rtol=1e-6)  # y points down


def test_inside_keeps_a_margin():
    room = jnp.asarray([4.0, 3, 5])
    np.testing.assert_allclose(inside(room, jnp.asarray([9.0, -9, 1]), 0.5), (3.5, -2.5, 1))


def test_the_image_ends_at_its_last_pixels_centre():
    pixels = jnp.asarray([[0, 0], [47, 31], [-0.01, 5], [47.01, 5], [5, 31.01], [5, 5]], jnp.float32)
    depth = jnp.asarray([1, 1, 1, 1, 1, -1], jnp.float32)
    assert in_image(pixels, depth, SIZE).tolist() == [True, True, False, False, False, False]
    assert in_image(pixels, depth, SIZE, border=0.5).tolist() == [True] * 5 + [False]


def test_random_intrinsics_cover_their_range():
    matrices = jax.vmap(lambda k: random_intrinsics(k, SIZE))(jax.random.split(jax.random.key(1), 300))
    focal = np.asarray(matrices[:, 0, 0])
    np.testing.assert_array_equal(matrices[:, 1, 1], focal)
    assert focal.min() >= 0.75 * 48 * (1 - 1e-6)
    assert focal.max() <= 1.25 * 48 * (1 + 1e-6)
    assert np.histogram(np.log(focal), 4, (np.log(36), np.log(60)))[0].min() > 50
    np.testing.assert_array_equal(matrices[:, :2, 2], np.tile(camera.default_principal_point(*SIZE), (300, 1)))


def looking(direction: float) -> np.ndarray:
    """A camera in the middle of the room that looks along +z or -z."""
    pose = at(0, 0, 0)
    pose[:3, :3] = np.diag([direction, 1, direction])
    return pose


@pytest.fixture(scope="module")
def shared():
    """Overlap of two cameras from their poses and the scene."""
    both = (intrinsics(SIZE, 40.0),) * 2
    measure = jax.jit(lambda scene, a, b: overlap(scene, SIZE, both, (a, b)))
    empty = room_with([BALL], [[0.01] * 3], [at(3, 2, -4)])
    return lambda a, b, scene=empty: float(measure(scene, jnp.asarray(a), jnp.asarray(b)))


def test_overlap_is_1_with_the_same_camera_and_0_with_the_opposite_one(shared):
    assert shared(looking(1), looking(1)) == 1
    assert shared(looking(1), looking(-1)) == 0


def test_overlap_falls_as_the_camera_moves_sideways(shared):
    """The wall is 5 away and the image 6 wide there. After moving sideways by 1.5, a quarter is out of view."""
    assert 0.6 < shared(looking(1), at(1.5, 0, 0)) < 0.85
    assert shared(looking(1), at(3, 0, 0)) < shared(looking(1), at(1.5, 0, 0))


def test_overlap_of_very_wide_images():
    """One row of rays is enough to measure it. Without any, all poses would look equally good."""
    both, pose = (intrinsics((16, 400), 200.0),) * 2, jnp.asarray(looking(1))
    scene = room_with([BALL], [[0.01] * 3], [at(3, 2, -4)])
    assert jax.jit(lambda scene: overlap(scene, (16, 400), both, (pose, pose)))(scene) == 1


def test_occluded_points_do_not_count_as_overlap(shared):
    """A camera further back sees everything that the first one sees, unless a panel is between the two."""
    scene = room_with([PANEL], [[3.5, 2.5, 0.1]], [at(0, 0, -1)])
    assert shared(looking(1), at(0, 0, -2)) == 1
    assert shared(looking(1), at(0, 0, -2), scene) == 0
