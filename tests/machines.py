"""Runs numerical tests under emulated machines and prints a table: finds tests that pass here only by luck.

    python -m tests.machines                        # six machines that together have every property
    python -m tests.machines --times=3              # three rounds, each in another random order
    python -m tests.machines --list
    python -m tests.machines sse4_2 avx+one-thread  # properties, alone or together
    python -m tests.machines avx -- tests/alignment     # these tests only

A processor's instructions and the number of threads determine the order of summation, and so rounding. Random test
order and load reveal tests that depend on earlier tests or on a fast machine. A machine compiles once: its later rounds
read what the first one compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import operator
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

from tests.flags import OPTIMISED
from tests.shuffled import ORDER

ROOT = pathlib.Path(__file__).parents[1]
#: Tests of files, formats, flags, addresses, pages and refusals: nothing that a processor could round.
NOT_COMPUTING = (
    "tests/apps/test_app*.py",
    "tests/apps/test_bad_input.py",
    "tests/apps/test_command.py",
    "tests/apps/test_compile_check.py",
    "tests/apps/test_cost.py",
    "tests/apps/test_evaluate_*.py",
    "tests/apps/test_export.py",
    "tests/apps/test_cluster.py",
    "tests/apps/test_report.py",
    "tests/apps/test_run_folder.py",
    "tests/apps/test_training_data.py",
    "tests/apps/test_view.py",
    "tests/evaluation/datasets",
    "tests/io",
    "tests/older_results",
    "tests/test_import_rules.py",
    "tests/test_project.py",
    "tests/training/datasets",
    "tests/viewer",
    "tests/weights",
)
#: Tests of processes, threads, servers and signals: what a slow machine changes.
WAITING = (
    "tests/apps/test_app.py",
    "tests/apps/test_app_gate.py",
    "tests/apps/test_command.py",
    "tests/apps/test_cluster.py",
    "tests/apps/test_reconstruct.py",
    "tests/apps/test_train.py",
    "tests/apps/test_view.py",
    "tests/core/test_atomic_files.py",
    "tests/core/test_interrupt.py",
    "tests/io/export",
    "tests/io/test_results.py",
    "tests/test_gpu_check.py",
    "tests/training/datasets/test_prefetch.py",
    "tests/viewer",
    "tests/weights/convert/test_program.py",
)
#: Programs that keep the processor busy beside the tests, for each of its cores: the tests get a third of it.
LOAD = 2


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine that this one can pretend to be.

    Attributes:
      environment: variables of the tests' processes.
      needs: instructions that the processor must have, as Linux calls them.
      plugins: of pytest, modules.
      load: with other programs beside the tests, which are then those that wait for something.
      everything: all tests instead of those that compute.
    """

    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    plugins: tuple[str, ...] = ()
    load: bool = False
    everything: bool = False

    def __or__(self, other: Machine) -> Machine:
        """The machine with the properties of both."""
        return Machine(
            self.environment | other.environment,
            self.needs | other.needs,
            self.plugins + other.plugins,
            self.load or other.load,
            self.everything or other.everything,
        )


def _instructions(name: str, needs: str) -> Machine:
    return Machine({"XLA_FLAGS": f"--xla_cpu_max_isa={name}"}, frozenset({needs}))


def _threads(count: int, plugins: tuple[str, ...] = ()) -> Machine:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")  # NPROC: XLA's
    return Machine(dict.fromkeys(names, str(count)), plugins=plugins)


def _blas(name: str, needs: str) -> Machine:
    return Machine({"OPENBLAS_CORETYPE": name}, frozenset({needs}))


PROPERTIES = {
    "this": Machine(),
    "optimised": Machine({OPTIMISED: "1"}),
    "sse4_2": _instructions("SSE4_2", "sse4_2"),
    "avx": _instructions("AVX", "avx"),
    "avx2": _instructions("AVX2", "avx2"),
    "avx512": _instructions("AVX512", "avx512f"),
    "blas-prescott": _blas("Prescott", "pni"),
    "blas-haswell": _blas("Haswell", "avx2"),
    "blas-zen": _blas("Zen", "avx2"),
    "blas-skylakex": _blas("SkylakeX", "avx512f"),
    "one-thread": _threads(1, ("tests.pinned",)),
    "four-threads": _threads(4),
    "shuffled": Machine(plugins=("tests.shuffled",)),
    "loaded": Machine(load=True),
    "everything": Machine(everything=True),
}
#: Tried where none is named. One that fails can be taken apart by its properties' names.
MACHINES = (
    "sse4_2+blas-prescott+one-thread+shuffled",
    "avx+four-threads+shuffled",
    "avx2+blas-haswell+shuffled+everything",
    "avx512+blas-skylakex+shuffled",
    "optimised+blas-zen+shuffled",
    "this+loaded+shuffled",
)


def combined(parts: Iterable[str]) -> Machine:
    """The machine of these properties."""
    return functools.reduce(operator.or_, (PROPERTIES[part] for part in parts), Machine())


def processor() -> set[str]:
    """The instructions that this processor has; none where Linux does not say."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    flags = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return set(flags[1].split()) if flags else set()


def lacking(part: str) -> str:
    """Why this machine cannot have a property; nothing where it can."""
    machine = PROPERTIES[part]
    if missing := machine.needs - processor():
        return f"the processor has no {', '.join(sorted(missing))}"
    if "tests.pinned" in machine.plugins and not hasattr(os, "sched_setaffinity"):
        return "this system does not bind a process to a core"
    return ""


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """So many programs that count."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def run(machine: Machine, workers: int, paths: list[str], compiled: str) -> tuple[str, list[str], float]:
    """Summary of pytest, the tests that failed, and seconds. compiled: a folder for compiled programs."""
    computing = ("tests", *(f"--ignore-glob={ROOT / path}" for path in NOT_COMPUTING))
    chosen = paths or (WAITING if machine.load else ("tests",) if machine.everything else computing)
    parallel = ("-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder") if workers > 1 else ()
    plugins = (option for plugin in machine.plugins for option in ("-p", plugin))
    command = [sys.executable, "-m", "pytest", "-q", *parallel, *plugins, *chosen]
    cache = {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}
    began = time.monotonic()
    with load(LOAD * (os.cpu_count() or 1)) if machine.load else contextlib.nullcontext():
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | cache | machine.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    seconds = time.monotonic() - began
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    said = re.findall(r"^=*\s*(\d+ (?:passed|failed|error|skipped).*?) in [\d.]+s", done.stdout, flags=re.MULTILINE)
    if done.returncode != 0 and not failed:
        print(done.stdout[-3000:], file=sys.stderr)
        failed = [f"pytest ended with {done.returncode}"]
    return said[-1] if said else "nothing ran", failed, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "machines", nargs="*", metavar="machine", help="properties joined by + (default: the last of --list)"
    )
    parser.add_argument("--list", action="store_true", help="print them, and which cannot be had here")
    parser.add_argument("--times", type=int, default=1, help="rounds; of what is shuffled, each in another order")
    parser.add_argument("--order", default=time.strftime("%Y-%m-%d"), help="of what is shuffled (default: today's)")
    parser.add_argument("--workers", type=int, default=2, help="processes that run the tests")
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    options, paths = parser.parse_args(given[:split]), given[split + 1 :]
    names = options.machines or MACHINES
    if unknown := {part for name in names for part in name.split("+")} - set(PROPERTIES):
        parser.error(f"no such machine: {', '.join(sorted(unknown))} (see --list)")
    width = max(map(len, (*names, *MACHINES)))
    if options.list:
        for name in (*PROPERTIES, *MACHINES):
            print(f"{name:{width}} {'; '.join(filter(None, map(lacking, name.split('+'))))}".rstrip())
        return 0
    print(f"--order={options.order}")
    with tempfile.TemporaryDirectory(prefix="easi3r_jax_machines_") as compiled:
        wrong = 0
        print(f"round {'machine':{width}} {'min':>5}  tests", flush=True)
        for number in range(1, options.times + 1):
            for name in names:
                folder = f"{compiled}/{name}"
                row, failed = _tried(name, f"{options.order} {number}", options.workers, paths, folder)
                wrong += bool(failed)
                print(f"{number:5} {name:{width}} {row}", *failed, sep="\n    ", flush=True)
                if number == options.times:
                    shutil.rmtree(folder, ignore_errors=True)
    return 1 if wrong else 0


def _tried(name: str, order: str, workers: int, paths: list[str], compiled: str) -> tuple[str, list[str]]:
    """A row of the table, and the tests that failed. What this machine cannot have is left out, and said."""
    reasons = {part: lacking(part) for part in name.split("+")}
    parts = [part for part, reason in reasons.items() if not reason]
    left_out = "; ".join(f"without {part}: {reason}" for part, reason in reasons.items() if reason)
    if not parts:
        return f"{'':>5}  {left_out}", []
    said, failed, seconds = run(combined(parts) | Machine({ORDER: order}), workers, paths, compiled)
    return f"{seconds / 60:5.1f}  {said}{left_out and f' ({left_out})'}", failed


if __name__ == "__main__":
    sys.exit(main())
