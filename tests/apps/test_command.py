"""The command `easi3r`, and the modules of a checkout that start the same programs."""

import importlib
import pathlib
import subprocess
import sys
import tomllib

import pytest

from easi3r_jax import __version__
from easi3r_jax.apps import command

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def easi3r(*arguments: str) -> subprocess.CompletedProcess:
    return run("-c", "from easi3r_jax.apps.command import main; main()", *arguments)


def test_every_program_has_a_module_in_a_checkout_and_the_reverse():
    modules = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    assert modules | {"convert"} == set(command.PROGRAMS)
    for name in modules:
        text = (ROOT / "experiments" / f"{name}.py").read_text(encoding="utf-8")
        assert f'run("{name}")' in text


def test_the_command_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"easi3r": "easi3r_jax.apps.command:main"}


@pytest.mark.parametrize("name", command.PROGRAMS)
def test_every_program_explains_itself(name: str):
    program = importlib.import_module(f"easi3r_jax.apps.{command.PROGRAMS[name][0]}")
    assert program.FLAGS.help().endswith("Show the traceback of an error. [off]")
    assert callable(program.main)


def test_help_comes_by_the_command():
    done = easi3r("export", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--format=" in done.stdout


def test_a_program_is_the_same_by_either_name():
    by_command, by_module = easi3r("export", "--scene=absent"), run("-m", "experiments.export", "--scene=absent")
    assert by_command.returncode == by_module.returncode == 1
    assert by_command.stderr == by_module.stderr
    assert by_command.stderr.startswith("error: ")


def test_without_a_program_it_lists_them():
    listed = easi3r()
    assert listed.returncode == 0
    assert [line.split()[1] for line in listed.stdout.splitlines()[2:]] == list(command.PROGRAMS)
    assert easi3r("--help").stdout == listed.stdout


def test_it_says_its_version():
    assert easi3r("--version").stdout.split() == ["easi3r_jax", __version__]


def test_an_unknown_program_is_an_error_in_one_line():
    done = easi3r("recunstruct")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "reconstruct" in done.stderr


def test_importing_the_library_is_light():
    """No signal handler, no JAX, no backend: `easi3r --help` and the handler of Ctrl-C come before all that."""
    code = (
        "import signal, sys; before = signal.getsignal(signal.SIGINT); import easi3r_jax; "
        "assert signal.getsignal(signal.SIGINT) is before; print('jax' in sys.modules)"
    )
    assert run("-c", code).stdout.strip() == "False"
