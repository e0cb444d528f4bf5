"""Static training pairs, with full variety and small images."""

import jax
import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.synthetic import PairSampling, pair_as_clip, sample_pair
from tests.rooms import DIAGONAL

SAMPLING = PairSampling(size=(16, 24))
COUNT = 96
TOGETHER = 24  # pairs drawn at a time


KEYS = jax.random.split(jax.random.key(0), COUNT)


@pytest.fixture(scope="module")
def draw():
    """Pairs for given keys, and the same as clips of two frames, whose visibility is exact. One compilation for all."""
    draw = jax.jit(jax.vmap(lambda key: (sample_pair(key, SAMPLING), pair_as_clip(key, SAMPLING))))

    def some(keys):
        parts = [draw(keys[start : start + TOGETHER]) for start in range(0, len(keys), TOGETHER)]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    return some


@pytest.fixture(scope="module")
def pairs_and_clips(draw):
    return draw(KEYS)


@pytest.fixture(scope="module")
def clips(pairs_and_clips):
    return pairs_and_clips[1]


def test_the_same_key_gives_the_same_pixels(draw, pairs_and_clips):
    """At any position in the batch."""
    backwards = jax.tree.map(lambda a: a[::-1], draw(KEYS[TOGETHER - 1 :: -1])[0])
    jax.tree.map(np.testing.assert_array_equal, backwards, jax.tree.map(lambda a: a[:TOGETHER], pairs_and_clips[0]))


def test_different_keys_give_different_pairs(clips):
    assert (clips.views.rgb[:-1] != clips.views.rgb[1:]).any(-1).mean() > 0.9
    assert len(np.unique(clips.views.intrinsics[:, 0, 0, 0])) == COUNT


def test_a_pair_as_a_clip_is_the_same_pair(pairs_and_clips):
    pairs, clips = pairs_and_clips
    np.testing.assert_allclose(clips.views.world_from_cam, pairs.world_from_cam, atol=1e-6)
    np.testing.assert_array_equal(clips.views.intrinsics, pairs.intrinsics)
    # Sums may be rounded differently, so a pixel on an edge may fall on its other side.
    assert (clips.views.instance == pairs.instance).mean() > 0.999
    assert (np.abs(clips.views.rgb.astype(int) - pairs.rgb.astype(int)) <= 1).mean() > 0.998
    assert not clips.moving.any()


def test_overlap_is_in_the_chosen_range_for_most(clips):
    common = clips.visible_forward[:, 0].mean((1, 2))
    low, high = SAMPLING.overlap
    assert ((common > low - 0.05) & (common < high + 0.05)).mean() > 0.85
    assert common.std() > 0.08  # sampled from the range, not one value
    assert common.max() < 1


def test_cameras_and_depths(clips):
    focal = clips.views.intrinsics[:, :, 0, 0]
    np.testing.assert_array_equal(focal[:, 0], focal[:, 1])
    assert (focal > 0.749 * 24).all() and (focal < 1.251 * 24).all()
    assert np.std(np.log(focal)) > 0.1
    np.testing.assert_array_equal(clips.views.intrinsics[..., :2, 2], np.tile([12, 8], (COUNT, 2, 1)))
    assert np.isfinite(clips.views.depth).all()
    # Objects and walls keep their distance from cameras, and z is less than the distance.
    assert clips.views.depth.min() > 0.1
    assert clips.views.depth.max() < DIAGONAL


def test_first_and_second_camera_differ(clips):
    start, end = clips.views.world_from_cam[:, 0], clips.views.world_from_cam[:, 1]
    cosine = (np.trace(np.swapaxes(start[:, :3, :3], 1, 2) @ end[:, :3, :3], axis1=1, axis2=2) - 1) / 2
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    assert 4 < np.median(angle) < 40
    assert np.median(np.linalg.norm(end[:, :3, 3] - start[:, :3, 3], axis=1)) > 0.2


@pytest.mark.parametrize(
    "options",
    [
        {"size": (8, 96)},
        {"num_objects": 0},
        {"candidates": 0},
        {"overlap": (0.9, 0.4)},
        {"overlap": (0.1, 1.2)},
        {"arc_deg": -1.0},
        {"arc_deg": float("nan")},
    ],
)
def test_invalid_sampling_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PairSampling(**options)
