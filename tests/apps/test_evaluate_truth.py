"""The evaluation program on ground truth that contradicts itself, and on predictions that fail quietly.

A stand-in replaces the networks: its camera path and depth are chosen by each test.
"""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.apps.evaluate import inputs
from easi3r_jax.apps.evaluate.run import Method
from easi3r_jax.core.types import Reconstruction, Scene4D
from easi3r_jax.models import Precision

H, W = 32, 48


def arc(num_frames):
    """(T, 4, 4) a camera that moves."""
    t = np.arange(num_frames, dtype=np.float64)
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    poses[:, :3, 3] = np.stack([t, t**2 / 4, np.sin(t)], 1)
    return poses


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces the networks. `stand_in.paths`: camera paths by number of frames, if not the true one."""
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(image_size=(H, W), patch_size=8), precision=Precision(), readout=None
    )
    state = types.SimpleNamespace(paths={})

    def clip(self, frames, seed, progress):
        length, shape = len(frames.rgb), frames.rgb.shape[:3]
        scene = Scene4D(
            world_from_cam=jnp.asarray(state.paths.get(length, arc(length)), jnp.float32),
            intrinsics=jnp.tile(jnp.array([[40.0, 0, W / 2], [0, 40, H / 2], [0, 0, 1]]), (length, 1, 1)),
            depth=jnp.full(shape, 2.0) + 0.1 * seed,
            confidence=jnp.full(shape, 2.0),
            dynamic_mask=jnp.zeros(shape, bool),
            dynamic_score=jnp.zeros(shape),
            static_mask=jnp.ones(shape, bool),
            rgb=jnp.asarray(frames.rgb),
        )
        return Reconstruction(jax.tree.map(np.asarray, scene), frames, losses=np.zeros(0, np.float32))

    metadata = {"source_sha256": "5e", "source_name": "stand-in"}
    monkeypatch.setattr(inputs, "load_model_and_metadata", lambda *_, **__: (model, metadata))
    monkeypatch.setattr(Method, "clip", clip)
    return state


def write_frames(folder, names):
    folder.mkdir(parents=True)
    for n, name in enumerate(names):
        Image.new("RGB", (W, H), (n, 0, 0)).save(folder / f"{name}.png")


def write_clip(folder, num_frames, **truth):
    """A clip folder of the data set `custom`."""
    write_frames(folder / "frames", [f"{n:03}" for n in range(num_frames)])
    np.savez(folder / "ground_truth.npz", **truth)


def evaluate(here, tmp_path, dataset, root, *flags):
    """The program, on a data set; its output folder is `run`."""
    return here("evaluate", f"--dataset={dataset}", f"--data_root={root}", f"--output={tmp_path / 'run'}", *flags)


def recorded(tmp_path):
    """Metrics by sequence."""
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    return {entry["sequence"]: entry["metrics"] for entry in map(json.loads, lines)}


def test_a_frozen_camera_does_not_improve_the_mean(here, stand_in, tmp_path):
    """Two sequences whose camera moves; the prediction of one stands still."""
    root = tmp_path / "clips"
    for name, length in (("good", 6), ("frozen", 9)):
        write_clip(root / name, length, world_from_cam=arc(length))
    stand_in.paths[9] = np.tile(np.eye(4), (9, 1, 1))
    done = evaluate(here, tmp_path, "custom", root)
    assert done.returncode == 0, done.stderr
    found = recorded(tmp_path)
    centres = arc(9)[:, :3, 3]
    spread = float(np.sqrt(np.square(centres - centres.mean(0)).sum(1).mean()))
    assert found["frozen"]["poses"]["ate"] == pytest.approx(spread, rel=1e-6)
    assert found["good"]["poses"]["ate"] < 1e-5
    assert f"{spread / 2:.4f}" in done.stdout and "undefined" not in done.stdout


def test_a_still_truth_is_undefined_and_said(here, stand_in, tmp_path):
    root = tmp_path / "clips"
    write_clip(root / "good", 6, world_from_cam=arc(6))
    write_clip(root / "still", 9, world_from_cam=np.tile(np.eye(4), (9, 1, 1)))
    done = evaluate(here, tmp_path, "custom", root)
    assert done.returncode == 0, done.stderr
    assert recorded(tmp_path)["still"]["poses"]["ate"] is None
    assert "(1 undefined)" in done.stdout


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGB", "RGBA"])
def test_masks_of_every_mode_say_the_same(here, stand_in, tmp_path, mode):
    """DAVIS: what a mask says does not depend on how its file stores it. The stand-in finds nothing: J is 0."""
    root = tmp_path / "DAVIS"
    write_frames(root / "JPEGImages/480p/bear", ["00000", "00001", "00002"])
    (root / "Annotations/480p/bear").mkdir(parents=True)
    for n in range(3):
        values = np.zeros((H, W), np.uint8)
        values[8:20, 4 + n : 20 + n] = 1 if mode in ("P", "PA") else 255
        image = Image.fromarray(values)
        if mode in ("P", "PA"):
            image = Image.frombytes("P", (W, H), values.tobytes())
            image.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
        path = root / f"Annotations/480p/bear/{n:05}.png"
        image.convert(mode).save(path, **({"format": "TIFF"} if mode == "PA" else {}))  # PNG has no such mode
    done = evaluate(here, tmp_path, "davis", root, "--allow_missing")
    assert done.returncode == 0, done.stderr
    metrics = recorded(tmp_path)["bear"]["masks"]
    assert metrics["pooled_j_mean"] == 0 and metrics["pooled_frames"] == 3


# --- ground truth that contradicts itself ---------------------------------------------------------------------------

START, FRAMES = 1341846313.5, 12


def tum_text(rows):
    lines = [f"{t:.6f} {x:.6f} {y:.6f} {z:.6f} 0 0 0 1" for t, x, y, z in rows]
    return "# timestamp tx ty tz qx qy qz qw\n" + "\n".join(lines) + "\n"


def one_path():
    """Rows of a path at ten times the frames' rate."""
    times = START + np.arange(-10, 10 * FRAMES + 10) / 300
    return [(t, 3 * (t - START), np.sin(4 * (t - START)), 0.1) for t in times]


def another_path():
    """Another camera's rows, at the times between."""
    return [(t + 1 / 600, 50.0, -40 * (t - START), 30.0) for t, *_ in one_path()]


def recording(tmp_path, rows):
    """A sequence of TUM RGB-D as published."""
    folder = tmp_path / "rgbd_dataset_freiburg3_walking_xyz"
    write_frames(folder / "rgb", [f"{START + n / 30:.6f}" for n in range(FRAMES)])
    (folder / "groundtruth.txt").write_text(tum_text(rows))
    return folder


def merged(one, other):
    return [row for pair in zip(one, other, strict=True) for row in pair]


def twice(rows):
    """One time with two poses."""
    (t, x, *rest) = rows[40]
    return [*rows[:41], (t, x + 3, *rest), *rows[41:]]


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        (one_path() + another_path(), len(one_path()) + 2, "a second trajectory begins"),
        (merged(one_path(), another_path()), 2, "two trajectories"),
        (twice(one_path()), 43, "another pose at the time"),
        (one_path()[::-1], 3, "another order"),
    ],
    ids=["one after the other", "line by line", "a time twice", "backwards"],
)
def test_contradictory_trajectories_are_refused_with_the_line(here, stand_in, tmp_path, rows, line, says):
    done = evaluate(here, tmp_path, "tum", recording(tmp_path, rows))
    assert done.returncode == 1
    assert f"groundtruth.txt, line {line}" in done.stderr.lower() or f"line {line}" in done.stderr
    assert "groundtruth.txt" in done.stderr and says in done.stderr.lower()
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_good_trajectory_and_one_with_a_line_twice_are_evaluated(here, stand_in, tmp_path):
    rows = one_path()
    done = evaluate(here, tmp_path, "tum", recording(tmp_path, [*rows[:41], *rows[40:]]))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", ["kept", "changed"])
def test_a_file_with_a_pose_a_frame_keeps_its_order_or_is_refused(here, stand_in, tmp_path, order):
    """As prepared for MonST3R: frame n belongs to line n."""
    folder = tmp_path / "rgbd_dataset_freiburg3_walking_xyz"
    write_frames(folder / "rgb_90", [f"{n:03}" for n in range(FRAMES)])
    rows = [(START + n / 30, *arc(FRAMES)[n, :3, 3]) for n in range(FRAMES)]
    if order == "changed":
        rows[3], rows[8] = rows[8], rows[3]
    (folder / "groundtruth_90.txt").write_text(tum_text(rows))
    done = evaluate(here, tmp_path, "tum", folder)
    if order == "kept":
        assert done.returncode == 0, done.stderr
        assert recorded(tmp_path)[folder.name]["poses"]["ate"] < 1e-5
    else:
        assert done.returncode == 1 and "groundtruth_90.txt" in done.stderr and "line 6" in done.stderr


# --- comparisons -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(here, stand_in, tmp_path):
    """Run a: four clips, one of which moves. Run b: two of these, two others, and two seeds."""
    for root, names in (("a", "pqrs"), ("b", "rstu")):
        for name in names:
            path = arc(4) if name == "r" else np.tile(np.eye(4), (4, 1, 1))
            write_clip(tmp_path / root / name, 4, world_from_cam=path, depth=np.ones((4, H, W), np.float32))
    for root, flags in (("a", []), ("b", ["--seeds=2"])):
        done = evaluate(here, tmp_path, "custom", tmp_path / root, *flags)
        assert done.returncode == 0, done.stderr
        (tmp_path / "run").rename(tmp_path / f"run_{root}")
    return tmp_path / "run_a", tmp_path / "run_b"


def compared(here, runs):
    done = here("evaluate", "--compare", *map(str, runs))
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.lstrip().startswith("custom ")]
    return done.stdout, {line.split()[2]: " ".join(line.split()[3:]) for line in rows}


def test_a_comparison_says_what_it_leaves_out(here, two_runs):
    out, rows = compared(here, two_runs)
    assert "custom: 2 of 4 and 4 sequences, left out: not in B: p, q; not in A: t, u." in out
    assert "custom: other seeds in 2 of 2 sequences, r (A: 0; B: 0, 1), s (A: 0; B: 0, 1)" in out
    assert rows["abs_rel"].startswith("2 of 4 and 4 ")
    assert rows["ate"].startswith("1 of 4 and 4 (undefined: 1 in both) ")


def test_a_comparison_counts_what_is_undefined_on_one_side_and_what_is_not_finite(here, two_runs):
    path = two_runs[0] / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in lines:
        if entry["sequence"] == "r":
            entry["metrics"]["depth"]["abs_rel"] = None
    text = "".join(json.dumps(entry) + "\n" for entry in lines)
    path.write_text(text)
    _, rows = compared(here, two_runs)
    assert rows["abs_rel"].startswith("1 of 4 and 4 (undefined: 1 in A) ")
    for wrong in ("NaN", "1e999"):
        path.write_text(text.replace('"abs_rel": null', f'"abs_rel": {wrong}'))
        out, rows = compared(here, two_runs)
        assert "A: results.jsonl, line 3 is not a valid record, and is left out." in out
        assert "left out: not in B: p, q; not in A: r, t, u." in out
        assert rows["abs_rel"].startswith("1 of 3 and 4 ") and "nan" not in out.lower().replace("a valid", "")


def test_equal_runs_are_compared_without_a_note(here, two_runs):
    out, rows = compared(here, (two_runs[1], two_runs[1]))
    assert rows["abs_rel"].startswith("4 ") and "left out" not in out and "seeds" not in out
