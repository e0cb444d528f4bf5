"""Two runs side by side: paired differences, sequence by sequence, and how far chance explains them."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics

import numpy as np

from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.judge import COUNTS
from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.progress import table
from easi3r_jax.core.errors import InputError

_RESAMPLES = 10_000
_LEVEL = 0.95
# Of fewer sequences all differ the same way by chance alone in more than 1 of 20 cases (2 / 2^n), and an interval of
# what was drawn from them never holds 0 then.
_FEWEST = 6

Values = dict[tuple[str, str, str, str], float]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A figure of two runs over the sequences that both have.

    Attributes:
      dataset, task, name: of the figure.
      count: sequences.
      first, second: means over them, every sequence alike.
      difference: second minus first.
      low, high: ends of the 95 % percentile interval of the mean difference over 10 000 bootstrap samples of the
        sequences; None for fewer than six, which say too little.
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
    """Every figure that both runs have.

    Of several configurations in a folder the newest counts for each data set; a sequence's value is its mean over
    seeds. The interval is the same in every call.

    Source of the interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13.

    Raises:
      InputError: a folder without results, or two without a sequence in common.
    """
    one, other = values_of(first), values_of(second)
    common = sorted(one.keys() & other.keys())
    if not common:
        raise InputError(f"{first} and {second} have no complete sequence in common: nothing can be compared.")
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
    if len(differences) < _FEWEST:
        return None, None
    chosen = np.random.default_rng(0).integers(len(differences), size=(_RESAMPLES, len(differences)))
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(differences[chosen].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def values_of(folder: pathlib.Path) -> Values:
    """(data set, sequence, task, figure) -> mean over seeds, of the newest configuration of each data set.

    Raises:
      InputError: no such folder, or nothing complete in it.
    """
    found = [record for record in records.latest(records.read(folder)).values() if record.error is None]
    if not found:
        raise InputError(f"{folder} has no results of an evaluation: name the folder that was its --output.")
    newest = {record.dataset: record.config for record in sorted(found, key=lambda record: record.ended)}
    seeds: dict[tuple[str, str, str, str], list[float]] = {}
    for record in found:
        if newest[record.dataset] == record.config:
            _gather(record, seeds)
    return {key: statistics.fmean(values) for key, values in seeds.items()}


def _gather(record: Record, seeds: dict[tuple[str, str, str, str], list[float]]) -> None:
    for task, figures in record.figures.items():
        for name, value in figures.items():
            if value is not None and name not in COUNTS:
                seeds.setdefault((record.dataset, record.sequence, task, name), []).append(value)


def printed(differences: list[Difference]) -> str:
    """A table; a star where the interval does not hold 0."""
    rows = []
    for d in differences:
        interval, mark = "-", ""
        if d.low is not None and d.high is not None:
            interval = f"[{d.low:+.4f}, {d.high:+.4f}]"
            mark = "" if d.low <= 0 <= d.high else "*"
        numbers = (f"{d.first:.4f}", f"{d.second:.4f}", f"{d.difference:+.4f}")
        rows.append((f"{d.dataset} {d.task} {d.name}", str(d.count), *numbers, interval, mark))
    return table(rows, ("figure", "sequences", "A", "B", "B - A", "95 % of the mean", ""))
