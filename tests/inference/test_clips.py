"""The complete pipeline on small random networks: invariances, motion cues, degenerate clips, refused input."""

import dataclasses
from unittest import mock

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import alignment, motion
from easi3r_jax.core.config import AlignConfig, PipelineConfig, SegmentationConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Given, MotionResidual
from easi3r_jax.inference import pipeline
from tests.inference.small import NETWORK, OPTIONS, assert_finite, clip
from tests.networks import network


def test_shapes_and_ranges(result):
    scene = result.scene
    chex.assert_shape(scene.world_from_cam, (4, 4, 4))
    chex.assert_shape(scene.intrinsics, (4, 3, 3))
    chex.assert_shape([scene.depth, scene.confidence, scene.dynamic_mask, scene.dynamic_score], (4, 32, 48))
    assert_finite(scene)
    assert scene.dynamic_mask.dtype == bool
    assert (scene.depth > 0).all()
    rotation = scene.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-5)
    assert result.losses.shape == (20,)
    assert result.losses[-1] < result.losses[0]
    np.testing.assert_array_equal(scene.dynamic_mask, scene.dynamic_score > result.threshold)


def test_same_seed_same_result(model, result):
    again = pipeline.reconstruct(model, clip(4), OPTIONS)
    chex.assert_trees_all_equal(result, again)


def aligned_points(model, frames, options, **more):
    """What `reconstruct` returns, and the point maps that it aligned, (E, H, W, 3)."""
    seen = []

    def watched(predictions, *arguments, **named):
        seen.append(np.array(predictions.points_i))  # a copy: the alignment frees them
        return original(predictions, *arguments, **named)

    original = alignment.align
    with mock.patch.object(alignment, "align", watched):
        result = pipeline.reconstruct(model, frames, options, **more)
    (points,) = seen
    return result, points


def changed_pairs(points, plain):
    """(E,) bool: whose points differ by more than rounding."""
    return np.abs(points - plain).max((1, 2, 3)) > 1e-6 * np.abs(plain).max()


def test_predictions_are_masked_by_the_first_pass(model):
    """What is aligned are the points under the masks of the first pass; without re-attention, under none."""
    frames = clip(4)
    plain, unmasked = aligned_points(model, frames, dataclasses.replace(OPTIONS, reattention=False))
    _, masked = aligned_points(model, frames, OPTIONS)
    grid, edges = model.grid(frames.rgb.shape[1:3]), pipeline.clip_edges(4, OPTIONS.graph)
    features = pipeline.encode(model, frames)
    # Without re-attention, the last pass's masks are the first one's.
    dynamic = motion.token_masks(plain.scene.dynamic_mask, NETWORK.patch_size)
    assert dynamic.any() and not dynamic.all()  # a random network marks something
    for found, tokens in ((unmasked, None), (masked, dynamic)):
        expected = pipeline.prediction_pass(model, features, edges, grid, dynamic_tokens=tokens)[0].points_i
        np.testing.assert_allclose(found[: len(edges)], expected, atol=1e-6 * np.abs(expected).max())
    has_static, has_dynamic = (np.asarray(x) for x in (~dynamic.all(1), dynamic.any(1)))
    lose_keys = has_static[edges[:, 0]] & has_dynamic[edges[:, 1]]  # static queries of i, keys of j
    assert lose_keys.any() and changed_pairs(masked, unmasked)[: len(edges)][lose_keys].all()


def test_re_attention_changes_the_points_exactly_where_there_are_masks(model):
    """Static queries of the other frame lose frame 2's keys; frame 2's own static queries see all of a static frame."""
    frames = clip(4)
    masks = jnp.zeros(frames.rgb.shape[:3], bool).at[2, :8, :24].set(True)
    options = dataclasses.replace(OPTIONS, cue="none", masks=("given",))
    points = [
        aligned_points(model, frames, dataclasses.replace(options, reattention=on), given=Given(masks=masks))[1]
        for on in (False, True)
    ]
    edges = pipeline.clip_edges(4, "complete")
    np.testing.assert_array_equal(changed_pairs(points[1], points[0])[: len(edges)], edges[:, 1] == 2)


def test_a_mask_changes_the_pairs_of_its_frame_and_no_others(model):
    frames = clip(4)
    grid = model.grid(frames.rgb.shape[1:3])
    edges = pipeline.clip_edges(4, "complete")
    features = pipeline.encode(model, frames)
    nothing = jnp.zeros((4, grid[0] * grid[1]), bool)

    def points(dynamic):
        return pipeline.prediction_pass(model, features, edges, grid, dynamic_tokens=dynamic)[0].points_i

    plain = points(None)
    np.testing.assert_allclose(points(nothing), plain, atol=1e-6 * np.abs(plain).max())
    np.testing.assert_array_equal(changed_pairs(points(nothing.at[2, :3].set(True)), plain), edges[:, 1] == 2)


def test_without_motion_nothing_is_masked(model):
    result = pipeline.reconstruct(model, clip(4), dataclasses.replace(OPTIONS, cue="none"))
    assert result.motion is None
    assert result.threshold is None
    assert not result.scene.dynamic_mask.any()
    assert_finite(result.scene)


@pytest.mark.parametrize(("cue", "reattention"), [("rigid", True), ("match", True), ("match", False)])
def test_other_cues_take_the_place_of_attention(model, cue, reattention):
    options = dataclasses.replace(OPTIONS, cue=cue, reattention=reattention)
    result = pipeline.reconstruct(model, clip(4), options)
    assert_finite(result.scene)
    assert_finite(result.motion)
    assert result.scene.dynamic_mask.any()  # a random network's points fit no motionless scene
    np.testing.assert_array_equal(result.scene.dynamic_mask, result.scene.dynamic_score > result.threshold)
    score = np.asarray(result.motion.score)
    assert (score.min((1, 2)) == 0).all() and (score.max((1, 2)) > 0.99).all()


def test_a_custom_cue_masks_both_passes(model):
    """It is called once per pass with that pass's points; what it marks is masked in the second pass."""
    seen = []
    planted = np.zeros((4, 4, 6), np.float32)
    planted[:, 1, 2:4] = 1

    def cue(evidence):
        assert evidence.features.shape == (4, 24, 16) and evidence.grid == (4, 6) and evidence.seed == 7
        seen.append(np.asarray(evidence.points().points_i))
        return MotionResidual(jnp.asarray(planted), jnp.ones(planted.shape, bool))

    heard = []
    options = dataclasses.replace(OPTIONS, segmentation=SegmentationConfig(num_clusters=96, restarts=1), seed=7)
    result = pipeline.reconstruct(model, clip(4), options, cue=cue, progress=lambda stage, *_: heard.append(stage))
    assert list(dict.fromkeys(heard)) == ["encode", "attention", "motion", "predict", "align"]
    assert len(seen) == 2
    assert np.abs(seen[1] - seen[0]).max() > 0
    marked = motion.token_masks(result.scene.dynamic_mask, NETWORK.patch_size).reshape(planted.shape)
    assert np.asarray(marked)[planted > 0].all()
    assert not np.asarray(marked)[:, 3].any()


def test_a_cue_that_reads_attention_needs_no_heads_in_the_first_pass(model, result):
    """The method's own score, written as a cue: the same masks, and no point maps before the second pass."""
    seen = []

    @motion.reads_attention
    def own(evidence):
        seen.append(evidence.predictions is None)
        maps = motion.fuse_temporal(evidence.statistics, evidence.grid)
        value = (1 - maps.mean_src) * maps.std_src * maps.mean_ref * (1 - maps.std_ref)
        return MotionResidual(value, jnp.ones(value.shape, bool))

    ours = pipeline.reconstruct(model, clip(4), OPTIONS, cue=own)
    assert seen == [True, False]
    np.testing.assert_allclose(ours.scene.dynamic_score, result.scene.dynamic_score, atol=1e-5)

    @motion.reads_attention
    def greedy(evidence):
        return MotionResidual(evidence.points().confidence_i, jnp.ones(1, bool))

    with pytest.raises(ConfigError, match="remove the mark"):
        pipeline.reconstruct(model, clip(4), OPTIONS, cue=greedy)


def test_frames_that_do_not_fit_the_network_are_refused(model):
    with pytest.raises(InputError, match=r"patches of 8.*FrameConfig\.for_model"):
        pipeline.reconstruct(model, clip(3, height=30), OPTIONS)
    with pytest.raises(InputError, match=r"192x128 do not fit a network trained at 48x32.*FrameConfig\.for_model"):
        pipeline.reconstruct(model, clip(3, height=128, width=192), OPTIONS)


@pytest.mark.parametrize(
    ("count", "cue"), [(1, "attention"), (1, "rigid"), (1, "match"), (2, "attention"), (2, "match")]
)
def test_short_clips_are_defined(model, count, cue):
    result = pipeline.reconstruct(model, clip(count), dataclasses.replace(OPTIONS, cue=cue))
    assert_finite(result.scene)
    assert len(result.scene.depth) == count
    if count == 1 or (count == 2 and cue == "attention"):
        # No partner; or one observation per frame and role: no deviation, so no evidence of motion.
        assert not result.scene.dynamic_mask.any()
    assert result.losses.shape == (0,)


def test_identical_frames_are_defined(model):
    frames = clip(4)
    still = dataclasses.replace(frames, rgb=np.stack([frames.rgb[0]] * 4))
    scene = pipeline.reconstruct(model, still, OPTIONS).scene
    assert_finite(scene)
    assert not scene.dynamic_mask.any()


def test_three_portrait_frames(model):
    """The fewest that are aligned."""
    result = pipeline.reconstruct(model, clip(3, height=48, width=32), OPTIONS)
    assert result.scene.depth.shape == (3, 48, 32)
    assert_finite(result.scene)


def test_a_broken_network_is_an_error_not_a_scene():
    broken = network(NETWORK)
    broken.head1.proj.bias[...] = jnp.full_like(broken.head1.proj.bias[...], jnp.nan)
    with pytest.raises(InputError, match="infinite or NaN"):
        pipeline.reconstruct(broken, clip(4), OPTIONS)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (PipelineConfig, {"cue": "flow"}, "motion cue"),
        (PipelineConfig, {"pair_batch": -1}, "pair_batch"),
        (AlignConfig, {"iterations": 0}, "iterations"),
        (AlignConfig, {"schedule": "step"}, "schedule"),
        (AlignConfig, {"learning_rate": 0.001, "learning_rate_min": 0.01}, "learning_rate_min"),
        (AlignConfig, {"smoothing_weight": float("nan")}, "smoothing_weight"),
        (SegmentationConfig, {"num_clusters": 0}, "num_clusters"),
        (SegmentationConfig, {"otsu_classes": (2, 5)}, "otsu_classes"),
    ],
)
def test_impossible_options_are_refused(kind, options, says):
    with pytest.raises(ConfigError, match=says):
        kind(**options)


def test_graphs_that_leave_frames_alone_are_refused():
    with pytest.raises(ConfigError, match="not connected to frame 0"):
        pipeline.clip_edges(6, "swinskip_start-1-noncyclic")
    with pytest.raises(InputError, match="no frames"):
        pipeline.clip_edges(0, "complete")
