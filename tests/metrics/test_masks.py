"""Mask agreement: the benchmark's numbers, and known cases."""

import numpy as np
import pytest

from easi3r_jax.metrics import boundary_similarity, mean_recall_decay, pooled_iou, region_similarity, roc_auc


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


def test_one_frame_does_not_decay():
    assert mean_recall_decay(np.array([0.7])) == (0.7, 1.0, 0.0)


def test_known_overlaps():
    masks, truth = np.zeros((2, 8, 8), bool), np.zeros((2, 8, 8), bool)
    masks[0, :, :4], truth[0, :, 2:6] = True, True
    np.testing.assert_allclose(region_similarity(masks, truth), [1 / 3, 1.0])
    assert pooled_iou(masks, truth) == pytest.approx(1 / 3)
    masks[1] = True  # 64 more in the union
    assert pooled_iou(masks, truth) == pytest.approx(16 / 112)


def test_iou_of_nothing_with_nothing_is_none():
    empty = np.zeros((2, 3, 4), bool)
    assert pooled_iou(empty, empty) is None
    np.testing.assert_array_equal(region_similarity(empty, empty), [1, 1])
    np.testing.assert_array_equal(boundary_similarity(empty, empty), [1, 1])


@pytest.mark.parametrize(("shift", "matches"), [(1, True), (2, True), (3, False)])
def test_boundaries_match_within_the_tolerance(shift, matches):
    truth = np.zeros((1, 90, 160), bool)  # 0.008 of the diagonal 183.6 is 1.5: two pixels
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


def test_auc_counts_pairs_and_half_the_ties():
    score = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 3.0])
    truth = np.array([False, False, True, False, True, True])
    pairs = [(p > n) + 0.5 * (p == n) for p in score[truth] for n in score[~truth]]
    assert roc_auc(score, truth) == pytest.approx(np.mean(pairs))


def test_auc_sees_order_only():
    rng = np.random.default_rng(2)
    score, truth = rng.random(500), rng.random(500) < 0.4
    assert roc_auc(np.exp(3 * score), truth) == roc_auc(score, truth)


@pytest.mark.parametrize("value", [True, False])
def test_auc_without_two_classes_is_none(value):
    assert roc_auc(np.arange(6.0), np.full(6, value)) is None
