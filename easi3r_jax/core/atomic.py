"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator

from easi3r_jax.core import interrupt
from easi3r_jax.core.errors import OutputError

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up: free some space or choose another folder",
    errno.EACCES: "no permission to write there: choose another folder",
    errno.EPERM: "no permission to write there: choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder",
    errno.EEXIST: "a part of the path is a file, not a folder: choose another folder",
    errno.ENAMETOOLONG: "the name is too long: choose another folder",
    errno.ENOENT: "nothing can be created there: choose another folder",
    errno.EBUSY: "the folder is a mount point or in use: choose a folder inside it",
}


def output_error(path: str | os.PathLike, error: OSError) -> OutputError:
    """The one-line complaint for a failed write under `path`."""
    reason = _REASONS.get(error.errno or 0, str(error.strerror or error))
    return OutputError(f"Cannot write {os.fspath(path)}: {reason}.")


def ensure_writable(path: str | os.PathLike, *, marker: str) -> None:
    """Fails now, before hours of work, where `atomic_folder` would fail at the end. Leaves nothing behind.

    Args:
      path: the folder to be written; it and its parents may be missing.
      marker: file whose presence shows that an existing folder is an older result, free to be replaced.

    Raises:
      OutputError: no permission, a read-only or full disk, a file in the way, a folder with something else in it.
    """
    target = pathlib.Path(path).expanduser()
    try:
        target = target.resolve()
        _check_replaceable(target, marker)
        _try_writing(target.parent)
    except OSError as error:
        raise output_error(path, error) from error


def _try_writing(folder: pathlib.Path) -> None:
    """Raises OSError where nothing can be written into a folder, or, as it is missing, the nearest one above."""
    while not folder.exists():
        folder = folder.parent
    # Permission bits do not tell the whole story (root, access lists, read-only mounts): try it.
    with tempfile.TemporaryDirectory(prefix=".writable-", dir=folder) as probe:
        (pathlib.Path(probe) / "probe").write_bytes(b"x" * 4096)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike,
    *,
    marker: str | Callable[[pathlib.Path], bool],
    size: int = 0,
    durable: bool = False,
) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `path`, which replaces `path` when the block ends well.

    On any failure, Ctrl-C included, the temporary folder is removed and an older result stays as it was. The older
    one is moved aside, never deleted, until the new one is in place; the moment between the two renames is the only
    one in which `path` is missing (killed right there, the older result stands beside it as `.NAME.old-PID`).

    Args:
      path: the folder to write; missing parents are created.
      marker: file whose presence shows that an existing folder is an older result, free to be replaced; the block must
        write it. Or a function that tells whether a folder is one.
      size: bytes that will be written: fails before the block where the disk has less.
      durable: whether all files are flushed to the disk before the folder gets its name, so that it is complete
        after a power cut, too.

    Raises:
      OutputError: for any `OSError` inside the block or while replacing, or a folder that is not an older result.
    """
    try:
        target = pathlib.Path(path).expanduser().resolve()
        _check_replaceable(target, marker)
        target.parent.mkdir(parents=True, exist_ok=True)
        if size and (free := shutil.disk_usage(target.parent).free) < size:
            raise OutputError(
                f"Cannot write {path}: {size / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free on that disk."
            )
        building = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        shutil.rmtree(building, ignore_errors=True)  # of a killed process that had our number
        try:
            with interrupt.removed_on_exit(building):
                building.mkdir()
                yield building
                for entry in (*building.rglob("*"), building) if durable else ():
                    _flush(entry)
                older = target.with_name(f".{target.name}.old-{os.getpid()}")
                interrupt.replace_folder(target, building, older)
                if durable:
                    _flush(target.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise output_error(path, error) from error


def _flush(path: pathlib.Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks cannot, of folders.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; what is written there replaces `path` when the block ends well.

    Args:
      path: the file to write; missing parents are created.

    Raises:
      OutputError: for any `OSError` inside the block or while replacing; a folder or a device of this name.
      OSError: in a folder that `atomic_folder` or `atomic_files` is writing, which name that one.
    """
    target = pathlib.Path(path).expanduser().absolute()
    try:
        target = target.resolve()
        check_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        building = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        try:
            with interrupt.removed_on_exit(building):
                yield building
                building.replace(target)
        finally:
            building.unlink(missing_ok=True)
    except OSError as error:
        if interrupt.is_half_written(target):  # of a folder that is being built: its own name is for the user
            raise
        raise output_error(path, error) from error


def check_file(target: pathlib.Path) -> None:
    """A file may be replaced; root could replace /dev/null as well.

    Raises:
      OutputError: what is there is no regular file.
    """
    if target.exists() and not target.is_file():
        raise OutputError(f"Cannot write {target}: it is a folder or a device. Name a file.")


def ensure_files_writable(folder: str | os.PathLike, names: Collection[str], *, marker: str) -> None:
    """Fails now where `atomic_files` would fail at the end. Leaves nothing behind.

    Raises:
      OutputError: no permission, a read-only or full disk, files of these names that are somebody's own.
    """
    target = pathlib.Path(folder).expanduser()
    try:
        target = target.resolve()
        _check_own(target, names, marker)
        _try_writing(target)
    except OSError as error:
        raise output_error(folder, error) from error


@contextlib.contextmanager
def atomic_files(folder: str | os.PathLike, names: Collection[str], *, marker: str) -> Iterator[pathlib.Path]:
    """Yields a temporary folder; the files written there move into `folder` together, when the block ends well.

    What else lies in `folder` stays. Files of `names` that are there from an earlier time and have not been written
    anew are removed: what is there belongs together.

    Args:
      folder: missing parents are created.
      names: of all files that may be written, `marker` among them.
      marker: the file whose presence shows that files of these names are ours; the block must write it.

    Raises:
      OutputError: for any `OSError` inside the block or while moving; files of these names that are somebody's own.
    """
    try:
        target = pathlib.Path(folder).expanduser().resolve()
        _check_own(target, names, marker)
        is_new = not target.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        # In it, where it is there: its parent may be of another file system, or not ours to write to.
        building = (target.parent if is_new else target) / f".{marker}.tmp-{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)  # of a killed process that had our number
        try:
            with interrupt.removed_on_exit(building):
                building.mkdir()
                yield building
                written = {path.name for path in building.iterdir()}
                with interrupt.uninterrupted():
                    if is_new:
                        building.rename(target)
                    else:
                        # The marker first: should the machine stop here, the files are still known as ours.
                        for name in sorted(written, key=lambda name: name != marker):
                            (building / name).replace(target / name)
                        for name in set(names) - written:
                            (target / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise output_error(folder, error) from error


def _check_own(target: pathlib.Path, names: Collection[str], marker: str) -> None:
    """A mistyped --output must never cost somebody a file of their own."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"Cannot write into {target}: it is a file. Choose another folder.")
    if not (target / marker).exists():
        for name in sorted(names):
            if (target / name).exists():
                raise OutputError(
                    f"{target / name} is in the way, and not written by this program (no {marker} beside it): choose "
                    "another folder."
                )


def _check_replaceable(target: pathlib.Path, marker: str | Callable[[pathlib.Path], bool]) -> None:
    """A mistyped --output must never cost somebody a folder of their own."""
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"Cannot write {target}: it is a file. Choose another folder.")
    if os.path.ismount(target):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    is_ours = marker(target) if callable(marker) else (target / marker).is_file()
    if any(target.iterdir()) and not is_ours:
        lacks = "" if callable(marker) else f" (no {marker} in it)"
        raise OutputError(f"{target} is not empty and not an earlier result{lacks}: choose another folder.")
