"""Measures the exports of a long clip: seconds, size, memory beyond the scene's. Linux only.

python -m tests.io.export.measure --frames=300
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable

from easi3r_jax.io import export, results
from tests.viewer.conftest import make_scene, write_scene


def measure(folder: pathlib.Path, name: str, output: pathlib.Path) -> None:
    """Prints what one format takes."""
    saved = results.load_result(folder)
    exported = export.frames_of(saved.scene, saved.frames.time)
    report(name, output / name, lambda path: export.write_export(path, name, exported))


def report(name: str, path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Prints the time and memory that writing a file or folder takes."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to be had for nothing
    peak, done = [_anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak.append(max(peak.pop(), _anonymous()))

    base = peak[0]
    watcher = threading.Thread(target=watch)
    watcher.start()
    began, worked = time.perf_counter(), time.process_time()
    write(path)
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    done.set()
    watcher.join()
    size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    print(
        f"{name:20}{seconds:8.2f} s{work:8.2f} s of a CPU{size / 1e6:10.1f} MB{(peak[0] - base) / 1e9:8.3f} GB",
        flush=True,
    )


def in_own_process(function: Callable[..., None], *arguments: object) -> None:
    """Calls a function in a process whose memory is all its own."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _anonymous() -> int:
    """Resident bytes of this process without mapped files."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300, help="of the made-up clip of 512x288 pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_scene(pathlib.Path(scratch) / "clip", make_scene(options.frames, 288, 512)).folder
        for name in export.FORMATS:
            in_own_process(measure, folder, name, folder.parent)


if __name__ == "__main__":
    main()
