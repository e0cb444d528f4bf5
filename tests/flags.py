"""XLA's options for tests: fast compilation instead of fast code, since most of the tests' time is compilation."""

import functools
import os
import pathlib
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

#: No optimisations by LLVM, loops written without the detour through MLIR (a third of the time each), and each program
#: as one module: splitting it pays where there are many cores.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)
#: Set by whoever wants XLA's own options: tests then run the programs that users run.
OPTIMISED = "EASI3R_TESTS_OPTIMISED"
#: The options that were added, for the processes that tests start.
_ADDED = "EASI3R_TESTS_XLA_FLAGS"
# XLA reads its options when it makes its first client, and ends the process that names one it does not know.
_CLIENT = "from jaxlib import xla_client; xla_client.make_cpu_client()"


@functools.cache
def known(options: tuple[str, ...] = QUICK) -> tuple[str, ...]:
    """Those of the options that the installed XLA has. Asks it, in a process of its own (half a second)."""
    environment = os.environ | {"XLA_FLAGS": " ".join(options), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _CLIENT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 0:
        return options
    named = set(done.stderr.split())
    if not named & set(options):
        raise RuntimeError(f"XLA does not start: {done.stderr[-3000:]}")
    return known(tuple(option for option in options if option not in named))


def compile_quickly() -> None:
    """Before JAX is imported. Processes that tests start inherit it; what the caller asked for counts more."""
    if os.environ.get(OPTIMISED) or _ADDED in os.environ:
        return
    os.environ[_ADDED] = " ".join(known())
    os.environ["XLA_FLAGS"] = f"{os.environ[_ADDED]} {callers_flags()}".strip()  # of two, the last one counts


def with_flags(flags: str) -> dict[str, str]:
    """The environment of a process with further options of XLA's."""
    return os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process whose CPU is so many devices."""
    return with_flags(f"--xla_force_host_platform_device_count={count}")


def run_on_devices(count: int, *arguments: str) -> str:
    """What a Python program prints whose CPU is so many devices."""
    return _printed(on_devices(count), arguments)


def on_hosts(hosts: int, devices: int, *arguments: str, timeout: float = 600) -> list[subprocess.CompletedProcess[str]]:
    """Runs a Python program in several processes of so many CPU devices each. PORT and NUMBER stand for what differs.

    The processes are those of hosts that `jax.distributed.initialize("127.0.0.1:PORT", hosts, NUMBER)` joins.
    """
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, *(a.replace("PORT", port).replace("NUMBER", str(number)) for a in arguments)],
            env=on_devices(devices),
            cwd=pathlib.Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(hosts)
    ]
    try:
        with ThreadPoolExecutor(hosts) as pool:  # none waits for another to read what it prints
            printed = list(pool.map(lambda process: process.communicate(timeout=timeout), started))
    finally:
        for process in started:
            process.kill()
    ended = zip(started, printed, strict=True)
    return [subprocess.CompletedProcess(process.args, process.returncode, *texts) for process, texts in ended]


def free_port() -> str:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_with(flags: str, *arguments: str) -> str:
    """What a Python program prints that runs with further options of XLA's."""
    return _printed(with_flags(flags), arguments)


def _printed(environment: dict[str, str], arguments: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
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
    added = os.environ.get(_ADDED, "").split()
    return " ".join(option for option in os.environ.get("XLA_FLAGS", "").split() if option not in added)
