"""Runs programs as users do: by a command, in a separate process."""

import importlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from easi3r_jax.apps import clips, reconstruct
from easi3r_jax.apps.app.store import Store
from easi3r_jax.apps.command import PROGRAMS
from easi3r_jax.io import results

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
    """`command("reconstruct", "--seq=demo")` runs the program and returns its exit code and output."""

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


@pytest.fixture
def here(capsys, cache, monkeypatch) -> Command:
    """As `command`, in this process: importing a program takes seconds. For what does not depend on the process."""
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(cache))

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
        module = importlib.import_module(f"easi3r_jax.apps.{PROGRAMS[program][0]}")
        capsys.readouterr()
        code = module.FLAGS.execute(module.main, [program, *arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture
def no_summary(monkeypatch) -> None:
    """Results whose `summary.png` is empty: drawing it takes a second. The picture itself: tests/io/export."""
    monkeypatch.setattr(results, "write_summary", lambda path, *_, **__: path.touch())


@pytest.fixture
def reconstruct_here(tmp_path, capsys, cache, monkeypatch, no_summary) -> Callable[..., tuple[int, str, str]]:
    """`reconstruct_here(first=3)` runs the program in this process: exit code, stdout and stderr.

    Its output goes to `tmp_path / "out"`.
    """
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(cache))

    def run(**values):
        values = {"output": str(tmp_path / "out"), **values}
        code = reconstruct.FLAGS.execute(clips.main, ["", *(f"--{k}={v}" for k, v in values.items())])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def store(tmp_path, monkeypatch) -> Iterator[Store]:
    """The web app's working folder, in the test's temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Store(keep_seconds=3600) as store:
        yield store
