"""Errors of video depth: one alignment for the whole clip, then the usual figures.

Depth is z in the camera. Monocular depth has no scale, so the prediction is first fitted to the truth over all
frames together ("per sequence"); a fit per frame would hide a drifting scale.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Alignment = Literal["none", "median", "scale", "scale_shift"]

#: Depths beyond it are not judged, as in the published tables (metres, for data sets that have them).
MAX_DEPTH = 80.0

# Of the robust scale fit.
_WEISZFELD_STEPS = 10
_SMALLEST_SCALE = 1e-3
# Smallest prediction in ratios and logarithms.
_SMALLEST_DEPTH = 1e-5


def valid_depth(truth: np.ndarray, max_depth: float | None = MAX_DEPTH) -> np.ndarray:
    """(T, H, W) bool: where the true depth is finite, positive and below `max_depth` (None: any)."""
    return np.isfinite(truth) & (truth > 0) & (truth < (np.inf if max_depth is None else max_depth))


def fit_depth(predicted: np.ndarray, truth: np.ndarray, alignment: Alignment = "scale") -> tuple[float, float]:
    """Fits `scale * predicted + shift` to the truth.

    Args:
      predicted, truth: (P,) depths, P >= 1.
      alignment: "none"; "median": ratio of the medians (the lower middle element of an even number); "scale": least
        absolute deviations by ten Weiszfeld steps from the ratio of the means, at least 1e-3; "scale_shift": least
        squares.

    Returns:
      scale and shift; the shift is 0 but for "scale_shift".
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if alignment == "none":
        return 1.0, 0.0
    if alignment == "median":
        return _lower_median(truth) / max(_lower_median(predicted), _SMALLEST_DEPTH), 0.0
    if alignment == "scale":
        return _robust_scale(predicted, truth), 0.0
    if alignment == "scale_shift":
        design = np.stack([predicted, np.ones_like(predicted)], axis=1)
        (scale, shift), *_ = np.linalg.lstsq(design, truth)
        return float(scale), float(shift)
    raise ValueError(f"Unknown alignment {alignment!r}.")


def depth_metrics(
    predicted: np.ndarray,
    truth: np.ndarray,
    alignment: Alignment = "scale",
    *,
    max_depth: float | None = MAX_DEPTH,
    judged: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Depth errors of a clip.

    Args:
      predicted: (T, H, W) depth in any unit, finite.
      truth: (T, H, W) depth; zero, negative or non-finite where unknown.
      alignment: see `fit_depth`.
      max_depth: true depths at or beyond it are left out; None keeps all.
      judged: (T, H, W) bool, where errors count; None: everywhere. The fit always uses every valid pixel.

    Returns:
      `abs_rel`, `sq_rel`: mean of |error| / truth and error² / truth (units of the truth); `depth_rmse` (units of the
      truth); `log_rmse` (natural logarithm); `delta_1_25`, `delta_1_25_2`, `delta_1_25_3`: share of pixels whose ratio
      to the truth is within 1.25, 1.25², 1.25³ either way. All None where no pixel can be judged.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    valid = valid_depth(truth, max_depth)
    counted = valid if judged is None else valid & judged
    names = ("abs_rel", "sq_rel", "depth_rmse", "log_rmse", "delta_1_25", "delta_1_25_2", "delta_1_25_3")
    if not counted.any():
        return dict.fromkeys(names)
    scale, shift = fit_depth(predicted[valid], truth[valid], alignment)
    true = truth[counted].astype(np.float64)
    fitted = scale * predicted[counted].astype(np.float64) + shift
    error = fitted - true
    positive = np.maximum(fitted, _SMALLEST_DEPTH)
    ratio = np.maximum(positive / true, true / positive)
    values = (
        np.mean(np.abs(error) / true),
        np.mean(np.square(error) / true),
        np.sqrt(np.mean(np.square(error))),
        np.sqrt(np.mean(np.square(np.log(positive) - np.log(true)))),
        *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _robust_scale(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Least absolute deviations by iteratively re-weighted least squares."""
    if not predicted.any():  # nothing to scale
        return 1.0
    scale = truth.mean() / max(predicted.mean(), _SMALLEST_DEPTH)
    for _ in range(_WEISZFELD_STEPS):
        weight = 1.0 / (np.abs(scale * predicted - truth) + 1e-8)
        scale = (weight * predicted * truth).sum() / (weight * np.square(predicted)).sum()
    return max(float(scale), _SMALLEST_SCALE)


def _lower_median(x: np.ndarray) -> float:
    middle = (len(x) - 1) // 2
    return float(np.partition(x, middle)[middle])
