"""Files of read-outs: what is written is read; everything else is refused in a line."""

import json

import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax.weights import convert
from easi3r_jax.weights.convert.release import release
from easi3r_jax.weights.load import EMBEDDED

READOUT = e3r.ReadoutConfig(2, 3, tuple(np.linspace(-1, 1, 24).tolist()), -0.25, 0.5, "a test")


def test_what_is_written_is_read(tmp_path):
    e3r.save_readout(tmp_path / "a.json", READOUT)
    assert e3r.load_readout(str(tmp_path / "a.json")) == READOUT
    weights = json.loads((tmp_path / "a.json").read_text())["weights"]
    assert list(weights) == ["mean_src", "std_src", "mean_ref", "std_ref"]
    assert weights["std_src"] == list(READOUT.weights[6:12])


def test_the_embedded_network_carries_one():
    model = e3r.load_model("embedded", "exact")
    assert model.readout == e3r.load_readout(EMBEDDED / "readout.json")
    assert "experiments.calibrate" in model.readout.origin


def test_conversions_carry_it(tmp_path):
    """From the released layout to ours, and back."""
    shipped = e3r.load_readout(EMBEDDED / "readout.json")
    ours = convert.convert(EMBEDDED, tmp_path / "ours").path
    assert e3r.load_readout(ours / "readout.json") == shipped == e3r.load_model(ours, "exact").readout
    release(ours, tmp_path / "released")
    assert e3r.load_readout(tmp_path / "released" / "readout.json") == shipped
    (ours / "readout.json").unlink()
    assert e3r.load_model(ours, "exact").readout is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format="easi3r_jax read-out, 2"), "does not say"),
        (lambda c: c.pop("bias"), "lacks 'bias'"),
        (lambda c: c.update(num_layers=3), "each moment needs 9 weights"),
        (lambda c: c.update(num_layers=-2), "-2 is not a number of layers"),
        (lambda c: c["weights"].update(std_qq=[0.0] * 6), "cannot weight 'std_qq'; the moments are"),
        (lambda c: c["weights"].clear(), "different moments, at least one"),
        (lambda c: c.update(bias=10**400), "not a read-out"),
        (lambda c: c["weights"]["std_ref"].__setitem__(0, 1e300), "must be finite"),
        (lambda c: c["weights"]["std_ref"].append(0.0), "each moment needs 6"),
        (lambda c: c["weights"]["std_ref"].__setitem__(0, "x"), "'x' is not a number"),
        (lambda c: c["weights"]["std_ref"].__setitem__(0, float("nan")), "must be finite"),
        (lambda c: c.update(weights=[1, 2]), "not a read-out"),
        (lambda c: c.update(at_least=2.0), "between 0 and 1"),
    ],
)
def test_other_files_are_refused(tmp_path, change, words):
    path = tmp_path / "a.json"
    e3r.save_readout(path, READOUT)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(e3r.CheckpointError, match=words) as caught:
        e3r.load_readout(path)
    assert len(str(caught.value).splitlines()) == 1 and "experiments.calibrate" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 100, -3])
def test_cut_files_are_refused(tmp_path, cut):
    path = tmp_path / "a.json"
    e3r.save_readout(path, READOUT)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(e3r.CheckpointError, match="is not a read-out of attention"):
        e3r.load_readout(path)


def test_missing_large_and_deep_files(tmp_path):
    with pytest.raises(e3r.CheckpointError, match="No such file"):
        e3r.load_readout(tmp_path / "none.json")
    (tmp_path / "large.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(e3r.CheckpointError, match="too large"):
        e3r.load_readout(tmp_path / "large.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(e3r.CheckpointError, match="not a read-out"):
        e3r.load_readout(tmp_path / "deep.json")
