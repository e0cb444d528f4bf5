"""Video depth: alignment for the whole clip or for each frame, then the usual error metrics.

Depth is z in the camera. Monocular depth has no scale, so the prediction is first fitted to the truth. One fit for all
frames ("per sequence") exposes a drifting scale; a fit per frame hides it.
"""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np

from easi3r_jax.core.arrays import Bool, Float, Real
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.evaluation.metrics.checks import check_same_shape
from easi3r_jax.evaluation.metrics.depth_fit import MIN_DEPTH, Alignment, Arithmetic, fit_depth

#: True depths at or beyond it are not evaluated, unless the data set has its own limit (metres if depth is metric).
MAX_DEPTH = 80.0

#: Limits for the data sets in the published tables, in metres. Source: Hu et al., DepthCrafter, CVPR 2025, evaluation.
MAX_DEPTHS = {"sintel": 70.0, "kitti": 80.0, "bonn": 10.0, "scannet": 10.0, "nyu": 10.0}

_NAMES = ("abs_rel", "sq_rel", "depth_rmse", "log_rmse", "delta_1_25", "delta_1_25_2", "delta_1_25_3")
# Added before an inversion, as published.
_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True)
class DepthOptions:
    """How depth is aligned and evaluated.

    Attributes:
      alignment: see `fit_depth`.
      per_frame: fit each frame separately instead of the clip as a whole.
      max_depth: true depths at or beyond it are neither fitted nor evaluated; None keeps all. See `MAX_DEPTHS`.
      disparity: the prediction is inverse depth: it is fitted to the inverse of the truth, then inverted.
      pre_clip: bounds to which the prediction is clipped before the fit; None: no bound.
      post_clip: bounds to which the depth is clipped after the fit.
      learning_rate, steps: of the alignment "lad2".
      arithmetic: "double", or "released" to reproduce the published numbers to the last bit; see `fit_depth`.
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
                raise ConfigError(f"Unknown depth {name} {value!r}: choose one of {', '.join(known)}.")


def valid_depth(truth: Real[np.ndarray, "T H W"], max_depth: float | None = MAX_DEPTH) -> Bool[np.ndarray, "T H W"]:
    """(T, H, W) bool: where the true depth is finite, positive and below `max_depth` (None: no limit)."""
    return np.isfinite(truth) & (truth > 0) & (truth < (np.inf if max_depth is None else max_depth))


def fit_clip(
    predicted: Real[np.ndarray, "T H W"], truth: Real[np.ndarray, "T H W"], options: DepthOptions = DepthOptions()
) -> Float[np.ndarray, "T 2"]:
    """Scale and shift of each frame; the same for all frames unless `options.per_frame`.

    Args:
      predicted: (T, H, W) depth, or inverse depth, in any unit.
      truth: (T, H, W) depth; zero, negative or non-finite where unknown.

    Returns:
      (T, 2) float64; (1, 0) where no truth is known.

    Raises:
      InputError: the shapes differ, or a prediction is not finite where the truth is known.
    """
    predicted, truth = _check(predicted, truth, options)
    predicted, valid = _clip(predicted, options.pre_clip), valid_depth(truth, options.max_depth)
    if options.disparity:
        truth = 1 / (np.where(valid, truth, 1) + truth.dtype.type(_EPSILON))
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


def apply_fit(
    predicted: Real[np.ndarray, "T H W"], fits: Float[np.ndarray, "T 2"], *, disparity: bool = False
) -> Float[np.ndarray, "T H W"]:
    """(T, H, W) prediction and (T, 2) fits -> (T, H, W) float64 depth; 0 where a fitted disparity is not positive."""
    with np.errstate(invalid="ignore"):  # an infinite prediction where the truth is unknown
        fitted = fits[:, :1, None] * np.asarray(predicted, np.float64) + fits[:, 1:, None]
    if not disparity:
        return fitted
    return np.where(fitted > 0, 1 / (np.where(fitted > 0, fitted, 1) + _EPSILON), 0)


def align_depth(
    predicted: Real[np.ndarray, "T H W"], truth: Real[np.ndarray, "T H W"], options: DepthOptions = DepthOptions()
) -> Float[np.ndarray, "T H W"]:
    """The prediction as depth in the unit of the truth, (T, H, W) float64, not clipped; see `fit_clip`."""
    return apply_fit(predicted, fit_clip(predicted, truth, options), disparity=options.disparity)


def depth_metrics(
    predicted: Real[np.ndarray, "T H W"],
    truth: Real[np.ndarray, "T H W"],
    options: DepthOptions = DepthOptions(),
    *,
    evaluated: Bool[np.ndarray, "T H W"] | None = None,
) -> dict[str, float | None]:
    """Depth errors of a clip, over the pixels of all frames together.

    Args:
      predicted: (T, H, W) depth in any unit, or inverse depth with `options.disparity`; finite where the truth is.
      truth: (T, H, W) depth; zero, negative or non-finite where unknown.
      evaluated: (T, H, W) bool, where errors count; None: everywhere. The fit always uses every valid pixel.

    Returns:
      `abs_rel`: mean of |error| / truth. `sq_rel`: mean of error² / truth, in units of the truth. `depth_rmse`, in
      units of the truth. `log_rmse`, natural logarithm. `delta_1_25`, `delta_1_25_2`, `delta_1_25_3`: fraction of
      pixels with max(depth / truth, truth / depth) below 1.25, 1.25², 1.25³. All are None if there is no pixel to
      evaluate. In logarithms and ratios, depths below 1e-5 are replaced by 1e-5.

    Raises:
      InputError: the shapes differ, or a prediction is not finite where the truth is known.

    Source: Eigen et al., Depth map prediction from a single image using a multi-scale deep network, NIPS 2014.
    """
    fits = fit_clip(predicted, truth, options)
    counted = evaluated_pixels(truth, options, evaluated)
    if not counted.any():
        return dict.fromkeys(_NAMES)
    depth = apply_fit(_clip(np.asarray(predicted), options.pre_clip), fits, disparity=options.disparity)
    depth = _clip(depth, options.post_clip)[counted]
    true = np.asarray(truth)[counted].astype(np.float64)
    error = depth - true
    positive = np.maximum(depth, MIN_DEPTH)
    ratio = np.maximum(positive / true, true / positive)
    values = (
        np.mean(np.abs(error) / true),
        np.mean(np.square(error) / true),
        np.sqrt(np.mean(np.square(error))),
        np.sqrt(np.mean(np.square(np.log(positive) - np.log(true)))),
        *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
    )
    return {name: float(value) for name, value in zip(_NAMES, values, strict=True)}


def evaluated_pixels(
    truth: Real[np.ndarray, "T H W"],
    options: DepthOptions = DepthOptions(),
    evaluated: Bool[np.ndarray, "T H W"] | None = None,
) -> Bool[np.ndarray, "T H W"]:
    """(T, H, W) bool: where `depth_metrics` counts errors. Their number is a clip's weight in a data set's mean."""
    valid = valid_depth(np.asarray(truth), options.max_depth)
    if evaluated is None:
        return valid
    evaluated = np.asarray(evaluated, bool)
    if evaluated.shape != valid.shape:
        raise InputError(f"The mask of evaluated pixels has shape {evaluated.shape}, the depths {valid.shape}.")
    return valid & evaluated


def relative_error(
    aligned: Real[np.ndarray, "T H W"], truth: Real[np.ndarray, "T H W"], counted: Bool[np.ndarray, "T H W"]
) -> Float[np.ndarray, "T H W"]:
    """(T, H, W) float64 map of |error| / truth; 0 where `counted` is False. For visualisation."""
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
        raise InputError(f"The depth is NaN or infinite at {wrong} of {int(valid.sum())} pixels whose truth is known.")
    return predicted, truth


def _floating(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def _clip(depth: np.ndarray, bounds: tuple[float | None, float | None]) -> np.ndarray:
    return depth if bounds == (None, None) else np.clip(depth, *bounds)
