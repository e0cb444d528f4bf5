"""From sequences to data sets: means that say how many sequences they are of, and refuse to be of too few."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from easi3r_jax.apps.evaluate.judge import COUNTS, Figures
from easi3r_jax.apps.evaluate.records import Record


@dataclasses.dataclass(frozen=True)
class Mean:
    """A figure of a data set.

    Attributes:
      value: mean over seeds of the data set's mean; None where it is defined for no sequence.
      deviation: standard deviation over seeds, of two or more (divided by K - 1); otherwise None.
      undefined: sequences that were judged but that have no such figure; they are not in the mean.
    """

    value: float | None
    deviation: float | None
    undefined: int


@dataclasses.dataclass(frozen=True)
class TaskSummary:
    """A task on a data set.

    Attributes:
      dataset, task: their names.
      done: sequences that are complete, with all seeds.
      expected: sequences that there are.
      seeds: K.
      figures: means over the sequences that are done.
    """

    dataset: str
    task: str
    done: int
    expected: int
    seeds: int
    figures: dict[str, Mean]

    @property
    def whole(self) -> bool:
        """Whether the means may be called results."""
        return self.done == self.expected


def summarise(
    dataset: str, task: str, expected: Iterable[str], seeds: Sequence[int], records: Iterable[Record]
) -> TaskSummary:
    """Means of a task.

    Args:
      dataset, task: their names.
      expected: names of the sequences that there are.
      seeds: of the method.
      records: of this data set, in one configuration.
    """
    expected = list(expected)
    found = {(r.sequence, r.seed): r.figures[task] for r in records if r.error is None and task in r.figures}
    done = [name for name in expected if all((name, seed) in found for seed in seeds)]
    by_seed = [[found[name, seed] for name in done] for seed in seeds]
    names = dict.fromkeys(name for figures in by_seed for one in figures for name in one if name not in COUNTS)
    means = {}
    for name in names:
        values = [data_set_mean(name, figures) for figures in by_seed]
        known = [value for value in values if value is not None]
        means[name] = Mean(
            value=statistics.fmean(known) if known else None,
            deviation=statistics.stdev(known) if len(known) > 1 else None,
            undefined=max(sum(one.get(name) is None for one in figures) for figures in by_seed),
        )
    return TaskSummary(dataset, task, len(done), len(expected), len(seeds), means)


def data_set_mean(name: str, figures: Iterable[Figures]) -> float | None:
    """Mean of a figure over sequences, each with the weight that the figure's protocol gives it; None without any.

    Pooled figures of masks go by frames and those of depth by pixels, so that a long sequence counts more; all others
    count every sequence alike.
    """
    known = [(value, _weight(name, one)) for one in figures if (value := one.get(name)) is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _weight(name: str, figures: Figures) -> float:
    count = figures.get("pooled_frames") if name.startswith("pooled_") else figures.get("pixels", 1.0)
    return count or 0.0
