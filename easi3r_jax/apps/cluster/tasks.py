"""Tasks, what becomes of them, and the order in which workers get them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any

#: Seconds between two lines on what the workers do.
STATUS_SECONDS = 30.0
#: A worker leaves the shapes that it has compiled if another's work, for each worker that has compiled that one, is so
#: many times theirs. The simulated run of tests/apps/test_cost.py is as good with 2, and worse with 5.
_HELP = 3.0
#: What a worker does with a task's payload. Its exceptions end the run: it returns expected failures.
Attempt = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A piece of work that depends on no other.

    Attributes:
      name: for people.
      payload: given to `Attempt`; small, since it is sent.
      cost: in any unit, the same for all.
      shape: of its arrays: a worker has compiled for the shapes that it has worked on.
    """

    name: str
    payload: Any
    cost: float = 1.0
    shape: Hashable = None


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of a task: a value, or the reason why it was given up.

    Attributes:
      task: the task.
      value: what `Attempt` returned; None if every attempt lost its worker.
      error: why the task was given up, in one line; None if there is a value.
      attempts: how often it was begun.
      seconds: of its last attempt.
      worker: name of the last worker, "" for this process.
    """

    task: Task
    value: Any
    error: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    worker: str = ""


@dataclasses.dataclass
class Usage:
    """What a worker has done.

    Attributes:
      name: of the worker.
      tasks: number of tasks that it ended.
      busy: seconds that it spent on tasks.
    """

    name: str
    tasks: int = 0
    busy: float = 0.0


class Queue:
    """Tasks that wait, longest first; a worker prefers shapes that it has compiled, then shapes that nobody has.

    When all shapes are taken, workers with little left help where the most is waiting for each worker, and in the end
    idle ones take over any: compiling once more is shorter than waiting.
    """

    def __init__(self, tasks: Iterable[Task]):
        self._waiting: dict[Hashable, deque[Task]] = {}
        self._costs: dict[Hashable, float] = {}
        for task in sorted(tasks, key=lambda task: -task.cost):
            self._waiting.setdefault(task.shape, deque()).append(task)
            self._costs[task.shape] = self._costs.get(task.shape, 0.0) + task.cost

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, compiled: Collection[Hashable] = (), holders: Mapping[Hashable, int] | None = None) -> Task | None:
        """Removes and returns the next task of a worker; None if none waits.

        Args:
          compiled: shapes that the worker has compiled.
          holders: shape -> number of workers that have compiled it, this one included.
        """
        holders = holders or {}
        own = [shape for shape in self._waiting if shape in compiled]
        new = [shape for shape in self._waiting if not holders.get(shape)]

        def backlog(shape: Hashable) -> float:
            return self._costs[shape] / max(1, holders.get(shape, 0))

        if not self._waiting:
            return None
        longest = max(self._waiting, key=backlog)
        if own and not new and backlog(longest) > _HELP * sum(map(backlog, own)):
            own = []
        shape = max(own or new, key=lambda shape: self._waiting[shape][0].cost) if own or new else longest
        task = self._waiting[shape].popleft()
        self._costs[shape] -= task.cost
        if not self._waiting[shape]:
            del self._waiting[shape]
        return task

    def put_back(self, task: Task) -> None:
        """Returns a task whose worker was lost; it is the next of its shape."""
        self._waiting.setdefault(task.shape, deque()).appendleft(task)
        self._costs[task.shape] = self._costs.get(task.shape, 0.0) + task.cost


class Tries:
    """How often tasks lost their worker.

    Losses that a task has no part in, such as that of a node, do not count as attempts. But a task that takes one node
    after the other with it has a part in that: three times as many losses of all kinds are the end.
    """

    def __init__(self, attempts: int):
        self._attempts = attempts
        self._counted: dict[int, int] = {}
        self._all: dict[int, int] = {}

    def begun(self, task: Task) -> int:
        """Attempts so far that count."""
        return self._counted.get(id(task), 0)

    def lost(self, task: Task, *, blameless: bool) -> bool:
        """Counts a loss. Whether the task may be begun again."""
        key = id(task)
        self._all[key] = self._all.get(key, 0) + 1
        self._counted[key] = self._counted.get(key, 0) + (not blameless)
        if self._all[key] >= 3 * self._attempts:
            self._counted[key] = self._all[key]
        return self._counted[key] < self._attempts
