"""Pinhole cameras: the pixel convention, projection and its inverse, and the reference program's image motion."""

import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.geometry import camera, se3

H, W = 6, 9
BATCHES = pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)


def random_intrinsics(rng, batch):
    focal = rng.uniform(5, 50, batch)
    return camera.intrinsics(jnp.asarray(focal), jnp.asarray(rng.uniform(0, 9, (*batch, 2))))


def test_pixel_centres_are_integers_and_u_runs_along_the_width():
    grid = camera.pixel_grid(H, W, jnp.float64)
    assert grid.shape == (H, W, 2) and grid.dtype == jnp.float64
    np.testing.assert_array_equal(grid[0, 0], [0, 0])
    np.testing.assert_array_equal(grid[2, 5], [5, 2])
    np.testing.assert_array_equal(camera.default_principal_point(H, W), [W / 2, H / 2])


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_the_default_focal_has_sixty_degrees_along_the_longer_side(shape):
    half_angle = np.arctan(max(shape) / 2 / camera.default_focal(*shape))
    np.testing.assert_allclose(np.degrees(2 * half_angle), 60, rtol=1e-12)


@BATCHES
def test_intrinsics_have_square_pixels_and_no_skew(batch, rng):
    focal, point = rng.uniform(5, 50, batch), rng.uniform(0, 9, (*batch, 2))
    matrix = np.asarray(camera.intrinsics(jnp.asarray(focal), jnp.asarray(point)))
    expected = np.tile(np.eye(3), (*batch, 1, 1))
    expected[..., 0, 0] = expected[..., 1, 1] = focal
    expected[..., :2, 2] = point
    np.testing.assert_array_equal(matrix, expected)


@BATCHES
def test_projection_inverts_unprojection(batch, rng):
    depth, matrix = jnp.asarray(rng.uniform(0.1, 10, (*batch, H, W))), random_intrinsics(rng, batch)
    points = camera.unproject(depth, matrix)
    assert points.shape == (*batch, H, W, 3) and points.dtype == jnp.float64
    pixels, z = camera.project(points, matrix)
    grid = np.broadcast_to(camera.pixel_grid(H, W, jnp.float64), pixels.shape)
    np.testing.assert_allclose(pixels, grid, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(z, depth)


def test_depth_is_z_and_the_principal_point_is_on_the_axis():
    matrix = camera.intrinsics(jnp.asarray(20.0), jnp.asarray([3.0, 2.0]))
    points = camera.unproject(jnp.full((H, W), 5.0), matrix)
    np.testing.assert_array_equal(points[2, 3], [0, 0, 5])  # row 2, column 3
    np.testing.assert_allclose(points[2, 4], [5 / 20, 0, 5], rtol=1e-12)  # x to the right
    np.testing.assert_allclose(points[3, 3], [0, 5 / 20, 5], rtol=1e-12)  # y down


@BATCHES
@pytest.mark.parametrize("points_shape", [(), (7,), (2, 5)], ids=str)
def test_projection_is_multiplication_by_the_matrix(batch, points_shape, rng):
    points = rng.uniform([-1, -1, 2], [1, 1, 4], (*batch, *points_shape, 3))
    matrix = random_intrinsics(rng, batch)
    pixels, z = camera.project(jnp.asarray(points), matrix)
    spread = np.asarray(matrix).reshape(*batch, *(1,) * len(points_shape), 3, 3)
    homogeneous = (spread @ points[..., None])[..., 0]
    np.testing.assert_allclose(pixels, homogeneous[..., :2] / homogeneous[..., 2:], rtol=1e-10)
    np.testing.assert_array_equal(z, points[..., 2])


def test_points_on_a_ray_project_to_one_pixel(rng):
    points, matrix = jnp.asarray(rng.uniform(0.5, 1, (10, 3))), random_intrinsics(rng, ())
    near, far = camera.project(points, matrix)[0], camera.project(1e4 * points, matrix)[0]
    np.testing.assert_allclose(near, far, rtol=1e-10)


def test_points_in_or_behind_the_camera_stay_finite():
    points = jnp.asarray([[1.0, 2.0, 0.0], [1.0, 2.0, -3.0], [0.0, 0.0, 0.0]])
    pixels, z = camera.project(points, camera.intrinsics(jnp.asarray(20.0), jnp.asarray([3.0, 2.0])))
    assert jnp.isfinite(pixels).all()
    np.testing.assert_array_equal(z, points[:, 2])


def test_world_points_equal_the_reference_programs(golden):
    with np.load(golden / "alignment" / "a_noflow_linear.npz") as g:
        points = camera.unproject(jnp.asarray(g["final_depth"]), jnp.asarray(g["final_intrinsics"]))
        world = se3.transform_points(jnp.asarray(g["final_im_poses"]), points)
        assert world.dtype == jnp.float32
        scale = np.abs(g["final_pts3d_frame0"]).max()
        np.testing.assert_allclose(world[0], g["final_pts3d_frame0"], rtol=0, atol=1e-6 * scale)


def test_world_coordinates_are_those_of_the_matrices(rng):
    depth, matrices = jnp.asarray(rng.uniform(1, 3, (4, 5, 7))), random_intrinsics(rng, (4,))
    matrices = matrices.at[:, 1, 1].mul(1.5)  # nothing relies on square pixels
    rotation = se3.matrix_from_quaternion(jnp.asarray(rng.standard_normal((4, 4))))
    poses = se3.from_parts(rotation, jnp.asarray(rng.standard_normal((4, 3))))
    world = camera.world_coordinates(depth, matrices, poses)
    expected = camera.world_points(*(np.asarray(x) for x in (depth, matrices, poses)))
    np.testing.assert_allclose(world, np.moveaxis(expected.reshape(4, -1, 3), -1, 1), rtol=1e-12, atol=1e-12)


def test_image_motion_of_a_static_scene_equals_the_reference_programs(golden):
    """Depth and poses of two cameras -> the motion of each pixel; it depends on every convention."""
    with np.load(golden / "alignment" / "primitives.npz") as file:
        g = {k: jnp.asarray(v, jnp.float64) for k, v in file.items() if k.startswith("ego_")}
    world_from_source = se3.from_parts(g["ego_R_src"], g["ego_T_src"][..., 0])
    target_from_world = se3.inverse(se3.from_parts(g["ego_R_tgt"], g["ego_T_tgt"][..., 0]))
    points = camera.unproject(g["ego_depth_src"], g["ego_K_src"])
    in_target = se3.transform_points(se3.compose(target_from_world, world_from_source), points)
    pixels, _ = camera.project(in_target, g["ego_K_tgt"])
    height, width = points.shape[1:3]
    motion = jnp.moveaxis(pixels - camera.pixel_grid(height, width, jnp.float64)[None], -1, 1)
    # The reference adds 1e-6 to disparities and divisors, and is evaluated in float32.
    np.testing.assert_allclose(motion, g["ego_flow"][:, :2], rtol=0, atol=2e-5 * float(jnp.abs(pixels).max()))
