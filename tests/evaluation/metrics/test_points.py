"""Errors of point clouds: known distances and invariances."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.camera import unproject, world_points
from easi3r_jax.evaluation.metrics import point_metrics


def test_a_perfect_cloud_has_no_error():
    cloud = np.random.default_rng(0).normal(size=(50, 3))
    assert set(point_metrics(cloud, cloud).values()) == {0.0}


def test_known_distances():
    truth = np.array([[0.0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]])
    points = np.array([[1.0, 0, 0], [10, 2, 0], [20, 0, 3], [4, 0, 0]])  # the last is nearest to the first
    assert point_metrics(points, truth) == pytest.approx(
        {
            "accuracy": (1 + 2 + 3 + 4) / 4,
            "accuracy_median": 2.5,
            "completeness": (1 + 2 + 3 + np.hypot(10, 3)) / 4,
            "completeness_median": 2.5,
            "distance": (1 + 2 + 3 + 26) / 4,
            "distance_median": 2,  # the lower middle one
        }
    )


def test_clouds_of_any_size_have_accuracy_and_completeness():
    rng = np.random.default_rng(1)
    few, many = rng.normal(size=(20, 3)), rng.normal(size=(500, 3))
    result, swapped = point_metrics(few, many, corresponding=False), point_metrics(many, few, corresponding=False)
    assert (result["accuracy"], result["completeness"]) == (swapped["completeness"], swapped["accuracy"])
    assert result["accuracy"] < result["completeness"]
    assert result["distance"] is None and result["distance_median"] is None
    with pytest.raises(InputError, match="20 predicted and 500 true"):
        point_metrics(few, many)


def test_a_rigid_motion_of_both_clouds_and_another_order_change_nothing():
    rng = np.random.default_rng(2)
    points, truth = rng.normal(size=(2, 40, 3))
    expected = point_metrics(points, truth)
    rotation, order = Rotation.from_rotvec([0.3, -1, 2]).as_matrix(), rng.permutation(40)
    moved = [(cloud @ rotation.T + [1, 2, 3])[order] for cloud in (points, truth)]
    assert point_metrics(*moved) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (np.zeros((0, 3)), "at least one"),
        (np.zeros((5, 2)), r"\(5, 2\)"),
        (np.full((5, 3), np.nan), "15 of 15"),
    ],
)
def test_bad_clouds_are_refused_in_one_line(points, says):
    with pytest.raises(InputError, match=says) as caught:
        point_metrics(points, np.zeros((5, 3)))
    assert len(str(caught.value).splitlines()) == 1


def test_world_points_agree_with_core_geometrys_unprojection():
    rng = np.random.default_rng(3)
    depth = rng.uniform(1, 3, (2, 4, 5))
    intrinsics = np.array([[7.0, 0, 2.5], [0, 8.0, 2], [0, 0, 1]]) * np.ones((2, 1, 1))
    world_from_cam = np.tile(np.eye(4), (2, 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_rotvec(rng.normal(size=(2, 3))).as_matrix()
    world_from_cam[:, :3, 3] = rng.normal(size=(2, 3))
    in_cam = np.asarray(unproject(jnp.asarray(depth, jnp.float32), jnp.asarray(intrinsics, jnp.float32)), np.float64)
    expected = np.einsum("tij,tpj->tpi", world_from_cam[:, :3, :3], in_cam.reshape(2, 20, 3))
    expected += world_from_cam[:, None, :3, 3]
    ours = world_points(depth, intrinsics, world_from_cam)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours.reshape(2, 20, 3), expected, atol=1e-5)


def test_a_collapsed_cloud_is_not_accurate():
    """A frozen camera gives one point. Near a wall it would be better than an honest cloud."""
    truth = np.random.default_rng(0).uniform(0, 5, (500, 3))
    found = point_metrics(np.repeat(truth[:1], 400, axis=0), truth, corresponding=False)
    assert found["accuracy"] == found["completeness"] > 1.0
    assert found["accuracy_median"] == found["completeness_median"]
    assert point_metrics(truth + 0.1, truth, corresponding=False)["accuracy"] < found["accuracy"]
