"""Errors of video depth: an alignment for the whole clip or for every frame, then the usual figures.

Depth is z in the camera. Monocular depth has no scale, so the prediction is first fitted to the truth. One fit for all
frames together ("per sequence") shows a scale that drifts, a fit per frame hides it.
"""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.evaluation.metrics.checks import check_same_shape
from easi3r_jax.evaluation.metrics.depth_fit import SMALLEST_DEPTH, Alignment, Arithmetic, fit_depth

#: Depths at or beyond it are not judged, unless the data set has a limit of its own (metres, where it has them).
MAX_DEPTH = 80.0

#: Limits of the data sets of the published tables, in metres. Source: Hu et al., DepthCrafter, CVPR 2025, evaluation.
MAX_DEPTHS = {"sintel": 70.0, "kitti": 80.0, "bonn": 10.0, "scannet": 10.0, "nyu": 10.0}

_NAMES = ("abs_rel", "sq_rel", "depth_rmse", "log_rmse", "delta_1_25", "delta_1_25_2", "delta_1_25_3")
# Added before inverting, as published.
_SMALLEST = 1e-8


@dataclasses.dataclass(frozen=True)
class DepthOptions:
    """How depth is aligned and judged.

    Attributes:
      alignment: see `fit_depth`.
      per_frame: fit every frame on its own instead of the clip as a whole.
      max_depth: true depths at or beyond it are neither fitted nor judged; None keeps all. See `MAX_DEPTHS`.
      disparity: the prediction is inverse depth: it is fitted to the inverse of the truth, then inverted.
      pre_clip: smallest and largest prediction, before the fit; None: no bound.
      post_clip: smallest and largest depth, after it.
      learning_rate, steps: of the alignment "lad2".
      arithmetic: "double", or "released" for the published numbers to the last bit; see `fit_depth`.
    """

    alignment: Alignment = "scale"
    per_frame: bool = False
    max_depth: float | None = MAX_DEPTH
    disparity: bool = False
    pre_clip: tuple[float | None, float | None] = (None, None)
    post_clip: tuple[float | None, float | None] = (None, None)
    learning_rate: float = 1e-4
    steps: int = 1000
    arithmetic: Arithmetic = "double"

    def __post_init__(self):
        for name, value, known in (
            ("alignment", self.alignment, get_args(Alignment)),
            ("arithmetic", self.arithmetic, get_args(Arithmetic)),
        ):
            if value not in known:
                raise ConfigError(f"Unknown {name} of depth {value!r}: choose one of {', '.join(known)}.")


def valid_depth(truth: np.ndarray, max_depth: float | None = MAX_DEPTH) -> np.ndarray:
    """(T, H, W) bool: where the true depth is finite, positive and below `max_depth` (None: any)."""
    return np.isfinite(truth) & (truth > 0) & (truth < (np.inf if max_depth is None else max_depth))


def fit_clip(predicted: np.ndarray, truth: np.ndarray, options: DepthOptions = DepthOptions()) -> np.ndarray:
    """Scale and shift of every frame; the same for all unless `options.per_frame`.

    Args:
      predicted: (T, H, W) depth, or inverse depth, in any unit.
      truth: (T, H, W) depth; zero, negative or non-finite where unknown.

    Returns:
      (T, 2) float64; (1, 0) where nothing is known of the truth.

    Raises:
      InputError: shapes that differ, or a prediction that is not finite where the truth is known.
    """
    predicted, truth = _check(predicted, truth, options)
    predicted, valid = _clip(predicted, options.pre_clip), valid_depth(truth, options.max_depth)
    if options.disparity:
        truth = 1 / (np.where(valid, truth, 1) + truth.dtype.type(_SMALLEST))
    fits = np.tile([1.0, 0.0], (len(truth), 1))
    for frames in [slice(t, t + 1) for t in range(len(truth))] if options.per_frame else [slice(None)]:
        chosen = valid[frames]
        if chosen.any():
            fits[frames] = fit_depth(
                predicted[frames][chosen],
                truth[frames][chosen],
                options.alignment,
                options.arithmetic,
                learning_rate=options.learning_rate,
                steps=options.steps,
            )
    return fits


def apply_fit(predicted: np.ndarray, fits: np.ndarray, *, disparity: bool = False) -> np.ndarray:
    """(T, H, W) prediction and (T, 2) fits -> (T, H, W) float64 depth; 0 where a fitted disparity is not positive."""
    with np.errstate(invalid="ignore"):  # an infinite prediction where nothing is known
        fitted = fits[:, :1, None] * np.asarray(predicted, np.float64) + fits[:, 1:, None]
    if not disparity:
        return fitted
    return np.where(fitted > 0, 1 / (np.where(fitted > 0, fitted, 1) + _SMALLEST), 0)


def align_depth(predicted: np.ndarray, truth: np.ndarray, options: DepthOptions = DepthOptions()) -> np.ndarray:
    """The whole prediction as depth in the unit of the truth, (T, H, W) float64, nothing clipped; see `fit_clip`."""
    return apply_fit(predicted, fit_clip(predicted, truth, options), disparity=options.disparity)


def depth_metrics(
    predicted: np.ndarray,
    truth: np.ndarray,
    options: DepthOptions = DepthOptions(),
    *,
    judged: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Depth errors of a clip, over the pixels of all frames together.

    Args:
      predicted: (T, H, W) depth in any unit, or inverse depth with `options.disparity`; finite where the truth is.
      truth: (T, H, W) depth; zero, negative or non-finite where unknown.
      judged: (T, H, W) bool, where errors count; None: everywhere. The fit always uses every valid pixel.

    Returns:
      `abs_rel`, `sq_rel`: mean of |error| / truth and error² / truth (units of the truth); `depth_rmse` (units of the
      truth); `log_rmse` (natural logarithm); `delta_1_25`, `delta_1_25_2`, `delta_1_25_3`: share of pixels whose ratio
      to the truth is below 1.25, 1.25², 1.25³ either way. All None where no pixel can be judged. Logarithms and ratios
      take predictions below 1e-5 as 1e-5.

    Raises:
      InputError: shapes that differ, or a prediction that is not finite where the truth is known.

    Source: Eigen et al., Depth map prediction from a single image using a multi-scale deep network, NIPS 2014.
    """
    fits = fit_clip(predicted, truth, options)
    counted = judged_pixels(truth, options, judged)
    if not counted.any():
        return dict.fromkeys(_NAMES)
    depth = apply_fit(_clip(np.asarray(predicted), options.pre_clip), fits, disparity=options.disparity)
    depth = _clip(depth, options.post_clip)[counted]
    true = np.asarray(truth)[counted].astype(np.float64)
    error = depth - true
    positive = np.maximum(depth, SMALLEST_DEPTH)
    ratio = np.maximum(positive / true, true / positive)
    values = (
        np.mean(np.abs(error) / true),
        np.mean(np.square(error) / true),
        np.sqrt(np.mean(np.square(error))),
        np.sqrt(np.mean(np.square(np.log(positive) - np.log(true)))),
        *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
    )
    return {name: float(value) for name, value in zip(_NAMES, values, strict=True)}


def judged_pixels(
    truth: np.ndarray, options: DepthOptions = DepthOptions(), judged: np.ndarray | None = None
) -> np.ndarray:
    """(T, H, W) bool: where `depth_metrics` counts errors. Their number weighs a clip in the mean of a data set."""
    valid = valid_depth(np.asarray(truth), options.max_depth)
    if judged is None:
        return valid
    judged = np.asarray(judged, bool)
    if judged.shape != valid.shape:
        raise InputError(f"The mask of judged pixels has shape {judged.shape}, the depths {valid.shape}.")
    return valid & judged


def relative_error(aligned: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(T, H, W) float64 map of |error| / truth; 0 where it does not count. For pictures."""
    aligned, truth = np.asarray(aligned, np.float64), np.asarray(truth, np.float64)
    return np.where(counted, np.abs(aligned - truth), 0) / np.where(counted, truth, 1)


def _check(predicted: np.ndarray, truth: np.ndarray, options: DepthOptions) -> tuple[np.ndarray, np.ndarray]:
    predicted, truth = _floating(predicted), _floating(truth)
    check_same_shape("depths", predicted, truth)
    if truth.ndim != 3:
        raise InputError(f"Depths must be (T, H, W), one map per frame; these are {truth.shape}.")
    valid = valid_depth(truth, options.max_depth)
    wrong = int((valid & ~np.isfinite(predicted)).sum())
    if wrong:
        raise InputError(f"The depth is NaN or infinite in {wrong} of {int(valid.sum())} pixels whose truth is known.")
    return predicted, truth


def _floating(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def _clip(depth: np.ndarray, bounds: tuple[float | None, float | None]) -> np.ndarray:
    return depth if bounds == (None, None) else np.clip(depth, *bounds)
