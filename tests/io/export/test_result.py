"""The complete result folder."""

import errno
import json
import os

import jax
import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError, OutputError
from easi3r_jax.io import results
from easi3r_jax.io.export import load_scene
from tests.results import write_result

FILES = {
    "scene.npz", "trajectory.txt", "intrinsics.txt", "depth", "masks", "scene.glb", "scene.ply", "summary.png",
    "config.json",
}  # fmt: skip


@pytest.fixture
def write(scene, frames, tmp_path):
    def write(**arguments):
        return write_result(tmp_path / "result", scene, **({"frames": frames, "config": {}} | arguments))

    return write


def test_writes_everything(scene, motion, write, tmp_path):
    folder = write(motion=motion, config={"seed": 3}, metrics={"ate": np.float32(0.5), "iou": None})
    assert folder == (tmp_path / "result").resolve()
    assert set(os.listdir(folder)) == FILES | {"metrics.json"}
    assert json.loads((folder / "config.json").read_text()) == {"seed": 3}
    assert json.loads((folder / "metrics.json").read_text()) == {"ate": 0.5, "iou": None}
    np.testing.assert_array_equal(load_scene(folder).depth, scene.depth)
    assert os.listdir(tmp_path) == ["result"]


def test_takes_device_arrays(scene, frames, tmp_path):
    on_device = jax.tree.map(jax.numpy.asarray, scene)
    folder = write_result(tmp_path / "r", on_device, frames=frames, config={})
    assert set(os.listdir(folder)) == FILES


def test_takes_arrays_in_any_order_of_memory(scene, frames, tmp_path):
    column_by_column = jax.tree.map(np.asfortranarray, scene)
    folder = write_result(tmp_path / "r", column_by_column, frames=frames, config={})
    np.testing.assert_array_equal(load_scene(folder).depth, scene.depth)


def test_same_result_same_bytes(write):
    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    first = content(write())
    assert content(write()) == first


def test_a_second_result_replaces_the_first_completely(write):
    write(metrics={"ate": 1.0})
    assert set(os.listdir(write())) == FILES  # no metrics left over from another run


@pytest.mark.parametrize("broken", ["write_depth", "write_glb", "write_summary", "write_scene"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_in_the_middle_keeps_the_older_result(write, tmp_path, monkeypatch, broken, error):
    folder = write(config={"run": 1})
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}

    def fail(path, *arguments, **options):
        raise error

    monkeypatch.setattr(results.npz if broken == "write_scene" else results, broken, fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write(config={"run": 2})
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize("frame", [3, -1, "x", "1.5"])
def test_a_foreground_that_is_not_a_frame_is_refused_before_anything_is_written(write, tmp_path, frame):
    with pytest.raises(ConfigError, match="frame number from 0 to 2"):
        write(foreground=frame)
    assert os.listdir(tmp_path) == []


def test_progress_counts_the_files(write):
    seen = []
    write(progress=lambda *step: seen.append(step))
    stages, done, totals, names = zip(*seen, strict=True)
    assert set(stages) == {"write"}
    assert list(done) == list(range(totals[0] + 1))
    assert set(totals) == {totals[0]}
    assert {"depth", "scene.glb", "summary.png"} < set(names)


def test_ensure_writable_knows_earlier_results(write, tmp_path):
    results.ensure_writable(write())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"no scene\.npz in it"):
        results.ensure_writable(tmp_path / "other")
