"""Output whose reader has left: the work goes on, and its result is written."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import pathlib, sys
from easi3r_jax.apps.cli import guarded
def main():
    for number in range(20000):
        print(number, file=getattr(sys, sys.argv[1]))
    pathlib.Path(sys.argv[2]).write_text("done")
    assert (getattr(sys, sys.argv[1]).encoding or "").lower().startswith("utf")
sys.exit(guarded(main, debug=False, out_of_memory=""))
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_does_not_end_the_work(tmp_path, stream):
    reader, writer = os.pipe()
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, stream: writer}
    command = [sys.executable, "-X", "utf8", "-c", PROGRAM, stream, str(tmp_path / "result")]
    with subprocess.Popen(command, **streams) as process:
        os.close(writer)
        os.close(reader)
        errors = process.stderr.read() if process.stderr else b""
        status = process.wait()
    assert status == 0 and (tmp_path / "result").read_text() == "done"
    assert not errors


def test_a_full_output_is_an_error(tmp_path):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-X", "utf8", "-c", PROGRAM, "stdout", str(tmp_path / "result")]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert found.returncode == 1 and found.stderr.count("\n") == 1 and "No space left" in found.stderr
