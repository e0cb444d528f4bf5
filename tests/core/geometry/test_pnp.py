"""Pose from pixels: known cameras, outliers, and degenerate input."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.geometry.pnp import solve_pnp

K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])


@pytest.fixture
def view(rng, random_motion):
    """World points in front of a random camera, their pixels, and the camera."""

    def make(count=200):
        world_from_cam = random_motion()
        in_camera = rng.uniform(-1, 1, (count, 3)) * [2, 1.5, 2] + [0, 0, 5]
        pixels = in_camera @ K.T
        world = in_camera @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
        return world, pixels[:, :2] / pixels[:, 2:], world_from_cam

    return make


def degrees_between(a, b):
    return np.degrees(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude())


def assert_rigid(matrix):
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(matrix[:3, :3]), 1, atol=1e-9)
    np.testing.assert_array_equal(matrix[3], [0, 0, 0, 1])


@pytest.mark.parametrize("count", [6, 20, 2000])
def test_exact_pixels_give_the_camera(count, view):
    points, pixels, truth = view(count)
    found = solve_pnp(points, pixels, K, iterations=10)
    assert_rigid(found)
    assert degrees_between(found, truth) < 1e-3  # OpenCV gets float32
    np.testing.assert_allclose(found[:3, 3], truth[:3, 3], atol=1e-4)


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_outliers_do_not_move_the_camera(fraction, view, rng):
    points, pixels, truth = view()
    wrong = rng.permutation(len(points)) < fraction * len(points)
    pixels[wrong] = rng.uniform(0, 60, pixels[wrong].shape)
    found = solve_pnp(points, pixels, K, iterations=100)
    assert_rigid(found)
    # A wrong pixel that happens to be within five pixels of its point counts as an inlier.
    assert degrees_between(found, truth) < 0.5
    np.testing.assert_allclose(found[:3, 3], truth[:3, 3], atol=0.05)


def test_pixel_noise_averages_out(view, rng):
    points, pixels, truth = view(2000)
    found = solve_pnp(points, pixels + rng.standard_normal(pixels.shape), K, iterations=100)
    assert degrees_between(found, truth) < 0.2


def test_equal_seeds_give_equal_poses(view, rng):
    points, pixels, _ = view()
    pixels = pixels + 2 * rng.standard_normal(pixels.shape)
    first, again = (solve_pnp(points, pixels, K, iterations=10, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("count", range(6))
def test_too_few_points_have_no_pose(count, view):
    points, pixels, _ = view()
    assert solve_pnp(points[:count], pixels[:count], K, iterations=10) is None


def test_points_that_fit_no_camera_have_no_pose(rng):
    found = solve_pnp(rng.standard_normal((200, 3)), rng.uniform(-1e4, 1e4, (200, 2)), K, iterations=10, max_error=0.1)
    assert found is None


@pytest.mark.parametrize("case", ["one point", "one pixel", "undefined", "infinite"])
def test_degenerate_input_gives_no_pose_or_a_rigid_one(case, view):
    points, pixels, _ = view()
    if case == "one point":
        points[:] = points[0]
    elif case == "one pixel":
        pixels[:] = pixels[0]
    else:
        points[:] = np.nan if case == "undefined" else np.inf
    found = solve_pnp(points, pixels, K, iterations=10)
    if found is not None:
        assert_rigid(found)
        assert np.isfinite(found).all()
