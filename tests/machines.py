"""Runs numerical tests under emulated machines and prints a table: finds tests that pass here only by luck.

    python -m tests.machines                        # all machines, one after another
    python -m tests.machines --list
    python -m tests.machines sse4_2 one-thread --times=3
    python -m tests.machines avx -- tests/alignment     # these tests only

A processor's instructions and the number of threads determine the order of summation, and so rounding. Random test
order and load reveal tests that depend on earlier tests or on a fast machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.flags import OPTIMISED
from tests.shuffled import ORDER

ROOT = pathlib.Path(__file__).parents[1]
#: Tests of files, formats, addresses, pages and refusals: nothing that a processor could round.
NOT_COMPUTING = (
    "tests/apps/test_app*.py",
    "tests/apps/test_bad_input.py",
    "tests/evaluation/datasets",
    "tests/io",
    "tests/older_results",
    "tests/test_import_rules.py",
    "tests/test_project.py",
    "tests/viewer",
    "tests/weights/convert",
)
#: Programs that keep the processor busy beside the tests, for each of its cores: the tests get a third of it.
LOAD = 2


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine that this one can pretend to be.

    Attributes:
      environment: variables of the tests' processes.
      needs: instructions that the processor must have, as Linux calls them.
      prefix: command in front of the tests'.
      options: of pytest.
      load: with other programs beside the tests.
    """

    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    needs: str = ""
    prefix: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    load: bool = False


def _instructions(name: str, needs: str) -> Machine:
    return Machine({"XLA_FLAGS": f"--xla_cpu_max_isa={name}"}, needs)


def _threads(count: int, prefix: tuple[str, ...] = ()) -> Machine:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")  # NPROC: XLA's
    return Machine(dict.fromkeys(names, str(count)), prefix=prefix)


def _blas(name: str, needs: str) -> Machine:
    return Machine({"OPENBLAS_CORETYPE": name}, needs)


def _shuffled(seed: int) -> Machine:
    return Machine({ORDER: str(seed)}, options=("-p", "tests.shuffled"))


MACHINES = {
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
    "one-thread": _threads(1, ("taskset", "-c", "0")),
    "four-threads": _threads(4),
    "shuffled-1": _shuffled(1),
    "shuffled-2": _shuffled(2),
    "loaded": Machine(load=True),
}


def processor() -> set[str]:
    """The instructions that this processor has; none where Linux does not say."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    flags = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return set(flags[1].split()) if flags else set()


def lacking(machine: Machine) -> str:
    """What keeps this machine from pretending to be that one; nothing where it can."""
    if machine.needs and machine.needs not in processor():
        return f"the processor has no {machine.needs}"
    if machine.prefix and shutil.which(machine.prefix[0]) is None:
        return f"there is no {machine.prefix[0]}"
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


def run(machine: Machine, workers: int, paths: list[str]) -> tuple[str, list[str], float]:
    """Summary of pytest, the tests that failed, and seconds."""
    chosen = paths or ["tests", *(f"--ignore-glob={ROOT / path}" for path in NOT_COMPUTING)]
    parallel = ("-n", str(workers), "--dist", "loadfile") if workers > 1 else ()
    command = [*machine.prefix, sys.executable, "-m", "pytest", "-q", *parallel, *machine.options, *chosen]
    began = time.monotonic()
    with load(LOAD * (os.cpu_count() or 1)) if machine.load else contextlib.nullcontext():
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | machine.environment,
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
    parser.add_argument("machines", nargs="*", metavar="machine", help="one of --list; none: all")
    parser.add_argument("--list", action="store_true", help="print the machines, and which this one cannot be")
    parser.add_argument("--times", type=int, default=1, help="how often each")
    parser.add_argument("--workers", type=int, default=2, help="processes that run the tests")
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    options, paths = parser.parse_args(given[:split]), given[split + 1 :]
    if unknown := set(options.machines) - set(MACHINES):
        parser.error(f"no such machine: {', '.join(sorted(unknown))} (see --list)")
    if options.list:
        print("\n".join(f"{name:14} {lacking(machine)}".rstrip() for name, machine in MACHINES.items()))
        return 0
    print(f"{'machine':14} {'min':>5}  tests", flush=True)
    wrong = 0
    for name in options.machines or MACHINES:
        if reason := lacking(MACHINES[name]):
            print(f"{name:14} {'':>5}  not here: {reason}", flush=True)
            continue
        for _ in range(options.times):
            said, failed, seconds = run(MACHINES[name], options.workers, paths)
            wrong += bool(failed)
            print(f"{name:14} {seconds / 60:5.1f}  {said}", *failed, sep="\n    ", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
