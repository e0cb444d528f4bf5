"""Communication between the processes of a run: complete jobs, remaining jobs, and records that process 0 lacks.

The other processes offer the records of their folders. Process 0 requests those that its own folder lacks, the others
send them, and process 0 writes them. In a shared folder nothing has to be sent. This happens before the work, so that
only jobs that no process has completed are distributed, and after it, so that process 0 has all records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator

from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.records import Key, Record
from easi3r_jax.apps.evaluate.schedule import Job, shard_of
from easi3r_jax.apps.hosts import HostLostError, Hosts
from easi3r_jax.apps.run_folder import locked
from easi3r_jax.core.atomic import ensure_writable
from easi3r_jax.core.errors import UserError

#: Number of the job, end time of its newest record (seconds since 1970), whether the job is complete.
Offer = tuple[int, float, bool]


@contextlib.contextmanager
def claimed(output: pathlib.Path, hosts: Hosts) -> Iterator[None]:
    """Locks the folder of the run: one lock per process, process 0's first.

    Raises:
      OutputError: another run or one of its processes holds it, or it cannot be written.
      HostLostError: process 0 could not lock it.
    """
    own = f"run.{hosts.index:03d}.lock"
    busy = "another evaluation writes there"
    if hosts.index != 0:
        hosts.receive("locked", 0)
    existing = sorted(path.name for path in output.glob("run.*.lock"))
    ensure_writable(output, marker=existing[0] if existing else own)
    if hosts.index == 0:
        for name in existing:  # of a larger run, some of whose processes may still be alive
            with locked(output, busy=busy, name=name):
                pass
    with locked(output, busy=busy, name=own):
        hosts.publish("locked", True)
        yield


class Gathering:
    """A process's view of all jobs of its run.

    Args:
      hosts: the processes.
      jobs: all jobs, in the same order in every process.
      output: folder of the run, as this process sees it.
      is_done: whether a job is complete, according to the newest records of the folder.
    """

    def __init__(
        self,
        hosts: Hosts,
        jobs: list[Job],
        output: pathlib.Path,
        is_done: Callable[[Job, dict[Key, Record]], bool],
    ):
        self._hosts, self._jobs, self._output, self._is_done = hosts, jobs, output, is_done

    def agree(self) -> None:
        """Checks that all processes have the same plan.

        Raises:
          HostLostError: a process has stopped.
          UserError: the plans differ.
        """
        text = json.dumps([(job.key, job.num_frames) for job in self._jobs])
        own = [self._hosts.count, hashlib.sha256(text.encode()).hexdigest()]
        self._hosts.publish("jobs", own)
        for index in self._peers():
            if self._hosts.receive("jobs", index) != own:
                raise UserError(
                    f"Processes 0 and {max(index, self._hosts.index)} have different plans: start all with the same "
                    "version, options, checkpoint and data."
                )

    def divide(self) -> tuple[list[Job], list[Job]]:
        """The jobs that no process has completed, and this process's shard of them.

        Raises:
          HostLostError: a process has stopped.
        """
        if self._hosts.index == 0:
            done, lost = self.collect("before")
            if lost:
                raise lost[0]
            numbers = [number for number in range(len(self._jobs)) if number not in done]
            self._hosts.publish("left", numbers)
        else:
            self.offer("before")
            numbers = self._hosts.receive("left", 0)
        left = [self._jobs[number] for number in numbers]
        return left, shard_of(left, self._hosts.index, self._hosts.count)

    def offer(self, when: str) -> None:
        """Offers this process's records to process 0 and sends those that it requests.

        Raises:
          HostLostError: process 0 has stopped.
        """
        known = self._known()
        self._hosts.publish(f"{when}/offer", self._offers(known))
        wanted = self._hosts.receive(f"{when}/wanted/{self._hosts.index}", 0)
        self._hosts.publish(f"{when}/records", [records.line(known[self._jobs[number].key]) for number in wanted])

    def collect(self, when: str) -> tuple[set[int], list[HostLostError]]:
        """Receives from the other processes the records that the folder of process 0 lacks.

        Returns:
          numbers of the jobs that are complete, here or elsewhere; an error for each process that did not answer.
        """
        offers: dict[int, list[Offer]] = {}
        lost = []
        for index in self._hosts.others:
            try:
                offers[index] = [(n, end, done) for n, end, done in self._hosts.receive(f"{when}/offer", index)]
            except HostLostError as error:
                lost.append(error)
        own = self._offers(self._known())  # read now: includes what the others have written into a shared folder
        here = {number: (done, end) for number, end, done in own}  # complete outranks newer
        for index, offered in offers.items():
            lacking = [n for n, end, done in offered if n not in here or (done, end) > here[n]]
            self._hosts.publish(f"{when}/wanted/{index}", lacking)
        for index in offers:
            try:
                self._write([records.parse(text) for text in self._hosts.receive(f"{when}/records", index)])
            except HostLostError as error:
                lost.append(error)
        every = [*own, *(offer for offered in offers.values() for offer in offered)]
        return {number for number, _, done in every if done}, lost

    def _peers(self) -> list[int]:
        return self._hosts.others if self._hosts.index == 0 else [0]

    def _known(self) -> dict[Key, Record]:
        return records.latest(records.read(self._output))

    def _offers(self, known: dict[Key, Record]) -> list[Offer]:
        return [
            (number, known[job.key].ended, self._is_done(job, known))
            for number, job in enumerate(self._jobs)
            if job.key in known
        ]

    def _write(self, sent: list[Record | None]) -> None:
        keys = {job.key for job in self._jobs}
        requested = [record for record in sent if record is not None and record.key in keys]
        if requested:
            records.append(self._output / f"results.{self._hosts.index:03d}.jsonl", *requested)
