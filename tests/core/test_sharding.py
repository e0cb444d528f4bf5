"""A clip sharded over eight CPU devices, and the helpers that need no devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core import sharding
from tests.flags import run_on_devices


@pytest.fixture(scope="module")
def found():
    """What tests/eight_devices.py finds: differences between one device and eight, relative to the largest value."""
    return json.loads(run_on_devices(8, "-m", "tests.eight_devices").splitlines()[-1])


def test_every_device_has_its_share_of_the_pairs(found):
    """12 pairs in 16 rows; an eighth of the operations (the counts of a loop's body are not multiplied by either)."""
    assert found["rows"] == 16 and found["shares"] == [2]
    one, many = found["flops"]
    assert one > 1e6 and abs(many / one - 1 / 8) < 0.01


@pytest.mark.parametrize("stage", ["features", "points", "statistics", "scattered"])
def test_the_network_agrees_on_eight_devices(found, stage):
    assert found[stage] < 1e-5


@pytest.mark.parametrize(("part", "most"), [("cameras", 1e-5), ("losses", 1e-5), ("score", 1e-5), ("depth", 1e-4)])
def test_the_whole_method_agrees_on_eight_devices(found, part, most):
    """Motion, masks, and 20 iterations with flow from one start. Depth: of 999 in 1000 pixels.

    Adam divides a gradient by its size: a pixel whose gradient is all but 0 takes a step by rounding.
    """
    assert found[part] < most


def test_masks_are_the_same_on_eight_devices(found):
    """A score within rounding of the threshold may fall on either side."""
    assert found["masks"] < 1e-4 and found["static"] < 1e-3


def test_the_alignment_ends_the_same_on_eight_devices(found):
    """20 iterations, 16 of them with flow, in float64."""
    assert found["double"] < 1e-8


def test_the_alignment_is_sharded(found):
    assert found["by_rows"]


def test_flow_is_estimated_by_all_devices(found):
    assert found["flow"] == 0 and found["flow_rows"] == 12


def test_parameters_can_be_kept_in_parts(found):
    assert found["kept"] < 0.13


def test_one_device_needs_no_mesh():
    x = jnp.arange(6.0)
    mesh = sharding.data_mesh()
    assert mesh.size == 1
    assert (
        sharding.replicate(x, mesh) is x
        and sharding.shard_parameters(x, mesh) is x
        and sharding.shard_rows(x, None) is x
    )
    assert sharding.mesh_of(x) is None and sharding.mesh_of(np.zeros(2)) is None
    assert sharding.mesh_of_rows(jax.device_put(x, sharding.replicated_sharding(mesh))) is None
    assert sharding.agreed(x, mesh) is x and sharding.agreed_text("text", mesh) == "text"
    np.testing.assert_array_equal(sharding.own_rows(3, mesh), [0, 1, 2])
    np.testing.assert_array_equal(sharding.on_host(sharding.shard_own_rows(np.ones(3), 3, mesh)), np.ones(3))
    assert sharding.num_shards(None) == 1 and sharding.shard_map(len, None, (), ()) is len
