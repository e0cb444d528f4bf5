"""Runs a program as a user does, and records its time, its memory and what it compiles.

    python -m easi3r_jax.apps.benchmark.counted measured.json 1700000000.0 reconstruct --seq=demo

The second argument is when the process was started, in seconds since 1970: the time includes the start of Python. The
machine's limits are measured in the same process, after the program has ended.
"""

from __future__ import annotations

import dataclasses
import sys
import time

from easi3r_jax.apps import command
from easi3r_jax.apps.benchmark.timing import Row, measure_limits
from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.environment import peak_memory_bytes
from easi3r_jax.io.export import write_json


def main() -> None:
    file, started, name, *flags = sys.argv[1:]
    compilations = Compilations()
    sys.argv = [name, *flags]
    try:
        command.run(name)
    except SystemExit as end:
        if end.code:
            raise
    seconds = time.time() - float(started)
    row = Row(
        items=1,
        seconds=seconds,
        first_seconds=seconds,
        compile_seconds=compilations.seconds,
        programs=compilations.count,
        cached=compilations.cached,
        flops=None,
        bytes=None,
        peak_memory_bytes=peak_memory_bytes(),
        limits=measure_limits(),
    )
    write_json(file, dataclasses.asdict(row))


if __name__ == "__main__":
    main()
