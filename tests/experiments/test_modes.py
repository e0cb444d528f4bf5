"""Windows and feed-forward mode from the command line."""

import pathlib
import shutil

import numpy as np
import pytest

from easi3r_jax import export, pipeline
from experiments import reconstruct

QUICK = {"first": 7, "graph": "complete", "iterations": 30, "compare_plain": False, "flow": "none"}


@pytest.fixture
def run(tmp_path, capsys):
    def run(**values):
        values = {**QUICK, "output": str(tmp_path / "out"), **values}
        code = reconstruct.FLAGS.execute(reconstruct.main, ["", *(f"--{k}={v}" for k, v in values.items())])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_frames_are_placed_as_they_come(run, tmp_path):
    code, out, errors = run(mode="feedforward")
    assert code == 0 and not errors, errors
    assert "frames a second" in out
    scene = export.load_scene(tmp_path / "out")
    assert all(np.isfinite(value).all() for value in vars(scene).values())
    assert scene.depth.shape == (7, 64, 96) and not scene.dynamic_mask.any() and scene.static_mask.all()


@pytest.mark.parametrize("flags", [{"masks": "motion"}, {"poses": "p.txt"}, {"window": 5}])
def test_feedforward_mode_says_what_it_has_no_use_for(run, flags, tmp_path):
    code, _, errors = run(mode="feedforward", **flags)
    assert code == 1 and next(iter(flags)) in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_windows_go_on_where_they_stopped(run, tmp_path, monkeypatch):
    """The second call reconstructs only the window that the first one did not reach, and gives the same scene."""
    done = []
    reconstruct_one = pipeline.reconstruct

    def counted(model, frames, *args, **options):
        done.append(int(frames.source_index[0]))
        if failing and len(done) == 2:
            raise KeyboardInterrupt
        return reconstruct_one(model, frames, *args, **options)

    monkeypatch.setattr(pipeline, "reconstruct", counted)
    flags = {"window": 5, "overlap": 2}
    failing = False
    assert run(**flags)[0] == 0
    assert done == [0, 2]
    whole = export.load_scene(tmp_path / "out")
    assert whole.depth.shape == (7, 64, 96)
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
    again = export.load_scene(tmp_path / "out")
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)


def test_other_options_begin_anew(run, tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    first = pathlib.Path(tmp_path / ".out.windows")
    first.mkdir()
    (first / "key.json").write_text("{}")
    shutil.copy(__file__, first / "window_0000.npz")
    monkeypatch.setattr(pipeline, "reconstruct", stop)
    assert run(window=5, overlap=2)[0] == 130
    assert [path.name for path in first.iterdir()] == ["key.json"]


def test_windows_shorter_than_their_overlap_are_refused(run, tmp_path):
    code, _, errors = run(window=5, overlap=5)
    assert code == 1 and "overlap by 1 to 4 frames, got 5" in errors
    assert not list(tmp_path.iterdir())
