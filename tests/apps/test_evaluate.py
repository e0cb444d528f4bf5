"""The evaluation program: what it saves, resumes, refuses to average, and prints.

For tests of its book-keeping, a stand-in that knows the ground truth replaces the networks.
"""

import csv
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.apps.evaluate import inputs, records
from easi3r_jax.apps.evaluate import main as program
from easi3r_jax.apps.evaluate.rendered import rendered_frames, rendered_set
from easi3r_jax.apps.evaluate.run import Method, evaluate
from easi3r_jax.apps.evaluate.schedule import Job, Part
from easi3r_jax.apps.run_folder import locked
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Reconstruction, Scene4D
from easi3r_jax.evaluation.datasets import TEST_SETS, Published, TestSequence, TestSet, Trajectory, Truth
from easi3r_jax.evaluation.metrics import DepthOptions
from easi3r_jax.inference import pipeline
from easi3r_jax.models import Precision
from easi3r_jax.synthetic import ClipConfig

H, W = 32, 48
LENGTHS = {"ant": 3, "bee": 5, "cat": 4}


def truth_of(num_frames):
    """A camera on an arc in front of a wavy wall; a moving square."""
    t = np.arange(num_frames, dtype=np.float64)
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    poses[:, :3, 3] = np.stack([t, t**2 / 4, 0 * t], 1)
    depth = 4 + np.sin(np.arange(W) / 5)[None] + np.zeros((H, 1))
    masks = np.zeros((num_frames, H, W), bool)
    for n in range(num_frames):
        masks[n, 8:20, 4 + 3 * n : 20 + 3 * n] = True
    intrinsics = np.tile(np.array([[40.0, 0, W / 2], [0, 40, H / 2], [0, 0, 1]]), (num_frames, 1, 1))
    return Truth(
        masks=lambda n: masks[n],
        depth=lambda n: depth.astype(np.float32),
        intrinsics=intrinsics,
        trajectory=Trajectory(t, poses),
    )


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A data set of three short sequences, one of which has no camera path; its folder."""
    root = tmp_path / "toys"
    for name, length in LENGTHS.items():
        (root / name).mkdir(parents=True)
        for n in range(length):
            Image.new("RGB", (W, H), (n, 0, 0)).save(root / name / f"{n}.png")

    def find(folder):
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}.")
        found = []
        for path in sorted(folder.iterdir()):
            images = tuple(sorted(path.iterdir()))
            truth = truth_of(len(images))
            if path.name == "cat":
                truth = Truth(masks=truth.masks, depth=truth.depth)
            found.append(TestSequence(path.name, images, np.arange(float(len(images))), truth, len(images)))
        return found

    paper = Published("A Paper", "masks", {"j_mean": 0.5, "davis_f_mean": 0.25}, "Table 1")
    toy = TestSet("toys", "Toys", ("masks", "poses", "depth"), find, "none", "", DepthOptions(), published=(paper,))
    monkeypatch.setitem(TEST_SETS, "toys", toy)
    return root


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces the networks; `stand_in.fails` names the sequences that fail, by number of frames."""
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(image_size=(H, W), patch_size=8), precision=Precision(), readout=None
    )
    state = types.SimpleNamespace(fails={}, seen=[], better=0.0)

    def clip(self, frames, seed, progress):
        length = len(frames.rgb)
        state.seen.append((length, seed))
        if length in state.fails:
            raise state.fails[length]
        truth = truth_of(length)
        depth = np.stack([truth.depth(n) for n in range(length)])
        wrong = np.random.default_rng(seed).uniform(0.6 + state.better / 4, 1.0, depth.shape)
        masks = np.stack([truth.masks(n) for n in range(length)])
        masks[:, :, ::2] &= state.better > 0
        scene = Scene4D(
            world_from_cam=jnp.asarray(truth.trajectory.world_from_cam, jnp.float32),
            intrinsics=jnp.asarray(truth.intrinsics, jnp.float32),
            depth=jnp.asarray(depth * wrong, jnp.float32),
            confidence=jnp.full(depth.shape, 2.0),
            dynamic_mask=jnp.asarray(masks),
            dynamic_score=jnp.zeros(depth.shape),
            static_mask=jnp.asarray(~masks),
            rgb=jnp.asarray(frames.rgb),
        )
        return Reconstruction(jax.tree.map(np.asarray, scene), frames, losses=np.zeros(0, np.float32))

    metadata = {"source_sha256": "5e", "source_name": "stand-in"}
    monkeypatch.setattr(inputs, "load_model_and_metadata", lambda *_, **__: (model, metadata))
    monkeypatch.setattr(Method, "clip", clip)
    return state


@pytest.fixture
def run(tmp_path, capsys, cache, monkeypatch):
    """`run("--seeds=2")` runs the program in this process: exit code, stdout and stderr."""
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(cache))

    def run(*arguments):
        output = (
            [] if any(a.startswith(("--output", "--compare")) for a in arguments) else [f"--output={tmp_path / 'out'}"]
        )
        code = program.FLAGS.execute(program.main, ["", *output, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_toys(run, toys, stand_in):
    return lambda *arguments: run("--dataset=toys", f"--data_root={toys}", *arguments)


@pytest.mark.slow
def test_rendered_clips_through_the_embedded_network(run, tmp_path):
    """A small real run; the second call has nothing to do."""
    quick = ("--dataset=synthetic", "--num_sequences=2", "--num_frames=3", "--graph=complete", "--kmeans_restarts=1")
    code, out, errors = run(*quick, "--iterations=3", "--seed=7")
    assert code == 0 and not errors, errors
    assert "2/2" in out and "compiled" in out and "INCOMPLETE" not in out
    found = records.read(tmp_path / "out")
    assert [r.sequence for r in found] == ["clip_7_00000", "clip_7_00001"]
    for r in found:
        assert set(r.metrics) == {"masks", "poses", "depth", "points"} and r.error is None
        assert 0 < r.metrics["depth"]["abs_rel"] < 1 and r.metrics["depth"]["pixels"] == 3 * 64 * 96
        assert r.metrics["points"]["distance"] > 0 and r.metrics["poses"]["poses"] == 3
        assert r.seconds > 0 and r.peak_memory_bytes["host"] > 1e7 and r.num_frames == 3
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| ours | 2/2 |" in report and "commit" in report and "a small network for trials" in report
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert float(rows[1]["depth.abs_rel"]) == found[1].metrics["depth"]["abs_rel"]

    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    code, out, _ = run(*quick, "--iterations=3", "--seed=7")
    assert code == 0 and "2 sequences, 0 to do" in out
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_a_line_says_how_long_xla_compiled(run_toys, stand_in, tmp_path, monkeypatch):
    known = Method.clip

    def clip(self, frames, seed, progress):
        if len(frames.rgb) == LENGTHS["bee"]:
            jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(np.ones((7, 7), np.float32))
        return known(self, frames, seed, progress)

    monkeypatch.setattr(Method, "clip", clip)
    stand_in.fails = {LENGTHS["ant"]: ValueError("bad")}
    run_toys()
    found = {record.sequence: record for record in records.read(tmp_path / "out")}
    assert 0 < found["bee"].compile_seconds <= found["bee"].seconds
    assert found["ant"].error and found["ant"].compile_seconds is None


def test_clips_are_rendered_at_the_size_of_the_network():
    config = FrameConfig(size=96, patch_size=24)
    _, (sequence,) = rendered_set(1, 3, ClipConfig(size=(64, 96), num_frames=3))
    frames = rendered_frames(sequence, config)
    assert frames.rgb.shape == (3, 48, 96, 3) and tuple(frames.source_size) == (64, 96)
    assert sequence.truth.depth(1).shape == (64, 96) and sequence.truth.masks(0).dtype == bool
    assert len(sequence.times) == 3 and sequence.truth.trajectory.world_from_cam.shape == (3, 4, 4)
    np.testing.assert_array_equal(frames.rgb, sequence.clip().views.rgb[:, 8:56])  # a centre crop, nothing else


def test_tables_have_the_papers_rows_and_count_by_task(run_toys, tmp_path):
    code, out, errors = run_toys()
    assert code == 0 and not errors
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| A Paper |  | 0.500 | - |" in report  # pooled
    assert "Table 1" in report and "| 0.250 |" in report
    assert "toys: poses  2/2" not in out and "2/2" in out and "3/3" in out  # only two have a camera path
    assert "INCOMPLETE" not in report
    assert "ours: with the weights stand-in" in out and "Ours: with the weights stand-in." in report


def test_a_failed_sequence_is_recorded_and_no_mean_is_shown(run_toys, stand_in, tmp_path):
    stand_in.fails = {5: InputError("Frame 3 is damaged:\ncopy it again."), 4: ZeroDivisionError()}
    code, out, errors = run_toys()
    assert code == 1 and len(errors.splitlines()) == 1 and "Failed: 2 of 3 sequences" in errors
    assert "FAILED: Frame 3 is damaged: copy it again." in out and "FAILED: ZeroDivisionError" in out
    assert "ours: INCOMPLETE  1/3" in out and "toys (depth) has 1 of 3 sequences" in out
    assert "ours: INCOMPLETE  1/2" in out  # of the two with a camera path
    log = (tmp_path / "out" / "errors.log").read_text()
    assert log.count("Traceback") == 2 and "toys bee, seed 0" in log
    report = (tmp_path / "out" / "report.md").read_text()
    assert "**INCOMPLETE**" in report and "| bee | toys | 0 | Frame 3 is damaged: copy it again. |" in report
    assert "| ours: INCOMPLETE | 1/3 | - |" in report

    code, out, errors = run_toys("--num_sequences=1")  # not one of those
    assert code == 0 and not errors and "INCOMPLETE" in out
    assert "| bee | toys | 0 | Frame 3 is damaged" in (tmp_path / "out" / "report.md").read_text()

    code, out, errors = run_toys("--allow_missing")  # they fail again, which is allowed
    assert code == 0 and not errors and stand_in.seen.count((3, 0)) == 1
    report = (tmp_path / "out" / "report.md").read_text()
    assert "not a result" in report and "| ours | 1/3 | 0.5" in report and "*" in report

    stand_in.fails = {}
    assert run_toys()[0] == 0
    assert stand_in.seen.count((3, 0)) == 1 and stand_in.seen.count((5, 0)) == 3
    assert "INCOMPLETE" not in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")]
)
def test_out_of_memory_loses_one_sequence(run_toys, stand_in, error):
    stand_in.fails = {5: error}
    code, out, _ = run_toys()
    assert code == 1 and "FAILED: Out of memory" in out and len(stand_in.seen) == 3


def test_an_interrupted_run_resumes(run_toys, stand_in, tmp_path):
    """The longest comes first; complete sequences are not repeated, even if the next line was truncated."""
    stand_in.fails = {4: KeyboardInterrupt()}
    code, _, errors = run_toys()
    assert code == 130 and errors.splitlines() == ["error: Interrupted. Nothing half-written was left behind."]
    assert [n for n, _ in stand_in.seen] == [5, 4]
    lines = tmp_path / "out" / "results.jsonl"
    with lines.open("a") as file:
        file.write(lines.read_text()[:40])
    stand_in.fails = {}
    assert run_toys()[0] == 0
    assert [n for n, _ in stand_in.seen] == [5, 4, 4, 3]
    assert [r.sequence for r in records.read(tmp_path / "out")] == ["bee", "cat", "ant"]
    code, out, _ = run_toys()
    assert code == 0 and "0 to do" in out and len(stand_in.seen) == 4


def test_options_that_change_results_start_over_and_others_do_not(run_toys, stand_in, toys):
    run_toys()
    for same in ("--pair_batch=4", "--frame_batch=2", "--nocompilation_cache"):
        assert "0 to do" in run_toys(same)[1]
    for number, other in enumerate(("--iterations=9", "--motion=none", "--nocrop", "--seed=1", "--mask_dilation=2")):
        assert "3 to do" in run_toys(other)[1], other
        assert len(stand_in.seen) == 6 + 3 * number
    Image.new("RGB", (W, H)).save(toys / "ant" / "9.png")  # the data set grows
    assert "1 to do" in run_toys()[1]


def test_seeds_give_a_deviation(run_toys, stand_in, tmp_path):
    assert run_toys()[0] == 0
    code, out, _ = run_toys("--seeds=3")
    assert code == 0 and "9 sequences, 6 to do" in out and "seed 2" in out
    assert sorted(stand_in.seen) == sorted((n, seed) for n in LENGTHS.values() for seed in range(3))
    report = (tmp_path / "out" / "report.md").read_text()
    assert "standard deviation over 3 seeds" in report and " ± 0.0" in report


def test_the_first_sequences_are_not_a_result_of_the_data_set(run_toys, stand_in, tmp_path):
    code, out, errors = run_toys("--num_sequences=1")
    assert code == 0 and not errors and len(stand_in.seen) == 1  # nothing failed
    assert "INCOMPLETE" in out and "| ours: INCOMPLETE | 1/3 |" in (tmp_path / "out" / "report.md").read_text()


def test_results_are_saved_if_requested(run_toys, stand_in, tmp_path):
    run_toys("--num_sequences=1")
    code, out, errors = run_toys("--num_sequences=1", "--save=results")
    assert code == 0 and "1 to do" in out, errors  # the metrics exist, the result does not
    (scene,) = (tmp_path / "out" / "results").rglob("scene.npz")
    assert scene.parts[-4:-1] == ("toys", "ant", "seed_0")
    assert json.loads((scene.parent / "config.json").read_text())["configuration"]["dataset"] == "toys"
    assert "0 to do" in run_toys("--num_sequences=1", "--save=results")[1]


def test_runs_are_compared_sequence_by_sequence(run_toys, stand_in, run, tmp_path):
    run_toys(f"--output={tmp_path / 'a'}")
    stand_in.better = 0.8
    run_toys(f"--output={tmp_path / 'b'}")
    code, out, errors = run("--compare", tmp_path / "a", tmp_path / "b")
    assert code == 0 and not errors
    (line,) = [line for line in out.splitlines() if "toys masks pooled_j_mean" in line]
    assert line.split()[3:] == ["3", "0.5000", "1.0000", "+0.5000", "-"]
    assert run(f"--compare={tmp_path / 'a'},{tmp_path / 'b'}")[1] == out
    code, _, errors = run("--compare", tmp_path / "a")
    assert code == 1 and "two folders" in errors
    code, _, errors = run("--compare", tmp_path / "a", tmp_path / "nothing")
    assert code == 1 and "no results" in errors
    assert "Unexpected argument" in run("word")[2]


def test_a_folder_has_one_run_at_a_time(run_toys, stand_in, tmp_path):
    run_toys("--num_sequences=1")
    with locked(tmp_path / "out", busy="", name="run.lock"):
        code, _, errors = run_toys()
    assert code == 1 and len(errors.splitlines()) == 1 and "in use: another evaluation" in errors
    assert len(stand_in.seen) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--dataset=davos",), "Unknown data set 'davos': choose one or more of .*toys, synthetic"),
        (("--dataset=",), "--dataset is required"),
        (("--dataset=toys,toys",), "twice"),
        (("--dataset=toys",), "--data_root=FOLDER is required for toys"),
        (("--dataset=toys", "--data_root=a,b"), "names 2 folders for 1"),
        (("--dataset=toys", "--data_root=nowhere"), "There is no folder nowhere"),
        (("--dataset=synthetic", "--data_root=x"), "needs no data"),
        (("--dataset=toys", "--num_frames=5"), "applies to synthetic only"),
        (("--dataset=synthetic", "--masks=given/"), "some of motion and flow"),
        (("--dataset=synthetic", "--masks=flow", "--flow=none"), "needs optical flow"),
        (("--dataset=synthetic", "--flow=flows/"), "raft-small or none"),
        (("--dataset=synthetic", "--graph=star"), "star"),
    ],
)
def test_bad_input_is_one_line(run, toys, stand_in, tmp_path, arguments, says):
    code, _, errors = run(*arguments)
    assert code == 1 and len(errors.splitlines()) == 1
    assert re.search(says, errors), errors
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_sequences_without_ground_truth(run, toys, stand_in, tmp_path):
    """They are reconstructed if results are saved; otherwise they are an error."""
    arguments = ("--dataset=custom", f"--data_root={toys}")
    code, _, errors = run(*arguments)
    assert code == 1 and len(errors.splitlines()) == 1 and "no ground truth" in errors and str(toys) in errors
    assert not stand_in.seen and not (tmp_path / "out").exists()
    code, out, errors = run(*arguments, "--save=results")
    assert code == 0 and not errors and out.count("no ground truth") == 3
    assert len(list((tmp_path / "out").rglob("scene.npz"))) == 3


def test_a_foreign_folder_is_left_unchanged(run_toys, stand_in, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, _, errors = run_toys()
    assert code == 1 and "not empty" in errors and not stand_in.seen


def test_single_frames_are_reconstructed_alone(toys, stand_in, monkeypatch):
    """Each is its own clip, without a motion cue; metrics are over all of them."""
    calls = []

    def reconstruct(model, frames, config):
        calls.append((len(frames.rgb), config.cue, config.masks))
        return Method.clip(None, frames, 0, None)

    monkeypatch.setattr(pipeline, "reconstruct", reconstruct)
    whole = TEST_SETS["toys"]
    alone = TestSet("toys", "Toys", ("depth",), whole.find, "", "", DepthOptions("median", per_frame=True), True)
    sequence = alone.find(toys)[1]
    method = Method(None, FrameConfig(size=W, patch_size=8), inputs.METHOD.pipeline_config(0))
    found = evaluate(Job(Part.of(alone, [sequence], 0, {}), sequence, 0), method, None, lambda *_: None)
    assert calls == [(1, "none", ())] * 5
    assert found["metrics"]["depth"]["pixels"] == 5 * H * W and set(found["metrics"]) == {"depth"}
