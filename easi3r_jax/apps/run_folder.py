"""A run's folder: held by one program at a time, and free of what killed ones left half-written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from easi3r_jax.core.atomic import ensure_writable, output_error
from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.weights.checkpoint import latest_state

#: The file that is locked. It stays: deleting it would let two programs lock two files of one name.
LOCK = "run.lock"

# `core.atomic` builds beside the target, and moves the older one aside, under such names.
_LEFTOVER = re.compile(r"\..+\.(tmp|old)-\d+")


@contextlib.contextmanager
def held(output: pathlib.Path, *, resume: bool) -> Iterator[pathlib.Path | None]:
    """Holds a run's folder until the block ends, or the process does, however it ends.

    A folder in which nothing was written is removed again.

    Args:
      output: the folder; it and its parents may be missing.
      resume: whether a run is to be there.

    Yields:
      The newest state of the run that is there, or None for a new one.

    Raises:
      CheckpointError: nothing to resume.
      OutputError: another program holds it, a run that would be overwritten, or no place to write.
    """
    there = latest_state(output / "states") is not None
    if resume and not there:
        raise CheckpointError(f"There is no training state in {output / 'states'}: leave --resume away to begin.")
    if not there:
        ensure_writable(output, marker=LOCK)
    with locked(output, busy="another program trains there") as alone:
        begun = latest_state(output / "states")
        if begun is not None and not resume:
            raise OutputError(f"{output} holds a run: add --resume to go on with it, or choose another --output.")
        try:
            if alone:
                sweep(output)
            yield begun
        finally:
            if alone and os.listdir(output) == [LOCK]:
                (output / LOCK).unlink()
                output.rmdir()


@contextlib.contextmanager
def locked(output: pathlib.Path, *, busy: str, name: str = LOCK) -> Iterator[bool]:
    """Holds a lock file in a folder, which is made where it is missing, until the block ends or the process does.

    Args:
      output: the folder.
      busy: what a program that holds it does, for the message.
      name: of the file.

    Yields:
      Whether the lock is ours: False where the disk has none, as some network disks; programs go on without.

    Raises:
      OutputError: another program holds it, or no place to write.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output / name, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise output_error(output, error) from error
    try:
        yield _lock(descriptor, OutputError(f"{output} is in use: {busy}. Wait for it, or choose another --output."))
    finally:
        os.close(descriptor)


def _lock(descriptor: int, in_use: OutputError) -> bool:
    """Locks the file; False where the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise in_use from error
    except OSError:
        return False
    if not os.fstat(descriptor).st_nlink:  # its holder removed it between our opening and locking
        raise in_use
    return True


def sweep(output: pathlib.Path) -> None:
    """Removes what programs killed by force left half-written in a run's folder. To be called by its holder."""
    for folder in (output, output / "states", output / "preview"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if _LEFTOVER.fullmatch(path.name):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
