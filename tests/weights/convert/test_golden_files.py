"""Every golden checkpoint file is read exactly, or refused in one line; nothing is executed or left behind."""

import builtins
import json
import os
import pathlib
import pickle
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.weights.checkpoint import load_checkpoint
from easi3r_jax.weights.convert import convert, open_source
from tests import torch_writer

CONFIG = DUSt3RConfig(
    image_size=(64, 64), enc_dim=8, enc_depth=2, enc_heads=2, dec_dim=8, dec_depth=2, dec_heads=2, head="linear"
)
GOOD = ("tiny_official.pth", "tiny_legacy.pth", "tiny_landscape_only_true.pth", "hf_tiny")
#: Words in the error message for each file.
REFUSED = {
    "bad_almost_empty_with_nan.pth": "missing",
    "bad_bare_tensor.pth": "no dictionary",
    "bad_empty.pth": "empty",
    "bad_no_args.pth": "args.model",
    "bad_text.pth": "neither a zip nor a pickle",
    "bad_truncated.pth": "truncated",
    "bad_wrong_shape.pth": r"wrong shape: patch_embed.proj.weight \[.*\] instead of \[8, 3, 16, 16\]",
    "evil_args_model_string.pth": "not executed",
    "evil_os_system.pth": "UNSAFE.*system.*nothing in it was executed",
    "evil_plain_pickle_eval.pth": "UNSAFE.*eval.*nothing in it was executed",
    "evil_zip_traversal.pth": "UNSAFE.*outside its own folder",
}


def parameters(path):
    config, model, _ = load_checkpoint(path)
    assert config == CONFIG
    flat = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model)))[0]
    return {jax.tree_util.keystr(name): np.asarray(value) for name, value in flat}


@pytest.fixture
def nothing_may_run(monkeypatch, capfd):
    """Blocks and counts every way in which a file could act; the output of its commands must not appear."""
    tried = []
    for module, name in ((os, "system"), (builtins, "eval"), (builtins, "exec"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: tried.append(name))
    yield
    assert not tried
    assert "golden-harmless" not in "".join(capfd.readouterr())


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    """Parameters of every valid file, after conversion."""
    folder = tmp_path_factory.mktemp("converted")
    for name in (*GOOD, "tiny_no_dec_blocks2.pth"):
        convert(files / name, folder / name)
    return {name: parameters(folder / name) for name in (*GOOD, "tiny_no_dec_blocks2.pth")}


def test_all_golden_files_are_covered(files):
    present = {path.name for path in files.iterdir()}
    others = {"README.md", "index.json", "tiny_forward_plain_dust3r.npz", "tiny_no_dec_blocks2.pth"}
    others |= {"bad_header_len.safetensors", "bad_truncated.safetensors"}
    assert present == others | set(GOOD) | set(REFUSED)


@pytest.mark.parametrize("name", GOOD)
def test_tensors_are_the_golden_weights_exactly(files, weights, name):
    source = open_source(files / name)
    assert source.config == CONFIG
    assert source.tensors.keys() == weights.keys()
    for key, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.read(), weights[key], err_msg=key, strict=True)


@pytest.mark.parametrize("name", GOOD)
def test_parameters_are_the_golden_weights_exactly(converted, weights, name):
    found = converted[name]
    stacked = [weights[f"dec_blocks2.{n}.cross_attn.projk.weight"].T for n in range(2)]
    np.testing.assert_array_equal(found["['decoder']['branch2']['cross_attention']['k']['kernel']"], np.stack(stacked))
    kernel = weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, 8)
    np.testing.assert_array_equal(found["['encoder']['patch_embed']['kernel']"], kernel)
    unused = weights["mask_token"].size
    assert sum(value.size for value in found.values()) == sum(value.size for value in weights.values()) - unused
    for parameter, value in converted[GOOD[0]].items():
        np.testing.assert_array_equal(found[parameter], value, err_msg=parameter, strict=True)


def test_the_converted_network_matches_the_published_one(files, converted, tmp_path):
    convert(files / "hf_tiny", tmp_path / "model")
    _, model, _ = load_checkpoint(tmp_path / "model")
    golden = np.load(files / "tiny_forward_plain_dust3r.npz")

    @jax.jit
    def forward(model, rgb):
        grid = model.grid(rgb.shape[1:3])
        features = model.encode(rgb)
        return model.predict(features[:1], features[1:], model.decode(features[:1], features[1:], grid), grid)

    outputs = forward(model, jnp.asarray(golden["frames_u8"]))
    for output, name in zip(outputs, ("pts3d_1", "conf_1", "pts3d_2", "conf_2"), strict=True):
        np.testing.assert_allclose(output[0], golden[name], rtol=0, atol=1e-5 * np.abs(golden[name]).max())


def test_a_missing_second_decoder_is_a_copy_of_the_first(files, converted, tmp_path):
    found, whole = converted["tiny_no_dec_blocks2.pth"], converted["tiny_official.pth"]
    for name, value in found.items():
        np.testing.assert_array_equal(value, whole[name.replace("branch2", "branch1")], err_msg=name)
    summary = convert(files / "tiny_no_dec_blocks2.pth", tmp_path / "copy")
    assert any("dec_blocks2" in notice for notice in summary.notices)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("nothing_may_run")
def test_damaged_and_malicious_files_are_refused(files, tmp_path, name):
    before = set(pathlib.Path().iterdir()), set(files.parent.iterdir())
    with pytest.raises(CheckpointError, match=REFUSED[name]) as caught:
        convert(files / name, tmp_path / "output")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert before == (set(pathlib.Path().iterdir()), set(files.parent.iterdir()))


@pytest.mark.parametrize(("name", "words"), [("bad_truncated", "truncated"), ("bad_header_len", "header too large")])
def test_damaged_safetensors_are_refused(files, tmp_path, name, words):
    (tmp_path / "hub").mkdir()
    shutil.copy(files / "hf_tiny" / "config.json", tmp_path / "hub")
    shutil.copy(files / f"{name}.safetensors", tmp_path / "hub" / "model.safetensors")
    for source in (tmp_path / "hub", tmp_path / "hub" / "model.safetensors", files / f"{name}.safetensors"):
        with pytest.raises(CheckpointError, match=words):
            convert(source, tmp_path / "output")
    assert os.listdir(tmp_path) == ["hub"]


@pytest.mark.parametrize(
    "call",
    [
        lambda flag: torch_writer.Call(torch_writer.Global("os", "system"), (f"touch {flag}",)),
        lambda flag: torch_writer.Call(torch_writer.Global("builtins", "open"), (str(flag), "w")),
        lambda flag: torch_writer.Call(torch_writer.Global("pathlib", "Path.touch"), (str(flag),)),
        lambda flag: torch_writer.Call(torch_writer.Global("builtins", "exec"), (f"open({str(flag)!r}, 'w')",)),
    ],
)
@pytest.mark.parametrize("place", ["root", "args", "model", "epoch"])
def test_calls_in_a_pickle_are_not_executed(tmp_path, index, call, place):
    flag = tmp_path / "flag"
    root = {"args": torch_writer.namespace(model=index["model_string"]), "model": {}, "epoch": 1}
    root = call(flag) if place == "root" else {**root, place: call(flag)}
    torch_writer.write(tmp_path / "evil.pth", root, [])
    with pytest.raises(CheckpointError, match=r"UNSAFE.*nothing in it was executed"):
        convert(tmp_path / "evil.pth", tmp_path / "output")
    assert os.listdir(tmp_path) == ["evil.pth"]


def test_pythons_own_reader_executes_the_call(tmp_path):
    """The files of the test above are really harmful."""
    flag = tmp_path / "flag"
    pickle.loads(torch_writer.dumps(torch_writer.Call(torch_writer.Global("os", "mkdir"), (str(flag),))))  # noqa: S301
    assert flag.is_dir()


@pytest.mark.parametrize("expression", ["__import__('os').mkdir('{flag}')", "(lambda: open('{flag}', 'w'))()"])
def test_model_string_in_a_hub_folder_is_data(files, tmp_path, expression):
    (tmp_path / "hub").mkdir()
    shutil.copy(files / "hf_tiny" / "model.safetensors", tmp_path / "hub")
    config = json.loads((files / "hf_tiny" / "config.json").read_text())
    config["depth_mode"] = expression.format(flag=tmp_path / "flag")
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="depth_mode"):
        convert(tmp_path / "hub", tmp_path / "output")
    assert os.listdir(tmp_path) == ["hub"]
