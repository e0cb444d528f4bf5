"""Compares two runs: paired differences, sequence by sequence, with bootstrap intervals.

Whatever is not compared is said: sequences of one run only, failures, undefined values, other seeds.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Sequence

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
_NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of two runs over the sequences for which both define it.

    Attributes:
      dataset, task, name: of the metric.
      count: number of sequences in the means.
      of: numbers of sequences that each run has of this task, failed ones included.
      undefined: numbers of common sequences for which the metric is undefined: in the first only, in the second only,
        in both.
      first, second: unweighted means over the sequences; None for no sequence.
      difference: second minus first; None for no sequence.
      low, high: ends of the 95 % percentile interval of the mean difference over 10 000 bootstrap samples of the
        sequences; None for fewer than six, which are too few.
    """

    dataset: str
    task: str
    name: str
    count: int
    of: tuple[int, int]
    undefined: tuple[int, int, int]
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """The records of a run in its newest configuration of each data set.

    Attributes:
      sequences: data set -> sequence -> seed -> record; failures have an `error`.
      notes: what was not read, for the user.
    """

    sequences: dict[str, dict[str, dict[int, Record]]]
    notes: tuple[str, ...]

    def complete(self, dataset: str, sequence: str) -> dict[int, Record]:
        """The records of a sequence without failures, by seed."""
        found = self.sequences.get(dataset, {}).get(sequence, {})
        return {seed: record for seed, record in found.items() if record.error is None}


def compare(first: pathlib.Path, second: pathlib.Path) -> tuple[list[Difference], list[str]]:
    """Every metric that either run has of their common sequences, and a line for each thing that is left out.

    If a folder has several configurations, the newest of each data set is used. A sequence's value is its mean over
    the seeds of both runs; if they have no seed in common, over the seeds of each. The interval is the same in every
    call.

    Source of the interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13.

    Raises:
      InputError: a folder without results, or two folders without a common sequence.
    """
    one, other = run_of(first), run_of(second)
    pairs = dict(_pairs(one, other))
    if not pairs:
        raise InputError(f"{first} and {second} have no complete sequence in common, so there is nothing to compare.")
    keys = dict.fromkeys(
        (dataset, task, name)
        for (dataset, _), sides in pairs.items()
        for side in sides
        for record in side
        for task, values in record.metrics.items()
        for name in values
        if name not in COUNTS
    )
    found = [_difference(key, pairs, one, other) for key in sorted(keys)]
    notes = [f"{side}: {note}" for side, run in (("A", one), ("B", other)) for note in run.notes]
    return found, notes + list(_left_out(one, other, set(pairs)))


Pairs = dict[tuple[str, str], tuple[list[Record], list[Record]]]


def _pairs(one: Run, other: Run) -> Iterator[tuple[tuple[str, str], tuple[list[Record], list[Record]]]]:
    """(data set, sequence) -> the records to compare of both runs: of the same seeds, if there are any."""
    for dataset in sorted(one.sequences.keys() & other.sequences.keys()):
        for sequence in sorted(one.sequences[dataset].keys() & other.sequences[dataset].keys()):
            first, second = one.complete(dataset, sequence), other.complete(dataset, sequence)
            if not first or not second or _lengths(first) != _lengths(second):
                continue
            seeds = sorted(first.keys() & second.keys())
            yield (
                (dataset, sequence),
                ([first[s] for s in seeds or sorted(first)], [second[s] for s in seeds or sorted(second)]),
            )


def _lengths(by_seed: dict[int, Record]) -> set[int]:
    return {record.num_frames for record in by_seed.values()}


def _difference(key: tuple[str, str, str], pairs: Pairs, one: Run, other: Run) -> Difference:
    dataset, task, name = key
    values, undefined = [], [0, 0, 0]
    for (of, _), sides in pairs.items():
        if of != dataset or not any(task in record.metrics for side in sides for record in side):
            continue
        first, second = (_mean(side, task, name) for side in sides)
        if first is None or second is None:
            undefined[2 if first is second else (0 if first is None else 1)] += 1
        else:
            values.append((first, second))
    array = np.array(values, np.float64).reshape(-1, 2)
    low, high = bootstrap_interval(array[:, 1] - array[:, 0])
    a, b = (float(mean) for mean in array.mean(axis=0)) if len(array) else (None, None)
    return Difference(
        dataset,
        task,
        name,
        len(values),
        (_count(one, dataset, task), _count(other, dataset, task)),
        (undefined[0], undefined[1], undefined[2]),
        a,
        b,
        None if a is None or b is None else b - a,
        low,
        high,
    )


def _mean(side: Sequence[Record], task: str, name: str) -> float | None:
    """A sequence's mean over seeds; None if the metric is undefined for one of them."""
    values = [record.metrics.get(task, {}).get(name) for record in side]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _count(run: Run, dataset: str, task: str) -> int:
    """Number of a run's sequences that have a task, or failed."""
    return sum(
        any(record.error is not None or task in record.metrics for record in by_seed.values())
        for by_seed in run.sequences[dataset].values()
    )


def _left_out(one: Run, other: Run, compared: set[tuple[str, str]]) -> Iterator[str]:
    """A line for each reason for which sequences, or seeds of them, are not compared."""
    for dataset in sorted(one.sequences.keys() | other.sequences.keys()):
        sides = [run.sequences.get(dataset, {}) for run in (one, other)]
        names = sorted(sides[0].keys() | sides[1].keys())
        common = [name for name in names if (dataset, name) in compared]
        reasons: dict[str, list[str]] = {}
        seeds: list[str] = []
        for name in names:
            complete = [run.complete(dataset, name) for run in (one, other)]
            if (dataset, name) in compared:
                if complete[0].keys() != complete[1].keys():
                    seeds.append(f"{name} (A: {_listed(complete[0])}; B: {_listed(complete[1])})")
                continue
            missing = [side for side, found in zip("AB", sides, strict=True) if name not in found]
            failed = [side for side, found in zip("AB", complete, strict=True) if not found and side not in missing]
            if missing:
                reason = f"not in {missing[0]}"
            elif failed:
                reason = f"failed in {' and '.join(failed)}"
            else:
                reason = "of different lengths"
            reasons.setdefault(reason, []).append(name)
        if reasons:
            text = "; ".join(f"{reason}: {_some(found)}" for reason, found in reasons.items())
            yield f"{dataset}: {len(common)} of {len(sides[0])} and {len(sides[1])} sequences, left out: {text}."
        if seeds:
            yield f"{dataset}: other seeds in {len(seeds)} of {len(common)} sequences, {_some(seeds)}: {_SEEDS}."


_SEEDS = "common seeds are compared, or all if there are none"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def bootstrap_interval(differences: np.ndarray) -> tuple[float | None, float | None]:
    """95 % percentile interval of the mean of (n,) numbers; None for fewer than six."""
    if len(differences) < _MIN_SEQUENCES:
        return None, None
    chosen = np.random.default_rng(0).integers(len(differences), size=(_NUM_RESAMPLES, len(differences)))
    tail = (1 - _CONFIDENCE_LEVEL) / 2
    low, high = np.quantile(differences[chosen].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def run_of(folder: pathlib.Path) -> Run:
    """The records of the newest configuration of each data set.

    Raises:
      InputError: no such folder, or no complete sequence in it.
    """
    read = records.read(folder)
    if not any(record.error is None for record in read):
        raise InputError(f"{folder} has no results of an evaluation: give the folder that was its --output.")
    newest = {record.dataset: record.config for record in read}  # in the order in which they ended
    sequences: dict[str, dict[str, dict[int, Record]]] = {}
    for record in records.latest(read).values():
        if newest[record.dataset] == record.config:
            sequences.setdefault(record.dataset, {}).setdefault(record.sequence, {})[record.seed] = record
    notes = [f"{place} is not a valid record, and is left out." for place in records.invalid_lines(folder)]
    for dataset in newest:
        if older := len({record.config for record in read if record.dataset == dataset}) - 1:
            notes.append(f"{dataset} has {older + 1} configurations; the newest is compared.")
    return Run(sequences, tuple(notes))


def printed(differences: list[Difference]) -> str:
    """A table, with a star if the interval does not contain 0."""
    rows = []
    for d in differences:
        interval, mark = "-", ""
        if d.low is not None and d.high is not None:
            interval = f"[{d.low:+.4f}, {d.high:+.4f}]"
            mark = "" if d.low <= 0 <= d.high else "*"
        numbers = ("-", "-", "-")
        if d.first is not None and d.second is not None and d.difference is not None:
            numbers = (f"{d.first:.4f}", f"{d.second:.4f}", f"{d.difference:+.4f}")
        rows.append((f"{d.dataset} {d.task} {d.name}", counted(d), *numbers, interval, mark))
    return table(rows, ("metric", "sequences", "A", "B", "B - A", "95 % interval", ""))


def counted(d: Difference) -> str:
    """The number of sequences, of how many, and for how many the metric is undefined."""
    text = str(d.count) if d.of == (d.count, d.count) else f"{d.count} of {d.of[0]} and {d.of[1]}"
    sides = zip(d.undefined, ("A", "B", "both"), strict=True)
    undefined = ", ".join(f"{count} in {side}" for count, side in sides if count)
    return f"{text} (undefined: {undefined})" if undefined else text
