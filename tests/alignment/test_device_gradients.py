"""Derivatives with observations sharded over four CPU devices."""

import json

import pytest

from tests.flags import run_on_devices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    """What tests/four_devices.py finds: differences between one device and four, relative to the largest value."""
    return json.loads(run_on_devices(4, "-m", "tests.four_devices").splitlines()[-1])


@pytest.mark.parametrize("order", ["first", "second", "mixed"])
def test_derivatives_are_the_same_on_four_devices(found, order):
    """By the state, points, confidences and flow, in float64; twice by the state; by weights of that by the state."""
    assert found["least"] > 1e-6
    assert found[order] < 1e-10


def test_each_device_has_the_gradient_of_its_own_observations(found):
    assert found["by_rows"]
