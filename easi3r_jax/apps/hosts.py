"""A program on many hosts: who takes part, what they tell each other, what ends when one of them dies.

Every process computes on its own devices alone. What they tell each other is text, through the key-value store of
`jax.distributed`, which lives in process 0. Collectives (`jax.experimental.multihost_utils`) would not do: they need a
network between the devices, which CPUs may lack, and wait for ever for a host that has died. JAX offers the store to
programs through `jax._src` only, as others (Orbax) use it too: this module is the one place that knows.

`jax_enable_recoverability` keeps a host that dies from taking the others along. Process 0 is the exception: with it
the store is gone, and JAX's own code ends the others, with its own pages on stderr.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import jax
from jax._src.distributed import global_state

from easi3r_jax.apps import cli
from easi3r_jax.core.errors import ConfigError, UserError

#: Seconds between two looks.
_PAUSE = 0.5
#: Characters of a part of a message: gRPC refuses what is larger than 4 MB.
_PART = 1 << 18
#: Seconds that JAX itself waits longer than we do: its own end of waiting is an abort.
_LONGER = 3600
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_BEGUN_BY = "Slurm, a TPU pod, Kubernetes or Open MPI"


class HostLostError(UserError):
    """Another process has stopped, or is silent."""


class Store(Protocol):
    """Text under names, the same for all processes."""

    def put(self, name: str, text: str, *, anew: bool = False) -> None:
        """Keeps a text; `anew`: in place of an older one, which otherwise raises."""
        ...

    def get(self, name: str) -> str | None:
        """The text, or None."""
        ...


class Hosts:
    """The processes of a run, as one of them sees them.

    Attributes:
      index: this process's number.
      count: of the processes.

    Args:
      index, count: see above.
      store: theirs; of no use to a process that is alone.
      patience: seconds of silence after which a process counts as dead.
    """

    def __init__(self, index: int = 0, count: int = 1, store: Store | None = None, patience: float = 100.0):
        self.index, self.count = index, count
        self._store, self._patience = store, patience
        self._heard: dict[int, tuple[str | None, float]] = {}
        self._left = threading.Event()

    @property
    def mark(self) -> str:
        """Heads a line on the screen where several processes write there: "[1] "."""
        return f"[{self.index}] " if self.count > 1 else ""

    @property
    def others(self) -> list[int]:
        """The numbers of the other processes."""
        return [index for index in range(self.count) if index != self.index]

    def tell(self, name: str, value: Any) -> None:
        """Says something to all, once under a name, however long it is.

        Raises:
          UserError: another process has the same number.
          HostLostError: process 0, which keeps what is said, is gone.
        """
        if self._store is None:
            return
        text = json.dumps(value)
        parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
        for number, part in enumerate(parts):
            self._put(f"{self.index}/{name}/{number}", part)
        self._put(f"{self.index}/{name}", str(len(parts)))

    def hear(self, name: str, index: int) -> Any:
        """What process `index` says under a name. Waits for it as long as that process lives.

        Raises:
          HostLostError: it has stopped, or is silent.
        """
        while (count := self._get(f"{index}/{name}")) is None:
            lost = self._lost(index)
            count = self._get(f"{index}/{name}")  # it may have been the last thing that was said
            if count is not None:
                break
            if lost is not None:
                raise lost
            time.sleep(_PAUSE)
        return json.loads("".join(self._get(f"{index}/{name}/{part}") or "" for part in range(int(count))))

    @contextlib.contextmanager
    def taking_part(self) -> Iterator[None]:
        """While it is open the others know that this process lives; in the end they learn why it stopped.

        Process 0 leaves last, when the others have left or are silent: they cannot do without it.
        """
        if self._store is None:
            yield
            return
        beat = threading.Thread(target=self._beat, daemon=True)
        beat.start()
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            with contextlib.suppress(UserError):  # where nobody is left to hear it
                self._put(f"{self.index}/stopped", reason)
                if self._work_on():
                    print(f"  {self.mark}has stopped, and waits for the others to finish their share: {reason}")
            raise
        finally:
            with contextlib.suppress(UserError):
                self._leave()
            self._left.set()
            beat.join()

    def _work_on(self) -> bool:
        """Whether others still work some seconds after process 0, this one, has stopped."""
        until = time.monotonic() + 10 * _PAUSE
        while self.index == 0 and self._there():
            if time.monotonic() > until:
                return True
            time.sleep(_PAUSE)
        return False

    def _there(self) -> bool:
        """Whether another process has neither left nor died."""
        return any(self._get(f"{index}/gone") is None and not self._silent(index) for index in self.others)

    def _leave(self) -> None:
        self._put(f"{self.index}/gone", "")
        if self.index == 0:
            while self._there():
                time.sleep(_PAUSE)
            time.sleep(_PAUSE)  # the last of them is about to hang up

    def _beat(self) -> None:
        """Says every now and then that this process lives."""
        number = 0
        with contextlib.suppress(UserError):
            while not self._left.wait(self._patience / 10):
                number += 1
                self._put(f"{self.index}/beat", str(number), anew=True)

    def _lost(self, index: int) -> HostLostError | None:
        """Why nothing more will come from a process; None where something may."""
        reason = self._get(f"{index}/stopped")
        if reason is not None:
            return HostLostError(f"Process {index} has stopped: {reason}")
        if self._get(f"{index}/gone") is not None:
            return HostLostError(f"Process {index} has left.")
        if self._silent(index):
            return HostLostError(f"Process {index} is silent: it or its host has died.")
        return None

    def _silent(self, index: int) -> bool:
        """Whether a process has not been heard for too long; asked for the first time, all have been heard just now.

        All are listened to, whichever is asked for: those that died together are not waited for one after another.
        """
        now = time.monotonic()
        for other in self.others:
            beat = self._get(f"{other}/beat")
            if other not in self._heard or self._heard[other][0] != beat:
                self._heard[other] = (beat, now)
        return now - self._heard[index][1] > self._patience

    def _put(self, name: str, text: str, *, anew: bool = False) -> None:
        assert self._store is not None
        self._store.put(name, text, anew=anew)

    def _get(self, name: str) -> str | None:
        assert self._store is not None
        return self._store.get(name)


class HostFlags:
    """The flags of a program that runs on many hosts.

    Args:
      flags: the program's.
    """

    def __init__(self, flags: cli.Flags):
        group = flags.group("Many hosts")
        self._distributed = group.boolean(
            "distributed",
            False,
            f"Share the work with the other processes of this job: {_BEGUN_BY} has started them with the same command.",
        )
        self._coordinator = group.string(
            "coordinator",
            "",
            "HOST:PORT of process 0, where nothing of the kind starts the processes; the port is any free one. With "
            "--num_processes and --process_id; but for the latter, the same command for every process.",
        )
        self._count = group.integer("num_processes", 0, "How many processes there are in all.")
        self._index = group.integer("process_id", 0, "This process's number, from 0 on.")
        self._start = group.integer("start_timeout", 300, "Seconds in which all processes have to come.", at_least=1)
        self._patience = group.integer(
            "host_timeout", 100, "Seconds of silence after which a process counts as dead.", at_least=2
        )

    @contextlib.contextmanager
    def joined(self) -> Iterator[Hosts]:
        """The processes of this run, while the block lasts. To be entered before JAX computes anything.

        Raises:
          ConfigError: flags that do not go together.
          UserError: the others cannot be reached, or do not come.
        """
        arguments = self._arguments()
        if arguments is None:
            yield Hosts()
            return
        _connect(arguments, self._start.value, self._patience.value)
        hosts = Hosts(global_state.process_id, global_state.num_processes, _CoordinationService(), self._patience.value)
        try:
            with hosts.taking_part():
                yield hosts
        finally:
            _hang_up()

    def _arguments(self) -> dict[str, Any] | None:
        """Of `jax.distributed.initialize`: none where it recognises what starts the processes. None: there is one."""
        explicit = (self._coordinator, self._count, self._index)
        given = [flag for flag in explicit if flag.present]
        if not given:
            return {} if self._distributed.value else None
        if len(given) < len(explicit):
            raise ConfigError(
                "--coordinator, --num_processes and --process_id belong together: give all three, or --distributed "
                f"alone where {_BEGUN_BY} starts the processes."
            )
        address, count, index = (flag.value for flag in explicit)
        host, port = _parse_address(address)
        if not 0 <= index < count:
            raise ConfigError(
                f"--process_id={index} --num_processes={count}: processes are numbered from 0 on, so the last is "
                "--num_processes less 1."
            )
        bind = {"coordinator_bind_address": address} if _LOOPBACK.fullmatch(host) else {}
        if index == 0:
            _ensure_free(host, port)
        return {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
            **bind,  # JAX's default is to listen to the whole world
        }


class _CoordinationService:
    """The key-value store of `jax.distributed`."""

    def put(self, name: str, text: str, *, anew: bool = False) -> None:
        try:
            _client().key_value_set(name, text, allow_overwrite=anew)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                index = name.partition("/")[0]
                raise UserError(f"There are two processes with the number {index}: see --process_id.") from error
            raise HostLostError("Process 0 cannot be reached any more: it or its host has died.") from error

    def get(self, name: str) -> str | None:
        try:
            return _client().key_value_try_get(name)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise HostLostError("Process 0 cannot be reached any more: it or its host has died.") from error


def _client() -> Any:
    client = global_state.client
    assert client is not None
    return client


def _connect(arguments: dict[str, Any], seconds: int, patience: int) -> None:
    """Starts `jax.distributed`, in a thread: signals and the end of our waiting reach this one, not JAX's code.

    The devices are asked for there too, because that waits for all processes where they are not on CPUs.

    Raises:
      UserError: nothing starts the processes that JAX recognises; not all of them come in time.
    """
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            jax.config.update("jax_enable_recoverability", True)
            jax.config.update("jax_cpu_collectives_implementation", None)
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=seconds + _LONGER,
                heartbeat_timeout_seconds=patience,
                shutdown_timeout_seconds=patience,
            )
            jax.local_devices()
            outcome.put(None)
        except Exception as error:  # handed to the thread that waits
            outcome.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        error = outcome.get(timeout=seconds)
    except queue.Empty:
        atexit.register(_end_now)
        raise UserError(_why_not(arguments, seconds)) from None
    if error is None:
        return
    if isinstance(error, ValueError) and not arguments:  # no address, no number
        raise UserError(
            f"--distributed: JAX does not see {_BEGUN_BY} here. Say who takes part with --coordinator=HOST:PORT "
            "--num_processes=N --process_id=K."
        ) from error
    if isinstance(error, (ValueError, RuntimeError, OSError)):
        atexit.register(_end_now)
        raise UserError(f"The processes cannot be connected: {error}") from error
    raise error


def _why_not(arguments: dict[str, Any], seconds: int) -> str:
    """What to say when time is up."""
    address = arguments.get("coordinator_address") or global_state.coordinator_address
    number = arguments.get("process_id", global_state.process_id)
    if address is not None and number != 0:
        try:
            with contextlib.closing(socket.create_connection(_parse_address(address), timeout=5)):
                pass
        except (OSError, ConfigError) as error:
            return (
                f"Process 0 could not be reached at {address} within {seconds} s ({error}): does it run there, and "
                "does the network let that port through?"
            )
    return (
        f"Not all processes came within {seconds} s (--start_timeout): each needs the same command, with the same "
        "number of processes and a number of its own."
    )


def _end_now() -> None:
    """Ends the process with exit code 1, as an error is about to, before JAX's own handlers.

    A thread of JAX's still waits for other processes, and they would wait for it or crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _hang_up() -> None:
    """Leaves `jax.distributed`. That somebody else has gone without a word is no failure of this process."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


def _parse_address(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
      ConfigError: it has not both.
    """
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise ConfigError(f"--coordinator={address} is no address: HOST:PORT, e.g. 10.0.0.1:1234.")
    return found[1].strip("[]"), int(found[2])


def _ensure_free(host: str, port: int) -> None:
    """Fails where another program has the port: JAX would crash, or two runs become one.

    Raises:
      UserError: the port is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a run that has ended left behind is free
        try:
            probe.bind((host if _LOOPBACK.fullmatch(host) else "", port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "another program has that port" if taken else str(error.strerror or error)
            raise UserError(f"--coordinator={host}:{port}: {reason}. Choose another one for all processes.") from error
