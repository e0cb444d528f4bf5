"""Feed-forward reconstruction by VGGT: the result's conventions, short clips, masks, and what it refuses."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from easi3r_jax import motion
from easi3r_jax.core.config import PipelineConfig, SegmentationConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Frames, Given
from easi3r_jax.inference.feedforward import reconstruct_stream
from easi3r_jax.inference.multiview import reconstruct_multiview, segment
from easi3r_jax.inference.pipeline import reconstruct
from easi3r_jax.inference.windows import reconstruct_windows
from tests.networks import network, small_network, vggt

SIZE = (28, 42)
CONFIG = PipelineConfig(segmentation=SegmentationConfig(num_clusters=4, restarts=1))


def clip(count, size=SIZE):
    rgb = np.random.default_rng(3).integers(0, 256, (count, *size, 3), np.uint8)
    return Frames(rgb, np.arange(count, dtype=np.int32), np.arange(count) / 10, np.eye(3), np.array(size, np.int32))


@pytest.fixture(scope="module")
def model():
    return vggt()


@pytest.fixture(scope="module")
def result(model):
    return reconstruct_multiview(model, clip(5), CONFIG)


def test_the_result_has_cameras_depth_and_masks(result):
    scene = result.scene
    assert scene.depth.shape == scene.dynamic_mask.shape == (5, *SIZE) and (scene.depth > 0).all()
    assert (scene.confidence >= 0).all() and scene.confidence.max() > 1
    rotation = scene.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-5)
    np.testing.assert_array_equal(scene.intrinsics[:, :2, 2], np.broadcast_to([21.0, 14.0], (5, 2)))
    assert (scene.static_mask == ~scene.dynamic_mask).all() and scene.dynamic_mask.any()
    np.testing.assert_array_equal(scene.dynamic_mask, scene.dynamic_score > result.threshold)


def test_masks_change_only_the_poses_of_the_second_pass(model, result):
    once = reconstruct_multiview(model, clip(5), dataclasses.replace(CONFIG, reattention=False)).scene
    for name in ("depth", "intrinsics", "dynamic_mask"):
        np.testing.assert_array_equal(getattr(once, name), getattr(result.scene, name))
    assert np.abs(once.world_from_cam - result.scene.world_from_cam).max() > 1e-4
    masks = result.scene.dynamic_mask
    given = dataclasses.replace(CONFIG, cue="none", masks=("given",))
    same = reconstruct_multiview(model, clip(5), given, given=Given(masks=masks))
    np.testing.assert_allclose(same.scene.world_from_cam, result.scene.world_from_cam, atol=1e-6)
    assert same.threshold is None and (same.scene.dynamic_score == 0).all()


# The cue compares a frame with those 2, 4 and 6 before and after.
@pytest.mark.parametrize(("count", "seen"), [(1, []), (2, []), (3, [0, 2])])
def test_frames_that_the_cue_cannot_compare_have_no_dynamic_pixels(model, count, seen):
    scene = reconstruct_multiview(model, clip(count), CONFIG).scene
    assert np.isfinite(scene.depth).all() and np.isfinite(scene.dynamic_score).all()
    assert set(np.flatnonzero(scene.dynamic_mask.any(axis=(1, 2)))) <= set(seen)
    assert not seen or scene.dynamic_mask.any()


def test_a_refiner_gets_the_geometry_and_its_masks_are_used(model):
    @motion_free_refiner
    def refine(rgb, masks, *, geometry, progress):
        assert geometry.depth.shape == masks.shape == rgb.shape[:3]
        return ~masks

    config = dataclasses.replace(CONFIG, cue="none")
    assert reconstruct_multiview(model, clip(5), config, refiner=refine).scene.dynamic_mask.all()


def motion_free_refiner(function):
    function.needs_geometry = True
    return function


def test_what_needs_pairs_or_another_clip_is_refused_in_a_line(model):
    def refused(message, error=ConfigError, frames=None, given=None, **changes):
        with pytest.raises(error, match=message) as caught:
            reconstruct_multiview(model, frames or clip(2), dataclasses.replace(CONFIG, **changes), given=given)
        assert "\n" not in str(caught.value)

    refused("cue 'match' needs a network of pairs", cue="match")
    refused("Optical flow and known cameras are used by the alignment of pairs", masks=("flow",))
    refused("if, and only if", masks=("given",))
    wrong = Given(masks=np.zeros((3, *SIZE), bool))
    refused("do not fit a clip of shape", InputError, given=wrong, masks=("given",))
    refused("30x28 are not divisible into the network's patches of 14", InputError, clip(2, (28, 30)))
    refused("do not fit a network trained at 28x28", InputError, clip(2, (28, 84)))


def test_the_factors_of_the_paper_are_an_option(model, result):
    paper = reconstruct_multiview(model, clip(5), CONFIG, factors=motion.PAPER_FACTORS)
    assert (paper.scene.dynamic_score != result.scene.dynamic_score).any()
    np.testing.assert_array_equal(paper.scene.depth, result.scene.depth)
    features, grid = model.encode(clip(5).rgb), model.grid(SIZE)
    bands = motion.gram_bands(model.config.depth, motion.PAPER_FACTORS)
    statistics = model.aggregate(features, grid, bands=bands).statistics
    labels = motion.cluster_labels(features, grid, CONFIG.segmentation, jax.random.key(CONFIG.seed))
    expected = segment(statistics, labels, SIZE, CONFIG.segmentation, motion.PAPER_FACTORS)
    np.testing.assert_allclose(paper.scene.dynamic_score, expected.score, atol=1e-4)


def test_the_wrong_kind_of_network_is_refused_in_a_line(model):
    pairwise = [reconstruct, reconstruct_stream, functools.partial(reconstruct_windows, window=3, overlap=2)]
    for function in pairwise:
        with pytest.raises(ConfigError, match=r"VGGT is no network of pairs.*use reconstruct_multiview"):
            function(model, clip(4))
    with pytest.raises(ConfigError, match="DUSt3R does not take all frames at once"):
        reconstruct_multiview(network(small_network()), clip(4))
