"""A plugin of pytest's: files in random order, and so the tests of each; `-p tests.shuffled` with a seed in ORDER.

Processes of one run agree on the order. A file's tests stay together: they share what is slow to make.
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
