"""Folders of `model.safetensors` and `config.json`; headers are checked against the file."""

import hashlib
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models import parameters_of
from easi3r_jax.weights.checkpoint import load_checkpoint, load_metadata
from easi3r_jax.weights.convert import convert, open_source
from easi3r_jax.weights.convert.safetensors_folder import read_header


@pytest.fixture
def folder(files, tmp_path):
    """Writes a folder with the given tensors and configuration."""

    def make(tensors, config=None):
        path = tmp_path / "hub"
        path.mkdir(exist_ok=True)
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(config or (files / "hf_tiny" / "config.json").read_text())
        return path

    return make


def write_header(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def test_lists_and_pythons_infinity_are_understood(files):
    text = (files / "hf_tiny" / "config.json").read_text()
    assert "-Infinity" in text and isinstance(json.loads(text)["img_size"], list)
    config = open_source(files / "hf_tiny").config
    assert config.image_size == (64, 64)
    assert config.confidence_range == (1.0, math.inf)


def test_the_folder_and_its_file_are_the_same_source(files):
    by_file = open_source(files / "hf_tiny" / "model.safetensors")
    assert by_file.tensors.keys() == open_source(files / "hf_tiny").tensors.keys()


def in_parts(folder, weights, count=3):
    """Writes weights into so many files with an index, as model hubs do with large ones."""
    names, placed = sorted(weights), {}
    for k in range(count):
        file = f"model-{k + 1:05d}-of-{count:05d}.safetensors"
        part = names[k::count]
        save_file({name: weights[name] for name in part}, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return placed


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_in_several_files_are_those_in_one(folder, weights, tmp_path, prefix):
    one = convert(folder(weights), tmp_path / "one")
    parts = folder({prefix + name: array for name, array in weights.items()})
    in_parts(parts, {prefix + name: array for name, array in weights.items()})
    several = convert(parts, tmp_path / "several")
    assert several.parameters == one.parameters
    first, second = (parameters_of(load_checkpoint(tmp_path / name)[1]) for name in ("one", "several"))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    lines = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(parts.glob("*.safetensors"))
    )
    assert load_metadata(tmp_path / "several")[1]["source_sha256"] == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda placed: {}, "no 'weight_map'"),
        (lambda placed: placed | {"more": "model-00001-of-00003.safetensors"}, "do not agree about 'more'"),
        (lambda placed: dict(list(placed.items())[1:]), "do not agree about"),
        (lambda placed: placed | {"more": "../model.safetensors"}, "is not the name of a file"),
        (lambda placed: placed | {"more": "model-00004-of-00003.safetensors"}, "is missing"),
        (lambda placed: placed | {"more": 3}, "is not the name of a file"),
        (lambda placed: placed | {"more": "\ud800.safetensors"}, "is not the name of a file"),
        (lambda placed: placed | {"more": "a\0.safetensors"}, "is not the name of a file"),
        (lambda placed: placed | {"more": "a\\b.safetensors"}, "is not the name of a file"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(folder, weights, change, says):
    path = folder(weights)
    placed = in_parts(path, weights)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change(placed)}))
    with pytest.raises(CheckpointError, match=says):
        open_source(path)


def test_a_part_and_the_index_are_the_folder(folder, weights):
    path = folder(weights)
    parts = sorted(set(in_parts(path, weights).values()))
    for name in (*parts, "model.safetensors.index.json"):
        assert open_source(path / name).tensors.keys() == weights.keys()
    save_file({"x": weights["mask_token"]}, path / "other.safetensors")
    with pytest.raises(CheckpointError, match="into a folder of its own"):
        open_source(path / "other.safetensors")
    save_file({"x": weights["mask_token"]}, path / "model.safetensors")
    assert open_source(path).tensors.keys() == {"x"}
    assert open_source(path / parts[0]).tensors.keys() == weights.keys()


def test_parts_without_an_index_say_what_is_missing(folder, weights):
    path = folder(weights)
    parts = sorted(set(in_parts(path, weights).values()))
    (path / "model.safetensors.index.json").unlink()
    for source in (path, path / parts[0]):
        with pytest.raises(CheckpointError, match=r"parts.*model\.safetensors\.index\.json"):
            open_source(source)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_floating_point_type_becomes_float32(folder, weights, tmp_path, dtype):
    stored = {name: array.astype(jnp.dtype(dtype)) for name, array in weights.items()}
    convert(folder(stored), tmp_path / "output")
    _, model, _ = load_checkpoint(tmp_path / "output")
    kernel = np.asarray(model.decoder.embed.kernel[...])
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, stored["decoder_embed.weight"].T.astype(np.float32))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["enc_norm.bias", "dec_blocks2.1.mlp.fc1.weight", "mask_token"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, weights, tmp_path, name, number):
    broken = weights[name].copy()
    broken.flat[-1] = number
    with pytest.raises(CheckpointError, match=rf"NaN or infinite numbers in {name}\."):
        convert(folder({**weights, name: broken}), tmp_path / "output")
    assert os.listdir(tmp_path) == ["hub"]


def test_numbers_beyond_float32_are_refused(folder, weights, tmp_path):
    large = weights["enc_norm.bias"].astype(np.float64)
    large[0] = 1e300
    with pytest.raises(CheckpointError, match=r"infinite numbers in enc_norm.bias"):
        convert(folder({**weights, "enc_norm.bias": large}), tmp_path / "output")


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_missing_file_is_named(folder, weights, missing):
    path = folder(weights)
    (path / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        open_source(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "lacks enc_embed_dim"),
        ('{"img_size": ' + "[" * 800 + "]" * 800 + "}", "too deeply nested lists|not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (" " * (2 << 20) + "{}", "not valid JSON"),  # at most a megabyte is read
    ],
)
def test_broken_configurations(folder, weights, config, words):
    path = folder(weights)
    (path / "config.json").write_text(config, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=words):
        open_source(path)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_valid_header_is_read(tmp_path):
    path = write_header(
        tmp_path / "x.safetensors", {"__metadata__": {"a": "b"}, "w": F32}, np.float32([1, 2]).tobytes()
    )
    tensors, duplicates = read_header(path)
    assert list(tensors) == ["w"] and not duplicates
    np.testing.assert_array_equal(tensors["w"].read(), np.float32([1, 2]), strict=True)


def test_duplicate_names_are_reported(tmp_path):
    entry = json.dumps(F32)
    path = write_header(tmp_path / "x.safetensors", f'{{"w": {entry}, "w": {entry}}}'.encode(), bytes(8))
    assert read_header(path)[1] == ("w",)


@pytest.mark.parametrize(
    "entry",
    [
        {**F32, "dtype": "F31"},
        {**F32, "dtype": ["F32"]},
        {**F32, "shape": [3]},
        {**F32, "shape": [-2]},
        {**F32, "shape": [2.0]},
        {**F32, "shape": [True, 2]},
        {**F32, "shape": 2},
        {**F32, "shape": [2**40, 2**40]},
        {**F32, "shape": [10**30]},
        {**F32, "data_offsets": [0, 9]},
        {**F32, "data_offsets": [8, 0]},
        {**F32, "data_offsets": [-8, 0]},
        {**F32, "data_offsets": [0]},
        {**F32, "data_offsets": [8, 16]},
        {**F32, "shape": [2**50], "data_offsets": [0, 2**52]},
        {},
        None,
        [],
        "F32",
    ],
)
def test_false_entries_are_refused(tmp_path, entry):
    path = write_header(tmp_path / "x.safetensors", {"w": entry}, bytes(8))
    with pytest.raises(CheckpointError, match=r"Cannot use .*x.safetensors"):
        read_header(path)


@pytest.mark.parametrize(
    "header", [b"", b"[1]", b"3", b"{", b"\xff\xfe", b"[" * 100_000, b'{"w": ' + b"9" * 5000 + b"}"]
)
def test_headers_that_are_not_objects_are_refused(tmp_path, header):
    with pytest.raises(CheckpointError, match=r"Cannot use .*x.safetensors"):
        read_header(write_header(tmp_path / "x.safetensors", header))


def test_the_licence_of_an_unknown_source_is_the_sources(files, tmp_path):
    convert(files / "hf_tiny", tmp_path / "output")
    assert "terms of the source" in load_metadata(tmp_path / "output")[1]["licence"]
