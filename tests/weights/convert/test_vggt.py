"""Checkpoints of VGGT: recognised by their names, converted as strictly as the others'."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models import VGGT, parameter_shapes, parameters_of
from easi3r_jax.models.vggt import VGGTConfig
from easi3r_jax.weights.checkpoint import load_checkpoint, load_flow_network, load_network
from easi3r_jax.weights.convert import convert, open_source, table, vggt_shapes
from easi3r_jax.weights.convert.tensors import LazyTensor, OpenedWeights
from easi3r_jax.weights.load import load_backbone_and_metadata, load_flow_model, load_model, load_multiview_model
from tests import torch_writer
from tests.networks import SMALL_VGGT, vggt_tensors


@pytest.fixture(scope="module")
def tensors():
    return vggt_tensors()


@pytest.fixture(scope="module")
def manifest(golden):
    return json.loads((golden / "manifests" / "VGGT-1B.json").read_text())


def write(path, arrays):
    model = {name: torch_writer.Tensor(str(n), a.shape, str(a.dtype)) for n, (name, a) in enumerate(arrays.items())}
    torch_writer.write(path, model, [(str(n), a) for n, a in enumerate(arrays.values())])
    return path


def entries_of(manifest):
    return {n: LazyTensor(tuple(s), dtype, pytest.fail, n) for n, (s, dtype) in manifest["entries"].items()}


def test_every_key_of_the_released_file_has_a_place(manifest):
    entries = entries_of(manifest)
    config = vggt_shapes.network_of({name: tensor.shape for name, tensor in entries.items()})
    assert config == VGGTConfig.released() and len(entries) == 1797
    recipes, dropped, notices = table.match(OpenedWeights("x", (), config, entries, ()))
    assert {target: recipe.shape for target, recipe in recipes.items()} == parameter_shapes(config)
    assert set(dropped) == {"aggregator.patch_embed.mask_token"} and not notices
    used = sum(math.prod(recipe.shape) for recipe in recipes.values())
    assert used + math.prod(dropped["aggregator.patch_embed.mask_token"].shape) == manifest["n_unique_params"]


@pytest.mark.parametrize(
    "absent", ["aggregator.global_blocks.23.attn.k_norm.bias", "track_head.tracker.updateformer.virual_tracks"]
)
def test_a_missing_or_an_unknown_key_is_named(manifest, absent):
    entries, config = entries_of(manifest), VGGTConfig.released()
    left = {n: t for n, t in entries.items() if n != absent}
    with pytest.raises(CheckpointError, match=f"1 tensor missing: {re.escape(absent)}"):
        table.match(OpenedWeights("x", (), config, left, ()))
    more = {**entries, "aggregator.frame_blocks.0.attn.extra": entries[absent]}
    with pytest.raises(CheckpointError, match=r"1 tensor unknown: aggregator\.frame_blocks\.0\.attn\.extra"):
        table.match(OpenedWeights("x", (), config, more, ()))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_becomes_a_checkpoint(tensors, tmp_path, prefix):
    source = write(tmp_path / "model.pt", {prefix + name: array for name, array in tensors.items()})
    summary = convert(source, tmp_path / "out")
    expected = dataclasses.replace(SMALL_VGGT, image_size=(518, 518), camera_iterations=4)  # shapes do not say them
    assert summary.config == expected
    assert "research licence" in summary.licence and "VGGT-1B-Commercial" in summary.licence
    network, metadata = load_network(tmp_path / "out")
    assert isinstance(network, VGGT) and network.config == expected and metadata["licence"] == summary.licence
    ours = parameters_of(network)
    assert sum(map(np.size, ours.values())) == summary.parameters == sum(map(np.size, tensors.values()))
    weight = tensors["aggregator.frame_blocks.2.attn.qkv.weight"]
    np.testing.assert_array_equal(ours["aggregator.frame_blocks.attention.qkv.kernel"][2], weight.T)
    weight = tensors["aggregator.patch_embed.proj.weight"]  # (O, 3, y, x)
    np.testing.assert_array_equal(ours["encoder.patch_embed.kernel"], weight.transpose(2, 3, 1, 0).reshape(588, -1))


def test_a_folder_of_safetensors_needs_no_architecture(tensors, tmp_path):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"img_size": 518, "patch_size": 14, "embed_dim": 1024}))
    model, metadata = load_backbone_and_metadata(tmp_path)
    assert isinstance(model, VGGT) and model.config.heads == ("camera", "depth")
    assert "research licence" in metadata["licence"]


def test_a_network_of_another_kind_is_said_in_a_line(tensors, tmp_path):
    source = write(tmp_path / "vggt.pth", tensors)
    assert load_multiview_model(source).config.dim == 16
    with pytest.raises(CheckpointError, match="embedded has weights of a network of pairs, not of VGGT"):
        load_multiview_model("embedded")
    with pytest.raises(CheckpointError, match="weights of VGGT, which takes a clip at once: this needs"):
        load_model(source)
    with pytest.raises(CheckpointError, match="weights of VGGT, which estimates no optical flow"):
        load_flow_model(source)
    convert(source, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is of VGGT, not of a network of pairs"):
        load_checkpoint(tmp_path / "out")
    with pytest.raises(CheckpointError, match="is of VGGT, which estimates no optical flow"):
        load_flow_network(tmp_path / "out")


@pytest.mark.parametrize("head", ["camera", "depth"])
def test_a_checkpoint_without_a_needed_head_is_refused(tensors, tmp_path, head):
    left = {name: array for name, array in tensors.items() if not name.startswith(f"{head}_head.")}
    source = write(tmp_path / "vggt.pth", left)
    with pytest.raises(CheckpointError, match=rf"no {head} head \({head}_head\.\*\).*facebook/VGGT-1B") as error:
        open_source(source)
    assert "\n" not in str(error.value)
    safetensors.numpy.save_file(left, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"no {head} head"):
        open_source(tmp_path)


def test_sizes_of_no_network_are_refused(tensors, tmp_path):
    changed = {**tensors, "aggregator.frame_blocks.0.attn.q_norm.weight": np.ones(3, np.float32)}
    with pytest.raises(CheckpointError, match=r"no VGGT network that is known here.*16 must divide into 5 heads"):
        open_source(write(tmp_path / "a.pth", changed))
    left = {name: array for name, array in tensors.items() if name != "aggregator.register_token"}
    with pytest.raises(CheckpointError, match=r"no VGGT network that is known here \(no aggregator\.register_token\)"):
        open_source(write(tmp_path / "b.pth", left))
    changed = {**tensors, "aggregator.global_blocks.1.ls1.gamma": np.ones(3, np.float32)}
    with pytest.raises(CheckpointError, match=r"wrong shape: aggregator\.global_blocks\.1\.ls1\.gamma \[3\] instead"):
        convert(write(tmp_path / "c.pth", changed), tmp_path / "out")


@pytest.mark.parametrize(
    "change", [{"dim": 10**9}, {"level_dims": [4, 4]}, {"mlp_ratio": "2"}, {"heads": ["pose"]}, {"unknown": 1}]
)
def test_a_damaged_architecture_is_said_in_a_line(tensors, tmp_path, change):
    convert(write(tmp_path / "vggt.pth", tensors), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    header = json.loads(path.read_text())
    header["architecture"] |= change
    path.write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="is damaged: its architecture is invalid"):
        load_network(tmp_path / "out")
