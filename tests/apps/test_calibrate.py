"""`python -m experiments.calibrate`: what it writes is the network's cue from then on; refusals."""

import cv2
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax.apps import calibrate
from easi3r_jax.apps.calibration_clips import Sample, of_data_set
from easi3r_jax.apps.calibration_metrics import Figures, chosen
from easi3r_jax.apps.study.clips import StudyClip
from easi3r_jax.core.config import ATTENTION_MOMENTS, GRAM_MOMENTS, PipelineConfig
from easi3r_jax.evaluation.metrics import GroundTruth
from easi3r_jax.io import export
from easi3r_jax.io.sequences import CLIPS

SMALL = ("--num=2", "--dev_num=1", "--test_num=1", "--num_frames=3", "--graph=complete", "--hard_weights=0,0.5")
QUICK = (*SMALL, "--regularisations=0.01", "--at_least=0.2,0.4")


def execute(*arguments):
    return calibrate.FLAGS.execute(calibrate.main, ["", *arguments])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four parts of the bundled clip with their twins: two to fit, one to choose, one to test."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        write_part(folder / f"c{number}", slice(4 * number, 4 * number + 3))
    return folder


def write_part(folder, frames, *, upright=False):
    """Some frames of the bundled clip and of its twin, which has none of its own instances."""
    for suffix in ("", "_still"):
        source = CLIPS / f"demo{suffix}"
        with np.load(source / "ground_truth.npz") as file:
            part = {name: file[name] for name in ("depth", "masks", "world_from_cam", "intrinsics", "instance")}
        part = {name: a[frames] if len(a) == 16 else a for name, a in part.items()}
        rgb = np.stack([cv2.imread(str(p)) for p in sorted((source / "frames").iterdir())[frames]])[..., ::-1]
        if upright:
            rgb = np.swapaxes(rgb, 1, 2)
            part |= {name: np.swapaxes(part[name], 1, 2) for name in ("depth", "masks", "instance")}
        export.write_clip(folder.with_name(folder.name + suffix), np.ascontiguousarray(rgb), part, {})


@pytest.fixture(scope="module")
def calibrated(clips, tmp_path_factory):
    """The folder of a checkpoint with its read-out, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("calibrated"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        assert execute(*QUICK, f"--clips={clips}", f"--output={folder / 'network'}") == 0
    return folder / "network", "\n".join(printed)


def test_the_table_compares_the_readout_with_the_published_formula(calibrated):
    lines = [line.split("  ") for line in calibrated[1].splitlines()]
    names = [words[1] for words in lines if len(words) > 3]
    for name in (
        "published formula",
        "VGGT4D's cue, on pairs",
        "mean_src",
        "std_src",
        "mean_ref",
        "std_ref",
        "read-out",
    ):
        assert name in names
    marked = [line for line in calibrated[1].splitlines() if line.rstrip().endswith("*")]
    assert len(marked) == 1


def test_the_best_masks_win_among_scores_that_hardly_respond_to_objects():
    def figures(joint, twin):
        return Figures({"AUC, twin": twin}, np.array(joint))

    rows = {
        "best": figures([0.1, 0.5, 0.9, 0.5], 0.7),
        "good": figures([0.11, 0.49, 0.89, 0.5], 0.6),
        "worse": figures([0.05, 0.45, 0.85, 0.46], 0.5),
        "worst": figures([0.05, 0.45, 0.85, 0.2], 0.5),  # the same score with another threshold
    }
    rows = {name: rows[name] for name in ("worst", "best", "good", "worse")}
    assert chosen(rows, 0.6) == ("good", "best") and chosen(rows, 0.55) == ("worse", "best")
    assert chosen(rows, 0.4) == ("worse", "best") and chosen(rows, 1.0) == ("best", "best")
    assert rows["worse"].below(rows["best"]) == pytest.approx((0.0475, 0.0025))
    rows = {name: figures(row.joint, np.nan) for name, row in rows.items()}
    assert chosen(rows, 0.6) == ("best", "best")


def test_the_checkpoint_carries_the_readout(calibrated):
    model, shipped = e3r.load_model(calibrated[0], "exact"), e3r.load_model("embedded", "exact")
    assert model.readout == e3r.load_readout(calibrated[0] / "readout.json") != shipped.readout
    assert model.readout.moments == (*ATTENTION_MOMENTS, *GRAM_MOMENTS)
    assert model.readout.at_least in (0.2, 0.4) and "2 clips (" in model.readout.origin
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
        (("--hard_weights=1",), "from 0 to below 1"),
        (("--at_least=nan",), "--at_least=nan: it must be numbers"),
        (("--regularisations=-1",), "from 0 to below 1e+06"),
        (("--clips=nowhere",), "Cannot read the folder of clips"),
        (("--checkpoint=nowhere",), "nowhere"),
    ],
)
def test_refusals(flags, words, capsys, tmp_path):
    assert execute(*SMALL, f"--output={tmp_path / 'out.json'}", *flags) == 1
    errors = capsys.readouterr().err
    assert words in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out.json").exists()


def test_a_folder_of_something_else_is_left_alone_before_anything_is_rendered(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "split", None)  # would fail if it were called
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    assert execute(*SMALL, f"--output={tmp_path / 'mine'}") == 1
    assert "mine" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


def test_sequences_of_a_data_set_which_have_no_twins(capsys, tmp_path):
    """In DAVIS' layout, twice the network's size; the masks are those of the clip, at the frames' size."""
    rgb = [cv2.imread(str(path)) for path in sorted((CLIPS / "demo" / "frames").iterdir())[:4]]
    masks = np.load(CLIPS / "demo" / "ground_truth.npz")["masks"][:4]
    for name, folder, images in (("JPEGImages", ".jpg", rgb), ("Annotations", ".png", 255 * masks.astype(np.uint8))):
        for sequence in "abc":
            (tmp_path / name / "480p" / sequence).mkdir(parents=True)
            for t, image in enumerate(images):
                large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
                cv2.imwrite(str(tmp_path / name / "480p" / sequence / f"{t:05d}{folder}"), large)
    _, (sample, *_) = next(iter(of_data_set("davis", tmp_path, (1, 1, 1), e3r.load_model("embedded").config, 3)))
    assert sample.name == "a" and sample.still is None
    np.testing.assert_array_equal(sample.moving.truth.masks, masks[:3])
    output, source = tmp_path / "out.json", ("--dataset=davis", f"--data_root={tmp_path}")
    assert execute(*QUICK, *source, "--statistics=attention", f"--output={output}") == 0
    printed = capsys.readouterr().out
    (row,) = (line.split() for line in printed.splitlines() if line.strip().startswith("read-out  "))
    assert row[2] == row[6] == "–" and row[3] == row[4]  # AUC and marked of the twin; IoU and joint IoU
    written = e3r.load_readout(output)
    assert written.origin.startswith("experiments.calibrate: 1 clips (davis), twins' weight 0,")
    assert written.moments == ATTENTION_MOMENTS


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dataset=davis",), "--dataset and --data_root belong together"),
        (("--dataset=davis", "--data_root=x", "--clips=y"), "--clips and --dataset: give one of them"),
        (("--dataset=dvais", "--data_root=x"), "Unknown data set 'dvais'"),
        (("--dataset=davis", "--data_root=nowhere"), "nowhere"),
    ],
)
def test_data_sets_that_are_not_there_are_refused(flags, words, capsys, tmp_path):
    assert execute(*SMALL, f"--output={tmp_path / 'out.json'}", *flags) == 1
    errors = capsys.readouterr().err
    assert words in errors and len(errors.strip().splitlines()) == 1


def test_clips_in_which_nothing_moves_are_refused(capsys, tmp_path, monkeypatch):
    still = StudyClip(None, GroundTruth(masks=np.zeros((3, 64, 96), bool)), None)
    monkeypatch.setattr(calibrate, "split", lambda model: [(1, iter([Sample("a", still, None)]))] * 3)
    monkeypatch.setattr(
        calibrate, "observed", lambda model, clip: calibrate.Seen(None, None, clip.truth.masks, None, (8, 12))
    )
    assert execute(*SMALL, f"--output={tmp_path / 'out.json'}") == 1
    assert "Nothing moves in the clips to fit" in capsys.readouterr().err


@pytest.mark.slow
def test_clips_of_a_folder_upright_ones_too(capsys, tmp_path):
    """Three clips: one to fit, one to choose, one to test; the last is upright."""
    for number in range(3):
        write_part(tmp_path / "clips" / f"c{number}", slice(3), upright=number == 2)
    output = tmp_path / "out.json"
    assert execute(*QUICK, f"--clips={tmp_path / 'clips'}", f"--output={output}") == 0
    assert "1 clips to fit, 1 to choose, 1 to test" in capsys.readouterr().out
    assert e3r.load_readout(output).num_layers == 4


@pytest.mark.slow
def test_rendered_clips(capsys, tmp_path):
    """Without --clips. The rendering: test_study.py, test_synthesize.py."""
    assert execute(*QUICK, f"--output={tmp_path / 'out.json'}") == 0
    assert "2 clips to fit, 1 to choose, 1 to test" in capsys.readouterr().out
    assert "2 clips (rendered, seed 1)" in e3r.load_readout(tmp_path / "out.json").origin
