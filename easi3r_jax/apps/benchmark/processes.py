"""Whole programs, each in a process of its own, with an empty and with a warm compilation cache; loading weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

import easi3r_jax
from easi3r_jax.apps.benchmark.timing import Limits, Row, StageTimer, highest
from easi3r_jax.core import interrupt
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.weights.load import load_model

#: Environment variables that would replace the empty cache.
_OTHER_CACHES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
#: Blocks of the encoder and of each decoder branch in the smaller checkpoint.
_FEW_LAYERS = 4


@contextlib.contextmanager
def scratch_folder() -> Iterator[pathlib.Path]:
    """A temporary folder, which Ctrl-C removes too."""
    with (
        tempfile.TemporaryDirectory(prefix="easi3r_jax_benchmark_") as folder,
        interrupt.removed_on_exit(pathlib.Path(folder)),
    ):
        yield pathlib.Path(folder)


def process_rows(first: int, repeats: int) -> dict[str, Row]:
    """Rows of the reconstruction of the bundled clip as a program: cold and with a warm cache, alone and compared.

    Args:
      first: frames of the clip; 0: all.
      repeats: processes for each row, of which the median is reported.
    """
    limit = [f"--first={first}"] if first else []
    programs = {
        "reconstruct the bundled clip": ["--nocompare_plain", *limit],
        "the same with its comparisons": limit,
    }
    rows = {}
    for name, flags in programs.items():
        cold, warm = [], []
        for _ in range(repeats):
            with scratch_folder() as folder:
                environment = {k: v for k, v in os.environ.items() if k not in _OTHER_CACHES}
                environment["EASI3R_JAX_CACHE"] = str(folder / "cache")
                arguments = ("reconstruct", "--seq=demo", f"--output={folder / 'result'}", *flags)
                for found, state in ((cold, "empty cache"), (warm, "warm cache")):
                    print(f"  {name}, {state} ...", flush=True)
                    found.append(_run(arguments, folder, environment))
        rows[f"{name}, empty cache"], rows[f"{name}, warm cache"] = _median(cold), _median(warm)
    return rows


def _run(arguments: Sequence[str], folder: pathlib.Path, environment: Mapping[str, str]) -> Row:
    file = folder / "measured.json"
    command = [sys.executable, "-m", "easi3r_jax.apps.benchmark.counted", str(file), repr(time.time()), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"The program {arguments[0]} failed while it was measured: {last}")
    found = json.loads(file.read_text())
    return Row(**found | {"limits": Limits(**found["limits"])})


def _median(rows: list[Row]) -> Row:
    """The row of median time, with the median time and the highest peak."""
    ordered = sorted(rows, key=lambda row: row.seconds)
    return dataclasses.replace(
        ordered[len(rows) // 2],
        seconds=statistics.median(row.seconds for row in rows),
        peak_memory_bytes=highest(row.peak_memory_bytes for row in rows),
    )


def checkpoint_stages(stage: StageTimer, *, full: bool) -> None:
    """Loading a `.pth` file in the released layout with random weights, which converts it in memory: twice.

    Args:
      stage: the timer.
      full: of the released networks' size; otherwise with fewer layers.

    Raises:
      ConfigError: there is no checkout, whose tests write such a file.
    """
    root = pathlib.Path(easi3r_jax.__file__).parents[1]
    script = root / "tests" / "make_full_checkpoint.py"
    if not script.is_file():
        raise ConfigError("--stages=checkpoint needs a checkout of the project: its tests write the checkpoint.")
    with scratch_folder() as folder:
        file = folder / "random.pth"
        print("  writing a checkpoint ...", flush=True)
        layers = [] if full else [f"--layers={_FEW_LAYERS}"]
        subprocess.run([sys.executable, script, f"--output={file}", *layers], check=True, stdout=subprocess.DEVNULL)
        size = file.stat().st_size
        title = f"of a .pth file of {size / 1e9:.2f} GB"
        stage(f"loading {title}", size // 10**6, lambda: load_model(file), once=True)
        stage("the same, in a program that has done so before", size // 10**6, lambda: load_model(file))
