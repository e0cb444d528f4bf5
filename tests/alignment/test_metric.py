"""Metres: the alignment of metric pairs keeps their unit."""

import dataclasses

import jax
import numpy as np
import pytest

from easi3r_jax import alignment
from easi3r_jax.alignment.metric import weighted_median
from easi3r_jax.core.config import AlignConfig

CONFIG = AlignConfig(iterations=100)


@pytest.fixture(scope="module")
def metric_clip(exact_clip):
    """Pairs whose scales are wrong by about a tenth, as of a network that predicts metres, and the clip."""
    clip = exact_clip(noise=0.02, seed=3)
    own = np.exp(0.1 * np.random.default_rng(0).standard_normal(len(clip.pair_scale)))
    factor = (own / clip.pair_scale).astype(np.float32)[:, None, None, None]
    points = {name: getattr(clip.predictions, name) * factor for name in ("points_i", "points_j")}
    return clip, dataclasses.replace(clip.predictions, **points, metric=True), own


def off(geometry, clip):
    """By which factor depth is too large."""
    return float(np.median(np.asarray(geometry.depth)[: len(clip.depth)] / clip.depth))


def aligned(predictions, **options):
    return alignment.align(predictions, dataclasses.replace(CONFIG, **options))[0]


def test_the_scene_of_metric_pairs_is_in_metres(metric_clip):
    clip, predictions, own = metric_clip
    geometry = aligned(predictions)
    assert off(geometry, clip) == pytest.approx(np.median(own), rel=0.03)
    assert off(geometry, clip) == pytest.approx(1, rel=0.05)
    path = np.linalg.norm(
        np.asarray(geometry.world_from_cam)[-1, :3, 3] - np.asarray(geometry.world_from_cam)[0, :3, 3]
    )
    true_path = np.linalg.norm(clip.world_from_cam[-1, :3, 3] - clip.world_from_cam[0, :3, 3])
    assert path == pytest.approx(true_path, rel=0.1)


def test_a_metre_twice_as_long_doubles_the_scene(metric_clip):
    clip, predictions, _ = metric_clip
    twice = dataclasses.replace(predictions, points_i=2 * predictions.points_i, points_j=2 * predictions.points_j)
    assert off(aligned(twice), clip) == pytest.approx(2 * off(aligned(predictions), clip), rel=1e-3)


def test_a_few_wrong_pairs_do_not_change_the_unit(metric_clip):
    clip, predictions, own = metric_clip
    wrong = np.ones((len(own), 1, 1, 1), np.float32)
    wrong[[1, 4]] = 5
    points = {name: getattr(predictions, name) * wrong for name in ("points_i", "points_j")}
    assert off(aligned(dataclasses.replace(predictions, **points)), clip) == pytest.approx(1, rel=0.08)


def test_without_the_option_or_the_network_the_unit_is_the_optimisers(metric_clip):
    """Of pairs that agree, the optimiser's metre is half as long."""
    clip, predictions, own = metric_clip
    half = 0.5 * np.exp(np.mean(np.log(own)))
    for geometry in (
        aligned(predictions, keep_metres=False),
        aligned(dataclasses.replace(predictions, metric=False)),
    ):
        assert off(geometry, clip) == pytest.approx(half, rel=0.03)


def test_padding_does_not_change_the_unit(metric_clip):
    clip, predictions, _ = metric_clip
    count = len(clip.pair_scale)
    longer = jax.tree.map(lambda x: np.concatenate([x, np.repeat(np.asarray(x)[-1:], 4, 0)]), predictions)
    padded = dataclasses.replace(longer, valid=np.arange(count + 4) < count)
    assert off(aligned(padded), clip) == pytest.approx(off(aligned(predictions), clip), rel=5e-3)


def test_known_poses_give_their_own_unit(metric_clip):
    clip, predictions, _ = metric_clip
    known = alignment.nothing_known(len(clip.depth))
    poses = clip.world_from_cam.copy()
    poses[:, :3, 3] *= 7
    known = dataclasses.replace(known, world_from_cam=poses, poses_known=np.ones(len(poses), bool))
    geometry, _ = alignment.align(predictions, CONFIG, known=known)
    assert off(geometry, clip) == pytest.approx(7, rel=0.1)


@pytest.mark.parametrize("frames", [1, 2])
def test_one_and_two_frames_are_in_metres(exact_clip, frames):
    clip = exact_clip(2, seed=5)
    factor = (1 / clip.pair_scale).astype(np.float32)[:, None, None, None]
    points = {name: getattr(clip.predictions, name) * factor for name in ("points_i", "points_j")}
    predictions = dataclasses.replace(clip.predictions, **points, metric=True)
    if frames == 1:
        alone = {name: x[:1] for name, x in vars(predictions).items() if name not in ("valid", "num_frames", "metric")}
        alone["edges"] = np.zeros((1, 2), np.int32)
        predictions = dataclasses.replace(predictions, **alone, num_frames=1)
    geometry = alignment.align(predictions, CONFIG)[0]
    np.testing.assert_allclose(geometry.depth, clip.depth[:frames], rtol=2e-3)


@pytest.mark.parametrize(
    ("values", "weights", "median"),
    [
        ([3.0], [1.0], 3),
        ([9.0, 1.0], [1.0, 1.0], 5),
        ([5.0, 1.0, 2.0], [1.0] * 3, 2),
        ([5.0, 1.0, 2.0], [9.0, 1.0, 1.0], 5),
    ],
)
def test_the_weighted_median(values, weights, median):
    assert weighted_median(np.array(values), np.array(weights)) == pytest.approx(median)


def test_a_camera_that_only_turns_keeps_metres_and_one_that_moves_does_not(metric_clip):
    clip, predictions, _ = metric_clip
    turning, moving = clip.world_from_cam.copy(), clip.world_from_cam.copy()
    turning[:, :3, 3] = 1e-4 * np.random.default_rng(0).standard_normal((len(turning), 3))
    moving[:, :3, 3] *= 7
    for poses, fixes in ((turning, False), (moving, True)):
        known = dataclasses.replace(
            alignment.nothing_known(len(poses)), world_from_cam=poses, poses_known=np.ones(len(poses), bool)
        )
        assert alignment.scale_is_known(known)  # undecided: the poses do lie apart
        decided = alignment.decided_cameras(predictions, known, CONFIG)
        assert alignment.scale_is_known(decided) == fixes
        geometries = [alignment.align(predictions, CONFIG, known=cameras)[0] for cameras in (known, decided)]
        np.testing.assert_array_equal(*(np.asarray(x.depth) for x in geometries))
