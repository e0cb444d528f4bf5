"""A clip on the devices of two processes, joined by `jax.distributed`, against one process with all of them."""

import pathlib

import numpy as np
import pytest

from tests.flags import on_hosts, run_on_devices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of tests/two_hosts.py: of one process with eight devices, and of two with four each."""
    folder: pathlib.Path = tmp_path_factory.mktemp("hosts")
    run_on_devices(8, "-m", "tests.two_hosts", str(folder / "one.npz"))
    for done in on_hosts(2, 4, "-m", "tests.two_hosts", str(folder / "two.npz"), "PORT", "NUMBER"):
        assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "one.npz")), dict(np.load(folder / "two.npz"))


def difference(found, start: str) -> float:
    """The largest difference of arrays whose names start so, as a share of the array's largest value."""
    one, two = found
    names = [name for name in one if name.startswith(start)]
    assert names and one.keys() == two.keys()
    wide = [(np.asarray(one[name], np.float64), np.asarray(two[name], np.float64)) for name in names]
    assert all(a.shape == b.shape and np.isfinite(a).all() for a, b in wide)
    return max(float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30)) for a, b in wide)


@pytest.mark.parametrize("stage", ["features", "points", "statistics"])
def test_the_network_agrees_on_two_hosts(found, stage):
    assert difference(found, f"network: {stage}") < 1e-5


@pytest.mark.parametrize("name", ["flow", "no flow"])
def test_the_alignment_agrees_on_two_hosts(found, name):
    """In float64: all iterations."""
    assert difference(found, f"alignment: {name}") < 1e-8


@pytest.mark.parametrize("name", ["flow and padding", "match", "known cameras", "two frames"])
def test_the_whole_method_agrees_on_two_hosts(found, name):
    """Host code in between: the spanning tree, RANSAC, optical flow, masks from it, a cue, a refiner of masks."""
    assert difference(found, f"method: {name}") < 1e-4
    one, two = found
    for number in range(2):
        assert np.mean(one[f"masks: {name}/{number}"] != two[f"masks: {name}/{number}"]) < 1e-3


def test_what_hosts_compute_is_that_of_process_0(found):
    """Bit by bit, whatever process 1 has."""
    one, two = found
    np.testing.assert_array_equal(two["agreed/0"], one["agreed/0"])
    assert (two["agreed/0"][:, 0] == 1).all()


def test_every_host_makes_its_own_rows(found):
    for arrays in found:
        np.testing.assert_array_equal(arrays["own rows/0"], np.stack([np.arange(16), -np.arange(16)], axis=1))
