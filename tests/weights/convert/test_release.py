"""Export to the released layout, and conversion back."""

import json

import numpy as np
import pytest
import safetensors.numpy

from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.models import parameter_shapes, parameters_of
from easi3r_jax.models.config import PRESETS
from easi3r_jax.weights.checkpoint import load_checkpoint, save_checkpoint
from easi3r_jax.weights.convert import table
from easi3r_jax.weights.convert.conversion import convert
from easi3r_jax.weights.convert.model_string import parse_arguments
from easi3r_jax.weights.convert.release import official_arguments, release
from tests.networks import small_released


# MASt3R's has the DPT head, too.
@pytest.fixture(scope="module", params=["catmlp+dpt", "linear"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    config = small_released(request.param)
    rng = np.random.default_rng(3)
    parameters = {name: rng.standard_normal(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    save_checkpoint(folder, config, parameters.items(), source_name="a test", licence="Apache-2.0")
    return folder, parameters


@pytest.fixture(scope="module")
def released(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "official"
    release(checkpoint[0], folder)
    return folder


def test_a_released_folder_converts_back_to_the_same_weights(checkpoint, released, tmp_path):
    folder, parameters = checkpoint
    convert(released, tmp_path / "back")
    config, model, _ = load_checkpoint(tmp_path / "back")
    assert config == load_checkpoint(folder)[0]
    for name, value in parameters_of(model).items():
        np.testing.assert_array_equal(value, parameters[name], err_msg=name)


# Rounding does not depend on the head.
@pytest.mark.parametrize(
    "checkpoint", ["linear", pytest.param("catmlp+dpt", marks=pytest.mark.slow)], indirect=True, scope="module"
)
def test_half_precision_rounds_and_halves_the_file(checkpoint, released, tmp_path):
    folder, parameters = checkpoint
    release(folder, tmp_path / "half", half=True)
    whole, half = ((path / "model.safetensors").stat().st_size for path in (released, tmp_path / "half"))
    assert half < 0.6 * whole
    convert(tmp_path / "half", tmp_path / "back")
    for name, value in parameters_of(load_checkpoint(tmp_path / "back")[1]).items():
        np.testing.assert_allclose(value, parameters[name], rtol=5e-4, atol=1e-7, err_msg=name)


def test_names_and_shapes_are_the_released_ones(golden):
    """The manifest lists the tensors of a released checkpoint."""
    manifest = json.loads((golden / "manifests" / "DUSt3R_ViTLarge_BaseDecoder_512_dpt.json").read_text())
    config = PRESETS["512-dpt"]()
    shapes = table.parameter_shapes(config)
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    # Only shapes: a broadcast zero keeps its strides of 0 in every change of layout, so 2 GB are not allocated.
    ours = {}
    for rule in table.rules(config):
        value = zeros[rule.target]
        if "{}" in rule.source:
            ours |= {rule.source.format(n): rule.transform.undo(block).shape for n, block in enumerate(value)}
        else:
            ours[rule.source] = rule.transform.undo(value).shape
    theirs = {name: tuple(shape) for name, (shape, _) in manifest["entries"].items()}
    assert ours.items() <= theirs.items()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_arguments_describe_the_same_network(name):
    config = PRESETS[name]()
    assert parse_arguments(official_arguments(config)) == config


def test_weights_beyond_half_precision_are_refused(tmp_path):
    config = small_released("linear")
    parameters = {name: np.ones(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    parameters["encoder.norm.scale"] *= 1e6
    save_checkpoint(tmp_path / "large", config, parameters.items(), source_name="a test")
    with pytest.raises(CheckpointError, match="too large for half precision"):
        release(tmp_path / "large", tmp_path / "out", half=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("checkpoint", ["linear"], indirect=True, scope="module")
def test_other_folders_are_not_replaced(checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(OutputError, match="not empty"):
        release(checkpoint[0], tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("checkpoint", ["linear"], indirect=True, scope="module")
def test_the_file_records_its_source(released):
    with safetensors.safe_open(released / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"source": "a test", "licence": "Apache-2.0"}
