"""The whole pipeline on small random networks: invariances, bounds on work, degenerate clips."""

import dataclasses
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import config, motion, passes, pipeline
from easi3r_jax.config import AlignConfig, MotionConfig, PipelineConfig
from easi3r_jax.errors import ConfigError, InputError
from easi3r_jax.models import random_model
from easi3r_jax.models.encoder import Encoder
from easi3r_jax.types import Frames, Given, KnownCameras, MotionResidual
from easi3r_jax.windows import reconstruct_windows
from tests.networks import small_network

NETWORK = small_network(enc_depth=2)
OPTIONS = PipelineConfig(segmentation=MotionConfig(num_clusters=8, restarts=1), alignment=AlignConfig(iterations=20))


def clip(count, height=32, width=48, seed=0):
    """A random texture that pans."""
    texture = np.random.default_rng(seed).integers(0, 256, (height, width + 4 * count, 3), np.uint8)
    rgb = np.stack([texture[:, 4 * t : 4 * t + width] for t in range(count)])
    return Frames(
        rgb=jnp.asarray(rgb),
        source_index=np.arange(count),
        time=np.arange(count) / 24.0,
        frame_from_source=np.eye(3),
        source_size=np.array([height, width]),
    )


@pytest.fixture(scope="module")
def model():
    return random_model(NETWORK, seed=3)


@pytest.fixture(scope="module")
def result(model):
    return pipeline.reconstruct(model, clip(5), OPTIONS)


def assert_finite(tree):
    chex.assert_tree_all_finite(tree)


def test_shapes_and_ranges(result):
    scene = result.scene
    chex.assert_shape(scene.world_from_cam, (5, 4, 4))
    chex.assert_shape(scene.intrinsics, (5, 3, 3))
    chex.assert_shape([scene.depth, scene.confidence, scene.dynamic_mask, scene.dynamic_score], (5, 32, 48))
    assert_finite(scene)
    assert scene.dynamic_mask.dtype == bool
    assert (scene.depth > 0).all()
    rotation = scene.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-5)
    assert result.losses.shape == (20,)
    assert result.losses[-1] < result.losses[0]
    np.testing.assert_array_equal(scene.dynamic_mask, scene.dynamic_score > result.masks.threshold)


def test_same_seed_same_result(model, result):
    again = pipeline.reconstruct(model, clip(5), OPTIONS)
    chex.assert_trees_all_equal(result, again)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_batches_do_not_change_statistics_and_points(model, batch):
    """Neither how pairs are batched nor the padding of the last batch shows in the result."""
    frames = clip(4)
    grid = model.grid(frames.rgb.shape[1:3])
    edges = pipeline.clip_edges(4, "complete")
    features = pipeline.encode(model, frames)
    np.testing.assert_allclose(pipeline.encode(model, frames, batch=batch), features, atol=1e-5)
    dynamic = jnp.asarray(np.random.default_rng(0).random((4, 24)) < 0.3)
    expected = pipeline.prediction_pass(model, features, edges, grid, dynamic=dynamic, batch=len(edges))
    ours = pipeline.prediction_pass(model, features, edges, grid, dynamic=dynamic, batch=batch)
    chex.assert_trees_all_close(ours, expected, atol=2e-5)
    first = pipeline.attention_pass(model, features, edges, grid, batch=batch)
    unmasked = pipeline.prediction_pass(model, features, edges, grid, batch=len(edges))[1]
    chex.assert_trees_all_close(first, unmasked, atol=2e-5)


def test_every_frame_is_encoded_once(model):
    seen = []
    original = Encoder.__call__

    def counting(self, images, dtype, **options):
        jax.debug.callback(lambda n: seen.append(int(n)), images.shape[0])
        return original(self, images, dtype, **options)

    with mock.patch.object(Encoder, "__call__", counting):
        passes._encode_batch.clear_cache()  # traced again, with what counts
        pipeline.reconstruct(model, clip(6), dataclasses.replace(OPTIONS, frame_batch=2))
        jax.effects_barrier()
    passes._encode_batch.clear_cache()
    assert seen == [2, 2, 2]


def test_nothing_is_compiled_between_pair_batches(model):
    """Twelve pairs in batches of five: the last one is padded, and is no new shape either."""
    compiled, heard = [], {}

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    def observe(stage, done, total, note):
        if stage in ("attention", "predict") and 0 < done < total:
            heard.setdefault(stage, []).append(len(compiled))

    frames = clip(5, height=16, width=24)  # a size that no other test has compiled anything for
    before = passes._network_batch._cache_size()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        pipeline.reconstruct(model, frames, dataclasses.replace(OPTIONS, pair_batch=5), observer=observe)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) > 3  # the listener does hear
    for stage in ("attention", "predict"):
        second, third = heard[stage]
        assert second == third, stage
    assert passes._network_batch._cache_size() == before + 2  # without and with heads


SHARED = dataclasses.replace(OPTIONS, graph="swinstride-3-noncyclic", shared_shapes=True, seed=1)


def test_a_clip_with_room_in_its_arrays_gives_the_same_result(model):
    """17 frames in arrays of 18: nothing of the clip's result is of the frame that is not its."""
    alignment = dataclasses.replace(OPTIONS.alignment, depth_weight=0.1, smoothing_weight=0.1, shared_focal=False)
    options = dataclasses.replace(SHARED, alignment=alignment, masks=("motion", "given"), mask_dilation=1)
    frames, masks = clip(17, height=16, width=24), np.zeros((17, 16, 24), bool)
    masks[16, :8, :8] = True
    flow = np.random.default_rng(0).normal(0, 1, (len(pipeline.clip_edges(17, options.graph)), 16, 24, 2))
    given = Given(masks=jnp.asarray(masks), flow=jnp.asarray(flow, jnp.float32))
    assert pipeline.clip_room(17, options, given) == (18, len(pipeline.clip_edges(18, options.graph)))
    corner = Corner()
    ours = pipeline.reconstruct(model, frames, options, given=given, refiner=corner)
    exact = dataclasses.replace(options, shared_shapes=False)
    expected = pipeline.reconstruct(model, frames, exact, given=given, refiner=Corner())
    assert corner.calls[0][0].shape == (17, 16, 24, 3) and corner.calls[0][1].shape == (17, 16, 24)
    chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours.scene.dynamic_mask, expected.scene.dynamic_mask)


def test_clips_of_similar_lengths_share_everything_that_is_compiled(model):
    """17 and 18 frames: the second one compiles nothing at all."""
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    shorter, longer = (clip(count, height=16, width=24) for count in (17, 18))
    pipeline.reconstruct(model, shorter, SHARED)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        pipeline.reconstruct(model, longer, SHARED)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_what_knows_of_no_room_gets_none():
    cameras = Given(cameras=known_cameras(17))
    assert pipeline.clip_room(17, SHARED, cameras) == (17, 0)
    assert pipeline.clip_room(17, dataclasses.replace(SHARED, motion="rigid"), Given()) == (17, 0)
    assert pipeline.clip_room(17, dataclasses.replace(SHARED, shared_shapes=False), Given()) == (17, 0)


def test_predictions_are_masked_by_the_first_pass(model):
    """Re-attention changes the point maps exactly where there are masks."""
    frames = clip(4)
    plain = pipeline.reconstruct(model, frames, dataclasses.replace(OPTIONS, reattention=False))
    full = pipeline.reconstruct(model, frames, OPTIONS)
    assert plain.masks.masks.any()  # a random network marks something
    assert np.abs(plain.losses[0] - full.losses[0]) > 0


def test_a_mask_changes_the_pairs_of_its_frame_and_no_others(model):
    frames = clip(4)
    grid = model.grid(frames.rgb.shape[1:3])
    edges = pipeline.clip_edges(4, "complete")
    features = pipeline.encode(model, frames)
    nothing = jnp.zeros((4, grid[0] * grid[1]), bool)

    def points(dynamic):
        return pipeline.prediction_pass(model, features, edges, grid, dynamic=dynamic)[0].points_i

    plain = points(None)
    np.testing.assert_allclose(points(nothing), plain, atol=1e-6 * np.abs(plain).max())
    changed = np.abs(points(nothing.at[2, :3].set(True)) - plain).max((1, 2, 3)) > 1e-6 * np.abs(plain).max()
    # Static queries of the other frame lose frame 2's keys; frame 2's own static queries see all of a static frame.
    np.testing.assert_array_equal(changed, edges[:, 1] == 2)


def test_without_motion_nothing_is_masked(model):
    result = pipeline.reconstruct(model, clip(4), dataclasses.replace(OPTIONS, motion="none"))
    assert result.motion is None
    assert result.masks is None
    assert not result.scene.dynamic_mask.any()
    assert_finite(result.scene)


@pytest.mark.parametrize(("cue", "reattention"), [("rigid", True), ("match", True), ("match", False)])
def test_other_cues_take_the_place_of_attention(model, cue, reattention):
    options = dataclasses.replace(OPTIONS, motion=cue, reattention=reattention)
    result = pipeline.reconstruct(model, clip(4), options)
    assert_finite(result.scene)
    assert_finite(result.motion)
    assert result.masks.masks.any()  # a random network's points fit no motionless scene
    np.testing.assert_array_equal(result.scene.dynamic_mask, result.scene.dynamic_score > result.masks.threshold)
    score = np.asarray(result.motion.score)
    assert (score.min((1, 2)) == 0).all() and (score.max((1, 2)) > 0.99).all()


def test_a_cue_of_ones_own_masks_both_passes(model):
    """It is asked once a pass, of that pass's points, and what it marks is masked in the second one."""
    seen = []
    planted = np.zeros((4, 4, 6), np.float32)
    planted[:, 1, 2:4] = 1

    def cue(predictions, features, grid, *, seed):
        assert features.shape == (4, 24, 16) and grid == (4, 6) and seed == 7
        seen.append(np.asarray(predictions.points_i))
        return MotionResidual(jnp.asarray(planted), jnp.ones(planted.shape, bool))

    heard = []
    segmentation = MotionConfig(num_clusters=96, restarts=1)
    try:
        motion.register_cue("planted", cue)
        options = dataclasses.replace(OPTIONS, motion="planted", segmentation=segmentation, seed=7)
        result = pipeline.reconstruct(model, clip(4), options, observer=lambda stage, *_: heard.append(stage))
    finally:
        motion.cues._CUES.pop("planted", None)
        config.MOTION_SOURCES.remove("planted")
    assert list(dict.fromkeys(heard)) == ["encode", "attention", "motion", "predict", "align"]
    assert len(seen) == 2
    assert np.abs(seen[1] - seen[0]).max() > 0
    marked = motion.token_masks(result.masks.masks, NETWORK.patch_size).reshape(planted.shape)
    assert np.asarray(marked)[planted > 0].all()
    assert not np.asarray(marked)[:, 3].any()


@pytest.mark.parametrize(
    ("count", "cue"), [(1, "attention"), (1, "rigid"), (1, "match"), (2, "attention"), (2, "match"), (3, "attention")]
)
def test_short_clips_are_defined(model, count, cue):
    result = pipeline.reconstruct(model, clip(count), dataclasses.replace(OPTIONS, motion=cue))
    assert_finite(result.scene)
    assert len(result.scene.depth) == count
    if count == 1 or (count == 2 and cue == "attention"):
        # No partner; or one observation per frame and role: no deviation, so no evidence of motion.
        assert not result.scene.dynamic_mask.any()
    if count <= 2:
        assert result.losses.shape == (0,)


def test_identical_frames_are_defined(model):
    frames = clip(4)
    still = dataclasses.replace(frames, rgb=jnp.stack([frames.rgb[0]] * 4))
    scene = pipeline.reconstruct(model, still, OPTIONS).scene
    assert_finite(scene)
    assert not scene.dynamic_mask.any()


def test_portrait_frames(model):
    result = pipeline.reconstruct(model, clip(3, height=48, width=32), OPTIONS)
    assert result.scene.depth.shape == (3, 48, 32)
    assert_finite(result.scene)


def test_a_broken_network_is_an_error_not_a_scene():
    broken = random_model(NETWORK)
    broken.head1.proj.bias[...] = jnp.full_like(broken.head1.proj.bias[...], jnp.nan)
    with pytest.raises(InputError, match="infinite or undefined"):
        pipeline.reconstruct(broken, clip(3), OPTIONS)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (PipelineConfig, {"motion": "flow"}, "motion source"),
        (PipelineConfig, {"pair_batch": -1}, "pair_batch"),
        (AlignConfig, {"iterations": 0}, "iterations"),
        (AlignConfig, {"schedule": "step"}, "schedule"),
        (AlignConfig, {"learning_rate": 0.001, "learning_rate_min": 0.01}, "learning_rate_min"),
        (AlignConfig, {"smoothing_weight": float("nan")}, "smoothing_weight"),
        (MotionConfig, {"num_clusters": 0}, "num_clusters"),
        (MotionConfig, {"otsu_classes": (2, 5)}, "otsu_classes"),
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


def test_the_observer_hears_every_stage(model):
    heard = []
    pipeline.reconstruct(
        model, clip(4), OPTIONS, observer=lambda stage, done, total, note: heard.append((stage, done, total))
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in heard))
    assert stages == ["encode", "attention", "predict", "align"]
    for stage in stages:
        mine = [(done, total) for s, done, total in heard if s == stage]
        assert mine[0][0] == 0
        assert mine[-1][0] == mine[-1][1]
        assert [d for d, _ in mine] == sorted(d for d, _ in mine)


def known_cameras(count, **changes):
    known = KnownCameras(
        focal=np.ones(count),
        principal_point=np.zeros((count, 2)),
        intrinsics_known=np.zeros(count, bool),
        world_from_cam=np.tile(np.eye(4), (count, 1, 1)),
        poses_known=np.zeros(count, bool),
    )
    return dataclasses.replace(known, **changes)


def test_point_maps_are_kept_in_half_the_memory(model):
    dtype, step = "float16", 2**-11
    frames, edges = clip(3), pipeline.clip_edges(3, "complete")
    grid, features = model.grid(frames.rgb.shape[1:3]), pipeline.encode(model, frames)
    exact, _ = pipeline.prediction_pass(model, features, edges, grid)
    short, _ = pipeline.prediction_pass(model, features, edges, grid, dtype=dtype)
    for name in ("points_i", "points_j", "confidence_i", "confidence_j"):
        rounded, value = (np.asarray(getattr(x, name)) for x in (short, exact))
        assert rounded.dtype == dtype
        np.testing.assert_allclose(rounded.astype(np.float32), value, rtol=step, atol=1e-6)
    scene = pipeline.reconstruct(model, frames, dataclasses.replace(OPTIONS, point_dtype=dtype)).scene
    assert_finite(scene)
    assert scene.depth.dtype == np.float32


def test_given_masks_count_in_the_attention_and_in_the_result(model):
    """Without a cue for motion one pass is enough; the points are those of masked attention."""
    frames, masks = clip(4), np.zeros((4, 32, 48), bool)
    masks[1, :16, :16] = True
    plain = dataclasses.replace(OPTIONS, motion="none", masks=())
    own = dataclasses.replace(plain, masks=("given",), mask_dilation=2)
    scenes = {
        name: pipeline.reconstruct(model, frames, options, given=Given(masks=jnp.asarray(masks))).scene
        for name, options in {
            "plain": plain,
            "masked": own,
            "not in the attention": dataclasses.replace(own, reattention=False),
        }.items()
    }
    np.testing.assert_array_equal(scenes["plain"].dynamic_mask, False)
    assert scenes["masked"].dynamic_mask[1, :18, :18].all() and scenes["masked"].dynamic_mask.sum() == 18 * 18
    np.testing.assert_array_equal(scenes["masked"].static_mask, ~scenes["masked"].dynamic_mask)
    np.testing.assert_array_equal(scenes["not in the attention"].depth, scenes["plain"].depth)
    assert np.any(scenes["masked"].depth != scenes["plain"].depth)


def test_masks_of_several_sources_are_joined(model, result):
    masks = np.zeros((5, 32, 48), bool)
    masks[:, -3:, -3:] = True
    flow = jnp.zeros((len(pipeline.clip_edges(5, OPTIONS.graph)), 32, 48, 2))
    config_of = {
        name: dataclasses.replace(OPTIONS, masks=tuple(name.split("+")), reattention=False)
        for name in ("motion", "flow", "motion+flow+given")
    }
    moving = {
        name: np.asarray(
            pipeline.reconstruct(
                model, clip(5), options, given=Given(flow=flow, masks=jnp.asarray(masks))
            ).scene.dynamic_mask
        )
        for name, options in config_of.items()
    }
    assert moving["flow"].any() and np.any(moving["flow"] != moving["motion"])
    np.testing.assert_array_equal(moving["motion+flow+given"], moving["motion"] | moving["flow"] | masks)


@pytest.mark.parametrize(
    ("changes", "given", "error", "words"),
    [
        ({"masks": ("flow",)}, Given(), ConfigError, "'flow'"),
        ({"masks": ("given",)}, Given(), ConfigError, "'given'"),
        ({}, Given(flow=jnp.zeros((3, 32, 48, 2))), InputError, "does not fit 20 pairs"),
        ({"masks": ("given",)}, Given(masks=jnp.zeros((4, 32, 48), bool)), InputError, "do not fit"),
        ({}, Given(cameras=known_cameras(4)), InputError, "known for 4 frames, but the clip has 5"),
    ],
)
def test_what_does_not_fit_the_clip_is_refused(model, changes, given, error, words):
    options = dataclasses.replace(OPTIONS, graph="complete", **changes)
    with pytest.raises(error, match=words):
        pipeline.reconstruct(model, clip(5), options, given=given)


def test_unknown_mask_sources_are_refused():
    with pytest.raises(ConfigError, match="motion, flow, given"):
        PipelineConfig(masks=("sam",))
    with pytest.raises(ConfigError, match="float16"):
        PipelineConfig(point_dtype="int8")  # pyright: ignore[reportArgumentType]: the wrong name is the point


def test_keyframes_come_last_and_need_neither_flow_nor_a_refiner(model, monkeypatch):
    """Three windows of a clip and one of frames from all over it, not held to a smooth path; off, there is none."""
    frames, kept, seen = clip(11), {}, []
    alignment = AlignConfig(iterations=5, smoothing_weight=0.1)
    options, refiner, smoothing = (
        dataclasses.replace(OPTIONS, masks=("motion", "flow"), alignment=alignment),
        Corner(),
        [],
    )
    reconstruct_one = pipeline.reconstruct

    def spy(model, frames, config, **others):
        smoothing.append(config.alignment.smoothing_weight)
        return reconstruct_one(model, frames, config, **others)

    monkeypatch.setattr(pipeline, "reconstruct", spy)

    def given(numbers):
        seen.append(numbers.tolist())
        if numbers[-1] - numbers[0] > 5:
            return Given()
        edges = pipeline.clip_edges(len(numbers), options.graph)
        return Given(flow=jnp.zeros((len(edges), 32, 48, 2)))

    sides = {"window": 5, "overlap": 2, "given": given, "keep": lambda number, part: kept.update({number: part})}
    scene = reconstruct_windows(model, frames, options, refiner=refiner, **sides)
    assert seen == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10], [0, 2, 5, 8, 10]]
    assert list(kept) == [0, 1, 2, -1]
    assert len(refiner.calls) == 3 and not kept[-1].dynamic_mask[:, :6, :6].all()
    assert smoothing == [0.1, 0.1, 0.1, 0.0]
    np.testing.assert_allclose(scene.intrinsics[:, 0, 0], kept[0].intrinsics[0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(kept[-1].intrinsics[:, 0, 0], kept[0].intrinsics[0, 0, 0], rtol=1e-6)
    assert_finite(scene)
    seen.clear()
    reconstruct_windows(model, frames, options, keyframes=False, **sides, recall=lambda number: kept.get(number))
    assert not seen  # all is recalled, and no keyframes are asked for


class Corner:
    """A refiner that adds the upper left corner of every frame, and keeps what it was called with."""

    def __init__(self, size=6):
        self.size, self.calls = size, []

    def __call__(self, rgb, masks, *, observer):
        self.calls.append((rgb, masks))
        observer("refine", 0, 1, "")
        refined = masks.copy()
        refined[:, : self.size, : self.size] = True
        return refined


def test_refined_masks_are_grown_and_count_in_the_alignment_and_in_the_result(model, monkeypatch):
    masks = np.zeros((4, 32, 48), bool)
    masks[1, -6:, -6:] = True
    given, frames, refiner = Given(masks=jnp.asarray(masks)), clip(4), Corner()
    options = dataclasses.replace(OPTIONS, motion="none", masks=("given",), mask_dilation=2, reattention=False)
    align, dynamic, heard = pipeline.align.align, [], []

    def spy(*args, **kwargs):
        dynamic.append(kwargs["dynamic"])
        return align(*args, **kwargs)

    monkeypatch.setattr(pipeline.align, "align", spy)
    scene = pipeline.reconstruct(
        model, frames, options, given=given, refiner=refiner, observer=lambda stage, *_: heard.append(stage)
    ).scene
    ((rgb, seen),) = refiner.calls
    assert isinstance(rgb, np.ndarray) and isinstance(seen, np.ndarray)
    np.testing.assert_array_equal(rgb, frames.rgb)
    np.testing.assert_array_equal(seen, masks)  # not grown yet
    expected = np.zeros((4, 32, 48), bool)
    expected[:, :8, :8] = True
    expected[1, -8:, -8:] = True
    np.testing.assert_array_equal(scene.dynamic_mask, expected)
    np.testing.assert_array_equal(scene.static_mask, ~expected)
    np.testing.assert_array_equal(dynamic, [expected])
    assert heard.index("predict") < heard.index("refine") < heard.index("align")


def test_the_cues_own_masks_are_told_as_they_were(model, result):
    refined = pipeline.reconstruct(model, clip(5), OPTIONS, refiner=Corner())
    chex.assert_trees_all_equal(refined.masks, result.masks)
    corner = np.zeros((5, 32, 48), bool)
    corner[:, :6, :6] = True
    np.testing.assert_array_equal(refined.scene.dynamic_mask, result.scene.dynamic_mask | corner)


@pytest.mark.parametrize("wrong", [lambda masks: masks[1:], lambda masks: masks.astype(np.uint8)])
def test_a_refiner_must_return_masks_of_the_clip(model, wrong):
    with pytest.raises(InputError, match=r"must be bool of shape \(3, 32, 48\)"):
        pipeline.reconstruct(model, clip(3), OPTIONS, refiner=lambda rgb, masks, *, observer: wrong(masks))


def test_windows_see_their_frames_and_keep_the_first_focal_length(model):
    """Two windows of a still clip; what is known of its cameras reaches the window that it is of. Each is refined."""
    frames = clip(7)
    poses_known = np.arange(7) == 6
    cameras = known_cameras(7, poses_known=poses_known)
    seen, kept, refiner = [], {}, Corner()
    scene = reconstruct_windows(
        model,
        frames,
        OPTIONS,
        window=5,
        overlap=3,
        given=lambda numbers: seen.append(numbers.tolist()) or Given(),
        cameras=cameras,
        refiner=refiner,
        keep=lambda number, part: kept.update({number: part}),
    )
    assert seen == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    for (rgb, _), numbers in zip(refiner.calls, seen, strict=True):
        np.testing.assert_array_equal(rgb, np.asarray(frames.rgb)[numbers])
    assert scene.dynamic_mask[:, :6, :6].all()
    assert scene.depth.shape == (7, 32, 48)
    np.testing.assert_array_equal(scene.rgb, frames.rgb)
    np.testing.assert_allclose(scene.intrinsics[:, 0, 0], kept[0].intrinsics[0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(kept[1].world_from_cam[4], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(scene.world_from_cam[6], np.eye(4), atol=1e-4)
    assert_finite(scene)
