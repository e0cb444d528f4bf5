"""Checks that all metrics make on their input: equal shapes, finite numbers."""

from __future__ import annotations

import numpy as np

from easi3r_jax.core.arrays import Shaped
from easi3r_jax.core.errors import InputError


def check_same_shape(name: str, array: Shaped[np.ndarray, "*shape"], truth: Shaped[np.ndarray, "*shape"]) -> None:
    """Raises InputError if an array and its truth differ in shape; `name` is a plural."""
    if array.shape != truth.shape:
        raise InputError(f"The {name} have shape {array.shape}, the true ones {truth.shape}: both must be the same.")


def check_finite(name: str, array: Shaped[np.ndarray, "..."]) -> None:
    """Raises InputError if an array holds NaN or an infinity; `name` is a plural."""
    wrong = array.size - int(np.isfinite(array).sum())
    if wrong:
        raise InputError(f"In the {name}, {wrong} of {array.size} numbers are NaN or infinite: remove those.")
