"""The jobs of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from easi3r_jax.apps.evaluate.records import Key, Record, configuration_digest
from easi3r_jax.apps.evaluate.sequence_metrics import tasks_of
from easi3r_jax.apps.evaluate.summary import TaskSummary, summarise
from easi3r_jax.evaluation.datasets import TestSequence, TestSet


@dataclasses.dataclass(frozen=True)
class Part:
    """A data set of a run.

    Attributes:
      test_set: its protocol.
      sequences: all of its sequences.
      chosen: those to be evaluated: the first of them.
      configuration: everything that determines the results, except the seed.
      digest: identifies the configuration.
    """

    test_set: TestSet
    sequences: tuple[TestSequence, ...]
    chosen: tuple[TestSequence, ...]
    configuration: dict[str, Any]
    digest: str

    @classmethod
    def of(
        cls, test_set: TestSet, sequences: Iterable[TestSequence], num_sequences: int, configuration: dict[str, Any]
    ) -> Part:
        """The first `num_sequences` of a data set, or all (0)."""
        every = tuple(sequences)
        chosen = every[: num_sequences or None]
        return cls(test_set, every, chosen, configuration, configuration_digest(configuration))

    def own(self, records: Iterable[Record]) -> list[Record]:
        """The records of this data set in this configuration, for the sequences as they are now, in their order."""
        order = {sequence.name: (number, len(sequence.times)) for number, sequence in enumerate(self.sequences)}
        own = [
            record
            for record in records
            if (record.dataset, record.config) == (self.test_set.name, self.digest)
            and record.sequence in order
            and order[record.sequence][1] == record.num_frames
        ]
        return sorted(own, key=lambda record: (order[record.sequence], record.seed))

    def summaries(self, seeds: Iterable[int], records: Iterable[Record]) -> list[TaskSummary]:
        """Means of every task for which some sequence has ground truth, from `own` records."""
        seeds, records = list(seeds), list(records)
        tasks_of_each = {sequence.name: tasks_of(self.test_set, sequence.truth) for sequence in self.sequences}
        expected = {
            task: [name for name, tasks in tasks_of_each.items() if task in tasks] for task in self.test_set.tasks
        }
        return [summarise(self.test_set.name, task, names, seeds, records) for task, names in expected.items() if names]


@dataclasses.dataclass(frozen=True)
class Job:
    """A sequence to be evaluated.

    Attributes:
      part: its data set.
      sequence: frames and truth.
      seed: of the method.
    """

    part: Part
    sequence: TestSequence
    seed: int

    @property
    def key(self) -> Key:
        """Key of its record."""
        return self.part.test_set.name, self.sequence.name, self.seed, self.part.digest

    @property
    def num_frames(self) -> int:
        """T, the estimate of its cost."""
        return len(self.sequence.times)


def all_jobs(parts: Iterable[Part], seeds: Iterable[int]) -> list[Job]:
    """All chosen sequences with all seeds."""
    seeds = list(seeds)
    return [Job(part, sequence, seed) for part in parts for sequence in part.chosen for seed in seeds]
