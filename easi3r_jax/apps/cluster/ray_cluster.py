"""Tasks over the workers of a Ray cluster.

A worker is a Ray actor that owns its devices, keeps what it has loaded and compiled, and works on one task at a time.
This process hands out tasks and receives values. Whatever ends a worker (a signal, memory, native code, the time limit)
costs its task an attempt: Ray reports the end, and another worker takes its place wherever there is room, on nodes that
joined meanwhile too. A worker gets tasks only once it is ready: its start is no attempt, nor is the loss of a node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from easi3r_jax.apps.cluster.flags import ClusterOptions
from easi3r_jax.apps.cluster.tasks import Attempt, Ended, Queue, Task, Tries, Usage
from easi3r_jax.core.errors import ConfigError, UserError

#: Seconds between looks at time limits and new nodes.
_TICK = 1.0
#: Workers that may fail to start, one after the other, before the run ends.
_FAILED_STARTS = 3
#: What Ray says of an actor whose node is gone.
_NODE_LOST = "node has died"
#: The number of threads of XLA and of the libraries of linear algebra.
_THREADS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Worker:
    """What a Ray actor runs."""

    def __init__(self, make: Callable[[Any], Attempt], shared: Any):
        self._attempt = make(shared)

    def ready(self) -> tuple[str, int]:
        """The worker's node and process."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def attempt(self, payload: Any) -> Any:
        """The value of a task."""
        return self._attempt(payload)


@dataclasses.dataclass(eq=False)
class _Slot:
    """A worker from the driver's view.

    Attributes:
      actor: Ray's handle.
      call: Ray's reference to what it does now; None: nothing.
      usage: what it has done.
      node: Ray's name of its node; "" until it is ready.
      task: what it works on; None: it starts, or has nothing to do.
      began: time of the call.
      compiled: shapes that it has worked on.
    """

    actor: Any
    call: Any
    usage: Usage
    node: str = ""
    task: Task | None = None
    began: float = dataclasses.field(default_factory=time.monotonic)
    compiled: set[Hashable] = dataclasses.field(default_factory=set)


class RayCluster:
    """A connection to a Ray cluster, to be used as a context.

    Attributes:
      accelerator: "GPU", "TPU" or "" (processors alone).
      usage: of every worker so far.
      seconds: of the run so far.

    Args:
      options: where it is, and how tasks are distributed.

    Raises:
      ConfigError: Ray is not installed.
      UserError: no cluster at the address.
    """

    def __init__(self, options: ClusterOptions):
        self.options = options
        self.usage: list[Usage] = []
        self.seconds = 0.0
        self._slots: list[_Slot] = []
        self._failed_starts = 0
        self._ray = _connected(options.address)
        try:
            total = self._ray.cluster_resources()
            self.accelerator = next((name for name in ("GPU", "TPU") if total.get(name)), "")
            self._devices = self._per_worker()
        except BaseException:  # __exit__ is not called
            self._ray.shutdown()
            raise

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def __str__(self) -> str:
        sizes = self._sizes()
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
          UserError: no worker can start.
        """
        queue, tries = Queue(tasks), Tries(self.options.attempts)
        held, began = self._ray.put(shared), time.monotonic()
        try:
            while queue or any(slot.task for slot in self._slots):
                self.seconds = time.monotonic() - began
                self._start(make, held, len(queue))
                by_call = {slot.call: slot for slot in self._slots if slot.call is not None}
                self._ray.wait(list(by_call), num_returns=1, timeout=_TICK)
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
        return [
            f"{slot.usage.name}: {slot.task.name if slot.task else 'starting' if not slot.node else 'idle'}"
            f" ({now - slot.began:.0f} s)"
            for slot in self._slots
        ]

    def _start(self, make: Callable[[Any], Attempt], held: Any, waiting: int) -> None:
        """Starts workers for which there is room and work."""
        held_each = self._devices
        environment = dict.fromkeys(_THREADS, str(held_each)) if not self.accelerator else {}
        resources: dict[str, Any] = {"num_cpus": held_each}
        if self.accelerator == "GPU":
            resources = {"num_gpus": held_each}
        elif self.accelerator == "TPU":
            resources = {"resources": {"TPU": held_each}}
        room = sum(size // held_each for size in self._sizes())
        room = min(room, self.options.workers) if self.options.workers else room
        unready = sum(not slot.node for slot in self._slots)
        for _ in range(min(room - len(self._slots), waiting - unready)):
            usage = Usage(f"worker {len(self.usage) + 1}")
            self.usage.append(usage)
            actor = (
                self._ray.remote(_Worker)
                .options(max_restarts=0, runtime_env={"env_vars": environment}, **resources)
                .remote(make, held)
            )
            self._slots.append(_Slot(actor, actor.ready.remote(), usage))

    def _sizes(self) -> list[int]:
        """Of the living nodes: their GPUs, TPU chips or processor cores."""
        name = self.accelerator or "CPU"
        return [int(node["Resources"].get(name, 0)) for node in self._ray.nodes() if node["Alive"]]

    def _per_worker(self) -> int:
        """Devices of a worker: one GPU, the chips of a TPU host, or an equal share of the cores unless options say.

        Raises:
          ConfigError: no node has so many, or the cluster does not hold so many workers.
        """
        options, sizes = self.options, self._sizes()
        largest = max(sizes, default=0)
        wanted = options.devices_per_worker
        if not wanted:
            wanted = {"GPU": 1, "TPU": largest, "": min(4, largest)}[self.accelerator]
            if not self.accelerator and options.workers:
                shares = range(largest, 0, -1)
                wanted = next((n for n in shares if sum(size // n for size in sizes) >= options.workers), largest)
        if not 0 < wanted <= largest or sum(size // wanted for size in sizes) < options.workers:
            held = self.accelerator or "CPU"
            raise ConfigError(
                f"The cluster's nodes have {', '.join(map(str, sizes))} {held}s: too few for "
                f"{options.workers or 'any'} workers with {wanted} each. Use fewer --workers or --devices_per_worker."
            )
        return wanted

    def _ended(self, slot: _Slot, queue: Queue, tries: Tries) -> Ended | None:
        """A call of a worker has ended: what became of its task, and its next one."""
        from ray.exceptions import ActorDiedError, RayError, RayTaskError

        try:
            value = self._ray.get(slot.call)
        except RayTaskError as error:
            cause = error.cause or error
            self._forget(slot)
            raise UserError(f"{slot.usage.name}: {' '.join(str(cause).split())}") from error
        except RayError as error:
            return self._lost(slot, _reason(error), queue, tries, blameless=not isinstance(error, ActorDiedError))
        now, ended = time.monotonic(), None
        if slot.task is None:
            slot.node = value[0]
            self._failed_starts = 0
        else:
            seconds = now - slot.began
            slot.usage.tasks, slot.usage.busy = slot.usage.tasks + 1, slot.usage.busy + seconds
            ended = Ended(slot.task, value, None, tries.begun(slot.task) + 1, seconds, slot.usage.name)
        elsewhere = set().union(*(other.compiled for other in self._slots if other is not slot))
        slot.task = queue.take(slot.compiled, elsewhere)
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
        blameless = blameless or _NODE_LOST in reason or not self._is_alive(slot.node)
        self._forget(slot)
        if task is None:
            self._failed_starts += not blameless
            if self._failed_starts >= _FAILED_STARTS and not any(other.node for other in self._slots):
                raise UserError(f"No worker can start: {reason}")
            return None
        slot.usage.busy += seconds
        if tries.lost(task, blameless=blameless):
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

    def _is_alive(self, node: str) -> bool:
        return not node or any(found["NodeID"] == node and found["Alive"] for found in self._ray.nodes())


def _connected(address: str) -> Any:
    """The module `ray`, connected."""
    if address == "local":
        # Ray listens on all of the machine's addresses: without the token nobody gets in.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise ConfigError("--cluster needs Ray: pip install 'easi3r_jax[cluster]'.") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise UserError(
            f"--cluster={address}: no Ray cluster there ({' '.join(str(error).split())[:200]}). "
            "Start one with `ray start --head`, or use --cluster=local."
        ) from error
    for number, handler in handlers.items():  # Ray has installed its own
        signal.signal(number, handler)
    return ray


def _reason(error: Exception) -> str:
    """What Ray says of a lost worker, as the rest of a sentence."""
    text = " ".join(str(error).split())
    if "error raised in its creation task" in text:
        return f"could not start: {text.rpartition('Error:')[2].strip() or text[-300:]}"
    if _NODE_LOST in text:
        return "was lost: its node has died"
    if "low on memory" in text:
        return "was ended: its node ran out of memory"
    return "died (killed, out of memory, or a crash in native code)"
