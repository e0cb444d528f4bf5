"""Windows and feed-forward mode from the command line."""

import numpy as np
import pytest

from easi3r_jax.apps import given
from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.errors import OutputError
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export, results

QUICK = {"first": 5, "graph": "complete", "iterations": 30, "compare_plain": False, "flow": "none"}
#: Frames 0..2 and 2..4.
WINDOWS = {"window": 3, "overlap": 1}


@pytest.fixture
def run(reconstruct_here):
    return lambda **values: reconstruct_here(**{**QUICK, **values})


AS_THEY_COME = {"mode": "feedforward", "graph": PipelineConfig().graph, "iterations": AlignConfig().iterations}


def test_frames_are_placed_as_they_come(run, tmp_path):
    code, out, errors = run(**AS_THEY_COME)
    assert code == 0 and not errors, errors
    assert "frames per second" in out and "frame by frame" in out and "IoU" not in out
    scene = export.load_scene(tmp_path / "out")
    assert all(np.isfinite(value).all() for value in vars(scene).values())
    assert scene.depth.shape == (5, 64, 96) and not scene.dynamic_mask.any() and scene.static_mask.all()


@pytest.mark.parametrize(
    "flags",
    [
        {"masks": "flow"},
        {"poses": "p.txt"},
        {"window": 20},
        {"flow": "flows/"},
        {"iterations": 5},
        {"motion": "rigid"},
        {"camera_weight": 1.0},
        {"refine": "sam2"},
    ],
)
def test_feedforward_mode_reports_unused_options(run, flags, tmp_path):
    code, _, errors = run(**{**AS_THEY_COME, **flags})
    assert code == 1 and f"does not use --{next(iter(flags))}=" in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [{"overlap": 3}, {"window": 5, "overlap": 2, "save_flow": True}])
def test_options_that_would_do_nothing_are_refused(run, flags, tmp_path):
    code, _, errors = run(**flags)
    assert code == 1 and f"--{list(flags)[-1]}" in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_flow_files_of_all_windows_are_checked_before_the_first(run, tmp_path):
    """Windows of frames 0..4 and 2..6; only a pair of the second one has no file."""
    edges = {(i, j) for first in (0, 2) for i, j in (first + pipeline.clip_edges(5, "complete")).tolist()}
    edges = np.array(sorted(edges - {(6, 5)}), np.int32)
    export.write_flow(tmp_path / "flow", np.zeros((len(edges), 64, 96, 2), np.float32), edges)
    code, _, errors = run(first=7, window=5, overlap=3, flow=tmp_path / "flow")
    assert code == 1 and "lacks the flow of 1 of" in errors and "00006_00005" in errors
    assert len(errors.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_windows_resume(run, tmp_path, monkeypatch):
    """The second call reconstructs only the window that the first one did not reach, and gives the same scene."""
    done = []
    reconstruct_one = pipeline.reconstruct

    def counted(model, frames, *args, **options):
        done.append(int(frames.source_index[0]))
        if failing and len(done) == 2:
            raise KeyboardInterrupt
        return reconstruct_one(model, frames, *args, **options)

    monkeypatch.setattr(pipeline, "reconstruct", counted)
    flags = {"first": 5, "window": 3, "overlap": 1, "iterations": 5}
    failing = False
    assert run(**flags)[0] == 0
    assert done == [0, 2]
    whole = export.load_scene(tmp_path / "out")
    assert whole.depth.shape == (5, 64, 96)
    assert np.ptp(whole.intrinsics[:, 0, 0]) < 1e-3  # one focal length for the clip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing is left of the windows

    done.clear()
    failing = True
    code, _, errors = run(**flags)
    assert code == 130 and "Interrupted" in errors
    assert (tmp_path / ".out.windows" / "window_0000.npz").is_file()
    failing = False
    done.clear()
    assert run(**flags)[0] == 0
    assert done == [2]
    assert not (tmp_path / ".out.windows").exists()
    again = export.load_scene(tmp_path / "out")
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)


@pytest.fixture
def planted(run, tmp_path, monkeypatch):
    """`planted(...)`: whether a window that an earlier call kept is still there for a call with these flags."""

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "reconstruct", stop)
    folder = tmp_path / ".out.windows"

    def planted(**flags):
        assert run(**WINDOWS, **flags)[0] == 130
        kept = (folder / "window_0000.npz").exists()
        (folder / "window_0000.npz").write_bytes(b"not whole")  # and so not taken
        return kept

    return planted


def test_windows_are_kept_for_the_same_question_only(planted, tmp_path):
    poses = tmp_path / "poses.txt"
    poses.write_text("".join(f"{t} {0.1 * t} 0 0 0 0 0 1\n" for t in range(5)))
    assert [planted(poses=poses), planted(poses=poses)] == [False, True]
    poses.write_text("".join(f"{t} {0.2 * t} 0 0 0 0 0 1\n" for t in range(5)))
    assert [planted(poses=poses), planted(poses=poses)] == [False, True]  # the file's name is the same
    assert planted(poses=poses, cloud_points=1000)  # nothing that the windows depend on
    assert not planted(poses=poses, seed=1)


def test_windows_have_the_refiner_and_depend_on_its_weights(planted, monkeypatch):
    class Refiner:
        def __init__(self, checkpoint, *, progress):
            self.metadata = {"source_sha256": checkpoint}

    seen = []

    def stop(*args, refiner, **options):
        seen.append(refiner)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "reconstruct", stop)
    monkeypatch.setattr(given.sam2, "Sam2Refiner", Refiner)
    assert not planted()
    assert [planted(refine="sam2"), planted(refine="sam2")] == [False, True]
    assert not planted(refine="sam2", refine_checkpoint="other/")
    assert not planted()
    assert [isinstance(refiner, Refiner) for refiner in seen] == [False, True, True, True, False]


def test_windows_outlive_a_failure_to_write(run, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OutputError("No space left.")

    monkeypatch.setattr(results, "save_result", full)
    code, _, errors = run(**WINDOWS)
    assert code == 1 and "No space left" in errors
    assert len(list((tmp_path / ".out.windows").glob("window_*.npz"))) == 2


def test_windows_shorter_than_their_overlap_are_refused(run, tmp_path):
    code, _, errors = run(first=7, window=5, overlap=5)
    assert code == 1 and "overlap by 1 to 4 frames, got 5" in errors
    assert not list(tmp_path.iterdir())
