"""What the processes of a run tell each other: what is there, what is left, and the records that process 0 lacks.

The others offer what their folder has, process 0 says what of that its own folder does not have, they send it, and it
is written there. In a folder that all share nothing has to be sent. This is done before the work, so that the division
is of what nobody has, and after it, so that process 0 has everything.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable

from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.records import Key, Record
from easi3r_jax.apps.evaluate.schedule import Job, share_of
from easi3r_jax.apps.hosts import HostLostError, Hosts
from easi3r_jax.core.errors import UserError

#: number of the job, end of the newest record of it (seconds since 1970), whether that is complete
Offer = tuple[int, float, bool]


class Gathering:
    """What a process knows of all jobs of its run.

    Args:
      hosts: the processes.
      jobs: all, in the same order in every process.
      output: folder of the run, as this process sees it.
      is_done: whether a job is complete, by the newest records of the folder.
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
        """Makes sure that all processes are about to do the same.

        Raises:
          HostLostError: one has stopped.
          UserError: they are not.
        """
        text = json.dumps([(job.key, job.num_frames) for job in self._jobs])
        own = [self._hosts.count, hashlib.sha256(text.encode()).hexdigest()]
        self._hosts.tell("jobs", own)
        for index in self._partners():
            if self._hosts.hear("jobs", index) != own:
                raise UserError(
                    f"Processes 0 and {max(index, self._hosts.index)} are not about to do the same: start all with the "
                    "same version, options, checkpoint and data."
                )

    def divide(self) -> tuple[list[Job], list[Job]]:
        """What no process has done, and this one's share of that.

        Raises:
          HostLostError: a process has stopped.
        """
        if self._hosts.index == 0:
            done, lost = self.collect("before")
            if lost:
                raise lost[0]
            numbers = [number for number in range(len(self._jobs)) if number not in done]
            self._hosts.tell("left", numbers)
        else:
            self.offer("before")
            numbers = self._hosts.hear("left", 0)
        left = [self._jobs[number] for number in numbers]
        return left, share_of(left, self._hosts.index, self._hosts.count)

    def offer(self, when: str) -> None:
        """Tells process 0 what there is here, and sends it what it lacks.

        Raises:
          HostLostError: process 0 has stopped.
        """
        known = self._known()
        self._hosts.tell(f"{when}/offer", self._offers(known))
        wanted = self._hosts.hear(f"{when}/wanted/{self._hosts.index}", 0)
        self._hosts.tell(f"{when}/records", [records.line(known[self._jobs[number].key]) for number in wanted])

    def collect(self, when: str) -> tuple[set[int], list[HostLostError]]:
        """Takes from the others what the folder of process 0 lacks.

        Returns:
          numbers of the jobs that are complete, here or elsewhere; what became of processes that did not answer.
        """
        offers: dict[int, list[Offer]] = {}
        lost = []
        for index in self._hosts.others:
            try:
                offers[index] = [(n, end, done) for n, end, done in self._hosts.hear(f"{when}/offer", index)]
            except HostLostError as error:
                lost.append(error)
        own = self._offers(self._known())  # now: with what the others have written into a folder that all share
        here = {number: (done, end) for number, end, done in own}  # what is complete outranks what is newer
        for index, offered in offers.items():
            lacking = [n for n, end, done in offered if n not in here or (done, end) > here[n]]
            self._hosts.tell(f"{when}/wanted/{index}", lacking)
        for index in offers:
            try:
                self._write([records.parse(text) for text in self._hosts.hear(f"{when}/records", index)])
            except HostLostError as error:
                lost.append(error)
        every = [*own, *(offer for offered in offers.values() for offer in offered)]
        return {number for number, _, done in every if done}, lost

    def _partners(self) -> list[int]:
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
        asked = [record for record in sent if record is not None and record.key in keys]
        if asked:
            records.append(self._output / f"results.{self._hosts.index:03d}.jsonl", *asked)
