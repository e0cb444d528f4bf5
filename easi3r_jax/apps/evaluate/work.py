"""The loop of an evaluation: each record is on disk before its line is printed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence

from easi3r_jax.apps.cluster.tasks import STATUS_SECONDS, Ended, Task
from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.run import Outcome, record_of, save
from easi3r_jax.apps.evaluate.schedule import Job
from easi3r_jax.apps.evaluate.tables import outcome as in_words
from easi3r_jax.apps.progress import Stages, clock
from easi3r_jax.apps.run_folder import save_so_far
from easi3r_jax.core.batches import bucket_size
from easi3r_jax.io import remote

#: Between uploads of what is finished, if --output is an address.
_SAVE_SECONDS = 30.0


def tasks_of_jobs(jobs: Iterable[Job]) -> list[Task]:
    """A task for each job; its payload is the job's key. Clips of one bucket have the same compiled programs."""
    return [
        Task(f"{job.key[0]} {job.key[1]}", job.key, job.num_frames, (job.key[0], bucket_size(job.num_frames)))
        for job in jobs
    ]


class Lines:
    """What is printed while jobs end.

    Args:
      jobs: to be done.
      several_seeds: whether lines name the seed.
    """

    def __init__(self, jobs: Sequence[Job], *, several_seeds: bool):
        self._frames, self._count = sum(job.num_frames for job in jobs), len(jobs)
        self._several_seeds = several_seeds
        self._began = self._said = time.monotonic()
        self._done_frames = self._done = self._failed = 0
        if jobs:
            print("  Every sequence is saved as soon as it ends: after an interruption, the same command resumes.")

    def ended(self, record: Record) -> None:
        """A job has ended."""
        self._done_frames += record.num_frames
        self._done += 1
        self._failed += record.error is not None
        name = f"{record.dataset} {record.sequence}" + (f", seed {record.seed}" if self._several_seeds else "")
        where = f", {record.worker}" if record.worker else ""
        again = f", attempt {record.attempts}" if record.attempts > 1 else ""
        left = f"; {self._left()} left" if self._done < self._count else ""
        print(
            f"  {self._done}/{self._count} {name}: {in_words(record)} ({record.seconds:.1f} s{where}{again}{left})",
            flush=True,
        )

    def status(self, doing: Sequence[str]) -> None:
        """What the workers do, now and then."""
        if time.monotonic() - self._said < STATUS_SECONDS:
            return
        self._said = time.monotonic()
        left = f", {self._left()} left" if self._done else ""
        print(
            f"  {self._done} of {self._count} done, {self._failed} failed{left}. {'; '.join(doing)}",
            flush=True,
        )

    def _left(self) -> str:
        each = (time.monotonic() - self._began) / self._done_frames
        return clock(each * (self._frames - self._done_frames))


def work(jobs: Iterable[Job], ended: Iterable[Ended], target: remote.Output, stages: Stages, lines: Lines) -> None:
    """Saves each job as soon as it ends, and says so.

    Args:
      jobs: to be done.
      ended: what becomes of their tasks.
      target: folder of the run; if it is an address, what is finished is uploaded now and then.
      stages: whose bars are closed before a line is printed.
      lines: prints.

    Raises:
      OutputError: a record cannot be written.
    """
    by_key = {job.key: job for job in jobs}
    for end in ended:
        outcome: Outcome | None = end.value
        if outcome is None:  # every attempt lost its worker
            outcome = Outcome(record_of(by_key[end.task.payload], seconds=end.seconds, error=end.error))
        record = dataclasses.replace(outcome.record, attempts=end.attempts, worker=end.worker)
        save(target.folder, dataclasses.replace(outcome, record=record))
        stages.close()
        lines.ended(record)
        save_so_far(target, every=_SAVE_SECONDS)
        stages.close()
