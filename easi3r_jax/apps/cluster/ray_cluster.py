"""Tasks over the workers of a Ray cluster.

A worker is a Ray actor that owns its devices, keeps what it has loaded and compiled, and works on one task at a time.
This process hands out tasks and receives values. Whatever ends a worker (a signal, memory, native code, the time limit)
costs its task an attempt: Ray reports the end, and another worker takes its place wherever there is room, on nodes that
joined meanwhile too. A worker gets tasks only once it is ready: its start is no attempt, nor is the loss of a node.
The node of each start is named to Ray, so that one on which starts fail can be left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from easi3r_jax.apps.cluster.connection import NODE_LOST, connected, in_words
from easi3r_jax.apps.cluster.flags import ClusterOptions
from easi3r_jax.apps.cluster.nodes import Node, Starts, devices_per_worker, living
from easi3r_jax.apps.cluster.tasks import Attempt, Ended, Queue, Task, Tries, Usage
from easi3r_jax.apps.cluster.tpu import own_slice
from easi3r_jax.core.errors import ConfigError, UserError

#: Seconds between looks at time limits and new nodes.
_TICK = 1.0
#: Seconds for which a cluster that others start may lack nodes: they join one after the other.
_JOINING = 30.0
#: The number of threads of XLA and of the libraries of linear algebra.
_THREADS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Worker:
    """What a Ray actor runs."""

    def __init__(self, make: Callable[[Any], Attempt], shared: Any):
        self._attempt = make(shared)

    def ready(self) -> None:
        """Ends when the worker is ready."""

    def attempt(self, payload: Any) -> Any:
        """The value of a task."""
        return self._attempt(payload)


@dataclasses.dataclass(eq=False)
class _Slot:
    """A worker from the driver's view.

    Attributes:
      actor: Ray's handle.
      call: Ray's reference to what it does now; None: nothing.
      node: where it runs.
      usage: what it has done; None until it is ready.
      task: what it works on; None: it starts, or has nothing to do.
      began: time of the call.
      compiled: shapes that it has worked on.
    """

    actor: Any
    call: Any
    node: Node
    usage: Usage | None = None
    task: Task | None = None
    began: float = dataclasses.field(default_factory=time.monotonic)
    compiled: set[Hashable] = dataclasses.field(default_factory=set)

    @property
    def name(self) -> str:
        """For people."""
        return self.usage.name if self.usage else f"new worker on {self.node.address}"


class RayCluster:
    """A connection to a Ray cluster, to be used as a context.

    Attributes:
      accelerator: "GPU", "TPU" or "" (processors alone).
      usage: of every worker that was ready so far.
      seconds: of the run so far.

    Args:
      options: where it is, and how tasks are distributed.

    Raises:
      ConfigError: Ray is not installed, or the cluster has too few devices.
      UserError: no cluster at the address.
    """

    def __init__(self, options: ClusterOptions):
        self.options = options
        self.usage: list[Usage] = []
        self.seconds = 0.0
        self._slots: list[_Slot] = []
        self._starts, self._started = Starts(), 0
        self._ray = connected(options.address)
        try:
            self.accelerator, self._devices = self._found()
        except BaseException:  # __exit__ is not called
            self._ray.shutdown()
            raise

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def __str__(self) -> str:
        sizes = [node.size for node in self._nodes()]
        nodes = f"{len(sizes)} node{'s' if len(sizes) > 1 else ''}"
        return f"{nodes} with {sum(sizes)} {self.accelerator or 'CPU'}s, {self._devices} for each worker"

    def precision(self, name: str) -> str:
        """The policy that "auto" means on the workers' devices; other names are returned unchanged."""
        return ("bf16" if self.accelerator else "exact") if name == "auto" else name

    def run(
        self,
        tasks: Sequence[Task],
        make: Callable[[Any], Attempt],
        shared: Any,
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[Ended]:
        """Runs the tasks and yields what became of each, in the order in which they end.

        Args:
          tasks: the tasks.
          make: called once by every worker, with `shared`: a function of a module, since it is sent by name.
          shared: anything that pickles. Its NumPy arrays are stored once a node, and workers read them in place.
          tick: called about once a second.

        Raises:
          UserError: no worker can start on any node.
        """
        queue, tries = Queue(tasks), Tries(self.options.attempts)
        held, began = self._ray.put(shared), time.monotonic()
        try:
            while queue or any(slot.task for slot in self._slots):
                self.seconds = time.monotonic() - began
                self._start(make, held, len(queue))
                by_call = {slot.call: slot for slot in self._slots if slot.call is not None}
                if by_call:
                    self._ray.wait(list(by_call), num_returns=1, timeout=_TICK)
                else:  # until nodes join, or have rested
                    time.sleep(_TICK)
                tick()
                failure = None
                for call in self._over(list(by_call)):
                    try:
                        ended = self._ended(by_call[call], queue, tries)
                    except UserError as error:  # what else has ended is not lost
                        failure = error
                        continue
                    if ended is not None:
                        yield ended
                if failure is not None:
                    raise failure
                for slot in self._overdue():
                    reason = f"took longer than {self.options.max_minutes:g} minutes"
                    if (ended := self._lost(slot, reason, queue, tries)) is not None:
                        yield ended
        finally:
            for slot in list(self._slots):
                self._forget(slot)

    def doing(self) -> list[str]:
        """What each worker does now, in words."""
        now = time.monotonic()
        lines = [
            f"{slot.name}: {slot.task.name if slot.task else 'starting'} ({now - slot.began:.0f} s)"
            for slot in self._slots
        ]
        return [*lines, *filter(None, [str(self._starts)])]

    def _start(self, make: Callable[[Any], Attempt], held: Any, waiting: int) -> None:
        """Starts workers for which there is room and work."""
        nodes = [node for node in self._nodes() if node.size >= self._devices]
        self._starts.check(nodes, idle=not self._slots and waiting > 0)
        room = {node.name: node.size // self._devices for node in nodes if self._starts.allows(node)}
        for slot in self._slots:
            if slot.node.name in room:
                room[slot.node.name] -= 1
        most = waiting - sum(slot.usage is None for slot in self._slots)
        if self.options.workers:
            most = min(most, self.options.workers - len(self._slots))
        for _ in range(min(most, sum(room.values()))):
            # Nodes on which starts have not failed first; of those the emptiest, so that workers are spread.
            name = min(room, key=lambda name: (room[name] <= 0, self._starts.failures(name), -room[name]))
            room[name] -= 1
            self._slots.append(self._on(next(node for node in nodes if node.name == name), make, held))

    def _on(self, node: Node, make: Callable[[Any], Attempt], held: Any) -> _Slot:
        """A worker that starts on the node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        count = self._devices
        environment: dict[str, str] = {}
        if self.accelerator == "GPU":
            resources: dict[str, Any] = {"num_gpus": count}
        elif self.accelerator == "TPU":
            resources, environment = {"resources": {"TPU": count}}, own_slice(node, count, self._started)
        else:
            resources, environment = {"num_cpus": count}, dict.fromkeys(_THREADS, str(count))
        self._started += 1
        actor = (
            self._ray.remote(_Worker)
            .options(
                max_restarts=0,
                runtime_env={"env_vars": environment},
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False),
                **resources,
            )
            .remote(make, held)
        )
        return _Slot(actor, actor.ready.remote(), node)

    def _nodes(self) -> list[Node]:
        return living(self._ray, self.accelerator or "CPU")

    def _found(self) -> tuple[str, int]:
        """The kind of accelerator, and devices of a worker.

        Raises:
          ConfigError: as `devices_per_worker`, after a while in which nodes may join.
        """
        until = time.monotonic() + (_JOINING if self.options.address != "local" else 0.0)
        while True:
            total = self._ray.cluster_resources()
            accelerator = next((name for name in ("GPU", "TPU") if total.get(name)), "")
            nodes = living(self._ray, accelerator or "CPU")
            try:
                count = devices_per_worker([node.size for node in nodes], accelerator or "CPU", self.options)
                break
            except ConfigError:
                if time.monotonic() >= until:
                    raise
            time.sleep(_TICK)
        for node in nodes if accelerator == "TPU" else ():
            own_slice(node, count)  # refuses what cannot be
        return accelerator, count

    def _ended(self, slot: _Slot, queue: Queue, tries: Tries) -> Ended | None:
        """A call of a worker has ended: what became of its task, and its next one."""
        from ray.exceptions import ActorDiedError, RayError, RayTaskError

        try:
            value = self._ray.get(slot.call)
        except RayTaskError as error:
            cause = error.cause or error
            self._forget(slot)
            raise UserError(f"{slot.name}: {' '.join(str(cause).split())}") from error
        except RayError as error:
            return self._lost(slot, in_words(error), queue, tries, blameless=not isinstance(error, ActorDiedError))
        now, ended = time.monotonic(), None
        if slot.usage is None:
            slot.usage = Usage(f"worker {len(self.usage) + 1}")
            self.usage.append(slot.usage)
            self._starts.ready(slot.node)
        elif slot.task is not None:
            seconds = now - slot.began
            slot.usage.tasks, slot.usage.busy = slot.usage.tasks + 1, slot.usage.busy + seconds
            ended = Ended(slot.task, value, None, tries.begun(slot.task) + 1, seconds, slot.usage.name)
        holders = Counter(shape for other in self._slots for shape in other.compiled)
        slot.task = queue.take(slot.compiled, holders)
        slot.began, slot.call = now, None
        if slot.task is not None:
            slot.compiled.add(slot.task.shape)
            slot.call = slot.actor.attempt.remote(slot.task.payload)
        else:
            self._forget(slot)  # a task that is put back starts a worker anew
        return ended

    def _lost(self, slot: _Slot, reason: str, queue: Queue, tries: Tries, *, blameless: bool = False) -> Ended | None:
        """A worker is gone: its task waits again, or is given up. blameless: it is not known to have died."""
        task, seconds = slot.task, time.monotonic() - slot.began
        gone = NODE_LOST in reason or not self._is_alive(slot.node)
        self._forget(slot)
        if task is None or slot.usage is None:
            if not gone:
                self._starts.failed(slot.node, reason)
            return None
        slot.usage.busy += seconds
        if tries.lost(task, blameless=blameless or gone):
            queue.put_back(task)
            return None
        begun = tries.begun(task)
        times = f"{begun} times" if begun > 1 else "once"
        return Ended(task, None, f"Begun {times}; its worker {reason}", begun, seconds, slot.usage.name)

    def _over(self, calls: list[Any]) -> list[Any]:
        """Those calls that have ended."""
        return self._ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []

    def _overdue(self) -> list[_Slot]:
        """Workers whose task takes too long, as far as is known now."""
        limit, now = 60 * self.options.max_minutes, time.monotonic()
        late = [slot for slot in self._slots if limit and slot.task is not None and now - slot.began > limit]
        over = set(self._over([slot.call for slot in late]))
        return [slot for slot in late if slot.call not in over]

    def _forget(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        with contextlib.suppress(Exception):  # it may be gone already
            self._ray.kill(slot.actor, no_restart=True)

    def _is_alive(self, node: Node) -> bool:
        return any(found.name == node.name for found in self._nodes())
