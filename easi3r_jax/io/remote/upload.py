"""Folders that programs write, uploaded to an address.

A program writes on this machine's disk, into CACHE/writing/KEY/NAME. What is finished is uploaded, at the latest when
the program ends. The order of writes makes every interruption harmless: the marker says that the folder is not
complete, then files change, then the marker says what is whole, then files that are no longer part of it are removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator

from easi3r_jax.core.atomic import atomic_file, output_error
from easi3r_jax.core.errors import OutputError, UserError
from easi3r_jax.core.types import Progress, silent
from easi3r_jax.io.files.folders import cache_folder
from easi3r_jax.io.remote.address import Place, is_address, name_of, shown
from easi3r_jax.io.remote.cache import download, locked
from easi3r_jax.io.remote.marker import MARKER, PROBE, Marker, read_marker, write_marker

_AT_A_TIME = 64
#: Unfinished files and folders, which `core.atomic` writes beside their targets.
_UNFINISHED = re.compile(r"\..+\.(tmp|old)-\d+|\..+\.transfer")

#: Size and time of a file when it was uploaded.
_Status = tuple[int, int]


@dataclasses.dataclass
class Output:
    """A folder that a program writes.

    Attributes:
      folder: on this machine.
      address: as typed: where the results will be.
    """

    folder: pathlib.Path
    address: str

    def save(self, *, complete: bool = False, every: float = 0.0) -> None:
        """Uploads what is finished so far, if the folder is to be uploaded at all.

        Args:
          complete: the program has written everything.
          every: does nothing within so many seconds of the last upload.

        Raises:
          OutputError: no bucket, no permission, no connection.
        """
        # A folder on this machine is where it belongs already.


class _Uploaded(Output):
    """An `Output` that is uploaded.

    Args:
      address: SCHEME://...
      work: folder for this address on this machine; it is locked.
      replaces: as `writing` takes it.
      progress: called with the number of files, for the stages "download" and "upload".
    """

    def __init__(self, address: str, work: pathlib.Path, replaces: str, progress: Progress):
        super().__init__(work / name_of(address), address)
        self._place, self._progress = Place(address, "write"), progress
        self._state = work / "uploaded.json"
        self._marker = self._check(replaces)
        self._sent: dict[str, _Status] = {}
        self._saved_at = time.monotonic()
        if not replaces and self._marker is not None:
            sent = self._sent_before(self._marker.id)
            if sent is None:  # the store has what this machine has not
                self._fetch(self._marker)
            else:
                self._sent = sent

    def save(self, *, complete: bool = False, every: float = 0.0) -> None:
        if time.monotonic() < self._saved_at + every:
            return
        try:
            self._upload(complete)
        finally:
            self._saved_at = time.monotonic()

    def _upload(self, complete: bool) -> None:
        found = dict(_statuses(self.folder))
        changed = sorted(name for name, status in found.items() if self._sent.get(name) != status)
        marker = self._marker
        before = {} if marker is None else dict(marker.files)
        # A folder that is complete stays so if nothing changes.
        settled = marker is not None and (marker.complete or not complete)
        if settled and not changed and before.keys() == found.keys():
            return
        if marker is None or marker.complete:
            self._mark(Marker(False, before))
        for start in range(0, len(changed), _AT_A_TIME):
            names = changed[start : start + _AT_A_TIME]
            self._progress("upload", start, len(changed), shown(self.address))
            self._place.attempt(lambda names=names: self._put(names))
            self._sent |= {name: found[name] for name in names}
        self._progress("upload", len(changed), len(changed), shown(self.address))
        self._sent = {name: status for name, status in self._sent.items() if name in found}
        self._mark(Marker(complete, {name: size for name, (size, _) in found.items()}))
        self._place.remove(sorted(before.keys() - found.keys()))

    def _put(self, names: list[str]) -> None:
        paths = [os.fspath(self.folder / name) for name in names]
        if len(names) == 1:  # also: file systems that take no lists
            self._place.files.put_file(paths[0], self._place.at(names[0]))
        else:
            self._place.files.put(paths, [self._place.at(name) for name in names])

    def _mark(self, marker: Marker) -> None:
        """Writes the marker, and records on this machine which version of the folder it has."""
        write_marker(self._place, marker)
        self._marker = marker
        with atomic_file(self._state) as new:
            new.write_text(json.dumps({"id": marker.id, "sent": self._sent}), encoding="utf-8")

    def _check(self, replaces: str) -> Marker | None:
        """The marker of what is there already. Fails now, before hours of work, where uploading would fail.

        Raises:
          OutputError: no bucket, no permission, no connection; something that we did not write.
        """
        marker = read_marker(self._place)
        if marker is None and any(name != PROBE for name in self._place.listing()):
            raise OutputError(
                f"{shown(self.address)} is not empty and not an earlier result (no {MARKER} in it): choose another "
                "address."
            )
        if replaces and marker is not None and marker.files and replaces not in marker.files:
            raise OutputError(
                f"{shown(self.address)} is not an earlier result (no {replaces} in it): choose another address."
            )
        self._place.write_bytes(PROBE, b"")
        self._place.remove([PROBE])
        return marker

    def _sent_before(self, marker_id: str) -> dict[str, _Status] | None:
        """What this machine's folder had uploaded when that marker was written; None if another machine wrote it."""
        try:
            state = json.loads(self._state.read_bytes())
            sent = {str(name): (int(size), int(time)) for name, (size, time) in state["sent"].items()}
            return sent if state["id"] == marker_id and self.folder.is_dir() else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def _fetch(self, marker: Marker) -> None:
        """Downloads what was whole when the marker was written."""
        listed = self._place.listing()
        if lost := sorted(marker.files.keys() - listed.keys()):
            raise self._place.refused(f"{len(lost)} of its {len(marker.files)} files are missing, such as {lost[0]}")
        if self.folder.is_dir() and any(self.folder.iterdir()):  # work that was not uploaded is not lost
            self.folder.rename(self.folder.with_name(f"{self.folder.name}.before-{time.time_ns()}"))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        download(self._place, {name: listed[name] for name in marker.files}, self.folder, self._progress)
        self._sent = dict(_statuses(self.folder))


@contextlib.contextmanager
def writing(output: str | os.PathLike[str], *, replaces: str = "", progress: Progress = silent) -> Iterator[Output]:
    """A context with the folder that a program writes. A path is itself; an address gets a folder on this disk.

    The folder of an address is uploaded and deleted when the block succeeds. Otherwise it stays: the same command on
    this machine continues with it, unless the address has been written from elsewhere meanwhile.

    Args:
      output: a path, or SCHEME://... of a folder that is new, empty or an earlier result.
      replaces: a file that every such result has: an earlier one is replaced at the end. Empty: the program goes on
        with an earlier result, which is downloaded, and what it has finished is uploaded even if it fails.
      progress: called with the number of files, for the stages "download" and "upload".

    Raises:
      OutputError: no bucket, no permission, no connection; another program on this machine writes there.
    """
    text = os.fspath(output)
    if not is_address(text):
        yield Output(pathlib.Path(text).expanduser(), text)
        return
    work = cache_folder() / "writing" / hashlib.sha256(text.rstrip("/").encode()).hexdigest()[:24]
    with _held(work, text):
        try:
            out = _Uploaded(text, work, replaces, progress)
        except OSError as error:
            raise output_error(work, error) from error
        try:
            yield out
        except UserError as error:
            if not replaces and not isinstance(error, OutputError):
                with contextlib.suppress(UserError):  # the first error is what must be read
                    out.save()
            raise
        try:
            out.save(complete=True)
        except OutputError as error:
            raise OutputError(f"{error} Everything is on this machine, in {out.folder}.") from error
        shutil.rmtree(out.folder, ignore_errors=True)  # not what `_fetch` has moved aside
        (work / "uploaded.json").unlink(missing_ok=True)


@contextlib.contextmanager
def _held(work: pathlib.Path, address: str) -> Iterator[None]:
    """Locks the folder of an address. The lock is beside it, since the folder is deleted at the end."""
    path = work.with_suffix(".lock")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"{shown(address)} is in use: another program on this machine writes it.") from error
    except OSError as error:
        raise output_error(work, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # unless something is left to go on with
            work.rmdir()
        path.unlink(missing_ok=True)
        os.close(lock)


def _statuses(folder: pathlib.Path) -> Iterator[tuple[str, _Status]]:
    """Name, size and time of every finished file in a folder."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _UNFINISHED.fullmatch(name))
        for name in sorted(names):
            path = pathlib.Path(parent) / name
            if not _UNFINISHED.fullmatch(name) and path.is_file():
                status = path.stat()
                yield path.relative_to(folder).as_posix(), (status.st_size, status.st_mtime_ns)
