"""Agreement of masks: the benchmark's numbers, and known cases."""

import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.evaluation.metrics import (
    MaskScores,
    boundary_similarity,
    boundary_tolerance,
    davis_metrics,
    mask_boundary,
    mean_recall_decay,
    pooled_iou,
    pooled_metrics,
    region_similarity,
    roc_auc,
    score_masks,
    summarise_masks,
)


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "metrics" / "masks_JF.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("letter", "measure"), [("J", region_similarity), ("F", boundary_similarity)])
def test_equals_davis(arrays, letter, measure):
    per_frame = measure(arrays["pred"] > 0, arrays["gt"] > 0)
    np.testing.assert_allclose(per_frame, arrays[f"{letter}_per_frame_f64"], atol=1e-12)
    np.testing.assert_allclose(mean_recall_decay(per_frame), arrays[f"{letter}_mean_recall_decay_f64"], atol=1e-12)


@pytest.mark.parametrize("length", [4, 5, 7, 12, 40])
def test_statistics_equal_davis(arrays, length):
    found = mean_recall_decay(arrays[f"stat_in_{length}_f64"])
    np.testing.assert_allclose(found, arrays[f"stat_out_{length}_f64"], atol=1e-12)


def test_decay_of_long_sequences_is_defined(arrays):
    values = arrays["stat_in_300_f64"]
    mean, recall, decay = mean_recall_decay(values)
    np.testing.assert_allclose((mean, recall), arrays["stat_out_300_f64"][:2], atol=1e-12)
    assert decay == pytest.approx(values[:76].mean() - values[224:].mean())  # the benchmark itself gives NaN


@pytest.mark.parametrize(("length", "decay"), [(256, 1.0), (257, None), (300, None), (1100, 0.0)])
def test_eight_bit_ends_of_quarters_are_those_of_the_benchmark(length, decay):
    values = np.zeros(length)
    values[: length // 2] = 1
    assert mean_recall_decay(values)[2] == 1.0
    # 1100 frames: the ends 275, 824 and 1099 wrap to 19, 56 and 75, all in the first half.
    assert mean_recall_decay(values, eight_bits=True)[2] == decay


def test_a_single_frame_has_no_decay():
    assert mean_recall_decay(np.array([0.7])) == (0.7, 1.0, 0.0)


def test_known_overlaps():
    masks, truth = np.zeros((2, 8, 8), bool), np.zeros((2, 8, 8), bool)
    masks[0, :, :4], truth[0, :, 2:6] = True, True
    np.testing.assert_allclose(region_similarity(masks, truth), [1 / 3, 1.0])
    assert pooled_iou(masks, truth) == pytest.approx(1 / 3)
    masks[1] = True  # 64 more in the union
    assert pooled_iou(masks, truth) == pytest.approx(16 / 112)


def test_the_pooled_iou_of_empty_masks_is_none():
    empty = np.zeros((2, 3, 4), bool)
    assert pooled_iou(empty, empty) is None
    np.testing.assert_array_equal(region_similarity(empty, empty), [1, 1])
    np.testing.assert_array_equal(boundary_similarity(empty, empty), [1, 1])


@pytest.mark.parametrize(("shift", "matches"), [(1, True), (2, True), (3, False)])
def test_boundaries_match_within_the_tolerance(shift, matches):
    truth = np.zeros((1, 90, 160), bool)  # 0.008 of the diagonal, 183.6, is 1.5, rounded up to two pixels
    truth[:, :, 40:80] = True
    found = boundary_similarity(np.roll(truth, shift, axis=2), truth)[0]
    assert found == (1.0 if matches else 0.0)


def test_auc_of_perfect_inverted_and_constant_scores():
    truth = np.random.default_rng(0).random((3, 20, 30)) < 0.3
    assert roc_auc(truth.astype(np.float32), truth) == 1.0
    assert roc_auc(-truth.astype(np.float32), truth) == 0.0
    assert roc_auc(np.full(truth.shape, 0.2, np.float32), truth) == 0.5


def test_auc_of_random_scores_is_a_half():
    rng = np.random.default_rng(1)
    truth = rng.random(20000) < 0.5
    assert roc_auc(rng.random(20000), truth) == pytest.approx(0.5, abs=0.02)


def test_auc_counts_pairs_and_ties_as_one_half():
    score = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 3.0])
    truth = np.array([False, False, True, False, True, True])
    pairs = [(p > n) + 0.5 * (p == n) for p in score[truth] for n in score[~truth]]
    assert roc_auc(score, truth) == pytest.approx(np.mean(pairs))


def test_auc_depends_on_the_order_only():
    rng = np.random.default_rng(2)
    score, truth = rng.random(500), rng.random(500) < 0.4
    assert roc_auc(np.exp(3 * score), truth) == roc_auc(score, truth)


@pytest.mark.parametrize("value", [True, False])
def test_auc_without_two_classes_is_none(value):
    assert roc_auc(np.arange(6.0), np.full(6, value)) is None


def test_boundary_pixels_differ_from_a_neighbour():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:3] = True
    expected = np.zeros((4, 5), bool)
    expected[0:3, 0:3] = True
    expected[1, 1] = False
    np.testing.assert_array_equal(mask_boundary(mask), expected)
    assert boundary_tolerance(480, 854) == 8


def sequence(*overlaps):
    """Masks of ten pixels in each frame, and true masks that are subsets of the given sizes."""
    truth, masks = np.zeros((2, len(overlaps), 20, 30), bool)
    masks[:, 5, :10] = True
    for frame, overlap in zip(truth, overlaps, strict=True):
        frame[5, :overlap] = True
    return masks, truth


def test_protocols_on_sequences_of_different_lengths():
    pairs = [sequence(1, 9, 8, 4, 0), sequence(10, 2, 10)]
    masks, truth = zip(*pairs, strict=True)
    pooled, davis = pooled_metrics(masks, truth), davis_metrics(masks, truth)
    every = np.array([0.1, 0.9, 0.8, 0.4, 0.0, 1.0, 0.2, 1.0])
    assert pooled["j_mean"] == pytest.approx(every.mean())
    assert pooled["j_recall"] == pytest.approx(4 / 8)
    assert (pooled["j_decay"], pooled["f_decay"]) == (0, 0)
    assert (pooled["frames"], pooled["sequences"]) == (8, 2)
    inner = [np.array([0.9, 0.8, 0.4]), np.array([0.2])]
    assert davis["j_mean"] == pytest.approx(np.mean([x.mean() for x in inner]))
    assert davis["j_recall"] == pytest.approx((2 / 3 + 0) / 2)
    assert davis["j_decay"] == pytest.approx(((0.9 + 0.8) / 2 - 0.4 + 0) / 2)
    assert (davis["frames"], davis["sequences"]) == (4, 2)
    for found in (pooled, davis):
        assert found["jf_mean"] == pytest.approx((found["j_mean"] + found["f_mean"]) / 2)


def test_protocols_agree_if_all_frames_are_alike():
    masks, truth = sequence(*[7] * 6)
    pooled, davis = pooled_metrics(masks, truth), davis_metrics(masks, truth)
    for name in ("j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay", "jf_mean"):
        assert pooled[name] == pytest.approx(davis[name])
    perfect = davis_metrics(truth, truth)
    assert (perfect["j_mean"], perfect["f_mean"], perfect["f_recall"], perfect["j_decay"]) == (1, 1, 1, 0)


def test_davis_omits_sequences_of_two_frames():
    masks, truth = sequence(3, 4)
    assert davis_metrics(masks, truth) == {
        **dict.fromkeys(("jf_mean", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")),
        "frames": 0,
        "sequences": 0,
    }
    longer = sequence(5, 5, 5)
    both = davis_metrics([masks, longer[0]], [truth, longer[1]])
    assert (both["j_mean"], both["sequences"]) == (0.5, 1)
    assert pooled_metrics([], [])["j_mean"] is None


def test_void_pixels_are_ignored():
    masks, truth = sequence(4, 4)
    void = np.zeros(truth.shape, bool)
    void[1, 5, 4:10] = True
    scores = score_masks(masks, truth, void=void)
    assert scores.region.tolist() == [0.4, 1.0]
    assert scores.boundary[1] == 1.0


def test_missing_masks_can_count_as_empty_and_surplus_ones_be_ignored():
    masks, truth = sequence(10, 10, 10)
    with pytest.raises(InputError, match=r"\(2, 20, 30\), the true ones \(3, 20, 30\)"):
        score_masks(masks[:2], truth)
    assert score_masks(masks[:2], truth, fill_missing=True).region.tolist() == [1, 1, 0]
    assert score_masks(masks, truth[:2], fill_missing=True).region.tolist() == [1, 1]


def test_nonzero_numbers_are_inside_a_mask():
    masks, truth = sequence(3, 6)
    expected = region_similarity(masks, truth)
    for scale, kind in ((1, np.uint8), (255, np.uint8), (1, np.float32), (7, np.int64)):
        np.testing.assert_array_equal(region_similarity((scale * masks).astype(kind), truth), expected)


WITH_NAN = np.zeros((2, 3, 4), np.float32)
WITH_NAN[0, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (np.zeros((2, 3, 5), bool), "both must be the same"),
        (np.zeros((0, 3, 4), bool), "at least one frame"),
        (np.zeros((3, 4), bool), r"\(T, H, W\)"),
        (WITH_NAN, "1 of 24 numbers"),
    ],
    ids=["another size", "no frame", "one frame without its axis", "NaN"],
)
@pytest.mark.parametrize("metric", [region_similarity, boundary_similarity, pooled_iou, score_masks, davis_metrics])
def test_bad_masks_are_refused_in_one_line(metric, masks, says):
    truth = np.zeros((2, 3, 4), bool)
    with pytest.raises(InputError, match=says) as caught:
        metric(masks if metric is not davis_metrics else [masks], truth if metric is not davis_metrics else [truth])
    assert len(str(caught.value).splitlines()) == 1


def test_bad_sets_of_masks_are_refused():
    masks, truth = sequence(3, 6)
    with pytest.raises(InputError, match="2 sequences"):
        pooled_metrics([masks, masks], truth)
    with pytest.raises(ConfigError, match="davis"):
        summarise_masks([MaskScores(np.ones(3), np.ones(3))], "DAVIS")
    with pytest.raises(InputError, match="scores"):
        roc_auc(WITH_NAN, np.zeros(WITH_NAN.shape, bool))
    with pytest.raises(InputError, match="scores have shape"):
        roc_auc(np.zeros(3), np.zeros(4, bool))
