"""Rows of the parity table."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator

import numpy as np

NETWORK = 1e-5  # relative to the array's largest magnitude, float32, highest matmul precision
AGGREGATED = 1e-4
MASK_PIXELS = 5e-4  # fraction of pixels
ROUNDING = 1e-6


class Golden(dict):
    """A file's arrays by name; records which were read.

    Attributes:
      used: names of the arrays that were read.
    """

    def __init__(self, path: pathlib.Path):
        with np.load(path) as file:
            super().__init__(file)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.used.add(name)
        return super().__getitem__(name)

    def unread(self, stage: str, known: str) -> Iterator[Row]:
        """A failed row for every array that was not read and whose name does not match `known`."""
        for name in sorted(set(self) - self.used):
            if not re.fullmatch(known, name):
                yield Row(stage, f"{name}: unknown array", np.inf, np.inf, 0.0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      stage: e.g. "model_tiny_dpt/dpt_96x128".
      name: the golden array, or the compared part of it.
      max_abs: largest absolute error, in the array's units.
      error: the value bounded by the tolerance; by default `max_abs` over the array's largest magnitude.
      tolerance: of `error`.
    """

    stage: str
    name: str
    max_abs: float
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.tolerance)  # False for NaN


def compare(stage: str, name: str, ours: object, golden: object, tolerance: float) -> Row:
    """Largest error relative to the golden array's largest magnitude; shapes must agree."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape:
        return Row(stage, f"{name}: shape {ours.shape}, golden {golden.shape}", np.inf, np.inf, tolerance)
    largest = np.abs(golden).max() if golden.size else 0.0
    max_abs = float(np.abs(ours - golden).max()) if golden.size else 0.0
    return Row(stage, name, max_abs, max_abs / largest if largest > 0 else max_abs, tolerance)


def equal(stage: str, name: str, ours: object, golden: object) -> Row:
    """Fraction of entries that differ; must be 0."""
    return differing(stage, name, ours, golden, 0.0)


def differing(stage: str, name: str, ours: object, golden: object, tolerance: float) -> Row:
    """Fraction of entries that differ."""
    ours, golden = np.asarray(ours), np.asarray(golden)
    if ours.shape != golden.shape:
        return Row(stage, f"{name}: shape {ours.shape}, golden {golden.shape}", np.inf, np.inf, tolerance)
    share = float((ours != golden).mean()) if golden.size else 0.0
    return Row(stage, name, float(share > 0), share, tolerance)


def at_most(stage: str, name: str, value: float, bound: float) -> Row:
    """A value of ours that must not exceed a bound."""
    return Row(stage, name, float(value), float(value), bound)
