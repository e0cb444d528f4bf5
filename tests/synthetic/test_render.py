"""Rendering: rays of pixels, depth, and textures that move with their objects."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.synthetic import render
from easi3r_jax.synthetic.cameras import look_at
from easi3r_jax.synthetic.render import Sensor
from easi3r_jax.synthetic.scenes import BALL, BOX, CYLINDER, PANEL
from tests.rooms import ROOM, at, intrinsics, room_with, turned

SIZE = (32, 48)
SMALL = [[0.08] * 3]


@functools.partial(jax.jit, static_argnames="size")
def view_of(scene, world_from_cam, cam_intrinsics, size=SIZE, sensor=None, key=None):
    key = jax.random.key(0) if key is None else key
    return render(key, scene, world_from_cam, cam_intrinsics, size, sensor)


@pytest.fixture(scope="module")
def camera_pose():
    pose = at(-1, 0.5, -2)
    pose[:3, :3] = turned(np.array([0.3, 1, 0.2]), 0.4)
    return jnp.asarray(pose)


def world_points(view):
    return np.asarray(se3.transform_points(view.world_from_cam, camera.unproject(view.depth, view.intrinsics)))


def test_unprojected_pixels_lie_on_their_surfaces(camera_pose):
    """Depth is z. With the length of the ray, walls would be curved."""
    scene = room_with([BALL], [[0.7] * 3], [at(0.5, 0.4, 1)])
    view = view_of(scene, camera_pose, intrinsics(SIZE, 30.0))
    points, ball = world_points(view), np.asarray(view.instance) == 1
    assert 0.05 < ball.mean() < 0.8
    np.testing.assert_allclose(np.linalg.norm(points[ball] - (0.5, 0.4, 1), axis=1), 0.7, atol=1e-4)
    np.testing.assert_allclose(np.max(np.abs(points[~ball]) / ROOM, axis=1), 1, atol=1e-5)


def test_a_frontal_wall_has_constant_depth():
    view = view_of(room_with([BALL], SMALL, [at(3, 2, -4)]), jnp.asarray(at(0.3, 0.2, 1)), intrinsics(SIZE, 40.0))
    np.testing.assert_allclose(view.depth, ROOM[2] - 1, rtol=1e-5)


def test_the_principal_point_is_half_the_size():
    """A ball on the optical axis is symmetric about pixel (W/2, H/2)."""
    view = view_of(room_with([BALL], [[0.5] * 3], [at(0, 0, 2)]), jnp.asarray(at(0, 0, -2)), intrinsics(SIZE, 60.0))
    rows, columns = np.nonzero(np.asarray(view.instance) == 1)
    assert len(rows) > 100
    assert (columns.mean(), rows.mean()) == (24, 16)


@pytest.mark.parametrize("place", [(0.4, 0.1, 1.0), (-0.6, -0.2, 0.5), (1.0, 0.9, 2.0)])
def test_a_small_bright_ball_is_where_the_camera_model_projects_it(camera_pose, place):
    scene = room_with([BALL], SMALL, [at(*place)])
    dark, bright = jnp.zeros((7, 3)), jnp.zeros((7, 3)).at[0].set(1)
    texture = dataclasses.replace(scene.texture, base=dark + bright, contrast=dark)
    cam_intrinsics = intrinsics((64, 96), 80.0)
    view = view_of(dataclasses.replace(scene, texture=texture), camera_pose, cam_intrinsics, size=(64, 96))
    pixel, depth = camera.project(
        se3.transform_points(se3.inverse(camera_pose), jnp.asarray([place], jnp.float32)), cam_intrinsics
    )
    weight = np.asarray(view.rgb, np.float64).sum(-1) * (np.asarray(view.instance) == 1)
    grid = np.asarray(camera.pixel_grid(64, 96), np.float64)
    centroid = (grid * weight[..., None]).sum((0, 1)) / weight.sum()
    np.testing.assert_allclose(centroid, pixel[0], atol=0.25)
    x, y = np.rint(centroid).astype(int)
    assert (np.asarray(view.rgb)[y, x] == 255).all()
    assert np.asarray(view.rgb)[np.asarray(view.instance) == 0].max() <= np.ceil(0.02 * 255)
    np.testing.assert_allclose(view.depth[y, x], depth[0], atol=0.1)


@pytest.mark.parametrize("kind", [BOX, BALL, CYLINDER, PANEL])
def test_texture_moves_with_the_object(kind):
    """If object and camera move together, the image of the object is the same, although world and walls are not."""
    half_size = [[0.7, 0.6, 0.5]]
    object_pose, eye = at(0, 0, 1), at(0, 0, -1.5)
    object_pose[:3, :3] = turned(np.array([1, 2, 3]), 0.6)
    motion = at(0.7, -0.3, 0.4)
    motion[:3, :3] = turned(np.array([0.2, 1, 0.1]), 0.9)
    cam_intrinsics = intrinsics(SIZE, 45.0)
    before = view_of(room_with([kind], half_size, [object_pose]), jnp.asarray(eye), cam_intrinsics)
    after = view_of(room_with([kind], half_size, [motion @ object_pose]), jnp.asarray(motion @ eye), cam_intrinsics)
    shown = np.asarray(before.instance == 1) & np.asarray(after.instance == 1)
    assert shown.mean() > 0.05
    difference = np.abs(np.asarray(before.rgb, np.int32) - np.asarray(after.rgb, np.int32))
    assert np.percentile(difference[shown], 99) <= 1  # a pixel on an edge may fall on its other side
    assert difference[~shown].mean() > 10
    assert np.asarray(before.rgb)[shown].std() > 10  # there is a texture

    object_pose[:3, :3] = motion[:3, :3] @ object_pose[:3, :3]
    in_place = view_of(room_with([kind], half_size, [object_pose]), jnp.asarray(eye), cam_intrinsics)
    both = shown & np.asarray(in_place.instance == 1)
    assert both.sum() > 50
    assert np.abs(np.asarray(before.rgb, np.int32) - np.asarray(in_place.rgb, np.int32))[both].mean() > 5


def test_the_sensor_scales_and_adds_noise(camera_pose):
    scene = room_with([BALL], SMALL, [at(0, 0, 1)])
    grey = jnp.full((7, 3), 0.4)
    scene = dataclasses.replace(scene, texture=dataclasses.replace(scene.texture, base=grey, contrast=0 * grey))
    take = functools.partial(view_of, scene, camera_pose, intrinsics(SIZE, 40.0))
    perfect = take(sensor=Sensor(gain=jnp.ones(3), noise=jnp.float32(0)))
    np.testing.assert_array_equal(perfect.rgb, 102)
    gained = take(sensor=Sensor(gain=jnp.asarray([1.5, 1, 0.5]), noise=jnp.float32(0)))
    np.testing.assert_array_equal(gained.rgb.reshape(-1, 3), np.broadcast_to((153, 102, 51), (32 * 48, 3)))
    noisy = [take(sensor=Sensor(jnp.ones(3), jnp.float32(0.02)), key=jax.random.key(k)).rgb for k in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert (noisy[0] != noisy[2]).mean() > 0.5
    np.testing.assert_allclose(np.std(np.asarray(noisy[0])), 0.02 * 255, rtol=0.05)


def test_a_view_has_its_own_camera(camera_pose):
    cam_intrinsics = intrinsics(SIZE, 33.0)
    view = view_of(room_with([BALL], SMALL, [at(0, 0, 1)]), camera_pose, cam_intrinsics)
    np.testing.assert_array_equal(view.intrinsics, cam_intrinsics)
    np.testing.assert_array_equal(view.world_from_cam, camera_pose)
    assert (view.rgb.dtype, view.depth.dtype, view.instance.dtype) == (jnp.uint8, jnp.float32, jnp.int32)


def test_up_is_up():
    """Objects above the camera's target (smaller y) are higher in the image, objects to the right are on the right."""
    pose = look_at(jnp.asarray([0.0, 0, -3]), jnp.asarray([0.0, 0, 1]), jnp.float32(0))
    scene = room_with([BALL, BALL], SMALL * 2, [at(0, -0.8, 1), at(1, 0, 1)])
    instance = np.asarray(view_of(scene, pose, intrinsics(SIZE, 45.0)).instance)
    assert np.nonzero(instance == 1)[0].mean() < 12
    assert np.nonzero(instance == 2)[1].mean() > 30
