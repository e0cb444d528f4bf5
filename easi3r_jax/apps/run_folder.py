"""A run's folder: locked by one program at a time, cleaned of incomplete files of killed programs, uploaded."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator

from easi3r_jax.core.atomic import ensure_writable, output_error
from easi3r_jax.core.errors import CheckpointError, ConfigError, OutputError
from easi3r_jax.io.remote import Output
from easi3r_jax.weights.checkpoint import has_states, latest_state

#: The locked file. It is never deleted: otherwise two programs could lock two files of the same name.
LOCK = "run.lock"

# `core.atomic` builds beside the target, and moves the older one aside, under such names.
_LEFTOVER = re.compile(r"\..+\.(tmp|old)-\d+")


#: What a training run writes into its folder, beside the lock.
_OF_A_RUN = ("states", "log.csv", "validation.csv", "tensorboard", "preview", "run.json", "model", "metrics.json")


@contextlib.contextmanager
def held(output: pathlib.Path, *, resume: bool, overwrite: bool = False) -> Iterator[pathlib.Path | None]:
    """Locks a run's folder until the context or the process ends, however it ends.

    A folder in which nothing was written is removed again. A folder with states is a run, whether they can be read or
    not: days of work, perhaps, of which one file is missing.

    Args:
      output: the folder; it and its parents may be missing.
      resume: whether to resume an existing run.
      overwrite: whether to delete an existing run.

    Yields:
      The newest state of the existing run, or None for a new one.

    Raises:
      ConfigError: to resume and to overwrite.
      CheckpointError: nothing to resume, or nothing that can be read.
      OutputError: another program holds the lock, a run would be overwritten, or the folder cannot be written.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite: give one of them.")
    states = output / "states"
    if resume and not has_states(states):
        raise CheckpointError(f"There is no training state in {states}: omit --resume to start a new run.")
    if not has_states(states):
        ensure_writable(output, marker=LOCK)
    with locked(output, busy="another program trains there") as is_locked:
        if has_states(states) and not (resume or overwrite):
            raise OutputError(
                f"{output} contains a run: add --resume to resume it, --overwrite to delete it and start anew, or "
                "choose another --output."
            )
        if overwrite:
            _delete_run(output)
        begun = latest_state(states)
        if resume and begun is None:
            raise CheckpointError(
                f"No training state in {states} can be read: each lacks a valid config.json. Restore one, choose "
                "another --output, or delete them and start anew with --overwrite instead of --resume."
            )
        try:
            if is_locked:
                sweep(output)
            yield begun
        finally:
            if is_locked and os.listdir(output) == [LOCK]:
                (output / LOCK).unlink()
                output.rmdir()


@contextlib.contextmanager
def locked(output: pathlib.Path, *, busy: str, name: str = LOCK) -> Iterator[bool]:
    """Holds a lock file in a folder, which is created if missing, until the context or the process ends.

    Args:
      output: the folder.
      busy: what the program that holds the lock is doing, for the message.
      name: of the file.

    Yields:
      Whether the lock was acquired: False if the file system has no locks, like some network disks. Programs then
      continue without one.

    Raises:
      OutputError: another program holds the lock, or the folder cannot be written.
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
    """Locks the file; False if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise in_use from error
    except OSError:
        return False
    if not os.fstat(descriptor).st_nlink:  # its holder removed it between our opening and locking
        raise in_use
    return True


def _delete_run(output: pathlib.Path) -> None:
    """Deletes what a run has written; other files stay. States go last: until then, the folder is a run."""
    try:
        for name in reversed(_OF_A_RUN):
            path = output / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(output, error) from error


def save_so_far(output: Output, *, every: float = 0.0) -> None:
    """Uploads what a run has finished. A failure is a warning: the run goes on, and uploads it with the next part."""
    try:
        output.save(every=every)
    except OutputError as error:
        print(f"warning: {error} The run goes on, and tries again later.", file=sys.stderr)


def sweep(output: pathlib.Path) -> None:
    """Removes incomplete files of killed programs from a run's folder. To be called by the holder of the lock."""
    results = (folder for folder, _, _ in os.walk(output / "results"))  # an evaluation's
    for folder in (output, output / "states", output / "preview", *map(pathlib.Path, results)):
        for path in folder.iterdir() if folder.is_dir() else ():
            if _LEFTOVER.fullmatch(path.name):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
