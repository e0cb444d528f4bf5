"""XLA's options while tests run: code made quickly instead of quick code. Most of the tests' time is compilation."""

import os
import pathlib
import subprocess
import sys

#: No optimisations by LLVM, loops written without the detour through MLIR (a third of the time each), and each program
#: as one module: splitting it pays where there are many cores.
_QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def compile_quickly() -> None:
    """Before JAX is imported. Processes that tests start inherit it; what the caller asked for counts more."""
    if not all(option in os.environ.get("XLA_FLAGS", "") for option in _QUICK):
        os.environ["XLA_FLAGS"] = " ".join((*_QUICK, os.environ.get("XLA_FLAGS", ""))).strip()  # the last one counts


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process whose CPU is so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags.strip()}


def run_on_devices(count: int, *arguments: str) -> str:
    """What a Python program prints whose CPU is so many devices."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=on_devices(count),
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def callers_flags() -> str:
    """XLA_FLAGS as whoever started the tests set it: for what must be compiled as users' programs are."""
    return " ".join(option for option in os.environ.get("XLA_FLAGS", "").split() if option not in _QUICK)
