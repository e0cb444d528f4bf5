"""Compares two runs: paired differences, sequence by sequence, with bootstrap intervals."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics

import numpy as np

from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.sequence_metrics import COUNTS
from easi3r_jax.apps.progress import table
from easi3r_jax.core.errors import InputError

_NUM_RESAMPLES = 10_000
_CONFIDENCE_LEVEL = 0.95
# With fewer sequences, all differ in the same direction by chance alone in more than 1 of 20 cases (2 / 2^n), and the
# bootstrap interval then never contains 0.
_MIN_SEQUENCES = 6

Values = dict[tuple[str, str, str, str], float]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of two runs over the sequences that both have.

    Attributes:
      dataset, task, name: of the metric.
      count: number of sequences.
      first, second: unweighted means over them.
      difference: second minus first.
      low, high: ends of the 95 % percentile interval of the mean difference over 10 000 bootstrap samples of the
        sequences; None for fewer than six, which are too few.
    """

    dataset: str
    task: str
    name: str
    count: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None


def compare(first: pathlib.Path, second: pathlib.Path) -> list[Difference]:
    """Every metric that both runs have.

    If a folder has several configurations, the newest of each data set is used. A sequence's value is its mean over
    seeds. The interval is the same in every call.

    Source of the interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13.

    Raises:
      InputError: a folder without results, or two folders without a common sequence.
    """
    one, other = values_of(first), values_of(second)
    common = sorted(one.keys() & other.keys())
    if not common:
        raise InputError(f"{first} and {second} have no complete sequence in common, so there is nothing to compare.")
    found = []
    for dataset, task, name in dict.fromkeys((dataset, task, name) for dataset, _, task, name in common):
        keys = [key for key in common if (key[0], *key[2:]) == (dataset, task, name)]
        pairs = np.array([[one[key], other[key]] for key in keys])
        low, high = bootstrap_interval(pairs[:, 1] - pairs[:, 0])
        a, b = (float(mean) for mean in pairs.mean(axis=0))
        found.append(Difference(dataset, task, name, len(keys), a, b, b - a, low, high))
    return found


def bootstrap_interval(differences: np.ndarray) -> tuple[float | None, float | None]:
    """95 % percentile interval of the mean of (n,) numbers; None for fewer than six."""
    if len(differences) < _MIN_SEQUENCES:
        return None, None
    chosen = np.random.default_rng(0).integers(len(differences), size=(_NUM_RESAMPLES, len(differences)))
    tail = (1 - _CONFIDENCE_LEVEL) / 2
    low, high = np.quantile(differences[chosen].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def values_of(folder: pathlib.Path) -> Values:
    """(data set, sequence, task, metric) -> mean over seeds, of the newest configuration of each data set.

    Raises:
      InputError: no such folder, or no complete sequence in it.
    """
    found = [record for record in records.latest(records.read(folder)).values() if record.error is None]
    if not found:
        raise InputError(f"{folder} has no results of an evaluation: give the folder that was its --output.")
    newest = {record.dataset: record.config for record in sorted(found, key=lambda record: record.ended)}
    seeds: dict[tuple[str, str, str, str], list[float]] = {}
    for record in found:
        if newest[record.dataset] == record.config:
            _add_values(record, seeds)
    return {key: statistics.fmean(values) for key, values in seeds.items()}


def _add_values(record: Record, seeds: dict[tuple[str, str, str, str], list[float]]) -> None:
    for task, values in record.metrics.items():
        for name, value in values.items():
            if value is not None and name not in COUNTS:
                seeds.setdefault((record.dataset, record.sequence, task, name), []).append(value)


def printed(differences: list[Difference]) -> str:
    """A table, with a star if the interval does not contain 0."""
    rows = []
    for d in differences:
        interval, mark = "-", ""
        if d.low is not None and d.high is not None:
            interval = f"[{d.low:+.4f}, {d.high:+.4f}]"
            mark = "" if d.low <= 0 <= d.high else "*"
        numbers = (f"{d.first:.4f}", f"{d.second:.4f}", f"{d.difference:+.4f}")
        rows.append((f"{d.dataset} {d.task} {d.name}", str(d.count), *numbers, interval, mark))
    return table(rows, ("metric", "sequences", "A", "B", "B - A", "95 % interval", ""))
