"""The private folder of uploads and results, and their lifetime.

    ROOT/served   files that the page's server may send: uploads, and results under names that cannot be guessed
    ROOT/work     working files of a job; never sent

The folder is removed when the program ends. Served files are removed after their lifetime, results also as soon as the
page that requested them is closed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

from easi3r_jax.core import interrupt

#: Interval of the removal of expired files.
_SWEEP_SECONDS = 20.0


class Store:
    """The folder; a context manager that removes it at its end.

    Args:
      keep_seconds: how long files are served.

    Attributes:
      served: see the module.
    """

    def __init__(self, keep_seconds: float):
        self._keep_seconds = keep_seconds
        self._root = pathlib.Path(tempfile.mkdtemp(prefix="easi3r_jax_app_")).resolve()  # of this user only
        self.served, self._work = self._root / "served", self._root / "work"
        self.served.mkdir()
        self._work.mkdir()
        self._closed = threading.Event()

    def __enter__(self) -> Store:
        self._guard = contextlib.ExitStack()
        self._guard.enter_context(interrupt.removed_on_exit(self._root))
        threading.Thread(target=self._sweep_often, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._guard.close()
        shutil.rmtree(self._root, ignore_errors=True)

    @contextlib.contextmanager
    def job(self) -> Iterator[pathlib.Path]:
        """An empty working folder, removed at the end of the job, however it ends."""
        folder = self._work / secrets.token_hex(16)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def new_result(self) -> pathlib.Path:
        """An empty folder that is served to anyone who knows its name."""
        folder = self.served / secrets.token_hex(16)
        folder.mkdir()
        return folder

    def remove(self, folder: pathlib.Path) -> None:
        """Removes a result, which may be gone already."""
        shutil.rmtree(folder, ignore_errors=True)

    def remove_partial_uploads(self) -> None:
        """Removes remains of aborted uploads: files without a folder. To be called while no upload is in progress."""
        for entry in os.scandir(self.served):
            if not entry.is_dir(follow_symlinks=False):
                pathlib.Path(entry.path).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Free disk space."""
        return shutil.disk_usage(self._root).free

    def sweep(self) -> None:
        """Removes served files that have expired."""
        before = time.time() - self._keep_seconds
        for entry in os.scandir(self.served):
            # Another thread may be removing or writing the same entry.
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime > before:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)

    def _sweep_often(self) -> None:
        while not self._closed.wait(min(_SWEEP_SECONDS, self._keep_seconds)):
            with contextlib.suppress(OSError):
                self.sweep()
