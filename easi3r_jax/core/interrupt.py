"""Ctrl-C, `kill` and a closed terminal end a program at once, with one line, and take half-written files along.

Python's own way, raising KeyboardInterrupt wherever the program happens to be, does not do here: JAX swallows it in a
callback of the garbage collector, imports of large libraries turn it into pages of traceback or into a crash, and
threads go on writing what `finally` has just removed. So programs (not the library: whoever imports it keeps their
own signals) install a handler that removes the folders known to be half-written and ends the process.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_partial: set[pathlib.Path] = set()
_waiting: list[int] = []
_holds = 0
_servers = 0


def install() -> None:
    """Makes the signals end this process; those that it was started to ignore (`nohup`) stay ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


@contextlib.contextmanager
def removed_on_exit(path: pathlib.Path) -> Iterator[None]:
    """While it is open, a signal that ends the program removes `path`, a file or a folder."""
    _partial.add(path)
    try:
        yield
    finally:
        _partial.discard(path)


def is_half_written(path: pathlib.Path) -> bool:
    """Whether a path lies within what `removed_on_exit` has now."""
    return not _partial.isdisjoint(path.parents)


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """While it is open, a signal is how the program is meant to end: no error."""
    global _servers
    _servers += 1
    try:
        yield
    finally:
        _servers -= 1


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """While it is open, signals wait: for the moment in which a finished result takes the place of an older one."""
    global _holds
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
        if _waiting and not _holds:
            _end(_waiting[0], None)


def replace_folder(target: pathlib.Path, new: pathlib.Path, older: pathlib.Path) -> None:
    """Moves `new` to `target`; what is there stands at `older` until then, and comes back where that fails.

    No signal comes between. Remains of a killed process at `older` are removed.
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
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    terminal = 2
    with contextlib.suppress(OSError):  # what threads say whose files go is nothing for the user
        terminal = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    left = [path for path in sorted(_partial) if not _remove(path)]
    message = f"Delete {left[0]}, which is half-written." if left else "Nothing half-written was left behind."
    start = "\n" if os.isatty(terminal) else ""  # below a progress bar
    is_meant = _servers and not left
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(terminal, (start if is_meant else f"{start}error: Interrupted. {message}\n").encode())
    os._exit(0 if is_meant else 128 + number)


def _remove(path: pathlib.Path) -> bool:
    """Removes it for good: threads that write into it may bring a part of it back for a moment."""
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
