"""How long so many workers would take, by the order in which `Queue` hands out tasks."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Sequence

from easi3r_jax.apps.cluster.tasks import Queue, Task


def simulated_seconds(
    tasks: Sequence[Task], workers: int, *, start: float = 0.0, compilation: float = 0.0
) -> tuple[float, float]:
    """Seconds until the last of the tasks has ended, and seconds of all workers' work.

    Args:
      tasks: their `cost` is in seconds.
      workers: their number.
      start: seconds until a worker is ready.
      compilation: seconds that a worker adds to its first task of each shape.
    """
    queue = Queue(tasks)
    compiled: list[set[Hashable]] = [set() for _ in range(workers)]
    holders: Counter[Hashable] = Counter()
    idle = [(start, worker) for worker in range(workers)]
    last, work = 0.0, 0.0
    while queue:
        now, worker = heapq.heappop(idle)
        task = queue.take(compiled[worker], holders)
        assert task is not None
        spent = task.cost
        if task.shape not in compiled[worker]:
            spent += compilation
            compiled[worker].add(task.shape)
            holders[task.shape] += 1
        heapq.heappush(idle, (now + spent, worker))
        last, work = max(last, now + spent), work + spent
    return last, work
