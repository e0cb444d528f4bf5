"""Errors of a camera path: agreement with evo, and invariances of the alignment."""

import numpy as np
import pytest
from evo.core import metrics, sync, trajectory
from evo.core.units import Unit
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.evaluation.metrics import associate, pose_metrics, rotation_angle


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


def random_path(rng, count):
    """A random walk of poses."""
    turns = Rotation.from_rotvec(0.1 * rng.normal(size=(count, 3)))
    return poses(np.array([r.as_quat() for r in turns]), rng.normal(size=(count, 3)).cumsum(0))


def perturbed(rng, world_from_cam, scale=1.0):
    """The same path in another world, with errors of a few percent and degrees."""
    count = len(world_from_cam)
    errors = poses(
        Rotation.from_rotvec(0.05 * rng.normal(size=(count, 3))).as_quat(), 0.1 * rng.normal(size=(count, 3))
    )
    other_from_world = poses(Rotation.from_rotvec([[0.5, 2, -1]]).as_quat(), [[3.0, -2, 1]])
    result = other_from_world @ world_from_cam @ errors
    result[:, :3, 3] *= scale
    return result


def evo_metrics(estimate, truth, alignment, delta):
    """ATE, RPE translation and RPE rotation by evo."""
    if alignment != "none":
        estimate.align(truth, correct_scale=alignment == "similarity")
    relations = metrics.PoseRelation
    errors = [metrics.APE(relations.translation_part)]
    for relation in (relations.translation_part, relations.rotation_angle_deg):
        errors.append(metrics.RPE(relation, delta=delta, delta_unit=Unit.frames, all_pairs=True))
    for error in errors:
        error.process_data((truth, estimate))
    return [error.get_statistic(metrics.StatisticsType.rmse) for error in errors]


def evo_path(world_from_cam, times):
    return trajectory.PoseTrajectory3D(poses_se3=list(world_from_cam), timestamps=times)


@pytest.mark.parametrize("alignment", ["similarity", "rigid", "none"])
@pytest.mark.parametrize(("delta", "count"), [(1, 3), (1, 40), (4, 40)])
def test_equals_evo_itself(alignment, delta, count):
    rng = np.random.default_rng(count + delta)
    truth = random_path(rng, count)
    estimate = perturbed(rng, truth, 0.3)
    times = np.arange(count) / 24
    expected = evo_metrics(evo_path(estimate, times), evo_path(truth, times), alignment, delta)
    found = pose_metrics(estimate, truth, alignment=alignment, delta=delta)
    # Both are exact up to rounding, also for the two steps between three poses.
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-6, atol=1e-9)


def test_equals_evo_with_poses_associated_by_time():
    rng = np.random.default_rng(5)
    truth = random_path(rng, 60)
    times = np.arange(60) / 10
    kept = np.sort(rng.choice(60, 45, replace=False))
    stamps = times[kept] + rng.uniform(-0.015, 0.015, 45)  # some differ by more than 0.01
    estimate = perturbed(rng, truth[kept], 5.0)
    index, true_index = associate(stamps, times)
    assert 20 < len(index) < 40
    pair = sync.associate_trajectories(evo_path(truth, times), evo_path(estimate, stamps), max_diff=0.01)
    np.testing.assert_array_equal(pair[0].timestamps, times[true_index])
    np.testing.assert_array_equal(pair[1].timestamps, stamps[index])
    expected = evo_metrics(pair[1], pair[0], "similarity", 1)
    found = pose_metrics(estimate, truth, times=stamps, true_times=times)
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-6)


def test_association_takes_the_nearest_stamp_and_none_twice():
    index, true_index = associate([0.0, 0.004, 1.0, 2.0], [0.003, 0.995, 1.004, 2.5], 0.01)
    assert index.tolist() == [1, 2]  # 0.0 and 0.004 are both near 0.003; nothing is near 2.0
    assert true_index.tolist() == [0, 2]
    assert [i.tolist() for i in associate([0.0, 1, 2], [0.0, 1, 2])] == [[0, 1, 2]] * 2
    assert [i.tolist() for i in associate([1.0], [0.0, 1.0, 5.0])] == [[0], [1]]
    assert [i.tolist() for i in associate([0.0, 1.0, 5.0], [1.0])] == [[1], [0]]


def test_association_is_symmetric():
    rng = np.random.default_rng(6)
    a, b = np.sort(rng.uniform(0, 1, 50)), np.sort(rng.uniform(0, 1, 80))
    index, other = associate(a, b, 0.005)
    swapped, again = associate(b, a, 0.005)
    np.testing.assert_array_equal(index, again)
    np.testing.assert_array_equal(other, swapped)
    assert (np.abs(a[index] - b[other]) <= 0.005).all()


def test_only_a_similarity_removes_the_scale(paths):
    truth = paths[1]
    estimate = truth.copy()
    estimate[:, :3, 3] *= 2
    assert pose_metrics(estimate, truth)["ate"] < 1e-9
    assert pose_metrics(estimate, truth, alignment="rigid")["rpe_translation"] > 0.01
    moved = poses(np.array([[0.0, 0, 0, 1]]), np.array([[1.0, 2, 2]])) @ truth
    assert pose_metrics(moved, truth, alignment="rigid")["ate"] < 1e-9
    assert pose_metrics(moved, truth, alignment="none")["ate"] == pytest.approx(3.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_metrics_are_invariant_to_a_similarity_of_the_estimate(paths, scale):
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


def test_one_rotated_camera_affects_the_rotation_error_only(paths):
    truth = paths[1]
    estimate = truth.copy()
    estimate[-1, :3, :3] = truth[-1, :3, :3] @ Rotation.from_rotvec([0, np.radians(3.0), 0]).as_matrix()
    result = pose_metrics(estimate, truth)
    assert result["ate"] < 1e-9
    # Only the last of the T - 1 steps is wrong.
    assert result["rpe_rotation_deg"] == pytest.approx(3.0 / np.sqrt(len(truth) - 1))


def test_one_wrong_centre_contributes_its_part_of_the_mean_square():
    rng = np.random.default_rng(0)
    truth = poses(np.tile([0.0, 0, 0, 1], (400, 1)), rng.normal(size=(400, 3)))
    estimate = truth.copy()
    estimate[7, :3, 3] += [0.2, 0.0, 0.0]
    assert pose_metrics(estimate, truth)["ate"] == pytest.approx(0.2 / np.sqrt(400), rel=0.02)


def test_registration_in_double_precision_recovers_a_similarity_and_never_reflects():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(9, 3))
    rotation = Rotation.from_rotvec([1.0, 0.3, -2.0]).as_matrix()
    scale, found, translation = register_similarity(source, 2.5 * source @ rotation.T + [1, 2, 3])
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(found, rotation, atol=1e-12)
    np.testing.assert_allclose(translation, [1, 2, 3], atol=1e-12)
    mirrored = register_similarity(source, source * [-1, 1, 1])[1]
    assert np.linalg.det(mirrored) == pytest.approx(1.0)


def test_a_straight_path_is_evaluated():
    centres = np.linspace(0, 1, 6)[:, None] * [1.0, 2.0, -1.0]
    truth = poses(np.tile([0.0, 0, 0, 1], (6, 1)), centres)
    estimate = poses(np.tile(Rotation.from_rotvec([0, 1.0, 0]).as_quat(), (6, 1)), 3 * centres)
    assert all(value < 1e-6 for value in (pose_metrics(estimate, truth)[k] for k in ("ate", "rpe_rotation_deg")))


@pytest.mark.parametrize("which", ["truth", "both"])
def test_without_true_translation_only_rotation_is_defined(paths, which):
    estimate, truth, _ = (np.array(p) for p in paths)
    if which != "truth":
        estimate[:, :3, 3] = [0.3, 0.1, 7.0]
    truth[:, :3, 3] = 0
    result = pose_metrics(estimate, truth)
    assert result["ate"] is None
    assert result["rpe_translation"] is None
    assert result["rpe_rotation_deg"] == pytest.approx(paths[2][2])


@pytest.mark.parametrize("moved", [0.0, 1e-7, 1e-5])
def test_a_frozen_estimate_has_the_error_of_scale_0(paths, moved):
    """The spread of the truth: no better than an estimate that moves a little at random, and no worse."""
    estimate, truth, _ = (np.array(p) for p in paths)
    estimate[:, :3, 3] = [0.3, 0.1, 7.0] + moved * np.random.default_rng(0).normal(size=(len(estimate), 3))
    result = pose_metrics(estimate, truth)
    spread = np.sqrt(np.square(np.linalg.norm(truth[:, :3, 3] - truth[:, :3, 3].mean(0), axis=1)).mean())
    steps = np.sqrt(np.square(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)).mean())
    if moved < 1e-6:  # rounding noise is no motion
        assert result["ate"] == pytest.approx(spread, rel=1e-12)
        assert result["rpe_translation"] == pytest.approx(steps, rel=1e-12)
    assert 0.5 * spread < result["ate"] <= spread * (1 + 1e-12)


def test_an_estimate_with_nothing_in_common_is_fitted_by_scale_0():
    """Centres without any correlation: every other scale would be worse than none."""
    line = np.array([-1.0, 1.0, 1.0, -1.0])
    truth = poses(np.tile([0.0, 0, 0, 1], (4, 1)), np.array([1.0, 1, -1, -1])[:, None] * [0, 1.0, 0])
    estimate = poses(np.tile([0.0, 0, 0, 1], (4, 1)), line[:, None] * [5.0, 0, 0])
    assert pose_metrics(estimate, truth)["ate"] == pytest.approx(1.0)


def test_too_few_frames_have_no_metric(paths):
    estimate, truth, _ = paths
    assert set(pose_metrics(estimate[:1], truth[:1]).values()) == {None}
    two = pose_metrics(estimate[:2], truth[:2])
    assert two["ate"] is None  # two centres always fit
    # The one step has the right length, then; what is left is the angle between both, each seen from its first camera.
    steps = [np.linalg.inv(path[0]) @ path[1][:, 3] for path in (estimate, truth)]
    ours, true = (step[:3] / np.linalg.norm(step[:3]) * np.linalg.norm(steps[1][:3]) for step in steps)
    assert two["rpe_translation"] == pytest.approx(np.linalg.norm(ours - true))


def test_with_a_known_scale_a_static_camera_is_evaluated(paths):
    truth = paths[1]
    still = np.tile(np.eye(4), (len(truth), 1, 1))
    result = pose_metrics(still, truth, alignment="rigid")
    centres = truth[:, :3, 3]
    assert result["ate"] == pytest.approx(np.sqrt(np.square(centres - centres.mean(0)).sum(1).mean()))
    steps = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
    assert result["rpe_translation"] == pytest.approx(np.sqrt(np.square(steps).mean()))
    assert pose_metrics(still[:1], still[:1], alignment="none")["ate"] == 0


def test_a_delta_longer_than_the_path_has_no_relative_error(paths):
    estimate, truth, _ = paths
    result = pose_metrics(estimate, truth, delta=len(truth))
    assert result["ate"] > 0
    assert result["rpe_translation"] is None and result["rpe_rotation_deg"] is None


HOLE = np.tile(np.eye(4), (8, 1, 1))
HOLE[3, 0, 3] = np.nan


@pytest.mark.parametrize(
    ("estimate", "options", "says"),
    [
        (HOLE, {}, "1 of 128 numbers"),
        (np.zeros((8, 3, 4)), {}, r"\(8, 3, 4\)"),
        (np.zeros((0, 4, 4)), {}, "at least one"),
        (np.eye(4), {}, "T, 4, 4"),
        (None, {"cut": 7}, "7 poses and the true one 8"),
        (None, {"times": np.arange(8.0)}, "both paths"),
        (None, {"times": np.arange(7.0), "true_times": np.arange(8.0)}, "8 poses and 7 time stamps"),
        (None, {"times": np.arange(8.0) + 100, "true_times": np.arange(8.0)}, "within 0.01 s"),
        (None, {"times": np.zeros(8), "true_times": np.arange(8.0)}, "do not increase"),
        (None, {"times": np.full(8, np.nan), "true_times": np.arange(8.0)}, "NaN"),
    ],
)
def test_bad_paths_are_refused_in_one_line(paths, estimate, options, says):
    options = dict(options)
    estimate = paths[0][: options.pop("cut", 8)] if estimate is None else estimate
    with pytest.raises(InputError, match=says) as caught:
        pose_metrics(estimate, paths[1], **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("options", "says"), [({"alignment": "sim3"}, "similarity"), ({"delta": 0}, "one frame")])
def test_bad_options_are_refused(paths, options, says):
    with pytest.raises(ConfigError, match=says):
        pose_metrics(*paths[:2], **options)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 2.0, np.pi])
def test_rotation_angle_is_accurate_from_0_to_180_degrees(angle):
    rotation = Rotation.from_rotvec(angle * np.array([2, -1, 2]) / 3).as_matrix()
    assert rotation_angle(rotation) == pytest.approx(angle, rel=1e-6, abs=1e-15)
