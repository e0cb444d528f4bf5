"""A pytest plugin that shuffles test files and the tests in each: `-p tests.shuffled` with a seed in ORDER.

All processes of a run use the same order. A file's tests stay together, since they share slow fixtures.
"""

from __future__ import annotations

import os
import random

import pytest

ORDER = "EASI3R_TESTS_ORDER"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    chance = random.Random(os.environ.get(ORDER, "0"))
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.split("::")[0], []).append(item)
    for tests in files.values():
        chance.shuffle(tests)
    order = list(files.values())
    chance.shuffle(order)
    items[:] = [item for tests in order for item in tests]
