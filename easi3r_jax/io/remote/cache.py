"""Copies of what lies in a store, on this machine's disk, with a bound.

    CACHE/remote/KEY.lock         locked while the copy is made (exclusively) or used (shared)
    CACHE/remote/KEY.part/NAME    being made: an interrupted download goes on with the files that it lacks
    CACHE/remote/KEY/NAME         whole

A key is a digest of the address and of the size and version of every file there: what changed has another key. The
copies that were not used for longest are deleted when a new one needs their space; those in use never are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import secrets
import shutil
import threading

from easi3r_jax.core.atomic import output_error
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Progress, silent
from easi3r_jax.io.files.folders import cache_folder
from easi3r_jax.io.remote.address import Place, Stored, is_address, name_of, shown
from easi3r_jax.io.remote.marker import MARKER, PROBE, check_complete, read_marker

#: Environment variable with the bound, and its default.
LIMIT, _DEFAULT_GB = "EASI3R_JAX_CACHE_GB", 50.0
#: Files that are transferred at a time. Files of an interrupted transfer are repeated, those of earlier ones are not.
_AT_A_TIME = 64

#: Locks of the copies that this process has been given, by key: held until it ends, since it may read them until then.
_USED: dict[str, int] = {}
_THREADS = threading.Lock()


def local(source: str | os.PathLike[str], *, result: bool = False, progress: Progress = silent) -> str:
    """The path of a source on this machine. An address is downloaded unless the cache has it; a path is returned as is.

    Args:
      source: a path, or SCHEME://... of a file, or of a folder with everything in it.
      result: the folder must have been uploaded by us (see `marker`).
      progress: called with the number of files, for the stage "download".

    Raises:
      InputError: nothing there, no permission, no connection, a folder that is not completely written, or one that is
        larger than the cache may be.
      OutputError: the copy cannot be stored.
      ConfigError: a bound that is no number.
    """
    text = os.fspath(source)
    if not is_address(text):
        return text
    place = Place(text)
    files = place.listing()
    if not files:
        raise place.missing()
    files.pop(PROBE, None)
    marked = files.pop(MARKER, None) is not None
    if marked and (marker := read_marker(place)) is not None:
        check_complete(place, marker, files)
        files = {name: file for name, file in files.items() if name in marker.files}
    elif result:
        raise place.refused(f"it is not a result: it has no {MARKER}, which is written last")
    try:
        return os.fspath(_copy(place, files, progress))
    except OSError as error:
        raise output_error(cache_folder() / "remote", error) from error


def _copy(place: Place, files: dict[str, Stored], progress: Progress) -> pathlib.Path:
    """The copy of a place in the cache, made if it is missing."""
    size = sum(file.size or 0 for file in files.values())
    if size > limit_bytes():
        raise place.refused(
            f"it has {size / 1e9:.1f} GB, and the cache may have {limit_bytes() / 1e9:g}: set {LIMIT}={size / 1e9:.0f} "
            "or more, or copy it to a disk"
        )
    listed = sorted((name, file.size, file.version) for name, file in files.items())
    known = all(file.version for file in files.values())
    salt = "" if known else secrets.token_hex(8)  # it may have changed: no copy can be trusted to be the same
    key = hashlib.sha256(json.dumps([place.address, listed, salt]).encode()).hexdigest()[:24]
    folder = cache_folder() / "remote"
    folder.mkdir(parents=True, exist_ok=True)
    entry, path = folder / key, folder / key / name_of(place.address)
    with _THREADS:
        while key not in _USED:
            lock = locked(folder / f"{key}.lock", fcntl.LOCK_SH)  # as all who use it: nobody waits for them
            if entry.is_dir():
                _USED[key] = lock
                break
            os.close(lock)
            lock = locked(folder / f"{key}.lock", fcntl.LOCK_EX)
            try:
                if not entry.is_dir():  # else another process has made it meanwhile
                    _make(place, files, size, entry, path.name, progress)
            finally:
                os.close(lock)
    with contextlib.suppress(OSError):
        os.utime(entry)
    return path


def _make(
    place: Place, files: dict[str, Stored], size: int, entry: pathlib.Path, name: str, progress: Progress
) -> None:
    """Downloads a copy. It gets its name last."""
    part = entry.with_name(f"{entry.name}.part")
    _make_room(entry.parent, size - _size(part), entry.name, place)
    download(place, files, part / name, progress)
    now = place.listing()
    if any(now.get(key) != file for key, file in files.items()):
        shutil.rmtree(part, ignore_errors=True)
        raise place.refused("it changed while it was downloaded: try again")
    part.rename(entry)


def download(place: Place, files: dict[str, Stored], target: pathlib.Path, progress: Progress = silent) -> None:
    """Downloads files to a folder, or one file (of the empty name) to a path. Files that are there are kept.

    Args:
      place: where they lie.
      files: as `Place.listing` returns them.
      target: the folder or the path.
      progress: called with the number of files.
    """
    missing = [name for name in sorted(files) if not (target / name).is_file()]
    done = len(files) - len(missing)
    scratch = target.with_name(f".{target.name}.transfer")
    for start in range(0, len(missing), _AT_A_TIME):
        names = missing[start : start + _AT_A_TIME]
        progress("download", done + start, len(files), shown(place.address))
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        place.attempt(lambda names=names: _fetch(place, files, names, scratch))
        for number, name in enumerate(names):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (scratch / str(number)).replace(path)
    shutil.rmtree(scratch, ignore_errors=True)
    progress("download", len(files), len(files), shown(place.address))


def _fetch(place: Place, files: dict[str, Stored], names: list[str], scratch: pathlib.Path) -> None:
    """Downloads some files to a folder, under their numbers."""
    numbered = [(name, scratch / str(number)) for number, name in enumerate(names)]
    # Of a file of unknown length, what an earlier try left may be a part.
    wanted = [(name, path) for name, path in numbered if files[name].size is None or not _is_whole(path, files[name])]
    if len(wanted) == 1:  # also: file systems that take no lists
        place.files.get_file(place.at(wanted[0][0]), os.fspath(wanted[0][1]))
    elif wanted:
        place.files.get([place.at(name) for name, _ in wanted], [os.fspath(path) for _, path in wanted])
    for name, path in wanted:
        if not _is_whole(path, files[name]):
            raise ConnectionError(f"{name or place.address} ended early")


def _is_whole(path: pathlib.Path, file: Stored) -> bool:
    return path.is_file() and file.size in (None, path.stat().st_size)


def limit_bytes() -> float:
    """The largest size of the cache.

    Raises:
      ConfigError: it is set to something else than a number of gigabytes.
    """
    text = os.environ.get(LIMIT) or str(_DEFAULT_GB)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ConfigError(f"{LIMIT}={text}: it must be a number of gigabytes.")
    return value * 1e9


def _make_room(folder: pathlib.Path, needed: int, own: str, place: Place) -> None:
    """Deletes the copies that were not used for longest until a new one fits."""
    copies = []
    for path in folder.iterdir():
        if path.name.startswith(".deleted-"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir() and path.name.partition(".")[0] != own:
            with contextlib.suppress(OSError):
                copies.append((path.stat().st_mtime, path, _size(path)))
    excess = sum(size for *_, size in copies) + needed - limit_bytes()
    for _, path, size in sorted(copies):
        if excess > 0 and _delete(path):
            excess -= size
    if excess > 0:
        raise place.refused(
            f"the cache is full of what this and other programs use: wait for them, or raise its bound ({LIMIT})"
        )


def _delete(path: pathlib.Path) -> bool:
    """Deletes a copy that nobody uses. It loses its name first: half of it must not be taken for whole."""
    key = path.name.partition(".")[0]
    if key in _USED:
        return False
    try:
        lock = locked(path.with_name(f"{key}.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        gone = path.with_name(f".deleted-{secrets.token_hex(8)}")
        path.rename(gone)
        path.with_name(f"{key}.lock").unlink(missing_ok=True)
        shutil.rmtree(gone, ignore_errors=True)
    except FileNotFoundError:
        pass
    finally:
        os.close(lock)
    return True


def locked(path: pathlib.Path, operation: int) -> int:
    """The descriptor of a locked file. File systems without locks are used without.

    Raises:
      BlockingIOError: somebody else holds it, and the operation does not wait.
    """
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, operation)
        except BlockingIOError:
            os.close(lock)
            raise
        except OSError:
            return lock
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)  # its holder deleted it meanwhile


def _size(folder: pathlib.Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
