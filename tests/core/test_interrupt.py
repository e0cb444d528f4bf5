"""Programs that ask for time to save their work when a signal comes."""

import signal
import subprocess
import sys

import pytest

# Signals come from the program itself, so that none comes too early or too late.
PROGRAM = """
import os, signal, sys
from easi3r_jax.core import interrupt

number = getattr(signal, sys.argv[1])
signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may have it ignored (nohup, a shell's background)
interrupt.install()
with interrupt.finishing("Saving.") as is_stopping:
    assert not is_stopping()
    with interrupt.uninterrupted():
        os.kill(os.getpid(), number)
        assert not is_stopping()  # deferred
    assert is_stopping()
    with interrupt.uninterrupted():  # what was deferred comes once
        pass
    if sys.argv[2] == "twice":
        os.kill(os.getpid(), number)
    print("saved")
    interrupt.end("Interrupted at step 3.")
"""


def run(*arguments, program=PROGRAM):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_leaves_time_to_save(name):
    done = run(name, "once")
    assert done.stdout == "saved\n"
    assert done.stderr == "Saving.\nerror: Interrupted at step 3.\n"
    assert done.returncode == 128 + getattr(signal, name)


def test_the_second_signal_ends_the_program():
    done = run("SIGINT", "twice")
    assert done.stdout == ""
    assert done.stderr == "Saving.\nerror: Interrupted. Nothing half-written was left behind.\n"
    assert done.returncode == 130


def test_a_terminal_that_is_closed_may_say_so_twice():
    done = run("SIGHUP", "twice")
    assert done.stdout == "saved\n"
    assert done.returncode == 128 + signal.SIGHUP


def test_a_signal_that_is_not_answered_ends_the_program():
    done = run("SIGINT", "once", program=PROGRAM.replace('interrupt.end("Interrupted at step 3.")', "pass\nprint(1)"))
    assert done.stdout == "saved\n"
    assert done.stderr == "Saving.\nerror: Interrupted. Nothing half-written was left behind.\n"
    assert done.returncode == 130


def test_an_error_is_not_hidden_by_a_signal():
    done = run("SIGINT", "once", program=PROGRAM.replace('interrupt.end("Interrupted at step 3.")', "1 / 0"))
    assert "ZeroDivisionError" in done.stderr and done.returncode == 1


def test_a_signal_before_is_the_usual_end():
    program = PROGRAM.replace("with interrupt.finishing", "os.kill(os.getpid(), number)\nwith interrupt.finishing")
    done = run("SIGINT", "once", program=program)
    assert (done.stdout, done.returncode) == ("", 130)
