"""Depth errors: the reference numbers, and what each alignment removes."""

import dataclasses

import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.evaluation.metrics import (
    MAX_DEPTHS,
    DepthOptions,
    align_depth,
    depth_metrics,
    evaluated_pixels,
    fit_clip,
    fit_depth,
    relative_error,
    valid_depth,
)
from easi3r_jax.evaluation.metrics.sums import cascade_sum

ALIGNMENTS = ("median", "scale", "lstsq", "lad", "lad2")


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "metrics" / "depth.npz") as file:
        return dict(file)


# The reference numbers of every alignment and option are compared in tests/apps/test_parity.py.


@pytest.mark.parametrize(("alignment", "tolerance"), [("scale", 2e-4), ("lad2", 1e-6)])
def test_double_precision_agrees_with_the_released_arithmetic(arrays, alignment, tolerance):
    valid = valid_depth(arrays["gt"])
    fits = [fit_depth(arrays["pred"][valid], arrays["gt"][valid], alignment, a) for a in ("double", "released")]
    assert fits[0] != fits[1]
    np.testing.assert_allclose(fits[0], fits[1], rtol=tolerance)


def test_double_precision_hardly_depends_on_the_order_of_the_pixels(arrays):
    valid = valid_depth(arrays["gt"])
    predicted, truth = arrays["pred"][valid], arrays["gt"][valid]
    order = np.random.default_rng(0).permutation(len(truth))
    moved = {}
    for arithmetic in ("double", "released"):
        scale, other = (fit_depth(predicted[o], truth[o], "scale", arithmetic)[0] for o in (slice(None), order))
        moved[arithmetic] = abs(scale / other - 1)
    assert moved["double"] < 1e-7
    assert moved["released"] > 1e-6


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 33, 511, 2576, 70_001])
def test_single_precision_sums_are_accurate(count):
    x = np.random.default_rng(count).normal(size=count).astype(np.float32)
    assert cascade_sum(x) == pytest.approx(x.sum(dtype=np.float64), rel=1e-5, abs=1e-3)
    assert cascade_sum(np.ones(count)) == count


def test_sums_use_eight_lanes():
    # Small numbers are absorbed by a large one in the same lane, and only there.
    x = np.ones(64, np.float32)
    x[3] = 2.0**25
    assert cascade_sum(x) == 2.0**25 + 56
    assert np.cumsum(x)[-1] != 2.0**25 + 56


@pytest.mark.parametrize(
    ("alignment", "scale", "shift", "tolerance"),
    [("median", 0.02, 0.0, 1e-5), ("scale", 300.0, 0.0, 1e-5), ("lstsq", 7.0, -0.4, 1e-5), ("lad", 7.0, -0.4, 1e-4)],
)
def test_alignment_removes_what_it_fits(arrays, alignment, scale, shift, tolerance):
    truth = np.abs(arrays["gt"]) + 0.5
    found = depth_metrics((truth - shift) / scale, truth, DepthOptions(alignment))
    assert found["abs_rel"] < tolerance
    assert found["delta_1_25"] == 1.0


@pytest.mark.parametrize("alignment", ["lad", "lstsq"])
def test_a_fit_with_shift_is_a_local_minimum(arrays, alignment):
    valid = valid_depth(arrays["gt"])
    predicted, truth = arrays["pred"][valid].astype(float), arrays["gt"][valid].astype(float)
    scale, shift = fit_depth(predicted, truth, alignment)
    power = {"lad": 1, "lstsq": 2}[alignment]

    def loss(scale, shift):
        return np.mean(np.abs(scale * predicted + shift - truth) ** power)

    for step in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, -2e-3), (-1e-3, 2e-3)):
        assert loss(scale, shift) < loss(scale + step[0], shift + step[1])


@pytest.mark.parametrize("alignment", [a for a in ALIGNMENTS if a != "lad2"])  # its step has the unit of the depth
def test_the_unit_of_the_prediction_does_not_matter(arrays, alignment):
    options = DepthOptions(alignment)
    expected = depth_metrics(arrays["pred"], arrays["gt"], options)
    found = depth_metrics(arrays["pred"] * np.float32(1024), arrays["gt"], options)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_adam_converges_to_the_least_deviations(arrays):
    valid = valid_depth(arrays["gt"])
    predicted, truth = arrays["pred"][valid], arrays["gt"][valid]
    best = fit_depth(predicted, truth, "lad")
    far, near = (fit_depth(predicted, truth, "lad2", learning_rate=r, steps=2000) for r in (1e-4, 1e-2))
    assert abs(far[0] - best[0]) > 0.05
    assert near == pytest.approx(best, abs=2e-3)
    (scale, shift), median = fit_depth(predicted, truth, "lad2", steps=1), fit_depth(predicted, truth, "median")[0]
    assert (abs(scale - median), abs(shift)) == pytest.approx((1e-4, 1e-4))  # Adam's first step is the learning rate


def test_a_fit_per_frame_hides_a_drifting_scale(arrays):
    truth = np.abs(arrays["gt"]) + 0.5
    drift = np.array([1.0, 2.0, 5.0], np.float32)
    whole = depth_metrics(truth / drift[:, None, None], truth, DepthOptions("median"))
    each = depth_metrics(truth / drift[:, None, None], truth, DepthOptions("median", per_frame=True))
    assert whole["abs_rel"] > 0.3
    assert each["abs_rel"] < 1e-6
    fits = fit_clip(truth / drift[:, None, None], truth, DepthOptions("median", per_frame=True))
    np.testing.assert_allclose(fits, np.stack([drift, np.zeros(3)], axis=1), rtol=1e-6)


def test_a_frame_without_truth_is_not_fitted():
    truth = np.full((2, 3, 3), 4.0)
    truth[1] = 0
    fits = fit_clip(np.full(truth.shape, 2.0), truth, DepthOptions("median", per_frame=True))
    assert fits.tolist() == [[2, 0], [1, 0]]


def test_disparity_is_fitted_to_the_inverse_depth():
    truth = np.random.default_rng(0).uniform(1, 20, (2, 8, 9))
    for alignment, disparity in (("scale", 0.2 / truth), ("lstsq", 5 / truth + 1)):
        options = DepthOptions(alignment, disparity=True)
        assert depth_metrics(disparity, truth, options)["abs_rel"] < 1e-6
        np.testing.assert_allclose(align_depth(disparity, truth, options), truth, rtol=1e-6)
    options = DepthOptions("none", disparity=True)
    assert align_depth(np.array([[[-1.0, 0.0, 0.5]]]), np.ones((1, 1, 3)), options).ravel() == pytest.approx([0, 0, 2])


def test_values_are_clipped_before_and_after_the_fit():
    truth = np.array([[[1.0, 2.0, 3.0, 9.0]]])
    before = DepthOptions("median", pre_clip=(1.0, None))
    assert depth_metrics(np.array([[[-5.0, 2.0, 3.0, 9.0]]]), truth, before)["abs_rel"] == 0
    after = DepthOptions("none", post_clip=(None, 9.0))
    assert depth_metrics(np.array([[[1.0, 2.0, 3.0, 70.0]]]), truth, after)["abs_rel"] == 0


def test_the_robust_scale_ignores_outliers_that_least_squares_follows():
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, 1000)
    predicted = truth / 2
    predicted[:100] *= 3
    assert fit_depth(predicted, truth, "scale")[0] == pytest.approx(2.0, rel=1e-3)
    assert abs(fit_depth(predicted, truth, "lstsq")[0] - 2.0) > 1


def test_the_median_of_an_even_number_is_the_lower_middle_one():
    assert fit_depth(np.ones(4), np.array([4.0, 1.0, 3.0, 2.0]), "median") == (2.0, 0.0)


def test_known_errors():
    truth = np.full((1, 2, 2), 2.0)
    found = depth_metrics(np.array([[[2.0, 2.0], [3.0, 1.0]]]), truth, DepthOptions("none"))
    assert found["abs_rel"] == pytest.approx(0.25)
    assert found["sq_rel"] == pytest.approx(0.25)
    assert found["depth_rmse"] == pytest.approx(np.sqrt(0.5))
    assert found["log_rmse"] == pytest.approx(np.sqrt((np.log(1.5) ** 2 + np.log(2) ** 2) / 4))
    assert (found["delta_1_25"], found["delta_1_25_2"], found["delta_1_25_3"]) == (0.5, 0.75, 0.75)


def test_unknown_depth_is_ignored():
    truth = np.array([[[2.0, 0.0, -1.0, np.nan, np.inf, 90.0]]])
    assert valid_depth(truth).tolist() == [[[True, False, False, False, False, False]]]
    assert valid_depth(truth, None)[0, 0, 5]
    assert depth_metrics(np.full(truth.shape, 2.0), truth, DepthOptions("none"))["abs_rel"] == 0


def test_without_a_pixel_to_evaluate_metrics_are_none():
    nothing = depth_metrics(np.ones((1, 2, 2)), np.zeros((1, 2, 2)))
    assert len(nothing) == 7
    assert set(nothing.values()) == {None}


def test_the_mask_of_evaluated_pixels_does_not_affect_the_fit():
    truth = np.full((1, 2, 2), 2.0)
    predicted = np.array([[[1.0, 1.0], [1.0, 3.0]]])
    evaluated = np.array([[[True, True], [False, False]]])
    assert depth_metrics(predicted, truth, DepthOptions("median"), evaluated=evaluated)["abs_rel"] == 0
    assert evaluated_pixels(truth, DepthOptions(), evaluated).sum() == 2
    assert evaluated_pixels(truth, DepthOptions(max_depth=2.0)).sum() == 0


def test_the_error_map_is_zero_where_nothing_is_evaluated():
    truth = np.array([[[2.0, 0.0]]])
    assert relative_error(np.array([[[3.0, 5.0]]]), truth, valid_depth(truth)).tolist() == [[[0.5, 0.0]]]


def test_data_sets_have_a_depth_limit():
    assert MAX_DEPTHS["sintel"] == 70
    assert all(limit > 0 for limit in MAX_DEPTHS.values())


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("arithmetic", ["double", "released"])
def test_a_prediction_of_zeros_has_finite_errors(alignment, arithmetic):
    options = DepthOptions(alignment, arithmetic=arithmetic)
    found = depth_metrics(np.zeros((1, 4, 4)), np.full((1, 4, 4), 2.0), options)
    assert np.isfinite(list(found.values())).all()


def hole(value):
    depth = np.ones((2, 3, 4))
    depth[1, 2, 3] = value
    return depth


@pytest.mark.parametrize(
    ("predicted", "says"),
    [
        (hole(np.nan), "1 of 24 pixels"),
        (hole(np.inf), "NaN or infinite"),
        (np.ones((2, 3, 5)), r"\(2, 3, 5\), the true ones \(2, 3, 4\)"),
    ],
)
def test_bad_predictions_are_refused_in_one_line(predicted, says):
    with pytest.raises(InputError, match=says) as caught:
        depth_metrics(predicted, np.ones((2, 3, 4)))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_prediction_may_be_anything_where_the_truth_is_unknown(value):
    truth = np.ones((2, 3, 4))
    truth[1, 2, 3] = 0
    for options in (DepthOptions(), DepthOptions("lstsq"), DepthOptions(disparity=True)):
        assert depth_metrics(hole(value), truth, options)["abs_rel"] == pytest.approx(0, abs=1e-7)


def test_bad_shapes_and_options_are_refused():
    with pytest.raises(InputError, match="T, H, W"):
        depth_metrics(np.ones((3, 4)), np.ones((3, 4)))
    with pytest.raises(InputError, match="evaluated"):
        depth_metrics(np.ones((1, 3, 4)), np.ones((1, 3, 4)), evaluated=np.ones((3, 4), bool))
    with pytest.raises(ConfigError, match="lstsq"):
        DepthOptions("least squares")
    with pytest.raises(ConfigError, match="l1"):
        fit_depth(np.ones(3), np.ones(3), "l1")
    with pytest.raises(ConfigError, match="released"):
        dataclasses.replace(DepthOptions(), arithmetic="float32")
