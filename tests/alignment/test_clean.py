"""Confidence clean-up: hand-made scenes, a plain loop over pixels, and the reference's result."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax import alignment
from easi3r_jax.alignment import clean
from easi3r_jax.core.types import Geometry

H, W, F = 6, 8, 8.0


def result_of(poses, depth, confidence):
    poses, depth, confidence = (np.asarray(x, np.float32) for x in (poses, depth, confidence))
    matrix = np.array([[F, 0, W / 2], [0, F, H / 2], [0, 0, 1]], np.float32)
    matrices = np.tile(matrix, (len(poses), 1, 1))
    arrays = (jnp.asarray(x) for x in (poses, matrices, depth, confidence))
    return Geometry(*arrays)


def same_camera(*depths, confidence):
    """Frames from one camera: every pixel looks along the same ray in all of them."""
    depths, confidence = (np.broadcast_arrays(*x, np.zeros((H, W)))[:-1] for x in (depths, confidence))
    return result_of(np.tile(np.eye(4), (len(depths), 1, 1)), depths, confidence)


def spot(background, value):
    out = np.full((H, W), background)
    out[2, 3] = value
    return out


def test_a_less_confident_point_in_front_loses_its_confidence(config):
    cleaned = alignment.clean_confidence(same_camera(spot(4.0, 2.0), 4.0, confidence=(3.0, 5.0)), config)
    np.testing.assert_array_equal(cleaned, [spot(3.0, 0.0), spot(5.0, 5.0)])


def test_a_more_confident_point_in_front_stays_as_does_an_equally_confident_one(config):
    for other in (2.0, 3.0):
        cleaned = alignment.clean_confidence(same_camera(spot(4.0, 2.0), 4.0, confidence=(3.0, other)), config)
        np.testing.assert_array_equal(cleaned, [spot(3.0, 3.0), spot(other, other)])


def test_a_point_behind_stays(config):
    cleaned = alignment.clean_confidence(same_camera(spot(4.0, 6.0), 4.0, confidence=(3.0, 5.0)), config)
    # Seen from the second frame: its pixel stands in front of the first's, and is the more confident one.
    np.testing.assert_array_equal(cleaned, [spot(3.0, 3.0), spot(5.0, 5.0)])


@pytest.mark.parametrize(("nearer", "survives"), [(0.02, False), (0.005, True)])
def test_the_tolerance_is_relative(nearer, survives, config):
    config = dataclasses.replace(config, clean_tolerance=0.01)
    for distance in (1.0, 100.0):
        depth = spot(distance, distance * (1 - nearer))
        cleaned = alignment.clean_confidence(same_camera(depth, distance, confidence=(3.0, 5.0)), config)
        assert (cleaned[0, 2, 3] == 3) == survives


def test_a_confidence_already_lowered_no_longer_speaks_against_later_frames(config):
    """On the axis, two frames from one place and one from further on: the last sees the point at 3, not that at 2."""
    row, column = H // 2, W // 2
    ahead = np.eye(4)
    ahead[2, 3] = 2.5
    frames = {  # pose, depth, confidence
        "at 3": (np.eye(4), 3.0, 5.0),
        "at 2": (np.eye(4), 2.0, 4.0),
        "ahead": (ahead, 1.5, 9.0),
    }

    def kept(*order):
        poses, depth, confidence = zip(*(frames[name] for name in order), strict=True)
        flat = [np.broadcast_to(np.reshape(x, (3, 1, 1)), (3, H, W)) for x in (depth, confidence)]
        cleaned = alignment.clean_confidence(result_of(poses, *flat), config)
        return dict(zip(order, cleaned[:, row, column].tolist(), strict=True))

    assert kept("at 3", "at 2", "ahead") == {"at 3": 0, "at 2": 4, "ahead": 9}
    assert kept("at 2", "at 3", "ahead") == {"at 3": 0, "at 2": 0, "ahead": 9}


def turned_away():
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec([0, np.pi, 0]).as_matrix()
    return out


def test_a_frame_that_does_not_see_a_point_does_not_count(config):
    depths = [spot(4.0, 2.0), np.full((H, W), 4.0)]
    result = result_of([np.eye(4), turned_away()], depths, [np.full((H, W), 3.0), np.full((H, W), 5.0)])
    np.testing.assert_array_equal(alignment.clean_confidence(result, config), result.confidence)


def written_out(result, tolerance):
    """Pixel by pixel, in order of frames."""
    poses, matrices, depth = (
        np.asarray(x, np.float64) for x in (result.world_from_cam, result.intrinsics, result.depth)
    )
    confidence = np.array(result.confidence)
    num_frames, height, width = depth.shape
    for a in range(num_frames):
        own = confidence[a].copy()
        for b in range(num_frames):
            b_from_a = np.linalg.inv(poses[b]) @ poses[a]
            for row, column in np.ndindex(height, width):
                ray = np.linalg.solve(matrices[a], [column, row, 1]) * depth[a, row, column]
                point = matrices[b] @ (b_from_a[:3, :3] @ ray + b_from_a[:3, 3])
                u, v = np.round(point[:2] / point[2]).astype(int)
                if a != b and point[2] > 0 and 0 <= u < width and 0 <= v < height:
                    in_front = point[2] < (1 - tolerance) * depth[b, v, u]
                    if in_front and own[row, column] < confidence[b, v, u]:
                        confidence[a, row, column] = 0
    return confidence


def test_it_is_the_loop_written_out(config):
    """Turning cameras before a rough wall."""
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (10, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(0.05 * rng.standard_normal((10, 3))).as_matrix()
    poses[:, :3, 3] = 0.3 * rng.standard_normal((10, 3))
    result = result_of(poses, rng.uniform(3, 4, (10, H, W)), rng.uniform(1, 9, (10, H, W)))
    cleaned = np.asarray(alignment.clean_confidence(result, config))
    np.testing.assert_array_equal(cleaned, written_out(result, config.clean_tolerance))
    assert 0.1 < (cleaned == 0).mean() < 0.95


def test_batches_of_cameras_change_nothing(config, monkeypatch):
    """As on accelerators; ten frames are no multiple of a batch."""
    rng = np.random.default_rng(1)
    poses = np.tile(np.eye(4), (10, 1, 1))
    poses[:, :3, 3] = 0.3 * rng.standard_normal((10, 3))
    result = result_of(poses, rng.uniform(3, 4, (10, H, W)), rng.uniform(1, 9, (10, H, W)))
    expected = alignment.clean_confidence(result, config)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    clean._clean.clear_cache()
    try:
        np.testing.assert_array_equal(alignment.clean_confidence(result, config), expected)
    finally:
        clean._clean.clear_cache()
    assert 0.1 < (np.asarray(expected) == 0).mean() < 0.95


def test_one_frame_keeps_its_confidence(config):
    result = same_camera(4.0, confidence=(3.0,))
    np.testing.assert_array_equal(alignment.clean_confidence(result, config), result.confidence)


def test_result_of_the_reference(reference, config):
    arrays = reference("a_noflow_linear")
    result = Geometry(
        world_from_cam=jnp.asarray(arrays["final_im_poses"]),
        intrinsics=jnp.asarray(arrays["final_intrinsics"]),
        depth=jnp.asarray(arrays["final_depth"]),
        confidence=jnp.asarray(arrays["im_conf_before_clean"]),
    )
    expected = arrays["im_conf_after_clean"]
    assert (expected != arrays["im_conf_before_clean"]).mean() > 0.01
    # A projection that rounds to the next pixel may flip a decision.
    assert (np.asarray(alignment.clean_confidence(result, config)) != expected).mean() <= 1e-3
