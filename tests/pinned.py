"""A pytest plugin that binds each process that runs tests, and what it starts, to one core: `-p tests.pinned`."""

import os

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    if worker is None and getattr(config.option, "numprocesses", None):
        return  # it starts the workers, which would inherit its only core
    cores = sorted(os.sched_getaffinity(0))
    number = int(worker["workerid"].removeprefix("gw")) if worker else 0
    os.sched_setaffinity(0, {cores[number % len(cores)]})
