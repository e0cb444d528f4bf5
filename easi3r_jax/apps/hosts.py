"""The processes of a run on many hosts: messages between them, and the loss of one of them.

Every process computes on its own devices alone. Messages are text, exchanged through a key-value store that process 0
holds (see `host_flags`). Collectives (`jax.experimental.multihost_utils`) are not suitable: they need a network between
the devices, which CPUs may lack, and wait forever for a dead host.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from easi3r_jax.core.errors import UserError

#: Seconds between two polls.
_POLL_SECONDS = 0.5
#: Characters per chunk of a message: gRPC refuses more than 4 MB.
_CHUNK_LENGTH = 1 << 18


class HostLostError(UserError):
    """Another process has stopped or is silent."""


class Store(Protocol):
    """A key-value store of text, shared by all processes."""

    def put(self, name: str, text: str, *, overwrite: bool = False) -> None:
        """Stores a text; without `overwrite` an existing one raises."""
        ...

    def get(self, name: str) -> str | None:
        """The text, or None."""
        ...


class Hosts:
    """The processes of a run, from the view of one of them.

    Attributes:
      index: this process's number.
      count: number of processes.

    Args:
      index, count: see above.
      store: shared by them; None for a single process.
      timeout: seconds of silence after which a process is considered dead.
    """

    def __init__(self, index: int = 0, count: int = 1, store: Store | None = None, timeout: float = 100.0):
        self.index, self.count = index, count
        self._store, self._timeout = store, timeout
        self._last_beat: dict[int, tuple[str | None, float]] = {}  # of each process: its value, when it changed
        self._has_left = threading.Event()

    @property
    def prefix(self) -> str:
        """Prefix of printed lines if there are several processes, e.g. "[1] "."""
        return f"[{self.index}] " if self.count > 1 else ""

    @property
    def others(self) -> list[int]:
        """The numbers of the other processes."""
        return [index for index in range(self.count) if index != self.index]

    def publish(self, name: str, value: Any) -> None:
        """Publishes a JSON value of any length to all processes, once per name.

        Raises:
          UserError: another process has the same number.
          HostLostError: process 0, which holds the store, is gone.
        """
        if self._store is None:
            return
        text = json.dumps(value)
        chunks = [text[start : start + _CHUNK_LENGTH] for start in range(0, len(text), _CHUNK_LENGTH)]
        for number, chunk in enumerate(chunks):
            self._put(f"{self.index}/{name}/{number}", chunk)
        self._put(f"{self.index}/{name}", str(len(chunks)))

    def receive(self, name: str, index: int) -> Any:
        """The value that process `index` publishes under a name. Waits for it while that process is alive.

        Raises:
          HostLostError: it has stopped or is silent.
        """
        while (count := self._get(f"{index}/{name}")) is None:
            lost = self._lost(index)
            count = self._get(f"{index}/{name}")  # it may have been the last message
            if count is not None:
                break
            if lost is not None:
                raise lost
            time.sleep(_POLL_SECONDS)
        return json.loads("".join(self._get(f"{index}/{name}/{chunk}") or "" for chunk in range(int(count))))

    @contextlib.contextmanager
    def participating(self) -> Iterator[None]:
        """A context in which the other processes know that this one is alive; at its end they learn why it stopped.

        Process 0 leaves last, once the others have left or are silent: they depend on it.
        """
        if self._store is None:
            yield
            return
        heartbeat = threading.Thread(target=self._send_heartbeats, daemon=True)
        heartbeat.start()
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            with contextlib.suppress(UserError):  # nobody may be left to receive it
                self._put(f"{self.index}/stopped", reason)
                if self._others_still_work():
                    print(f"  {self.prefix}has stopped, waiting for the others to finish their shards: {reason}")
            raise
        finally:
            with contextlib.suppress(UserError):
                self._leave()
            self._has_left.set()
            heartbeat.join()

    def _others_still_work(self) -> bool:
        """Whether others still work some seconds after process 0, this one, has stopped."""
        until = time.monotonic() + 10 * _POLL_SECONDS
        while self.index == 0 and self._any_active():
            if time.monotonic() > until:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _any_active(self) -> bool:
        """Whether another process has neither left nor died."""
        return any(self._get(f"{index}/gone") is None and not self._silent(index) for index in self.others)

    def _leave(self) -> None:
        self._put(f"{self.index}/gone", "")
        if self.index == 0:
            while self._any_active():
                time.sleep(_POLL_SECONDS)
            time.sleep(_POLL_SECONDS)  # the last of them is about to disconnect

    def _send_heartbeats(self) -> None:
        """Regularly publishes that this process is alive."""
        number = 0
        with contextlib.suppress(UserError):
            while not self._has_left.wait(self._timeout / 10):
                number += 1
                self._put(f"{self.index}/beat", str(number), overwrite=True)

    def _lost(self, index: int) -> HostLostError | None:
        """The reason why nothing more will come from a process; None if something may."""
        reason = self._get(f"{index}/stopped")
        if reason is not None:
            return HostLostError(f"Process {index} has stopped: {reason}")
        if self._get(f"{index}/gone") is not None:
            return HostLostError(f"Process {index} has left.")
        if self._silent(index):
            return HostLostError(f"Process {index} is silent: it or its host has died.")
        return None

    def _silent(self, index: int) -> bool:
        """Whether a process has been silent for too long. At the first call all count as just heard.

        Every call checks all processes: those that died together are not waited for one after another.
        """
        now = time.monotonic()
        for other in self.others:
            beat = self._get(f"{other}/beat")
            if other not in self._last_beat or self._last_beat[other][0] != beat:
                self._last_beat[other] = (beat, now)
        return now - self._last_beat[index][1] > self._timeout

    def _put(self, name: str, text: str, *, overwrite: bool = False) -> None:
        assert self._store is not None
        self._store.put(name, text, overwrite=overwrite)

    def _get(self, name: str) -> str | None:
        assert self._store is not None
        return self._store.get(name)
