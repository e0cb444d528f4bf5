"""Clips of one and two frames: closed forms as documented, and the reference's pair viewer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax import alignment
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import PairPredictions
from tests.alignment.aligned import aligned


@pytest.fixture
def own_focals(config):
    return dataclasses.replace(config, shared_focal=False)


@pytest.fixture(scope="module")
def two(exact_clip):
    return exact_clip(num_frames=2, focals=np.array([19.0, 24.0]))


@pytest.mark.parametrize("frames", ["0_1", "1_7"])
def test_two_frames_of_the_reference(frames, reference, own_focals):
    arrays = reference(f"pairviewer_{frames}")
    predictions = PairPredictions(
        jnp.asarray([[0, 1], [1, 0]]), *(jnp.asarray(arrays[k]) for k in ("pts3d_1", "pts3d_2", "conf_1", "conf_2"))
    )
    np.testing.assert_allclose(alignment.edge_scores(predictions), arrays["conf_product"], rtol=1e-6)
    result = aligned(predictions, own_focals)
    np.testing.assert_allclose(result.intrinsics, arrays["K"], rtol=1e-5)
    a, b = (
        Rotation.from_matrix(np.asarray(p, np.float64)[:, :3, :3]) for p in (result.world_from_cam, arrays["im_poses"])
    )
    assert np.degrees((a.inv() * b).magnitude()).max() <= 0.2
    np.testing.assert_allclose(result.world_from_cam[:, :3, 3], arrays["im_poses"][:, :3, 3], atol=1e-3)
    np.testing.assert_allclose(result.depth, arrays["depth"], rtol=1e-3)
    world = se3.transform_points(result.world_from_cam, camera.unproject(result.depth, result.intrinsics))
    expected = arrays["pts3d_from_depth_stride2"]
    np.testing.assert_allclose(world[:, ::2, ::2], expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def check_two(result, clip, reference, pair):
    """The reference frame is the world, sized like the pair that decided."""
    scale = clip.pair_scale[pair]
    truth = np.linalg.inv(clip.world_from_cam[reference]) @ clip.world_from_cam
    truth[:, :3, 3] *= scale
    np.testing.assert_array_equal(result.world_from_cam[reference], np.eye(4))
    np.testing.assert_allclose(result.world_from_cam, truth, atol=1e-3)
    np.testing.assert_allclose(result.depth, scale * clip.depth, rtol=1e-3)
    assert result.losses.shape == (0,)


def test_the_more_confident_direction_decides(two, own_focals):
    assert two.predictions.edges.tolist() == [[0, 1], [1, 0]]
    for factors, reference in (((1.5, 1), 0), ((1, 1.5), 1)):
        factor = jnp.asarray(factors, jnp.float32)[:, None, None]
        louder = dataclasses.replace(two.predictions, confidence_i=factor * two.predictions.confidence_i)
        result = aligned(louder, own_focals)
        check_two(result, two, reference, pair=reference)
        np.testing.assert_allclose(result.intrinsics[:, 0, 0], two.focals, rtol=1e-4)
        expected = np.maximum(louder.confidence_i, louder.confidence_j[::-1])
        np.testing.assert_array_equal(result.confidence, expected)


def test_constant_confidence_takes_the_second_direction(two, own_focals):
    """Below `min_confidence` everywhere: the best quarter is everything. Of equals, (1, 0)."""
    flat = jnp.ones_like(two.predictions.confidence_i)
    flat = dataclasses.replace(two.predictions, confidence_i=flat, confidence_j=flat)
    check_two(aligned(flat, own_focals), two, reference=1, pair=1)


def test_a_shared_focal_is_the_mean(two, config):
    result = aligned(two.predictions, config)
    np.testing.assert_allclose(result.intrinsics[:, 0, 0], two.focals.mean(), rtol=1e-4)


@pytest.mark.parametrize("direction", [0, 1])
def test_one_direction_alone_is_enough(direction, two, own_focals):
    """The released program gives NaN here. The other frame's focal length is taken to be the known one."""
    alone = jax.tree.map(lambda x: x[direction : direction + 1], two.predictions)
    result = aligned(alone, own_focals)
    np.testing.assert_allclose(result.intrinsics[:, 0, 0], two.focals[direction], rtol=1e-4)
    np.testing.assert_array_equal(result.world_from_cam[direction], np.eye(4))
    np.testing.assert_allclose(result.depth[direction], two.pair_scale[direction] * two.depth[direction], rtol=1e-5)


def test_without_a_pose_both_cameras_are_the_same(two, config):
    """All points one point: no PnP can answer."""
    point = jnp.zeros_like(two.predictions.points_i) + jnp.asarray([0.0, 0.0, 2.0])[None, None, None]
    result = aligned(dataclasses.replace(two.predictions, points_i=point, points_j=point), config)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
    np.testing.assert_array_equal(result.world_from_cam, np.tile(np.eye(4), (2, 1, 1)))
    np.testing.assert_array_equal(result.depth, 2)
    np.testing.assert_allclose(result.intrinsics[:, 0, 0], camera.default_focal(12, 16), rtol=1e-6)


def test_two_identical_frames_have_one_camera(exact_clip, config):
    """What a network predicts for a frame paired with itself: both maps are the same."""
    clip = exact_clip(num_frames=2)
    points = jnp.tile(clip.predictions.points_i[:1], (2, 1, 1, 1))
    twice = dataclasses.replace(clip.predictions, points_i=points, points_j=points)
    result = aligned(twice, config)
    np.testing.assert_allclose(result.world_from_cam, np.tile(np.eye(4), (2, 1, 1)), atol=1e-3)
    np.testing.assert_allclose(result.depth[0], result.depth[1], rtol=1e-3)


def test_one_frame_is_its_own_world(exact_clip, config):
    clip = exact_clip(num_frames=2)
    alone = jax.tree.map(lambda x: x[:1], dataclasses.replace(clip.predictions, num_frames=1))
    alone = dataclasses.replace(alone, edges=jnp.zeros((1, 2), jnp.int32), points_j=alone.points_i)
    result = aligned(alone, config)
    np.testing.assert_array_equal(result.world_from_cam, np.eye(4)[None])
    np.testing.assert_allclose(result.depth[0], clip.pair_scale[0] * clip.depth[0], rtol=1e-6)
    np.testing.assert_allclose(result.intrinsics[0], [[20, 0, 8], [0, 20, 6], [0, 0, 1]], rtol=1e-4)
    np.testing.assert_array_equal(result.confidence[0], np.maximum(alone.confidence_i[0], alone.confidence_j[0]))
    assert result.losses.shape == (0,)
