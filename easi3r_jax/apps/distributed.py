"""Flags of a program that computes on the devices of several hosts together, by `jax.distributed`.

Every host runs the same command. JAX joins their processes, all of them compute the same program on one mesh of all
devices (`sharding.data_mesh(all_hosts=True)`), and process 0 alone prints and writes results.

A host that dies is found by JAX: collectives on CPUs fail at once; else its heartbeats are missed, and JAX's runtime
ends the other processes. Either way these end with one line (see `native_log` for the runtime's own).
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import queue
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from easi3r_jax.apps import cli, native_log
from easi3r_jax.apps.environment import device
from easi3r_jax.core.errors import ConfigError, InputError, UserError

#: Seconds by which JAX's own timeout exceeds ours: at its own timeout JAX aborts the process.
_EXTRA_SECONDS = 3600
#: Seconds after an error within which the process ends, whatever JAX's threads still wait for.
_SECONDS_TO_END = 5.0
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+")
_LAUNCHERS = "Slurm, a TPU pod, Kubernetes or Open MPI"
# What JAX's errors say when another process has gone: of gloo, of the coordination service, of its barriers.
_LOST = re.compile(
    r"gloo|connection (closed|reset|refused)|socket closed|heartbeat|coordination|barrier|unavailable|"
    r"deadline_exceeded|preempted|task \S+ (died|failed)",
    re.IGNORECASE,
)


class DistributedFlags:
    """The flags of a program whose hosts compute together.

    Args:
      flags: the program's.
      work: what the hosts share, for the help.
    """

    def __init__(self, flags: cli.Flags, work: str):
        group = flags.group("Several hosts")
        self._distributed = group.boolean(
            "distributed",
            False,
            f"{work} on the devices of all processes of this job, started by {_LAUNCHERS} with the same command.",
        )
        self._coordinator = group.string(
            "coordinator",
            "",
            "HOST:PORT of process 0 if there is no such launcher; any free port. Requires --num_processes and "
            "--process_id; except for the latter, the command is the same for every process.",
        )
        self._count = group.integer("num_processes", 0, "Total number of processes.")
        self._index = group.integer("process_id", 0, "This process's number, from 0.")
        self._start_timeout = group.integer(
            "start_timeout", 300, "Seconds within which all processes must connect.", at_least=1
        )
        self._host_timeout = group.integer(
            "host_timeout", 20, "Seconds of silence after which a process is considered dead.", at_least=5
        )

    @property
    def requested(self) -> bool:
        """Whether the flags ask for several processes."""
        return self._distributed.value or self._coordinator.present

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """A context in which the processes are joined, if the flags ask for it. Enter it before JAX computes anything.

        Raises:
          ConfigError: inconsistent flags.
          UserError: the others cannot be reached, do not connect, or are lost.
        """
        arguments = self._arguments()
        if arguments is None:
            yield
            return
        _connect(arguments, self._start_timeout.value, self._host_timeout.value)
        try:
            with contextlib.ExitStack() as stack:
                if not is_first():
                    stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
                yield
        except BaseException as error:
            _end_without_the_others()
            of_runtime = isinstance(error, (RuntimeError, ValueError)) and not isinstance(error, UserError)
            if of_runtime and _LOST.search(str(error)):
                native_log.report(
                    f"error: Process {jax.process_index()} of {jax.process_count()}: another process was lost, because "
                    f"it or its host has stopped. Start all of them again. ({' '.join(str(error).split())[:160]})"
                )
                _end_now()  # at once: JAX's threads may abort this process at any time
            raise
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # a process that has died by now is no failure of ours
            multihost_utils.sync_global_devices("finished")  # however long process 0 takes to write
            jax.distributed.shutdown()

    def _arguments(self) -> dict[str, Any] | None:
        """Arguments of `jax.distributed.initialize`: empty if it recognises the launcher; None for a single process."""
        explicit = (self._coordinator, self._count, self._index)
        given = [flag for flag in explicit if flag.present]
        if not given:
            return {} if self._distributed.value else None
        if len(given) < len(explicit):
            raise ConfigError(
                "--coordinator, --num_processes and --process_id belong together: give all three, or --distributed "
                f"alone if {_LAUNCHERS} starts the processes."
            )
        address, count, index = (flag.value for flag in explicit)
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
        if found is None or not 0 < int(found[2]) < 1 << 16:
            raise ConfigError(f"--coordinator={address} is not an address: HOST:PORT, e.g. 10.0.0.1:1234.")
        if not 0 <= index < count:
            raise ConfigError(
                f"--process_id={index} --num_processes={count}: processes are numbered from 0 to --num_processes - 1."
            )
        # JAX's default is to listen on all interfaces.
        bind = {"coordinator_bind_address": address} if _LOOPBACK.fullmatch(found[1]) else {}
        return {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
            **bind,
        }


def is_first() -> bool:
    """Whether this process prints and writes: process 0, or the only one.

    Of the only one, JAX is not asked: that would begin its backend, after which CPU devices cannot be set.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def devices() -> str:
    """The devices of all processes, for a line of output."""
    return device() if jax.process_count() == 1 else f"{jax.process_count()} processes with {device()} each"


def on_any_host(flag: bool) -> bool:
    """Whether the flag is set on one of the processes. All of them call this."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def on_every_host(flag: bool) -> bool:
    """Whether the flag is set on all processes. All of them call this."""
    return flag if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def text_of(values: Any) -> np.ndarray:
    """Values as text, for `check_same`."""
    return np.frombuffer(json.dumps(values, sort_keys=True, default=repr).encode(), np.uint8)


def check_same(what: str, arrays: Any) -> None:
    """Checks that all processes have the same arrays, before they compute with them.

    Raises:
      InputError: they differ; names `what`.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for array in jax.tree.leaves(arrays):
        digest.update(f"{np.shape(array)} {np.asarray(array).dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    found = multihost_utils.process_allgather(np.frombuffer(digest.digest(), np.uint8))
    if np.any(found != found[:1]):
        raise InputError(f"The hosts have different {what}: give all of them the same files.")


def _connect(arguments: dict[str, Any], seconds: int, host_timeout: int) -> None:
    """Joins the processes, in a thread, so that signals and our timeout reach this one instead of JAX's code.

    Raises:
      UserError: JAX does not recognise the launcher; not all processes connect in time.
    """
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: see `core.interrupt`
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            # Programs that run at the same time would start their collectives in another order on each host: with two
            # processes on CPUs the alignment hung in most runs (JAX 0.10.2).
            jax.config.update("jax_cpu_enable_async_dispatch", False)
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=seconds + _EXTRA_SECONDS,
                heartbeat_timeout_seconds=host_timeout,
                shutdown_timeout_seconds=host_timeout,
            )
            jax.devices()  # waits for all processes
            # Connects them: gloo waits for 30 s only, and by the first step one may have more to load than another.
            multihost_utils.sync_global_devices("joined")
            outcome.put(None)
        except Exception as error:  # passed to the waiting thread
            outcome.put(error)

    native_log.filtered()
    threading.Thread(target=work, daemon=True).start()
    try:
        error = outcome.get(timeout=seconds)
    except queue.Empty:
        _end_without_the_others()
        raise UserError(
            f"Not all processes connected within {seconds} s (--start_timeout): each needs the same command, with the "
            "same number of processes and its own process number, and process 0's port must be open to the others."
        ) from None
    if error is None:
        return
    _end_without_the_others()
    if isinstance(error, ValueError) and not arguments:  # no address, no number
        raise UserError(
            f"--distributed: JAX does not detect {_LAUNCHERS} here. Use --coordinator=HOST:PORT --num_processes=N "
            "--process_id=K instead."
        ) from error
    if isinstance(error, (ValueError, RuntimeError, OSError)):
        raise UserError(f"The processes cannot connect: {error}") from error
    raise error


def _end_without_the_others() -> None:
    """Makes this process end with exit code 1 when the error is printed, before JAX's own exit handlers.

    These, and threads of JAX, would wait for the other processes.
    """
    atexit.register(_end_now)
    timer = threading.Timer(_SECONDS_TO_END, _end_now)
    timer.daemon = True
    timer.start()


def _end_now() -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        native_log.report()
    os._exit(1)
