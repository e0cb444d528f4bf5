"""Checkpoints of RAFT and SEA-RAFT: recognised by their names, converted as strictly as DUSt3R's."""

import json
import math

import chex
import numpy as np
import pytest
import safetensors.numpy

from easi3r_jax.apps.parity.weights import golden_source
from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models import parameter_shapes, parameters_of
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.weights.checkpoint import load_checkpoint, load_flow_network, save_checkpoint, weights
from easi3r_jax.weights.convert import convert, open_source, table
from easi3r_jax.weights.convert.tensors import LazyTensor
from tests import torch_writer

NETWORKS = {"RAFT_basic": "raft", "RAFT_small": "raft-small", "SEA-RAFT_M": "sea-raft"}
SMALL = FlowConfig("raft-small")


@pytest.fixture(scope="module")
def tensors():
    """The small network's state dict."""
    return {name: np.array(tensor.read()) for name, tensor in golden_source(SMALL, 3, {}).tensors.items()}


@pytest.fixture
def write(tmp_path):
    def make(arrays):
        model = {name: torch_writer.Tensor(str(n), a.shape, str(a.dtype)) for n, (name, a) in enumerate(arrays.items())}
        path = tmp_path / "flow.pth"
        torch_writer.write(path, model, [(str(n), a) for n, a in enumerate(arrays.values())])
        return path

    return make


def random_parameters(config):
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in parameter_shapes(config).items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_released_manifests_map_exhaustively(golden, name):
    manifest = json.loads((golden / "manifests" / f"{name}.json").read_text())
    config = table.flow_table.network_of(manifest["entries"])
    assert config == FlowConfig(NETWORKS[name])
    entries = {
        n: LazyTensor(tuple(shape), dtype, pytest.fail, manifest["aliases"].get(n, n))
        for n, (shape, dtype) in manifest["entries"].items()
    }
    source = golden_source(config, 0, {})
    source = type(source)("x", (), config, entries, ())
    recipes, dropped, notices = table.match(source)
    assert not dropped and not notices
    assert {target: recipe.shape for target, recipe in recipes.items()} == parameter_shapes(config)
    counters = sum(n.endswith(table.STEP_COUNTER) for n in set(entries) - set(manifest["aliases"]))
    assert sum(math.prod(r.shape) for r in recipes.values()) + counters == manifest["n_unique_params"]
    for absent in ("fnet.conv1.bias", "update_block.encoder.convc1.weight"):
        less = {n: t for n, t in entries.items() if n != absent}
        with pytest.raises(CheckpointError, match=f"1 tensor missing: {absent}"):
            table.match(type(source)("x", (), config, less, ()))


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_file_becomes_a_checkpoint(tensors, write, tmp_path, prefix):
    """The released programs train on several GPUs, which adds the prefix "module." to every name."""
    summary = convert(write({prefix + name: array for name, array in tensors.items()}), tmp_path / "out")
    assert summary.config == SMALL and "BSD" in summary.licence
    config, network, _ = load_flow_network(tmp_path / "out")
    ours = parameters_of(network)
    assert config == SMALL and sum(map(np.size, ours.values())) == summary.parameters == 990162
    weight = tensors["update_block.gru.convz.weight"]
    np.testing.assert_array_equal(ours["grus.0.update.kernel"], weight.transpose(2, 3, 1, 0))


def test_a_folder_of_safetensors_needs_no_architecture(tensors, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert open_source(folder).config == SMALL


def test_a_prefix_of_some_names_is_none_of_a_wrapper(tensors, write, tmp_path):
    with pytest.raises(CheckpointError, match=r"unknown: module\.fnet\.conv1\.weight"):
        convert(write({**tensors, "module.fnet.conv1.weight": tensors["fnet.conv1.weight"]}), tmp_path / "out")


def test_a_wrong_shape_is_refused(tensors, write, tmp_path):
    with pytest.raises(CheckpointError, match=r"wrong shape: fnet\.conv2\.bias \[5\] instead of \[128\]"):
        convert(write({**tensors, "fnet.conv2.bias": np.zeros(5, np.float32)}), tmp_path / "out")


def test_other_files_are_reported_as_no_checkpoint(write, tmp_path):
    with pytest.raises(CheckpointError, match="no 'model' with the weights"):
        convert(write({"weight": np.zeros(3, np.float32)}), tmp_path / "out")


def test_checkpoints_of_version_1_load(tmp_path, monkeypatch):
    """They have `variance` for the batch norms' `var`."""
    config = FlowConfig("raft")
    parameters = random_parameters(config)
    older = {name.replace(".var", ".variance"): value for name, value in parameters.items()}
    assert older.keys() - parameters.keys()
    with monkeypatch.context() as patch:
        patch.setattr(weights, "FORMAT_VERSION", 1)
        patch.setattr(weights, "parameter_shapes", lambda _: {name: value.shape for name, value in older.items()})
        save_checkpoint(tmp_path / "older", config, older.items(), source_name="random")
    found, network, metadata = load_flow_network(tmp_path / "older")
    assert found == config and metadata["format_version"] == 1
    chex.assert_trees_all_equal(parameters_of(network), parameters)


def test_dust3r_and_flow_networks_are_not_confused(tmp_path, golden):
    save_checkpoint(tmp_path / "flow", SMALL, random_parameters(SMALL).items(), source_name="random")
    with pytest.raises(CheckpointError, match="raft-small, which estimates optical flow"):
        load_checkpoint(tmp_path / "flow")
    convert(golden / "trained", tmp_path / "dust3r")
    with pytest.raises(CheckpointError, match="estimates no optical flow"):
        load_flow_network(tmp_path / "dust3r")
