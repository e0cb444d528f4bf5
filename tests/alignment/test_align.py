"""The complete stage: known scenes, degenerate inputs, and inputs that it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import alignment
from easi3r_jax.core.errors import ConfigError, InputError
from tests.alignment.aligned import aligned


@pytest.fixture(scope="module")
def clip(exact_clip):
    return exact_clip()


@pytest.fixture
def quick(config):
    return dataclasses.replace(config, iterations=60)


def assert_usable(result, num_frames=4, iterations=60):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
    assert {x.dtype for x in jax.tree.leaves(result)} == {np.dtype(np.float32)}
    rotation = np.asarray(result.world_from_cam[:, :3, :3])
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (num_frames, 1, 1)), atol=1e-5
    )
    assert (result.depth > 0).all()
    assert (result.intrinsics[:, 0, 0] > 0).all()
    assert result.losses.shape == (iterations,)


def test_perfect_predictions_give_the_scene(clip, quick):
    """Without the temporal term, which draws the cameras together."""
    result = aligned(clip.predictions, dataclasses.replace(quick, iterations=300, smoothing_weight=0.0))
    assert_usable(result, iterations=300)
    ours = np.linalg.inv(np.asarray(result.world_from_cam[0], np.float64)) @ np.asarray(result.world_from_cam)
    size = np.median(result.depth / clip.depth)
    ours[:, :3, 3] /= size
    np.testing.assert_allclose(ours, clip.world_from_cam, atol=0.01)
    np.testing.assert_allclose(result.depth, size * clip.depth, rtol=0.02)
    np.testing.assert_allclose(result.intrinsics[:, 0, 0], clip.focals, rtol=5e-3)


def test_the_same_bits_twice_and_other_bits_from_other_predictions(clip, quick):
    first, again = (aligned(clip.predictions, quick, seed=5) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    louder = dataclasses.replace(clip.predictions, confidence_i=2 * clip.predictions.confidence_i)
    assert np.any(aligned(louder, quick, seed=5).depth != first.depth)


@pytest.mark.parametrize("level", [1.0, 2.0, 20.0])
def test_constant_confidence(level, clip, quick):
    """All pairs are equally good, all pixels equally confident; at 1 nothing weighs anything and the start stays."""
    flat = jnp.full_like(clip.predictions.confidence_i, level)
    flat = dataclasses.replace(clip.predictions, confidence_i=flat, confidence_j=flat)
    result = aligned(flat, dataclasses.replace(quick, smoothing_weight=0.0))
    assert_usable(result)
    if level == 1:
        np.testing.assert_array_equal(result.losses, 0)
        start = alignment.initial_state(flat, quick)
        np.testing.assert_array_equal(result.depth, jnp.exp(start.log_depth))


def test_identical_frames(clip, quick):
    """A static camera: all maps are the same."""
    points = jnp.tile(clip.predictions.points_i[:1], (12, 1, 1, 1))
    still = dataclasses.replace(clip.predictions, points_i=points, points_j=points)
    result = aligned(still, quick)
    assert_usable(result)
    poses = np.asarray(result.world_from_cam)
    np.testing.assert_allclose(poses, np.tile(poses[:1], (4, 1, 1)), atol=0.02)


@pytest.mark.parametrize("what", ["one point", "the origin", "a plane", "behind the camera", "nearly nothing"])
def test_maps_that_show_no_scene(what, clip, quick):
    points = clip.predictions.points_i
    points = {
        "one point": jnp.ones_like(points),
        "the origin": jnp.zeros_like(points),
        "a plane": points.at[..., 2].set(2.0),
        "behind the camera": points.at[..., 2].multiply(-1),
        "nearly nothing": 1e-15 * points,
    }[what]
    assert_usable(aligned(dataclasses.replace(clip.predictions, points_i=points, points_j=points), quick))


def test_one_bad_pair_does_not_distort_the_scene(clip, quick):
    """The worst pair is nonsense of low confidence."""
    bad = clip.predictions.points_j.at[3].set(jnp.asarray([50.0, -20.0, 1.0])[None, None])
    predictions = dataclasses.replace(
        clip.predictions,
        points_j=bad,
        confidence_i=clip.predictions.confidence_i.at[3].set(1.01),
        confidence_j=clip.predictions.confidence_j.at[3].set(1.01),
    )
    good, hurt = (aligned(p, quick) for p in (clip.predictions, predictions))
    np.testing.assert_allclose(hurt.world_from_cam, good.world_from_cam, atol=0.1)


@pytest.mark.parametrize("field", ["points_i", "points_j", "confidence_i", "confidence_j"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused(field, value, clip, quick):
    broken = getattr(clip.predictions, field).at[5, 3, 3].set(value)
    with pytest.raises(InputError, match="infinite or NaN"):
        aligned(dataclasses.replace(clip.predictions, **{field: broken}), quick)


def test_predictions_whose_squares_overflow_are_refused(clip, quick):
    far = dataclasses.replace(clip.predictions, points_i=clip.predictions.points_i * 1e30)
    with pytest.raises(InputError, match="overflows"):
        aligned(far, quick)


def test_unconnected_frames_are_named(clip, quick):
    edges = np.asarray(clip.predictions.edges)
    apart = np.flatnonzero((edges // 2)[:, 0] == (edges // 2)[:, 1])  # 0 with 1, 2 with 3
    with pytest.raises(ConfigError, match="2 parts, frame 2 is not connected"):
        aligned(jax.tree.map(lambda x: x[apart], clip.predictions), quick)


@pytest.mark.parametrize("wrong", [4, -1])
def test_frames_that_do_not_exist_are_refused(wrong, clip, quick):
    edges = clip.predictions.edges.at[2, 1].set(wrong)
    with pytest.raises(InputError, match=r"frames 0\.\.3"):
        aligned(dataclasses.replace(clip.predictions, edges=edges), quick)


def test_no_pairs_are_refused(clip, quick):
    with pytest.raises(InputError):
        aligned(jax.tree.map(lambda x: x[:0], clip.predictions), quick)


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_progress_ends_where_it_said_it_would(num_frames, clip, quick):
    edges = np.asarray(clip.predictions.edges)
    chosen = np.flatnonzero(edges.max(axis=1) < max(num_frames, 2))
    predictions = jax.tree.map(lambda x: x[chosen], dataclasses.replace(clip.predictions, num_frames=num_frames))
    if num_frames == 1:
        predictions = dataclasses.replace(predictions, edges=jnp.zeros_like(predictions.edges))
    told = []
    aligned(predictions, quick, progress=lambda *report: told.append(report))
    total = told[0][2]
    assert [(stage, done) for stage, done, _, _ in (told[0], told[-1])] == [("align", 0), ("align", total)]
    assert total == (60 if num_frames > 2 else 1)


@pytest.mark.parametrize("release", [False, True])
def test_predictions_are_freed_when_no_longer_needed(release, clip, quick):
    copy = jax.tree.map(lambda x: x.copy(), clip.predictions)
    result = aligned(copy, quick, release=release)
    assert_usable(result)
    arrays = [copy.points_i, copy.points_j, copy.confidence_i, copy.confidence_j]
    assert [x.is_deleted() for x in arrays] == [release] * 4
    np.testing.assert_array_equal(result.depth, aligned(clip.predictions, quick).depth)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 3e-3), ("bfloat16", 2e-2)])
def test_observations_may_be_half_as_long(dtype, tolerance, clip, quick, convertible):
    convertible(dtype)
    exact = aligned(clip.predictions, quick)
    short = dataclasses.replace(
        clip.predictions,
        **{k: v.astype(dtype) for k, v in vars(clip.predictions).items() if k[:4] in ("poin", "conf")},
    )
    result = aligned(short, quick)
    assert_usable(result)
    np.testing.assert_allclose(np.median(result.depth / exact.depth), 1, atol=tolerance)
    np.testing.assert_allclose(result.world_from_cam, exact.world_from_cam, atol=3 * tolerance)
    problems = [alignment.make_problem(predictions, quick) for predictions in (clip.predictions, short)]
    sizes = [sum(x.nbytes for x in p.points_i) for p in problems]
    assert sizes[1] == sizes[0] / 2
    # Half as long in the loop, too: no copy of all of them at full length.
    start, gradient = alignment.initial_state(short, quick), jax.jit(jax.grad(alignment.total_loss))
    needed = [gradient.lower(start, p).compile().memory_analysis().temp_size_in_bytes for p in problems]
    assert needed[1] <= needed[0] + 0.1 * sizes[0]
