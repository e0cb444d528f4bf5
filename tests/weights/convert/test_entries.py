"""Which entry of a `.pth` file is used, what is said about the others, and what is said if there is none."""

import logging

import numpy as np
import pytest

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.weights.convert import open_source, read_parameters
from easi3r_jax.weights.convert.torch_file import open_torch_file
from tests.torch_writer import Call, Global, Tensor, dumps, namespace, write

FLOW = ("fnet.conv1.weight", "init_conv.weight", "cnet.conv1.weight")


@pytest.fixture
def make(tmp_path, weights):
    """Writes a file of entries; `described(prefix)` are the weights in it."""
    keys = {name: str(key) for key, name in enumerate(weights)}

    def described(prefix=""):
        return {prefix + name: Tensor(keys[name], array.shape) for name, array in weights.items()}

    def made(root):
        arrays = [(keys[name], np.ascontiguousarray(array)) for name, array in weights.items()]
        write(tmp_path / "x.pth", root, [*arrays, ("n", np.zeros(2, np.float32))])
        return tmp_path / "x.pth"

    made.described = described
    return made


@pytest.fixture
def arguments(index):
    return namespace(model=index["model_string"])


@pytest.mark.parametrize(
    "other",
    [
        lambda tensors: tensors,
        lambda tensors: {"shadow_params": list(tensors.values())},
        lambda tensors: {"module": tensors, "decay": 0.9},
        lambda tensors: Call(Global("x", "Average"), (), {"shadow": tensors}),
    ],
)
def test_copies_of_the_weights_are_named(make, arguments, other, caplog):
    optimizer = {"state": {0: {"exp_avg": Tensor("n", (2,))}}}
    path = make({"args": arguments, "model": make.described(), "ema": other(make.described()), "optimizer": optimizer})
    (notice,) = open_source(path).notices
    assert f"'ema' ({len(make.described())} tensors)" in notice and "optimizer" not in notice
    with caplog.at_level(logging.WARNING):
        read_parameters(open_source(path))
    assert "'ema'" in caplog.text


def test_without_copies_nothing_is_said(make, arguments):
    assert open_source(make({"args": arguments, "model": make.described(), "epoch": 3})).notices == ()


def test_a_state_dict_beside_the_arguments_is_the_model(make, arguments, weights):
    found = open_source(make({"args": arguments, "state_dict": make.described("module.")}))
    assert found.tensors.keys() == weights.keys()


@pytest.mark.parametrize(
    "prefixes", [("module.", ""), ("_orig_mod.module.", "_orig_mod."), ("module.module.", "module.")]
)
def test_an_averaged_model_is_the_model(make, arguments, weights, prefixes):
    counter = {prefixes[1] + "n_averaged": Tensor("n", (), numel=2)}
    found = open_source(make({"args": arguments, "model": counter | make.described(prefixes[0])}))
    assert found.tensors.keys() == weights.keys()


def test_what_is_there_is_listed(make, arguments):
    for root, says in (
        ({"args": arguments, "model_ema": make.described(), "epoch": 1}, r"no 'model'.*'args', 'model_ema' \(\d+ ten"),
        ({"state_dict": make.described(), "epoch": 1}, r"args.model' is missing.*'state_dict' \(\d+ ten.*'epoch'"),
        (make.described(), r"no 'model'.*and \d+ more"),
        ({"args": arguments, "model": Call(Global("x", "Net"))}, "an object of 'x.Net'.*state_dict"),
        (Call(Global("x", "Net")), "an object of 'x.Net'.*state_dict"),
        ([1], "no dictionary, but list"),
        ({1: 2}, "no 'model'.*'1'"),
    ):
        with pytest.raises(CheckpointError, match=says) as caught:
            open_source(make(root))
        assert len(str(caught.value)) < 800 and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "model", "state_dict"])
def test_a_flow_network_needs_no_arguments(make, name):
    tensors = {key: Tensor("n", (2,)) for key in FLOW}
    config = open_source(make({name: tensors} if name else tensors)).config
    assert isinstance(config, FlowConfig) and config.network == "sea-raft"


def unread(kind, key="c"):
    """A pickle of a tensor of another kind."""
    return dumps(Tensor(key, (4,))).replace(b"torch\nFloatStorage", b"torch\n" + kind)[2:-1]


@pytest.mark.parametrize("kind", [b"ComplexFloatStorage", b"QInt8Storage", b"UntypedStorage", b"FutureStorage"])
def test_tensors_of_other_kinds_only_matter_in_the_model(tmp_path, index, kind):
    for read, model, other in ((True, {}, {"z": "here"}), (False, {"z": "here"}, {})):
        root = {"args": namespace(model=index["model_string"]), "model": {"w": Tensor("0", (2,)), **model}}
        raw = dumps(root | {"other": other}).replace(dumps("here")[2:-1], unread(kind))
        write(tmp_path / "x.pth", None, [("0", np.ones(2, np.float32))], pickled=raw)
        if read:
            assert open_source(tmp_path / "x.pth").tensors.keys() == {"w"}
        else:
            with pytest.raises(CheckpointError, match=r"'z' is not a named tensor, but 'a tensor of .*Storage'"):
                open_source(tmp_path / "x.pth")


def test_the_legacy_format_skips_what_is_not_read(tmp_path):
    root = b"\x80\x02(X\x01\x00\x00\x00c" + unread(b"ComplexFloatStorage") + dumps(Tensor("w", (2,)))[2:-1] + b"t."
    head = dumps(0x1950A86A20F9469CFC6C) + dumps(1001) + dumps({"little_endian": True}) + root + dumps(["c", "w"])
    data = (4).to_bytes(8, "little") + bytes(32) + (2).to_bytes(8, "little") + np.array([3, 4], "f4").tobytes()
    (tmp_path / "x.pth").write_bytes(head + data)
    file = open_torch_file(tmp_path / "x.pth")
    np.testing.assert_array_equal(file.lazy(file.root[2]).read(), [3, 4])
