"""Our own checkpoints: exact round trips, and one line with a remedy for each kind of damage."""

import json
import math
import os
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.models import abstract_model, parameter_shapes
from easi3r_jax.models.config import PRESETS, DUSt3RConfig
from easi3r_jax.weights.checkpoint import (
    FORMAT_VERSION,
    is_checkpoint,
    load_checkpoint,
    load_metadata,
    save_checkpoint,
)
from easi3r_jax.weights.checkpoint import folder as checkpoint_folder

SIZES = {"enc_dim": 16, "enc_depth": 2, "enc_heads": 2, "dec_dim": 24, "dec_depth": 4, "dec_heads": 2}
CONFIGS = {
    "linear": DUSt3RConfig(image_size=(32, 48), patch_size=8, head="linear", **SIZES),
    "dpt": DUSt3RConfig(image_size=(48, 32), mlp_ratio=2.5, rope_base=50.0, head="dpt", **SIZES),
    "bounded": DUSt3RConfig(image_size=(32, 32), head="linear", confidence_range=(0.5, 30.0), **SIZES),
}


def parameters(model):
    """Every parameter of a network by its path."""
    flat = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in flat}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint that tests only read."""
    path = tmp_path_factory.mktemp("written") / "checkpoint"
    rng, shapes = np.random.default_rng(1), parameter_shapes(CONFIGS["linear"])
    parameters = ((name, rng.standard_normal(shape, np.float32)) for name, shape in shapes.items())
    save_checkpoint(path, CONFIGS["linear"], parameters, source_name="random")
    return path


@pytest.fixture
def copy(written, tmp_path):
    """A copy of it that a test may damage."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "checkpoint"))


# With DPT heads, 36 million numbers; `make test`: tests/weights/convert/test_release.py.
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "dpt")) for n in CONFIGS])
def test_round_trip_is_exact(tmp_path, name):
    config, rng, asked = CONFIGS[name], np.random.default_rng(0), {}
    shapes = parameter_shapes(config)

    def parameters_of_all_parts():
        for parameter in sorted(shapes, key=lambda name: name[::-1]):  # parts in turn
            asked[parameter] = rng.standard_normal(shapes[parameter], np.float32)
            yield parameter, asked[parameter]

    save_checkpoint(
        tmp_path / "x", config, parameters_of_all_parts(), source_name="random", source_sha256="ab", licence="mine"
    )
    loaded_config, model, metadata = load_checkpoint(tmp_path / "x")
    assert loaded_config == config
    assert (metadata["source_name"], metadata["source_sha256"], metadata["licence"]) == ("random", "ab", "mine")
    assert nnx.graphdef(model) == nnx.graphdef(abstract_model(config))
    found = parameters(model)
    assert found.keys() == asked.keys() == shapes.keys()
    for parameter, value in asked.items():
        np.testing.assert_array_equal(found[parameter], value, err_msg=parameter, strict=True)


def test_a_network_can_be_saved(written, tmp_path):
    model = load_checkpoint(written)[1]
    save_checkpoint(tmp_path / "x", CONFIGS["linear"], model, source_name="random")
    found = parameters(load_checkpoint(tmp_path / "x")[1])
    for name, value in parameters(model).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def test_parameters_are_bound_to_a_device_on_request_only(written):
    """Committed parameters would make every program compile once more, for the arguments that are not."""
    _, model, _ = load_checkpoint(written)
    assert not any(leaf.committed for leaf in jax.tree.leaves(nnx.state(model)))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[-1])
    _, model, _ = load_checkpoint(written, sharding=sharding)
    assert all(leaf.committed and leaf.sharding == sharding for leaf in jax.tree.leaves(nnx.state(model)))


def test_shapes_allocate_nothing():
    count = sum(map(math.prod, parameter_shapes(PRESETS["512-dpt"]()).values()))
    assert 568e6 < count < 570e6  # 571 M in the released file, some of which inference does not need


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(16, np.float64), np.zeros(16, np.float16)])
def test_a_wrong_parameter_is_refused(written, tmp_path, wrong):
    config, model, _ = load_checkpoint(written)
    flat = {**parameters(model), "encoder.norm.scale": wrong}
    with pytest.raises(CheckpointError, match=r"encoder\.norm\.scale is .*the network needs float32\[16\]"):
        save_checkpoint(tmp_path / "x", config, flat.items(), source_name="x")
    del flat["encoder.norm.scale"]
    with pytest.raises(CheckpointError, match="Parameters of encoder are missing"):
        save_checkpoint(tmp_path / "x", config, flat.items(), source_name="x")
    assert not list(tmp_path.iterdir())


def test_the_checksum_of_the_source_can_reject_the_result(written, tmp_path):
    config, model, _ = load_checkpoint(written)

    def refuse():
        raise CheckpointError("no")

    with pytest.raises(CheckpointError, match="no"):
        save_checkpoint(tmp_path / "x", config, model, source_name="x", source_sha256=refuse)
    assert not list(tmp_path.iterdir())


def test_configuration_is_standard_json(written):
    def refuse(token):
        raise AssertionError(token)

    header = json.loads((written / "config.json").read_text(), parse_constant=refuse)
    assert header["architecture"]["confidence_range"] == [1.0, "inf"]


def test_metadata_needs_no_weights(copy):
    shutil.rmtree(copy / "weights")
    config, metadata = load_metadata(copy)
    assert config == CONFIGS["linear"]
    assert metadata["source_name"] == "random"


def test_other_folders_are_not_checkpoints(copy, tmp_path):
    assert is_checkpoint(copy)
    (tmp_path / "other").mkdir()
    assert not is_checkpoint(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"head_type": "dpt"}')
    assert not is_checkpoint(tmp_path / "other")
    assert not is_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="Convert it: python -m convert --source="):
        load_checkpoint(tmp_path / "other")
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        load_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("files", [None, [], "x"])
def test_checksums_are_required(copy, files):
    header = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**header, "files": files}))
    with pytest.raises(CheckpointError, match=r"has no checksums\. Convert it again"):
        load_metadata(copy)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, None, "x"])
def test_another_version_says_what_to_do(copy, version):
    header = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**header, "format_version": version}))
    with pytest.raises(CheckpointError, match=r"has format version .*Convert its source again"):
        load_checkpoint(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", "[" * 100_000, "9" * 10_000])
def test_unreadable_configuration(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"enc_dim": 18},
        {"enc_dim": "16"},
        {"enc_dim": 16.0},
        {"enc_dim": None},
        {"enc_depth": True},
        {"enc_depth": 0},
        {"dec_depth": 10**12},
        {"enc_dim": 2**70},
        {"mlp_ratio": math.nan},
        {"mlp_ratio": math.inf},
        {"mlp_ratio": "4"},
        {"rope_base": "x"},
        {"rope_base": math.nan},
        {"head": "other"},
        {"head": ["linear"]},
        {"image_size": [32]},
        {"image_size": [32, 48, 64]},
        {"image_size": 32},
        {"image_size": [32, 0.5]},
        {"image_size": [32, 10**9]},
        {"confidence_range": [1]},
        {"confidence_range": ["a", "b"]},
        {"confidence_range": [2.0, 1.0]},
        {"confidence_range": [math.nan, 1.0]},
        {"unknown": 1},
        "linear",
        None,
    ],
)
def test_invalid_architectures(copy, changes):
    header = json.loads((copy / "config.json").read_text())
    architecture = {**header["architecture"], **changes} if isinstance(changes, dict) else changes
    (copy / "config.json").write_text(json.dumps({**header, "architecture": architecture}))
    with pytest.raises(CheckpointError, match="is damaged: its architecture is invalid"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    "changes", [{"dec_dim": 48}, {"enc_depth": 3}, {"mlp_ratio": 2.0}, {"head": "dpt", "patch_size": 16}]
)
def test_parameters_of_another_architecture(copy, changes):
    header = json.loads((copy / "config.json").read_text())
    header["architecture"] |= changes
    (copy / "config.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=r"do not match its configuration.*Restore it, or write it again"):
        load_checkpoint(copy)


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen", "another type"])
def test_parts_with_other_parameters(copy, change):
    rng = np.random.default_rng(0)
    shapes = {n: s for n, s in parameter_shapes(CONFIGS["linear"]).items() if n.startswith("head1.")}
    tree = {n.rpartition(".")[2]: rng.standard_normal(shape, np.float32) for n, shape in shapes.items()}
    if change == "missing":
        del tree["bias"]
    elif change == "extra":
        tree["scale"] = tree["bias"]
    elif change == "misshapen":
        tree["bias"] = tree["bias"][1:]
    else:
        tree["bias"] = tree["bias"].astype(np.float16)
    shutil.rmtree(copy / "weights" / "head1")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(copy / "weights" / "head1", args=ocp.args.PyTreeSave({"proj": tree}))
    header = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**header, "files": checkpoint_folder.checksums(copy / "weights")}))
    word = "scale" if change == "extra" else "bias"
    with pytest.raises(CheckpointError, match=rf"do not match its configuration: head1\.proj\.{word}"):
        load_checkpoint(copy)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "longer", "one bit"])
def test_each_damaged_file_is_named(copy, damage):
    files = [path for path in sorted((copy / "weights").rglob("*")) if path.is_file()]
    assert len(files) > 20
    for file in files:
        raw = file.read_bytes()
        changed = bytearray(raw)
        changed[len(raw) // 2] ^= 1
        file.write_bytes({"empty": b"", "cut": raw[:-1], "longer": raw + b"\0"}.get(damage, bytes(changed)))
        if damage == "missing":
            file.unlink()
        state = "is missing" if damage == "missing" else "has changed"
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(copy)
        file.write_bytes(raw)
        assert f"({file.relative_to(copy)} {state}). Restore it, or write it again" in str(caught.value)
        assert "\n" not in str(caught.value)
    load_checkpoint(copy)


@pytest.mark.parametrize("part", ["encoder", "decoder", "head1", "head2"])
def test_missing_part_is_named(copy, part):
    shutil.rmtree(copy / "weights" / part)
    with pytest.raises(
        CheckpointError, match=rf"damaged or incomplete \(weights/{part}/.* is missing, and \d+ more\)\. Restore it"
    ):
        load_checkpoint(copy)


def test_out_of_device_memory_is_not_reported_as_damage(written, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes")

    monkeypatch.setattr(ocp.Checkpointer, "restore", full)
    with pytest.raises(ValueError, match="RESOURCE_EXHAUSTED"):
        load_checkpoint(written)


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_folder_without_write_permission(written, tmp_path):
    config, model, _ = load_checkpoint(written)
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="no permission"):
        save_checkpoint(tmp_path / "locked" / "x", config, model, source_name="x")


def test_a_run_without_write_permission_leaves_nothing(written, tmp_path, monkeypatch):
    config, model, _ = load_checkpoint(written)

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=r"Cannot write .*no permission"):
        save_checkpoint(tmp_path / "x", config, model, source_name="x")
    assert not list(tmp_path.iterdir())
