"""Ctrl-C, `kill` and a closed terminal end a program, with one line, and remove half-written files.

Python's default, raising KeyboardInterrupt wherever the program happens to be, does not work here: JAX swallows it in a
garbage-collector callback, imports of large libraries turn it into pages of traceback or a crash, and threads keep
writing what `finally` has just removed. So programs install a handler that removes the folders known to be half-written
and ends the process. The library does not: its callers keep their own signal handlers.

They do so at once, unless the program's work so far would be lost and it asks for time to save it: `finishing`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_partial: set[pathlib.Path] = set()
_waiting: list[int] = []
_notices: list[str] = []
_asked: list[int] = []
_holds = 0
_servers = 0


def install() -> None:
    """Makes the signals end this process; signals already ignored at start (`nohup`) stay ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


@contextlib.contextmanager
def removed_on_exit(path: pathlib.Path) -> Iterator[None]:
    """Within this context, a signal that ends the program removes `path`, a file or a folder."""
    _partial.add(path)
    try:
        yield
    finally:
        _partial.discard(path)


def is_half_written(path: pathlib.Path) -> bool:
    """Whether a path lies within a folder registered by `removed_on_exit`."""
    return not _partial.isdisjoint(path.parents)


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Within this context, a signal is the normal way to end the program, not an error."""
    global _servers
    _servers += 1
    try:
        yield
    finally:
        _servers -= 1


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within this context, signals are deferred: used while a finished result replaces an older one."""
    global _holds
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
        if _waiting and not _holds:
            waiting = tuple(_waiting)
            _waiting.clear()
            for number in waiting:
                _end(number, None)


@contextlib.contextmanager
def finishing(notice: str) -> Iterator[Callable[[], bool]]:
    """Within this context, a first signal prints the notice, and the yielded function returns True from then on.

    The program then saves its work and calls `end`; a signal that it has not answered when the context ends, ends the
    program. A second signal ends it at once, but not a second SIGHUP: a terminal that is closed often sends two.
    """
    _notices.append(notice)
    try:
        yield lambda: bool(_asked)
    finally:
        _notices.remove(notice)
    if _asked:
        _end(_asked[0], None)


def end(message: str) -> NoReturn:
    """Ends the process after a signal in `finishing`, with a line on stderr and the signal's exit status."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    _leave(_asked[0], message)


def replace_folder(target: pathlib.Path, new: pathlib.Path, older: pathlib.Path) -> None:
    """Moves `new` to `target`. An existing `target` is moved to `older` first, and restored on failure.

    Signals are deferred meanwhile. Leftovers of a killed process at `older` are removed.
    """
    with uninterrupted():
        shutil.rmtree(older, ignore_errors=True)
        try:
            if target.exists():
                target.rename(older)
            new.rename(target)
        except BaseException:
            if older.exists() and not target.exists():
                older.rename(target)
            raise
        shutil.rmtree(older, ignore_errors=True)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    if _holds:
        _waiting.append(number)
        return
    if _notices and not _asked:
        _asked.append(number)
        with contextlib.suppress(OSError):
            os.write(2, f"{_below_progress(2)}{_notices[-1]}\n".encode())
        return
    if _notices and number == signal.SIGHUP:
        return
    _leave(number, "Interrupted. Nothing half-written was left behind.")


def _leave(number: int, message: str) -> NoReturn:
    """Removes what is half-written, prints the message, and ends the process with the signal's exit status."""
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    terminal = 2
    with contextlib.suppress(OSError):  # hide errors of threads whose files are being removed
        terminal = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    left = [path for path in sorted(_partial) if not _remove(path)]
    if left:
        message = f"Interrupted. Delete {left[0]}, which is half-written."
    is_meant = _servers and not left
    start = _below_progress(terminal)
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(terminal, (start if is_meant else f"{start}error: {message}\n").encode())
    os._exit(0 if is_meant else 128 + number)


def _below_progress(terminal: int) -> str:
    """What puts a message below a progress bar."""
    return "\n" if os.isatty(terminal) else ""


def _remove(path: pathlib.Path) -> bool:
    """Removes `path` for good: threads still writing into it may recreate parts of it."""
    gone = 0
    for _ in range(40):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
        gone = 0 if path.exists() else gone + 1
        if gone == 4:
            return True
        time.sleep(0.02)
    return not path.exists()
