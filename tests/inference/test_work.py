"""Bounds on the pipeline's work and memory: batches, shared shapes, progress reports."""

import dataclasses
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.types import Given, silent
from easi3r_jax.inference import passes, pipeline
from easi3r_jax.inference.clip import prepare
from easi3r_jax.models.encoder import Encoder
from tests.inference.small import OPTIONS, Corner, assert_finite, clip, known_cameras
from tests.starts import CommonStart


@pytest.mark.parametrize(("batch", "frame_batch"), [(1, 3), (7, 7)])
def test_batches_do_not_change_statistics_and_points(model, batch, frame_batch):
    """Neither how pairs and frames are batched nor the padding of the last batch shows in the result."""
    frames = clip(4)
    grid = model.grid(frames.rgb.shape[1:3])
    edges = pipeline.clip_edges(4, "complete")
    features = pipeline.encode(model, frames)
    np.testing.assert_allclose(pipeline.encode(model, frames, batch=frame_batch), features, atol=1e-5)
    dynamic = jnp.asarray(np.random.default_rng(0).random((4, 24)) < 0.3)
    expected = pipeline.prediction_pass(model, features, edges, grid, dynamic_tokens=dynamic, batch=len(edges))
    ours = pipeline.prediction_pass(model, features, edges, grid, dynamic_tokens=dynamic, batch=batch)
    chex.assert_trees_all_close(ours, expected, atol=2e-5)
    first = pipeline.attention_pass(model, features, edges, grid, batch=batch)
    unmasked = pipeline.prediction_pass(model, features, edges, grid, batch=len(edges))[1]
    chex.assert_trees_all_close(first, unmasked, atol=2e-5)


def test_every_frame_is_encoded_once(model):
    seen = []
    original = Encoder.__call__

    def counting(self, images, **options):
        jax.debug.callback(lambda n: seen.append(int(n)), images.shape[0])
        return original(self, images, **options)

    with mock.patch.object(Encoder, "__call__", counting):
        passes._encode_batch.clear_cache()  # traced again, with what counts
        pipeline.reconstruct(model, clip(4), dataclasses.replace(OPTIONS, frame_batch=2))
        jax.effects_barrier()
    passes._encode_batch.clear_cache()
    assert seen == [2, 2]


def test_nothing_is_compiled_between_pair_batches(model):
    """Twelve pairs in batches of five, which no other test has: the last one is padded, so it has no new shape."""
    compiled, heard = [], {}

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    def observe(stage, done, total, note):
        if stage in ("attention", "predict") and 0 < done < total:
            heard.setdefault(stage, []).append(len(compiled))

    frames = clip(4)
    before = passes._network_batch._cache_size()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        pipeline.reconstruct(model, frames, dataclasses.replace(OPTIONS, pair_batch=5), progress=observe)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) > 3  # the listener does hear
    for stage in ("attention", "predict"):
        second, third = heard[stage]
        assert second == third, stage
    assert passes._network_batch._cache_size() == before + 2  # without and with heads


SHARED = dataclasses.replace(
    OPTIONS,
    graph="swinstride-3-noncyclic",
    shared_shapes=True,
    seed=1,
    alignment=dataclasses.replace(OPTIONS.alignment, depth_weight=0.1, smoothing_weight=0.1, shared_focal=False),
    masks=("motion", "given"),
    mask_dilation=1,
)


def given_for(count):
    masks = np.zeros((count, 16, 24), bool)
    masks[16, :8, :8] = True
    flow = np.random.default_rng(0).normal(0, 1, (len(pipeline.clip_edges(count, SHARED.graph)), 16, 24, 2))
    return Given(masks=jnp.asarray(masks), flow=jnp.asarray(flow, jnp.float32))


def padding(model, config, given):
    """Frames and pairs of 17 frames' arrays."""
    ready = prepare(model, clip(17, height=16, width=24), config, given, None, None, silent)
    assert (ready.length, ready.num_pairs) == (17, len(pipeline.clip_edges(17, config.graph)))
    return len(ready.frames.rgb), len(ready.edges)


@pytest.fixture(scope="module")
def shared(model):
    """17 frames in arrays of 18, the refiner that was asked, and where the alignment started."""
    corner = Corner()
    frames = clip(17, height=16, width=24)
    with CommonStart() as start:
        return pipeline.reconstruct(model, frames, SHARED, given=given_for(17), refiner=corner), corner, start


@pytest.mark.slow
def test_a_clip_with_room_in_its_arrays_gives_the_same_result(model, shared):
    """Nothing of the padding shows in the clip's result."""
    assert padding(model, SHARED, given_for(17)) == (18, len(pipeline.clip_edges(18, SHARED.graph)))
    ours, corner, start = shared
    exact = dataclasses.replace(SHARED, shared_shapes=False)
    frames = clip(17, height=16, width=24)
    with start:
        expected = pipeline.reconstruct(model, frames, exact, given=given_for(17), refiner=Corner())
    assert start.count == 2
    assert corner.calls[0][0].shape == (17, 16, 24, 3) and corner.calls[0][1].shape == (17, 16, 24)
    # What a threshold decides may differ in a pixel that rounding takes across it: masks, and which points float.
    kept = [np.asarray(result.scene.confidence) > 0 for result in (ours, expected)]
    assert np.mean(kept[0] != kept[1]) < 1e-3
    ours, expected = (
        dataclasses.replace(
            r, scene=dataclasses.replace(r.scene, confidence=np.where(kept[0] & kept[1], r.scene.confidence, 0))
        )
        for r in (ours, expected)
    )
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        if mine.dtype == bool:
            assert np.mean(mine != other) < 1e-3
        else:
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("shared")
def test_clips_of_similar_lengths_share_everything_that_is_compiled(model):
    """After 17 frames, 18 frames compile nothing."""
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    longer, given = clip(18, height=16, width=24), given_for(18)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        pipeline.reconstruct(model, longer, SHARED, given=given, refiner=Corner())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_options_that_do_not_support_padding_get_none(model):
    config, pairs = dataclasses.replace(SHARED, masks=("motion",)), len(pipeline.clip_edges(17, SHARED.graph))
    assert padding(model, config, Given(cameras=known_cameras(17))) == (17, pairs)
    assert padding(model, dataclasses.replace(config, cue="rigid"), Given()) == (17, pairs)
    assert padding(model, dataclasses.replace(config, shared_shapes=False), Given()) == (17, pairs)


def test_progress_hears_every_stage(model):
    heard = []
    pipeline.reconstruct(
        model, clip(4), OPTIONS, progress=lambda stage, done, total, note: heard.append((stage, done, total))
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in heard))
    assert stages == ["encode", "attention", "predict", "align"]
    for stage in stages:
        mine = [(done, total) for s, done, total in heard if s == stage]
        assert mine[0][0] == 0
        assert mine[-1][0] == mine[-1][1]
        assert [d for d, _ in mine] == sorted(d for d, _ in mine)


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_point_maps_are_kept_in_half_the_memory(model, dtype, step, convertible):
    convertible(dtype)
    frames, edges = clip(4), pipeline.clip_edges(4, OPTIONS.graph)
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
