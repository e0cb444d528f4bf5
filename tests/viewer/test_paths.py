"""Camera paths for videos."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.viewer import paths

POSITION, TARGET, UP = np.array([1.0, -2.0, -5.0]), np.array([0.5, 0.0, 3.0]), np.array([0.0, -2.0, 0.1])


@pytest.mark.parametrize("degrees", [30.0, 180.0, 360.0])
def test_an_orbit_looks_at_its_centre_from_a_constant_distance_and_starts_at_the_view(degrees):
    poses = paths.orbit(POSITION, TARGET, UP, 24, degrees)
    np.testing.assert_allclose(poses[0, :3, 3], POSITION, atol=1e-12)
    offsets = poses[:, :3, 3] - TARGET
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), np.linalg.norm(POSITION - TARGET))
    np.testing.assert_allclose(poses[:, :3, 2], -offsets / np.linalg.norm(offsets, axis=1, keepdims=True), atol=1e-12)
    rotations = poses[:, :3, :3]
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), np.tile(np.eye(3), (24, 1, 1)), atol=1e-12)
    assert (np.linalg.det(rotations) > 0).all()
    # The image is upright: down in the image is down in the world, and right is level.
    assert (rotations[:, :, 1] @ UP < 0).all()
    np.testing.assert_allclose(rotations[:, :, 0] @ UP, 0, atol=1e-12)


def test_an_orbit_swings_by_its_angle_or_makes_a_full_turn():
    axis = UP / np.linalg.norm(UP)

    def angles(degrees: float) -> np.ndarray:
        flat = paths.orbit(POSITION, TARGET, UP, 360, degrees)[:, :3, 3] - TARGET
        flat -= (flat @ axis)[:, None] * axis
        return np.degrees(np.unwrap(np.arctan2(np.cross(flat[0], flat) @ axis, flat @ flat[0])))

    assert np.ptp(angles(40.0)) == pytest.approx(40.0, abs=1e-6)
    around = angles(360.0)
    np.testing.assert_allclose(np.diff(around), 1.0, atol=1e-6)


@pytest.mark.parametrize("window", [0.5, 1.5, 3.0])
def test_the_fitted_field_of_view_just_holds_the_image(window):
    high = np.tan(paths.fitting_fov(1.0, 1.5, window) / 2)
    spare = high / np.tan(0.5), window * high / (1.5 * np.tan(0.5))
    assert min(spare) == pytest.approx(1)


def test_quaternions_are_scalar_first():
    np.testing.assert_allclose(paths.quaternion(np.eye(3)), [1, 0, 0, 0])
    turn = Rotation.from_rotvec([0, 0, np.pi / 2]).as_matrix()
    np.testing.assert_allclose(np.abs(paths.quaternion(turn)), [np.sqrt(0.5), 0, 0, np.sqrt(0.5)], atol=1e-12)


def test_up_is_opposite_to_the_images_down(scene):
    up = paths.up_direction(scene.world_from_cam)
    np.testing.assert_allclose(up, -scene.world_from_cam[0, :3, 1], atol=1e-6)
    opposite = np.stack([np.eye(4), np.diag([1.0, -1.0, -1.0, 1.0])])  # no direction is up for both
    np.testing.assert_allclose(paths.up_direction(opposite), [0, -1, 0])
