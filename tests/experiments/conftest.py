"""Programs run as their users run them: by a command, in a process of their own."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parents[2]
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> pathlib.Path:
    """Where converted checkpoints go while the tests run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache) -> dict[str, str]:
    return {**os.environ, "EASI3R_JAX_CACHE": str(cache), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def command(environment) -> Command:
    """`command("reconstruct", "--seq=demo")` runs the program and gives its exit code and what it printed."""

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", f"experiments.{program}", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
