"""What is compiled: counted, and kept in a persistent cache that all programs and successive runs share."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import warnings

import jax

from easi3r_jax.io.files.folders import cache_folder

# Programs that compile faster are not cached. JAX's default, one second, excludes most programs of small networks.
_MIN_COMPILE_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
#: Bytes of a folder; the oldest files are deleted. Not by JAX's own limit: that takes a lock for every program, and a
#: process killed between its two files of a program makes every later write fail.
_MAX_BYTES = 2_000_000_000


class Compilations:
    """Counts what XLA compiles from now on, and how long it takes, by JAX's own monitoring events."""

    def __init__(self):
        self._before = dict(_tally())

    def _since(self, name: str) -> float:
        return _tally()[name] - self._before[name]

    @property
    def count(self) -> int:
        """Programs, those from a persistent cache included."""
        return int(self._since("programs"))

    @property
    def cached(self) -> int:
        """Programs that were found in a persistent cache."""
        return int(self._since("cached"))

    @property
    def seconds(self) -> float:
        """Seconds that compiling took, summed over programs."""
        return self._since("seconds")


@functools.cache  # a listener stays until it is unregistered: one serves the whole process
def _tally() -> dict[str, float]:
    tally = {"programs": 0.0, "cached": 0.0, "seconds": 0.0}

    def compiled(event: str, duration_secs: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            tally["programs"] += 1
            tally["seconds"] += duration_secs

    def found(event: str, **_: object) -> None:
        tally["cached"] += event.endswith("compilation_cache/cache_hits")

    jax.monitoring.register_event_duration_secs_listener(compiled)
    jax.monitoring.register_event_listener(found)
    return tally


def use_cache() -> pathlib.Path | None:
    """Turns the cache on, unless the user has set a folder for JAX.

    To be called before anything is compiled. Several processes may use it at a time. Each kind of processor has a
    folder of its own, since a home folder may be shared by machines that do not run each other's programs.

    Returns:
      its folder, or None if it cannot be written.
    """
    chosen = jax.config.values.get("jax_compilation_cache_dir")
    if chosen:
        return pathlib.Path(chosen)
    folder = cache_folder() / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    if _MIN_COMPILE_SECONDS not in os.environ:
        jax.config.update(_MIN_COMPILE_SECONDS.lower(), 0.2)
    # A process killed while it writes leaves half a program: it is compiled again, which needs no message.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    _prune(folder, _MAX_BYTES)
    return folder


def _prune(folder: pathlib.Path, most: int) -> None:
    """Deletes the oldest files of a folder until the others have at most so many bytes."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # deleted by another process meanwhile
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    for _, size, path in sorted(files, reverse=True):
        most -= size
        if most < 0:
            with contextlib.suppress(OSError):
                path.unlink()


def _processor() -> str:
    """Identifies this processor's instructions, e.g. x86_64-1f0c2ab93d5e."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = [f"flags {platform.processor()}"]
    features = sorted({line for line in lines if line.lower().startswith(("flags", "features", "model name"))})
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(features).encode()).hexdigest()[:12]}"
