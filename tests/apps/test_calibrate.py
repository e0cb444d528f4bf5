"""`python -m experiments.calibrate`: what it writes is the network's cue from then on; refusals."""

import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax.apps import calibrate
from easi3r_jax.core.config import PipelineConfig

SMALL = ("--num=2", "--dev_num=1", "--test_num=1", "--num_frames=3", "--graph=complete", "--hard_weights=0,0.5")
QUICK = (*SMALL, "--regularisations=0.01", "--at_least=0.2,0.4")


def execute(*arguments):
    return calibrate.FLAGS.execute(calibrate.main, ["", *arguments])


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """The folder of a checkpoint with its read-out, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("calibrated"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        assert execute(*QUICK, f"--output={folder / 'network'}") == 0
    return folder / "network", "\n".join(printed)


def test_the_table_compares_the_readout_with_the_published_formula(calibrated):
    lines = [line.split("  ") for line in calibrated[1].splitlines()]
    names = [words[1] for words in lines if len(words) > 3]
    for name in ("published formula", "mean_src", "std_src", "mean_ref", "std_ref", "read-out"):
        assert name in names
    chosen = [line for line in calibrated[1].splitlines() if line.rstrip().endswith("*")]
    assert len(chosen) == 1


def test_the_checkpoint_carries_the_readout(calibrated):
    model, shipped = e3r.load_model(calibrated[0], "float32"), e3r.load_model("embedded", "float32")
    assert model.readout == e3r.load_readout(calibrated[0] / "readout.json") != shipped.readout
    assert model.readout.at_least in (0.2, 0.4) and "2 clips (rendered, seed 1)" in model.readout.origin
    frames = e3r.load_frames("demo", e3r.FrameConfig.for_model(model, first=3))
    config = PipelineConfig(graph="complete", alignment=e3r.AlignConfig(iterations=5))
    one, other = (e3r.reconstruct(m, frames, config).motion.raw_score for m in (model, shipped))
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(e3r.encode_frames(model, frames.rgb), e3r.encode_frames(shipped, frames.rgb))


def test_a_file_is_taken_by_the_flag(calibrated, reconstruct_here, tmp_path):
    file = calibrated[0] / "readout.json"
    quick = {"first": 3, "graph": "complete", "iterations": 5, "compare_plain": False, "flow": "none"}
    code, out, errors = reconstruct_here(**quick, readout=file)
    assert code == 0 and not errors, errors
    assert f"  Motion: the attention, by the read-out of {file}." in out.splitlines()
    assert "by the read-out of the checkpoint." in reconstruct_here(**quick)[1]
    code, _, errors = reconstruct_here(**quick, readout=file, motion="formula")
    assert code == 1 and "--readout requires --motion=attention" in errors
    (tmp_path / "cut.json").write_text(file.read_text()[:200])
    code, _, errors = reconstruct_here(**quick, readout=tmp_path / "cut.json")
    assert code == 1 and "is not a read-out of attention" in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--hard_weights=a,b",), "--hard_weights=a,b: it must be numbers"),
        (("--clips=nowhere",), "Cannot read the folder of clips"),
        (("--checkpoint=nowhere",), "nowhere"),
    ],
)
def test_refusals(flags, words, capsys, tmp_path):
    assert execute(*SMALL, f"--output={tmp_path / 'out.json'}", *flags) == 1
    errors = capsys.readouterr().err
    assert words in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out.json").exists()
