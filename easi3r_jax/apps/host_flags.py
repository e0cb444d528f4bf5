"""Connecting the processes of a program on many hosts: its flags, and the key-value store of `jax.distributed`.

JAX exposes the store only through `jax._src`, which others (Orbax) use too: this module is the only place that depends
on it. Process 0 holds the store. With `jax_enable_recoverability` a dying host does not end the others. The exception
is process 0: without it the store is gone, and JAX's own code ends the others, with its own output on stderr.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import queue
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax._src.distributed import global_state

from easi3r_jax.apps import cli
from easi3r_jax.apps.hosts import HostLostError, Hosts
from easi3r_jax.core.errors import ConfigError, UserError

#: Seconds by which JAX's own timeout exceeds ours: at its own timeout JAX aborts the process.
_EXTRA_TIMEOUT_SECONDS = 3600
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_LAUNCHERS = "Slurm, a TPU pod, Kubernetes or Open MPI"


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
            f"Distribute the work over the processes of this job, started by {_LAUNCHERS} with the same command.",
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
            "host_timeout", 100, "Seconds of silence after which a process is considered dead.", at_least=2
        )

    @contextlib.contextmanager
    def joined(self) -> Iterator[Hosts]:
        """A context with the processes of this run. To be entered before JAX computes anything.

        Raises:
          ConfigError: inconsistent flags.
          UserError: the others cannot be reached, or do not connect.
        """
        arguments = self._arguments()
        if arguments is None:
            yield Hosts()
            return
        timeout = self._host_timeout.value
        _connect(arguments, self._start_timeout.value, timeout)
        hosts = Hosts(global_state.process_id, global_state.num_processes, _CoordinationService(), timeout)
        try:
            with hosts.participating():
                yield hosts
        finally:
            _disconnect()

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
        host, port = _parse_address(address)
        if not 0 <= index < count:
            raise ConfigError(
                f"--process_id={index} --num_processes={count}: processes are numbered from 0 to --num_processes - 1."
            )
        bind = {"coordinator_bind_address": address} if _LOOPBACK.fullmatch(host) else {}
        if index == 0:
            _ensure_free(host, port)
        return {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
            **bind,  # JAX's default is to listen on all interfaces
        }


class _CoordinationService:
    """The key-value store of `jax.distributed`."""

    def put(self, name: str, text: str, *, overwrite: bool = False) -> None:
        try:
            _client().key_value_set(name, text, allow_overwrite=overwrite)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                index = name.partition("/")[0]
                raise UserError(f"There are two processes with the number {index}: see --process_id.") from error
            raise HostLostError("Process 0 can no longer be reached: it or its host has died.") from error

    def get(self, name: str) -> str | None:
        try:
            return _client().key_value_try_get(name)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise HostLostError("Process 0 can no longer be reached: it or its host has died.") from error


def _client() -> Any:
    client = global_state.client
    assert client is not None
    return client


def _connect(arguments: dict[str, Any], seconds: int, host_timeout: int) -> None:
    """Starts `jax.distributed` in a thread, so that signals and our timeout reach this one instead of JAX's code.

    The devices are queried there too, because except on CPUs that waits for all processes.

    Raises:
      UserError: JAX does not recognise the launcher; not all processes connect in time.
    """
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            jax.config.update("jax_enable_recoverability", True)
            jax.config.update("jax_cpu_collectives_implementation", None)
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=seconds + _EXTRA_TIMEOUT_SECONDS,
                heartbeat_timeout_seconds=host_timeout,
                shutdown_timeout_seconds=host_timeout,
            )
            jax.local_devices()
            outcome.put(None)
        except Exception as error:  # passed to the waiting thread
            outcome.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        error = outcome.get(timeout=seconds)
    except queue.Empty:
        atexit.register(_end_now)
        raise UserError(_timeout_message(arguments, seconds)) from None
    if error is None:
        return
    if isinstance(error, ValueError) and not arguments:  # no address, no number
        raise UserError(
            f"--distributed: JAX does not detect {_LAUNCHERS} here. Use --coordinator=HOST:PORT --num_processes=N "
            "--process_id=K instead."
        ) from error
    if isinstance(error, (ValueError, RuntimeError, OSError)):
        atexit.register(_end_now)
        raise UserError(f"The processes cannot connect: {error}") from error
    raise error


def _timeout_message(arguments: dict[str, Any], seconds: int) -> str:
    """The error message when the processes have not connected in time."""
    address = arguments.get("coordinator_address") or global_state.coordinator_address
    number = arguments.get("process_id", global_state.process_id)
    if address is not None and number != 0:
        try:
            with contextlib.closing(socket.create_connection(_parse_address(address), timeout=5)):
                pass
        except (OSError, ConfigError) as error:
            return (
                f"Process 0 could not be reached at {address} within {seconds} s ({error}): is it running there, and "
                "is the port open?"
            )
    return (
        f"Not all processes connected within {seconds} s (--start_timeout): each needs the same command, with the "
        "same number of processes and its own process number."
    )


def _end_now() -> None:
    """Ends the process with exit code 1, as the error would, before JAX's own exit handlers run.

    A thread of JAX still waits for other processes, and those handlers would wait for it or crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _disconnect() -> None:
    """Leaves `jax.distributed`. A process that has died before is not a failure of this one."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


def _parse_address(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
      ConfigError: one of them is missing or invalid.
    """
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise ConfigError(f"--coordinator={address} is not an address: HOST:PORT, e.g. 10.0.0.1:1234.")
    return found[1].strip("[]"), int(found[2])


def _ensure_free(host: str, port: int) -> None:
    """Checks that the port is free: otherwise JAX would crash, or two runs would join.

    Raises:
      UserError: the port is in use or not permitted.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT after an earlier run is free
        try:
            probe.bind((host if _LOOPBACK.fullmatch(host) else "", port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            reason = "another program uses that port" if in_use else str(error.strerror or error)
            raise UserError(f"--coordinator={host}:{port}: {reason}. Choose another port for all processes.") from error
