"""Depth errors: the reference's numbers, and what each alignment removes."""

import json

import numpy as np
import pytest

from easi3r_jax.metrics import depth_metrics, fit_depth, valid_depth


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "metrics" / "depth.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def results(golden):
    return json.loads((golden / "metrics" / "results.json").read_text())["depth"]["results"]


# The scale fit stops after ten steps of an iteration that weighs a pixel by one over its residual, so that rounding
# decides what it returns: with the pixels in another order the same float32 formula moves the scale by 2e-4 (standard
# deviation over 200 orders). 1e-4 is what equality can mean for figures behind it; given the scale, they agree to 1e-5
# (next test).
@pytest.mark.parametrize(
    ("variant", "arguments", "tolerance"),
    [
        ("median", {"alignment": "median"}, 1e-5),
        ("median_max70", {"alignment": "median", "max_depth": 7.0}, 1e-5),
        ("lstsq", {"alignment": "scale_shift"}, 1e-5),
        ("scale", {"alignment": "scale"}, 1e-4),
        ("scale_nomax", {"alignment": "scale", "max_depth": None}, 1e-4),
        ("scale_mask", {"alignment": "scale", "judged": "custom_mask"}, 1e-4),
    ],
)
def test_equals_the_reference(arrays, results, variant, arguments, tolerance):
    if "judged" in arguments:
        arguments = arguments | {"judged": arrays[arguments["judged"]]}
    found = depth_metrics(arrays["pred"], arrays["gt"], **arguments)
    np.testing.assert_allclose(list(found.values()), list(results[variant].values())[:7], atol=tolerance)


@pytest.mark.parametrize("variant", ["median", "scale", "lstsq"])
def test_equals_the_reference_on_its_own_aligned_depth(arrays, results, variant):
    aligned = arrays[f"{variant}_aligned_pred"].reshape(arrays["gt"].shape)
    found = depth_metrics(aligned, arrays["gt"], "none")
    np.testing.assert_allclose(list(found.values()), list(results[variant].values())[:7], atol=1e-5)


def test_the_robust_scale_is_within_rounding_of_the_reference(arrays):
    valid = valid_depth(arrays["gt"])
    scale, shift = fit_depth(arrays["pred"][valid], arrays["gt"][valid], "scale")
    golden = np.median(arrays["scale_aligned_pred"].reshape(arrays["pred"].shape)[valid] / arrays["pred"][valid])
    assert shift == 0
    assert scale == pytest.approx(golden, rel=2e-4)


@pytest.mark.parametrize(
    ("alignment", "scale", "shift"), [("median", 0.02, 0.0), ("scale", 300.0, 0.0), ("scale_shift", 7.0, -0.4)]
)
def test_alignment_removes_what_it_fits(arrays, alignment, scale, shift):
    truth = np.abs(arrays["gt"]) + 0.5
    found = depth_metrics((truth - shift) / scale, truth, alignment)
    assert found["abs_rel"] < 1e-5
    assert found["delta_1_25"] == 1.0


def test_the_robust_scale_ignores_outliers_that_least_squares_follows():
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, 1000)
    predicted = truth / 2
    predicted[:100] *= 3
    assert fit_depth(predicted, truth, "scale")[0] == pytest.approx(2.0, rel=1e-3)
    assert abs(fit_depth(predicted, truth, "scale_shift")[0] - 2.0) > 1


def test_median_of_an_even_number_is_the_lower_one():
    assert fit_depth(np.ones(4), np.array([4.0, 1.0, 3.0, 2.0]), "median") == (2.0, 0.0)


def test_known_errors():
    truth = np.full((1, 2, 2), 2.0)
    found = depth_metrics(np.array([[[2.0, 2.0], [3.0, 1.0]]]), truth, "none")
    assert found["abs_rel"] == pytest.approx(0.25)
    assert found["sq_rel"] == pytest.approx(0.25)
    assert found["depth_rmse"] == pytest.approx(np.sqrt(0.5))
    assert found["log_rmse"] == pytest.approx(np.sqrt((np.log(1.5) ** 2 + np.log(2) ** 2) / 4))
    assert (found["delta_1_25"], found["delta_1_25_2"], found["delta_1_25_3"]) == (0.5, 0.75, 0.75)


def test_unknown_depth_is_left_out():
    truth = np.array([[[2.0, 0.0, -1.0, np.nan, np.inf, 90.0]]])
    assert valid_depth(truth).tolist() == [[[True, False, False, False, False, False]]]
    assert valid_depth(truth, None)[0, 0, 5]
    assert depth_metrics(np.full(truth.shape, 2.0), truth, "none")["abs_rel"] == 0


def test_nothing_to_judge_is_none():
    nothing = depth_metrics(np.ones((1, 2, 2)), np.zeros((1, 2, 2)))
    assert len(nothing) == 7
    assert set(nothing.values()) == {None}


@pytest.mark.parametrize("alignment", ["median", "scale", "scale_shift"])
def test_a_prediction_of_zeros_has_finite_errors(alignment):
    found = depth_metrics(np.zeros((1, 4, 4)), np.full((1, 4, 4), 2.0), alignment)
    assert np.isfinite(list(found.values())).all()
