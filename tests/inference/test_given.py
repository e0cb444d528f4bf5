"""Optional inputs of the pipeline: masks, flow, cameras, a refiner, windows."""

import dataclasses
import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import alignment
from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Given
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.refine import ReprojectionRefiner
from easi3r_jax.inference.windows import reconstruct_windows
from tests.inference.small import OPTIONS, Corner, assert_finite, clip, known_cameras


def test_given_masks_count_in_the_attention_and_in_the_result(model):
    """Without a cue for motion one pass is enough; the points are those of masked attention."""
    frames, masks = clip(4), np.zeros((4, 32, 48), bool)
    masks[1, :16, :16] = True
    plain = dataclasses.replace(OPTIONS, cue="none", masks=())
    own = dataclasses.replace(plain, masks=("given",), mask_dilation=2)
    scenes = {
        name: pipeline.reconstruct(
            model, frames, options, given=Given(masks=jnp.asarray(masks)) if options.masks else Given()
        ).scene
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


def test_masks_of_several_sources_are_joined(model):
    masks = np.zeros((4, 32, 48), bool)
    masks[:, -3:, -3:] = True
    flow = jnp.zeros((len(pipeline.clip_edges(4, OPTIONS.graph)), 32, 48, 2))
    config_of = {
        name: dataclasses.replace(OPTIONS, masks=tuple(name.split("+")), reattention=False)
        for name in ("motion", "flow", "motion+flow+given")
    }
    moving = {
        name: np.asarray(
            pipeline.reconstruct(
                model,
                clip(4),
                options,
                given=Given(flow=flow, masks=jnp.asarray(masks) if "given" in options.masks else None),
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
    options = dataclasses.replace(OPTIONS, **changes)
    with pytest.raises(error, match=words):
        pipeline.reconstruct(model, clip(5), options, given=given)


def test_unknown_mask_sources_are_refused():
    with pytest.raises(ConfigError, match="motion, flow, given"):
        PipelineConfig(masks=("sam",))
    with pytest.raises(ConfigError, match="float16"):
        PipelineConfig(point_dtype="int8")  # pyright: ignore[reportArgumentType]: the wrong name is the point


class Kept:
    """Keeps windows' scenes in memory."""

    def __init__(self):
        self.scenes = {}

    def recall(self, number):
        return self.scenes.get(number)

    def keep(self, number, scene):
        self.scenes[number] = scene


@pytest.mark.slow
def test_keyframes_come_last_and_need_neither_flow_nor_a_refiner(model, monkeypatch):
    """Three windows and one of keyframes, without the smoothness term; switched off, there are no keyframes."""
    frames, seen = clip(11), []
    smooth = AlignConfig(iterations=5, smoothing_weight=0.1)
    options, refiner, smoothing = (
        dataclasses.replace(OPTIONS, masks=("motion", "flow"), alignment=smooth),
        Corner(),
        [],
    )
    reconstruct_one = pipeline.reconstruct

    def spy(model, frames, config, **others):
        smoothing.append(config.alignment.smoothing_weight)
        return reconstruct_one(model, frames, config, **others)

    monkeypatch.setattr(pipeline, "reconstruct", spy)

    def flow(frames, edges, *, progress):
        seen.append(frames.source_index.tolist())
        return np.zeros((len(edges), 32, 48, 2), np.float32), None

    store = Kept()
    sides = {"window": 5, "overlap": 2, "flow": flow, "store": store}
    scene = reconstruct_windows(model, frames, options, refiner=refiner, **sides).scene
    assert seen == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10]]  # not the keyframes'
    kept = store.scenes
    assert list(kept) == [0, 1, 2, -1]
    assert len(refiner.calls) == 3 and not kept[-1].dynamic_mask[:, :6, :6].all()
    np.testing.assert_array_equal(kept[-1].rgb, np.asarray(frames.rgb)[[0, 2, 5, 8, 10]])
    assert smoothing == [0.1, 0.1, 0.1, 0.0]
    np.testing.assert_allclose(scene.intrinsics[:, 0, 0], kept[0].intrinsics[0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(kept[-1].intrinsics[:, 0, 0], kept[0].intrinsics[0, 0, 0], rtol=1e-6)
    assert_finite(scene)
    smoothing.clear()
    reconstruct_windows(model, frames, options, keyframes=False, **sides)
    assert not smoothing  # all is recalled, and no keyframes are asked for


def test_refined_masks_are_grown_and_count_in_the_alignment_and_in_the_result(model, monkeypatch):
    masks = np.zeros((4, 32, 48), bool)
    masks[1, -6:, -6:] = True
    given, frames, refiner = Given(masks=jnp.asarray(masks)), clip(4), Corner()
    options = dataclasses.replace(OPTIONS, cue="none", masks=("given",), mask_dilation=2, reattention=False)
    align, dynamic, heard = pipeline.alignment.align, [], []

    def spy(*args, **kwargs):
        dynamic.append(kwargs["dynamic_mask"])
        return align(*args, **kwargs)

    monkeypatch.setattr(pipeline.alignment, "align", spy)
    scene = pipeline.reconstruct(
        model, frames, options, given=given, refiner=refiner, progress=lambda stage, *_: heard.append(stage)
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


def test_refinement_leaves_the_score_unchanged(model, result):
    refined = pipeline.reconstruct(model, clip(4), OPTIONS, refiner=Corner())
    np.testing.assert_array_equal(refined.scene.dynamic_score, result.scene.dynamic_score)
    corner = np.zeros((4, 32, 48), bool)
    corner[:, :6, :6] = True
    np.testing.assert_array_equal(refined.scene.dynamic_mask, result.scene.dynamic_mask | corner)


@pytest.mark.parametrize("wrong", [lambda masks: masks[1:], lambda masks: masks.astype(np.uint8)])
def test_a_refiner_must_return_masks_of_the_clip(model, wrong):
    with pytest.raises(InputError, match=r"must be bool of shape \(4, 32, 48\)"):
        pipeline.reconstruct(model, clip(4), OPTIONS, refiner=lambda rgb, masks, *, progress: wrong(masks))


@pytest.mark.parametrize("count", [2, 4])
def test_masks_are_refined_by_reprojection(model, count):
    """Without flow the alignment does not depend on the masks, so that its depth stays the same."""
    masks = np.zeros((count, 32, 48), bool)
    masks[:, 8:24, 8:24] = True
    given, frames = Given(masks=jnp.asarray(masks)), clip(count)
    options = dataclasses.replace(OPTIONS, cue="none", masks=("given",), reattention=False)
    plain, refined = (
        pipeline.reconstruct(model, frames, options, given=given, refiner=refiner).scene
        for refiner in (None, ReprojectionRefiner(closing=0, dilation=0))
    )
    assert not np.any(refined.dynamic_mask & ~masks)
    np.testing.assert_array_equal(refined.depth, plain.depth)
    np.testing.assert_array_equal(refined.static_mask, ~refined.dynamic_mask)


class Counted(Kept):
    """Hands out copies, counts those that are alive, and records JAX's arrays at the end of each window."""

    def __init__(self):
        super().__init__()
        self.handed_out, self.most, self.arrays = [], 0, []

    def recall(self, number):
        scene = super().recall(number)
        if scene is not None:
            scene = dataclasses.replace(scene)
            self.handed_out.append(weakref.ref(scene))
            self.most = max(self.most, sum(reference() is not None for reference in self.handed_out))
        return scene

    def keep(self, number, scene):
        super().keep(number, jax.tree.map(np.array, scene))  # as if written to a file: none of the window's own arrays
        gc.collect()  # arrays of earlier tests
        held = jax.live_arrays()
        self.arrays.append((len(held), sum(x.nbytes for x in held)))


def test_memory_of_windows_does_not_grow_with_the_clip(model):
    """Every window leaves as many arrays on the device as the first; a join of stored windows holds two at a time."""
    store, windows = Counted(), 4
    frames = clip(2 * windows + 2)
    options = dataclasses.replace(OPTIONS, cue="none", alignment=AlignConfig(iterations=2))
    scene = reconstruct_windows(model, frames, options, window=4, overlap=2, keyframes=False, store=store).scene
    assert len(store.arrays) == len(store.scenes) == windows and len(scene.depth) == len(frames.rgb)
    assert all(np.less_equal(later, store.arrays[1]).all() for later in store.arrays[2:])
    assert 2 <= store.most <= 3
    ranges = alignment.window_ranges(len(frames.rgb), 4, 2)
    chex.assert_trees_all_equal(scene, alignment.join_windows([*store.scenes.values()], ranges))


def test_windows_that_vanish_from_the_store_are_an_error(model):
    class Forgetful(Kept):
        def keep(self, number, scene):
            pass

    options = dataclasses.replace(OPTIONS, cue="none", alignment=AlignConfig(iterations=2))
    with pytest.raises(InputError, match="Window 1 of 2 is no longer stored"):
        reconstruct_windows(model, clip(6), options, window=4, overlap=2, store=Forgetful())


def test_windows_see_their_frames_and_keep_the_first_focal_length(model):
    """Two windows of a static clip; each gets the known cameras of its own frames. Each is refined."""
    frames = clip(6)
    poses_known = np.arange(6) == 5
    cameras = known_cameras(6, poses_known=poses_known)
    masks = np.zeros((6, 32, 48), bool)
    masks[2, -4:] = True
    store, refiner = Kept(), Corner()
    options = dataclasses.replace(OPTIONS, masks=("given",))
    given = Given(masks=jnp.asarray(masks), cameras=cameras)
    scene = reconstruct_windows(
        model, frames, options, window=4, overlap=2, given=given, refiner=refiner, store=store
    ).scene
    kept = store.scenes
    for (rgb, of_window), numbers in zip(refiner.calls, ([0, 1, 2, 3], [2, 3, 4, 5]), strict=True):
        np.testing.assert_array_equal(rgb, np.asarray(frames.rgb)[numbers])
        np.testing.assert_array_equal(of_window, masks[numbers])
    with pytest.raises(InputError, match=r"\(5, 32, 48\) do not fit a clip of shape \(6, 32, 48\)"):
        reconstruct_windows(model, frames, options, window=4, overlap=2, given=Given(masks=jnp.asarray(masks[:5])))
    with pytest.raises(InputError):
        reconstruct_windows(model, frames, options, window=4, overlap=2, given=Given(cameras=known_cameras(5)))
    with pytest.raises(InputError, match="must return two things"):
        pipeline.reconstruct(model, frames, OPTIONS, flow=lambda frames, edges, *, progress: np.zeros((len(edges), 2)))
    with pytest.raises(InputError, match="pass a source"):
        reconstruct_windows(model, frames, options, window=4, overlap=2, given=Given(flow=jnp.zeros((1, 32, 48, 2))))
    assert scene.dynamic_mask[:, :6, :6].all()
    assert scene.depth.shape == (6, 32, 48)
    np.testing.assert_array_equal(scene.rgb, frames.rgb)
    np.testing.assert_allclose(scene.intrinsics[:, 0, 0], kept[0].intrinsics[0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(kept[1].world_from_cam[3], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(scene.world_from_cam[5], np.eye(4), atol=1e-4)
    assert_finite(scene)
