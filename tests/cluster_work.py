"""What the workers of tests/cluster_campaign.py do."""

import os
import pathlib
import signal
import time

#: Payloads of tasks that end their worker, and that never end.
POISON, HANGING = -1, -2


def make(shared):
    """The attempt of a worker, which leaves a file with its process's number in the shared folder."""
    folder, seconds = shared
    pathlib.Path(folder, str(os.getpid())).touch()

    def attempt(number):
        with pathlib.Path(folder, "begun").open("a", encoding="utf-8") as file:
            file.write(f"{number}\n")
        if number == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000 if number == HANGING else seconds)
        return number * number

    return attempt


def refuse(shared):
    """A worker that cannot start."""
    raise ValueError(f"no {shared}")
