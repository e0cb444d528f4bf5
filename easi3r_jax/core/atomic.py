"""Files and folders that are written atomically."""

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
    """The one-line error for a failed write under `path`."""
    reason = _REASONS.get(error.errno or 0, str(error.strerror or error))
    return OutputError(f"Cannot write {os.fspath(path)}: {reason}.")


def ensure_writable(path: str | os.PathLike, *, marker: str) -> None:
    """Fails now, before hours of work, where `atomic_folder` would fail at the end. Leaves nothing behind.

    Args:
      path: the folder to be written; it and its parents may be missing.
      marker: file whose presence shows that an existing folder is an older result, which may be replaced.

    Raises:
      OutputError: no permission, a read-only or full disk, a file in the way, a folder that holds something else.
    """
    target = pathlib.Path(path).expanduser()
    try:
        target = target.resolve()
        _check_replaceable(target, marker)
        _try_writing(target.parent)
    except OSError as error:
        raise output_error(path, error) from error


def ensure_usable(path: str | os.PathLike[str]) -> None:
    """Fails now where nothing could be written into a folder. Whoever writes checks what it holds: `ensure_writable`.

    Raises:
      OutputError: no permission, a read-only or full disk, a file in the way.
    """
    target = pathlib.Path(path).expanduser()
    try:
        target = target.resolve()
        if target.exists() and not target.is_dir():
            raise OutputError(f"Cannot write into {target}: it is a file; choose another folder.")
        try:
            _try_writing(target)
        except OSError:  # a folder that will be replaced need not be writable
            if not target.is_dir():
                raise
            _try_writing(target.parent)
    except OSError as error:
        raise output_error(path, error) from error


def _try_writing(folder: pathlib.Path) -> None:
    """Raises OSError if a folder, or its nearest existing parent, is not writable."""
    while not folder.exists():
        folder = folder.parent
    # Permission bits alone are not reliable (root, access lists, read-only mounts), so write a probe.
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
    """Yields a temporary folder beside `path`, which replaces `path` when the block succeeds.

    On any failure, including Ctrl-C, the temporary folder is removed and an older result is left untouched. The older
    one is moved aside and deleted only when the new one is in place. `path` is missing only between the two renames; a
    process killed at that moment leaves the older result as `.NAME.old-PID`.

    Args:
      path: the folder to write; missing parents are created.
      marker: file whose presence shows that an existing folder is an older result, which may be replaced; the block
        must write it. Or a function that tells whether a folder is one.
      size: bytes that will be written: fails before the block if the disk has less free space.
      durable: flush all files to disk before the folder gets its name, so that it is complete even after a power cut.

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
    """Flushes a file, or a folder's directory entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush folders.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; the file written there replaces `path` when the block succeeds.

    Args:
      path: the file to write; missing parents are created.

    Raises:
      OutputError: for any `OSError` inside the block or while replacing; a folder or a device of this name.
      OSError: inside a folder that `atomic_folder` or `atomic_files` is writing; they report that folder instead.
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
        if interrupt.is_half_written(target):  # the outer context reports the folder's final name
            raise
        raise output_error(path, error) from error


def check_file(target: pathlib.Path) -> None:
    """Refuses to replace anything but a regular file: root could replace even /dev/null.

    Raises:
      OutputError: the existing path is not a regular file.
    """
    if target.exists() and not target.is_file():
        raise OutputError(f"Cannot write {target}: it is a folder or a device. Name a file.")


def ensure_file_writable(path: str | os.PathLike[str]) -> None:
    """Fails now, before hours of work, where `atomic_file` would fail at the end. Leaves nothing behind.

    Raises:
      OutputError: no permission, a read-only or full disk, a folder or a device of this name.
    """
    target = pathlib.Path(path).expanduser()
    try:
        target = target.resolve()
        check_file(target)
        _try_writing(target.parent)
    except OSError as error:
        raise output_error(path, error) from error


def ensure_files_writable(folder: str | os.PathLike, names: Collection[str], *, marker: str) -> None:
    """Fails now where `atomic_files` would fail at the end. Leaves nothing behind.

    Raises:
      OutputError: no permission, a read-only or full disk, files with these names that we did not write.
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
    """Yields a temporary folder; its files move into `folder` together when the block succeeds.

    Other files in `folder` stay. Files in `names` from an earlier run that were not rewritten are removed, so that the
    files there always belong together.

    Args:
      folder: missing parents are created.
      names: all files that may be written, including `marker`.
      marker: the file whose presence shows that files with these names are ours; the block must write it.

    Raises:
      OutputError: for any `OSError` inside the block or while moving; files with these names that we did not write.
    """
    try:
        target = pathlib.Path(folder).expanduser().resolve()
        _check_own(target, names, marker)
        is_new = not target.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Inside the folder if it exists: its parent may be another file system, or not writable.
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
                        # The marker first: if the machine stops here, the files are still recognised as ours.
                        for name in sorted(written, key=lambda name: name != marker):
                            (building / name).replace(target / name)
                        for name in set(names) - written:
                            (target / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise output_error(folder, error) from error


def _check_own(target: pathlib.Path, names: Collection[str], marker: str) -> None:
    """Refuses to replace files that we did not write: a mistyped --output must not destroy the user's files."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"Cannot write into {target}: it is a file. Choose another folder.")
    if not (target / marker).exists():
        for name in sorted(names):
            if (target / name).exists():
                raise OutputError(
                    f"{target / name} is in the way and was not written by this program (no {marker} beside it): "
                    "choose another folder."
                )


def _check_replaceable(target: pathlib.Path, marker: str | Callable[[pathlib.Path], bool]) -> None:
    """Refuses to replace a folder that we did not write: a mistyped --output must not destroy the user's files."""
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
