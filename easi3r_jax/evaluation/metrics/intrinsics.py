"""Errors of estimated intrinsics."""

from __future__ import annotations

import numpy as np

from easi3r_jax.core.arrays import Real
from easi3r_jax.evaluation.metrics.checks import check_finite, check_same_shape


def focal_relative_error(intrinsics: Real[np.ndarray, "T 3 3"], truth: Real[np.ndarray, "T 3 3"]) -> float:
    """Mean over frames and both axes of |f - f_true| / f_true.

    Args:
      intrinsics, truth: (T, 3, 3), both in pixels of the same image size.

    Raises:
      InputError: the shapes differ, or numbers are not finite.
    """
    check_same_shape("intrinsics", np.asarray(intrinsics), np.asarray(truth))
    check_finite("intrinsics", np.asarray(intrinsics))
    check_finite("true intrinsics", np.asarray(truth))
    focal = np.asarray(intrinsics, np.float64)[:, (0, 1), (0, 1)]
    true_focal = np.asarray(truth, np.float64)[:, (0, 1), (0, 1)]
    return float(np.mean(np.abs(focal - true_focal) / true_focal))
