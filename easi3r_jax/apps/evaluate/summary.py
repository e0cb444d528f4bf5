"""From sequences to data sets: means together with the number of sequences they are over."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.sequence_metrics import COUNTS, Metrics


@dataclasses.dataclass(frozen=True)
class Mean:
    """A metric of a data set.

    Attributes:
      value: mean over seeds of the data set's mean; None if it is undefined for all sequences.
      deviation: standard deviation over two or more seeds (divided by K - 1); otherwise None.
      undefined: number of evaluated sequences for which the metric is undefined; they are not in the mean.
    """

    value: float | None
    deviation: float | None
    undefined: int


@dataclasses.dataclass(frozen=True)
class TaskSummary:
    """A task on a data set.

    Attributes:
      dataset, task: their names.
      done: number of sequences that are complete, with all seeds.
      expected: number of sequences of the task.
      seeds: K.
      metrics: means over the complete sequences.
    """

    dataset: str
    task: str
    done: int
    expected: int
    seeds: int
    metrics: dict[str, Mean]

    @property
    def is_complete(self) -> bool:
        """Whether the means are over all sequences."""
        return self.done == self.expected


def summarise(
    dataset: str, task: str, expected: Iterable[str], seeds: Sequence[int], records: Iterable[Record]
) -> TaskSummary:
    """Means of a task.

    Args:
      dataset, task: their names.
      expected: names of the sequences of the task.
      seeds: of the method.
      records: of this data set, in one configuration.
    """
    expected = list(expected)
    found = {(r.sequence, r.seed): r.metrics[task] for r in records if r.error is None and task in r.metrics}
    done = [name for name in expected if all((name, seed) in found for seed in seeds)]
    by_seed = [[found[name, seed] for name in done] for seed in seeds]
    names = dict.fromkeys(name for sequences in by_seed for one in sequences for name in one if name not in COUNTS)
    means = {}
    for name in names:
        values = [data_set_mean(name, sequences) for sequences in by_seed]
        known = [value for value in values if value is not None]
        means[name] = Mean(
            value=statistics.fmean(known) if known else None,
            deviation=statistics.stdev(known) if len(known) > 1 else None,
            undefined=max(sum(one.get(name) is None for one in sequences) for sequences in by_seed),
        )
    return TaskSummary(dataset, task, len(done), len(expected), len(seeds), means)


def data_set_mean(name: str, sequences: Iterable[Metrics]) -> float | None:
    """Mean of a metric over sequences, with the weights of the metric's protocol; None without any value.

    Pooled mask metrics are weighted by frames and depth metrics by pixels, so that longer sequences count more. All
    others weight sequences equally.
    """
    known = [(value, _weight(name, one)) for one in sequences if (value := one.get(name)) is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _weight(name: str, sequence: Metrics) -> float:
    count = sequence.get("pooled_frames") if name.startswith("pooled_") else sequence.get("pixels", 1.0)
    return count or 0.0
