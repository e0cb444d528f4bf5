"""Errors of a camera path: the reference tool's numbers, and what alignment must not see."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.metrics import pose_metrics, rotation_angle, umeyama


def poses(quaternions_xyzw, centres):
    world_from_cam = np.tile(np.eye(4), (len(centres), 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_quat(quaternions_xyzw).as_matrix()
    world_from_cam[:, :3, 3] = centres
    return world_from_cam


@pytest.fixture(scope="module")
def paths(golden):
    with np.load(golden / "metrics" / "pose.npz") as file:
        read = [file[f"{name}_tum_xyz_qwxyz_f64"] for name in ("pred", "gt")]
        expected = file["result_ate_rpet_rper_f64"]
    estimate, truth = (poses(table[:, [4, 5, 6, 3]], table[:, :3]) for table in read)
    return estimate, truth, expected


def test_equals_evo(paths):
    estimate, truth, expected = paths
    result = pose_metrics(estimate, truth)
    assert list(result) == ["ate", "rpe_translation", "rpe_rotation_deg"]
    np.testing.assert_allclose(list(result.values()), expected, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_no_figure_sees_a_similarity_of_the_estimate(paths, scale):
    estimate, truth, _ = paths
    rotation = Rotation.from_rotvec([0.4, -2.0, 0.7]).as_matrix()
    moved = estimate.copy()
    moved[:, :3, :3] = rotation @ estimate[:, :3, :3]
    moved[:, :3, 3] = scale * estimate[:, :3, 3] @ rotation.T + [5.0, -3.0, 1.0]
    expected = pose_metrics(estimate, truth)
    for name, value in pose_metrics(moved, truth).items():
        assert value == pytest.approx(expected[name], rel=1e-7)


def test_a_perfect_path_has_no_error(paths):
    truth = paths[1]
    assert all(value < 1e-6 for value in pose_metrics(truth, truth).values())


def test_one_turned_camera_shows_in_rotation_only(paths):
    truth = paths[1]
    estimate = truth.copy()
    estimate[-1, :3, :3] = truth[-1, :3, :3] @ Rotation.from_rotvec([0, np.radians(3.0), 0]).as_matrix()
    result = pose_metrics(estimate, truth)
    assert result["ate"] < 1e-9
    # Only the last of the T - 1 steps is wrong.
    assert result["rpe_rotation_deg"] == pytest.approx(3.0 / np.sqrt(len(truth) - 1))


def test_one_wrong_centre_of_many_is_its_share_of_the_mean_square():
    rng = np.random.default_rng(0)
    truth = poses(np.tile([0.0, 0, 0, 1], (400, 1)), rng.normal(size=(400, 3)))
    estimate = truth.copy()
    estimate[7, :3, 3] += [0.2, 0.0, 0.0]
    assert pose_metrics(estimate, truth)["ate"] == pytest.approx(0.2 / np.sqrt(400), rel=0.02)


def test_umeyama_recovers_a_similarity_and_never_reflects():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(9, 3))
    rotation = Rotation.from_rotvec([1.0, 0.3, -2.0]).as_matrix()
    scale, found, translation = umeyama(source, 2.5 * source @ rotation.T + [1, 2, 3])
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(found, rotation, atol=1e-12)
    np.testing.assert_allclose(translation, [1, 2, 3], atol=1e-12)
    mirrored = umeyama(source, source * [-1, 1, 1])[1]
    assert np.linalg.det(mirrored) == pytest.approx(1.0)


def test_a_straight_path_is_judged():
    centres = np.linspace(0, 1, 6)[:, None] * [1.0, 2.0, -1.0]
    truth = poses(np.tile([0.0, 0, 0, 1], (6, 1)), centres)
    estimate = poses(np.tile(Rotation.from_rotvec([0, 1.0, 0]).as_quat(), (6, 1)), 3 * centres)
    assert all(value < 1e-6 for value in (pose_metrics(estimate, truth)[k] for k in ("ate", "rpe_rotation_deg")))


@pytest.mark.parametrize("which", ["estimate", "truth", "both"])
def test_without_translation_only_rotation_is_defined(paths, which):
    estimate, truth, _ = (np.array(p) for p in paths)
    if which != "truth":
        estimate[:, :3, 3] = [0.3, 0.1, 7.0]
    if which != "estimate":
        truth[:, :3, 3] = 0
    result = pose_metrics(estimate, truth)
    assert result["ate"] is None
    assert result["rpe_translation"] is None
    assert result["rpe_rotation_deg"] == pytest.approx(paths[2][2])


def test_too_few_frames_have_no_figure(paths):
    estimate, truth, _ = paths
    assert set(pose_metrics(estimate[:1], truth[:1]).values()) == {None}
    two = pose_metrics(estimate[:2], truth[:2])
    assert two["ate"] is None  # two centres always fit
    assert two["rpe_translation"] > 0


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 2.0, np.pi])
def test_rotation_angle_is_exact_from_zero_to_half_a_turn(angle):
    rotation = Rotation.from_rotvec(angle * np.array([2, -1, 2]) / 3).as_matrix()
    assert rotation_angle(rotation) == pytest.approx(angle, rel=1e-6, abs=1e-15)
