"""Sampling of pairs: strides, proportions, redrawn pairs, and reproducibility by seed and step."""

import dataclasses
import pathlib

import numpy as np
import pytest
import scipy.stats

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.training.datasets import MONST3R_SHARES, Dataset, Mixture, SamplingConfig, Sequence, open_dataset
from easi3r_jax.training.datasets.sampling import draw_frames, overlap


def unread(num_frames, name="sequence", pairs=None):
    """A sequence that cannot be read."""

    def fail(*_):
        raise AssertionError("nothing is to be read")

    return Sequence(name, num_frames, fail, fail, fail, pairs)


def drawn(sequence, count=6000, max_stride=9):
    rng = np.random.default_rng(0)
    return np.array([draw_frames(rng, sequence, max_stride) for _ in range(count)])


@pytest.mark.parametrize(("num_frames", "longest"), [(100, 9), (10, 9), (5, 4), (2, 1)])
def test_the_probability_of_strides_grows_linearly(num_frames, longest):
    frames = drawn(unread(num_frames))
    assert frames.min() >= 0 and frames.max() < num_frames
    strides = abs(frames[:, 1] - frames[:, 0])
    counts = np.bincount(strides, minlength=longest + 1)
    assert counts[0] == 0 and len(counts) == longest + 1
    # The earlier frame comes first half of the time.
    assert scipy.stats.binomtest(int((frames[:, 0] < frames[:, 1]).sum()), len(frames)).pvalue > 1e-3
    if longest > 1:
        expected = np.arange(1, longest + 1) / np.arange(1, longest + 1).sum()
        assert scipy.stats.chisquare(counts[1:], expected * len(frames)).pvalue > 1e-3
        # Starts are uniform over the range that the stride leaves.
        starts = frames.min(1)[strides == longest - 1]
        assert scipy.stats.chisquare(np.bincount(starts, minlength=num_frames - longest + 1)).pvalue > 1e-3


def test_the_largest_stride_is_an_option():
    frames = drawn(unread(100), 500, max_stride=2)
    assert set(abs(frames[:, 1] - frames[:, 0])) == {1, 2}


def test_listed_pairs_are_drawn_uniformly_in_both_orders():
    pairs = np.array([[0, 3], [7, 2], [4, 5]])
    frames = drawn(unread(8, pairs=pairs))
    assert {tuple(pair) for pair in frames} == {(0, 3), (3, 0), (7, 2), (2, 7), (4, 5), (5, 4)}
    _, counts = np.unique(frames, axis=0, return_counts=True)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_the_proportions_of_the_mixture():
    # The proportion of a data set does not depend on its number of sequences.
    datasets = [
        (Dataset(name, pathlib.Path(), tuple(unread(50, f"{name}{k}") for k in range(1 + 5 * index))), weight)
        for index, (name, weight) in enumerate(MONST3R_SHARES.items())
    ]
    mixture = Mixture(datasets, SamplingConfig())
    rng = np.random.default_rng(0)
    names = [mixture.draw_sequence(rng)[0].name for _ in range(8000)]
    counts = [names.count(name) for name in MONST3R_SHARES]
    assert counts[0] > counts[1] > counts[3] > counts[2] > 0
    assert scipy.stats.chisquare(counts, 8000 * np.array(list(MONST3R_SHARES.values()))).pvalue > 1e-3


def test_sequences_are_weighted_by_their_pairs():
    lengths = {"short": 11, "long": 41}
    sequences = [unread(n, name) for name, n in lengths.items()]
    sequences.append(unread(3, "list", np.array([[0, 1]] * 50)))
    mixture = Mixture([(Dataset("pairs", pathlib.Path(), tuple(sequences)), 3.0)], SamplingConfig())
    rng = np.random.default_rng(0)
    names = [mixture.draw_sequence(rng)[1].name for _ in range(6000)]
    counts = [names.count(name) for name in ("short", "long", "list")]
    assert scipy.stats.chisquare(counts, [600, 2400, 3000]).pvalue > 1e-3


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config():
    return SamplingConfig(sizes=((48, 32), (48, 16)))


@pytest.fixture(scope="module")
def mixture_of(layouts, config):
    def make(**change):
        datasets = [(open_dataset(name, layouts(name).root), 1.0) for name in ("pairs", "spring", "waymo")]
        return Mixture(datasets, dataclasses.replace(config, **change))

    return make


def test_a_batch_depends_on_seed_and_step_only(mixture_of):
    first, second = mixture_of(), mixture_of()
    batches = {step: first.batch(3, step, 3) for step in range(4)}
    for step in (2, 0, 3, 1):
        for one, other in zip(batches[step], second.batch(3, step, 3), strict=True):
            np.testing.assert_array_equal(one, other)
    larger = first.batch(3, 0, 4)
    np.testing.assert_array_equal(larger.depth[:3], batches[0].depth)
    pairs = [first.pair(seed, step, index) for seed in (3, 4) for step in range(3) for index in range(3)]
    assert len({(pair.sequence, pair.frames, pair.arrays.intrinsics.tobytes()) for pair in pairs}) == len(pairs)
    assert len({pair.dataset for pair in pairs}) == 3


def test_a_batch_has_one_size_and_steps_use_all_sizes(mixture_of, config):
    mixture = mixture_of()
    sizes = set()
    for step in range(6):
        batch = mixture.batch(0, step, 2)
        height, width = batch.depth.shape[2:]
        assert batch.rgb.shape == (2, 2, height, width, 3)
        assert batch.intrinsics.shape == (2, 2, 3, 3) and batch.world_from_cam.shape == (2, 2, 4, 4)
        assert mixture.size(0, step) == (width, height)
        sizes.add((width, height))
    assert sizes == set(config.sizes)


def test_crops_vary_within_their_range(layouts):
    truth = layouts("pairs")
    dataset = open_dataset("pairs", truth.root)

    def focal_lengths(low, high):
        config = SamplingConfig(sizes=((48, 32),), crop_scale=(low, high))
        mixture = Mixture([(dataset, 1.0)], config)
        return np.array([mixture.pair(0, step, 0).arrays.intrinsics[0, 0, 0] for step in range(12)])

    widest = focal_lengths(1.0, 1.0)
    np.testing.assert_allclose(widest, widest[0], rtol=1e-6)
    shares = widest[0] / focal_lengths(0.5, 0.9)
    assert (shares >= 0.5).all() and (shares <= 0.9).all() and np.ptp(shares) > 0.2


# --- unusable pairs -------------------------------------------------------------------------------------------------


def test_unusable_pairs_are_redrawn_and_counted(write, change_truth, config):
    truth = write("pairs")
    with np.load(truth.folder / "ground_truth.npz") as file:
        depth = file["depth"]
    depth[1] = np.nan
    poses = truth.world_from_cam.copy()
    poses[2] = np.inf
    poses[4, :3, :3] *= 1.5
    change_truth(truth, depth=depth, world_from_cam=poses)
    mixture = Mixture([(open_dataset("pairs", truth.root), 1.0)], config)
    pairs = [mixture.pair(0, step, 0) for step in range(10)]
    assert {frame for pair in pairs for frame in pair.frames} == {0, 3, 5}
    assert set(mixture.redrawn) == {"a pose that is not finite or not rigid", "no known depth"}
    again = Mixture([(open_dataset("pairs", truth.root), 1.0)], mixture.config)
    assert [again.pair(0, step, 0).frames for step in range(10)] == [pair.frames for pair in pairs]
    assert again.redrawn == mixture.redrawn


@pytest.mark.parametrize("unknown", [0.0, np.nan, -1.0, np.inf])
def test_an_unusable_sequence_is_named(write, change_truth, config, unknown):
    truth = write("pairs")
    change_truth(truth, depth=np.full((6, *truth.shape), unknown, np.float32))
    mixture = Mixture([(open_dataset("pairs", truth.root), 1.0)], config)
    with pytest.raises(InputError, match=r"room: none of 32 pairs .*32 times no known depth.*remove it") as error:
        mixture.batch(0, 0, 1)
    assert "\n" not in str(error.value)


def test_pairs_without_overlap_are_skipped(write, config):
    """Frame 5 looks the other way: its pairs are skipped. If there are no others, that is an error."""
    truth = write("pairs")
    with np.load(truth.folder / "ground_truth.npz") as file:
        arrays = dict(file)
    arrays["world_from_cam"][5] = np.diag([-1.0, 1, -1, 1])
    np.savez(truth.folder / "ground_truth.npz", **arrays)
    (truth.folder / "pairs.txt").write_text("# some of these have no overlap\n0 5\n\n1 3\n5 2  # nor these\n")
    mixture = Mixture([(open_dataset("pairs", truth.root), 1.0)], config)
    assert {tuple(sorted(mixture.pair(0, step, 0).frames)) for step in range(8)} == {(1, 3)}
    assert set(mixture.redrawn) == {"no overlap of the two views"}
    (truth.folder / "pairs.txt").write_text("0 5\n5 1\n")
    mixture = Mixture([(open_dataset("pairs", truth.root), 1.0)], config)
    with pytest.raises(InputError, match=r"room: none of .* no overlap"):
        mixture.batch(0, 0, 1)


def wall(depth, shift, density=1.0, zoom=1.0):
    """Overlap of two cameras in front of a wall; the second one is moved to the right and zoomed in."""
    z = np.full((2, 30, 40), depth, np.float32)
    z *= np.random.default_rng(0).random(z.shape) < density
    intrinsics = np.tile(np.array([[20.0, 0, 20], [0, 20, 15], [0, 0, 1]]), (2, 1, 1))
    intrinsics[1, :2, :2] *= zoom
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = shift
    return overlap(z, intrinsics, poses)


def test_overlap_of_a_wall():
    assert wall(2.0, 0.0) == 1.0
    np.testing.assert_allclose(wall(2.0, 1.0), 30 / 40, atol=0.02)  # ten pixels of disparity
    np.testing.assert_allclose(wall(2.0, -3.0), 10 / 40, atol=0.02)
    np.testing.assert_allclose(wall(2.0, 1.0, density=0.2), 30 / 40, atol=0.1)
    assert wall(2.0, 4.5) == 0.0
    assert wall(0.0, 0.0) == 0.0
    assert wall(2.0, 0.0, zoom=8.0) == 1.0  # the first view shows all of the second


def test_occluded_points_are_not_visible():
    z = np.full((2, 30, 40), 2.0, np.float32)
    z[1] = 1.0  # a board in front of the second camera
    intrinsics = np.tile(np.array([[20.0, 0, 20], [0, 20, 15], [0, 0, 1]]), (2, 1, 1))
    assert overlap(z, intrinsics, np.tile(np.eye(4), (2, 1, 1))) == 0.0


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": ()},
        {"sizes": ((512, 0),)},
        {"max_stride": 0},
        {"max_draws": 0},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.9, 0.8)},
        {"crop_scale": (0.5, 1.1)},
        {"crop_scale": (float("nan"), 1.0)},
        {"min_overlap": 1.0},
        {"min_overlap": -0.1},
    ],
)
def test_invalid_options(change):
    with pytest.raises(ConfigError):
        SamplingConfig(**change)


def test_invalid_mixtures(layouts, config):
    dataset = open_dataset("pairs", layouts("pairs").root)
    for datasets in ([], [(dataset, 0.0)], [(dataset, 1.0), (dataset, -1.0)], [(dataset, float("nan"))]):
        with pytest.raises(ConfigError):
            Mixture(datasets, config)
    mixture = Mixture([(dataset, 1.0)], config)
    with pytest.raises(ConfigError):
        mixture.batch(0, 0, 0)
    with pytest.raises(ConfigError):
        mixture.batch(-1, 0, 1)
