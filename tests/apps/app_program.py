"""The web app as its operator starts it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]


@contextlib.contextmanager
def app_program(folder: pathlib.Path, *flags: str, end: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """`python -m experiments.app` with its files in a folder; its address.

    It is ended by a signal; then nothing of its files may be left, and nothing is said.
    """
    port = () if any(flag.startswith("--port=") for flag in flags) else ("--port=0",)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.app", *port, *flags],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    drained = threading.Thread(target=process.stdout.read, daemon=True)
    try:
        found = re.search(r"http://[\w.:\[\]]+:\d+", process.stdout.readline())
        assert found, process.stderr.read()
        drained.start()
        yield found[0]
    finally:
        process.send_signal(end)
        complaint = process.stderr.read()
        process.wait(60)
        if drained.is_alive():
            drained.join(60)
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0
    assert "Traceback" not in complaint and "error" not in complaint
    assert not list(folder.iterdir())
