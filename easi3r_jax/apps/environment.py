"""The environment of a program: versions, device, peak memory."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import platform
import resource
import subprocess
import sys

import jax
import numpy as np

import easi3r_jax


def device() -> str:
    """e.g. "1 x cpu", "8 x NVIDIA H100"."""
    return f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"


def versions() -> dict[str, str]:
    """Versions of everything that affects the results."""
    return {
        "easi3r_jax": easi3r_jax.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device(),
    }


def processor() -> str:
    """The device and the machine: CPUs, system."""
    return f"{device()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"


@functools.cache
def code_version() -> str:
    """Version and commit of the running checkout, with "+" if files were changed; outside of a checkout the version."""
    root = pathlib.Path(easi3r_jax.__file__).parents[1]
    version = f"easi3r_jax {easi3r_jax.__version__}"
    if not (root / ".git").exists():
        return version

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f"{version}, commit {git('rev-parse', '--short=12', 'HEAD')}{'+' if changed else ''}"
    except (OSError, subprocess.SubprocessError):  # no git, or another user's checkout
        return version


def reset_peak_memory() -> None:
    """Resets the host's peak memory if the system supports it (Linux)."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> dict[str, int]:
    """Peak memory so far, of this process and of the first accelerator if there is one."""
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        peak["device"] = int(stats["peak_bytes_in_use"])
    return peak
