"""Tasks in this process, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from easi3r_jax.apps.cluster.tasks import Attempt, Ended, Task


def run_here(tasks: Iterable[Task], attempt: Attempt) -> Iterator[Ended]:
    """Runs the tasks, longest first. The shapes' order does not matter: one process compiles each once."""
    for task in sorted(tasks, key=lambda task: -task.cost):
        began = time.monotonic()
        value = attempt(task.payload)
        yield Ended(task, value, seconds=time.monotonic() - began)
