"""All measurements of docs/benchmarks.md, each in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from typing import Any

from easi3r_jax.apps.benchmark.processes import scratch_folder
from easi3r_jax.apps.benchmark.timing import Limits, Row
from easi3r_jax.apps.progress import clock
from easi3r_jax.core.errors import ConfigError

_WHOLE = ("--height=288", "--width=512")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A run of `experiments.benchmark`.

    Attributes:
      name: of its block in the page.
      flags: its command line.
      quick: flags that make it short, added to the others.
    """

    name: str
    flags: tuple[str, ...]
    quick: tuple[str, ...]

    def command_line(self, *, quick: bool) -> tuple[str, ...]:
        """All flags; of two with the same name the last one counts."""
        named = {flag.split("=")[0]: flag for flag in (*self.flags, *(self.quick if quick else ()))}
        return tuple(named.values())


_TINY = ("--height=64", "--width=96", "--repeats=1")
SUITE = (
    Measurement(
        "released network",
        ("--stages=network", "--preset=512-dpt", "--frames=4", *_WHOLE, "--repeats=1"),
        ("--preset=embedded", "--frames=3", *_TINY),
    ),
    Measurement("embedded network", ("--stages=network", "--frames=16"), ("--frames=3", "--repeats=1")),
    Measurement(
        "alignment, small frames",
        ("--stages=alignment", "--frames=16", "--repeats=3"),
        ("--frames=4", "--iterations=20", "--repeats=1"),
    ),
    Measurement(
        "alignment, large frames",
        ("--stages=alignment", "--frames=12", *_WHOLE, "--iterations=20"),
        ("--frames=4", *_TINY),
    ),
    Measurement(
        "alignment, many frames",
        ("--stages=alignment", "--frames=65", *_WHOLE, "--iterations=3", "--repeats=1"),
        ("--frames=6", *_TINY),
    ),
    Measurement(
        "flow network",
        ("--stages=flow", "--frames=3", "--graph=complete", *_WHOLE, "--repeats=1"),
        ("--flow=raft-small", *_TINY),
    ),
    Measurement(
        "flow without weights",
        ("--stages=flow", "--flow=dis", "--frames=12", *_WHOLE),
        ("--frames=3", *_TINY),
    ),
    Measurement("programs", ("--stages=process",), ("--first=4", "--repeats=1")),
    Measurement("checkpoint", ("--stages=checkpoint", "--full_checkpoint"), ("--nofull_checkpoint", "--repeats=1")),
)


def run_suite(*, quick: bool) -> dict[str, dict[str, Any]]:
    """Runs everything and returns what each run found, by its name. Prints progress and each run's table.

    Raises:
      ConfigError: a run fails.
    """
    found: dict[str, dict[str, Any]] = {}
    began = time.perf_counter()
    with scratch_folder() as folder:
        file = folder / "found.json"
        for number, measurement in enumerate(SUITE):
            flags = measurement.command_line(quick=quick)
            passed = clock(time.perf_counter() - began)
            print(f"[{number + 1}/{len(SUITE)}, after {passed}] {measurement.name}: {shown(flags)}", flush=True)
            start = "from easi3r_jax.apps.command import main; main()"
            command = [sys.executable, "-c", start, "benchmark", *flags, f"--json={file}"]
            if code := subprocess.run(command, check=False).returncode:
                raise ConfigError(f"The measurement {measurement.name!r} ended with exit code {code}: see above.")
            found[measurement.name] = read(file.read_text()) | {"command": shown(flags)}
    print(f"All measurements took {clock(time.perf_counter() - began)}.")
    return found


def shown(flags: tuple[str, ...]) -> str:
    """The command of a run, as a user types it."""
    return " ".join(["python -m experiments.benchmark", *flags])


def read(text: str) -> dict[str, Any]:
    """What a run has written by `--json`, with its rows."""
    found = json.loads(text)
    rows = {name: Row(**row | {"limits": Limits(**row["limits"])}) for name, row in found["stages"].items()}
    return found | {"stages": rows}
