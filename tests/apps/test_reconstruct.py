"""`python -m experiments.reconstruct`, from the command line to the files."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pycolmap
import pytest
import trimesh

from easi3r_jax.io import export, results
from easi3r_jax.io.priors.text import read_trajectory

NUM = 3
SHORT = (f"--first={NUM}", "--graph=complete", "--iterations=20")
FILES = {
    *("scene.npz", "trajectory.txt", "intrinsics.txt", "depth", "masks", "scene.glb", "scene.ply"),
    *("summary.png", "config.json", "timings.json", "metrics.json"),
}
PICTURES = {
    *("report.html", "pictures.json", "panel.mp4", "depth.mp4", "masks.mp4", "attention.mp4", "overview.jpg"),
    *("contact_image.jpg", "contact_depth.jpg", "contact_masks.jpg"),
    *("plot_losses.png", "plot_trajectory.png", "plot_score.png"),
}


@pytest.fixture(scope="module")
def demo(command, tmp_path_factory):
    """The bundled clip's first frames, reconstructed: the command's output and the result's folder."""
    folder = tmp_path_factory.mktemp("demo") / "result"
    done = command(
        "reconstruct", "--seq=demo", *SHORT, f"--output={folder}", "--export=colmap,easi3r", "--videos", "--report"
    )
    assert done.returncode == 0, done.stderr
    return done, folder


def test_the_result_folder_holds_everything(demo):
    done, folder = demo
    assert {p.name for p in folder.iterdir()} == FILES | PICTURES | {"exports"}
    assert [p.name for p in folder.parent.iterdir()] == ["result"]
    assert done.stderr == ""
    assert str(folder) in done.stdout


def test_the_scene_is_complete_and_plausible(demo):
    scene = export.load_scene(demo[1] / "scene.npz")
    assert scene.depth.shape == scene.confidence.shape == scene.dynamic_mask.shape == (NUM, 64, 96)
    assert scene.world_from_cam.shape == (NUM, 4, 4)
    assert scene.intrinsics.shape == (NUM, 3, 3)
    for value in vars(scene).values():
        assert np.isfinite(value).all()
    assert (scene.depth > 0).all()
    rotations = scene.world_from_cam[:, :3, :3]
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), np.broadcast_to(np.eye(3), (NUM, 3, 3)), atol=1e-5)
    # One focal length for the clip, by default.
    assert np.unique(scene.intrinsics[:, 0, 0]).size == 1


def test_the_files_agree_with_the_scene(demo):
    folder = demo[1]
    scene = export.load_scene(folder / "scene.npz")
    _, world_from_cam, _ = read_trajectory(folder / "trajectory.txt")
    np.testing.assert_allclose(world_from_cam, scene.world_from_cam, atol=1e-5)
    assert len(list((folder / "masks").glob("*.png"))) == NUM
    mask = cv2.imread(str(sorted((folder / "masks").glob("*.png"))[2]), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(mask > 0, scene.dynamic_mask[2])
    assert trimesh.load(folder / "scene.glb").geometry
    assert cv2.imread(str(folder / "summary.png")).shape[2] == 3


def test_exports_are_in_the_result_and_agree_with_it(demo):
    done, folder = demo
    saved = results.load_result(folder)
    read = pycolmap.Reconstruction(folder / "exports" / "colmap" / "sparse" / "0")
    assert len(read.images) == NUM and len(read.points3D) > 1000
    assert f"colmap: {folder / 'exports' / 'colmap'}, " in done.stdout
    for t, image in enumerate(sorted(read.images.values(), key=lambda image: image.name)):
        assert image.name == saved.frames.names[t]
        ray = np.linalg.inv(saved.frames.original_intrinsics(saved.scene.intrinsics)[t]) @ [10, 20, 1]
        pose = saved.scene.world_from_cam[t].astype(np.float64)
        found = image.project_point(pose[:3, :3] @ ray + pose[:3, 3])
        np.testing.assert_allclose(found, [10.5, 20.5], atol=1e-3)
    trajectory = np.loadtxt(folder / "exports" / "easi3r" / "pred_traj.txt")
    np.testing.assert_allclose(trajectory[:, 1:4], saved.scene.world_from_cam[:, :3, 3], atol=1e-6)


def test_pictures_and_the_report_are_in_the_result(demo):
    done, folder = demo
    assert f"{folder / 'report.html'}, " in done.stdout
    assert json.loads((folder / "pictures.json").read_text())["left_out"] == {}
    saved = results.load_result(folder)
    assert saved.losses.shape == (20,)
    # The threshold is that of the masks.
    np.testing.assert_array_equal(saved.scene.dynamic_score > saved.threshold, saved.scene.dynamic_mask)
    text = (folder / "report.html").read_text()
    assert len(text) < 5e6
    assert re.search(r'<tr class="marked"><th scope="row">--iterations</th><td>20</td></tr>', text)
    assert len(re.findall('<tr class="marked">', text)) == len(
        json.loads((folder / "config.json").read_text())["changed"]
    )
    stages = json.loads((folder / "timings.json").read_text())["stages"]
    assert {"encode", "attention", "predict", "align", "write"} <= set(stages)
    assert stages["align"]["items"] == 20 and f">{stages['align']['seconds']:.1f}</td>" in text


def test_metrics_of_plain_dust3r_are_beside_those_of_the_method(demo):
    done, folder = demo
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["plain DUSt3R", "plain, with flow", "full method", "full, motionless twin"]
    for figures in metrics.values():
        assert figures["ate"] > 0
        assert 0 < figures["abs_rel"] < 1
    assert "mask_iou" not in metrics["plain DUSt3R"] and "mask_iou" not in metrics["plain, with flow"]
    for name in ("ate", "abs_rel"):
        assert f"{metrics['full method'][name]:.4f}" in done.stdout
        assert f"{metrics['plain DUSt3R'][name]:.4f}" in done.stdout


def test_the_record_suffices_to_repeat_the_run(demo):
    record = json.loads((demo[1] / "config.json").read_text())
    assert record["options"]["first"] == NUM
    assert record["options"]["seed"] == record["pipeline"]["seed"] == 0
    assert record["pipeline"]["graph"] == "complete"
    assert record["pipeline"]["alignment"]["iterations"] == 20
    assert re.fullmatch(r"[0-9a-f]{64}", record["checkpoint"]["source_sha256"])
    assert {"jax", "easi3r_jax", "python", "device"} <= set(record["versions"])


def test_the_closing_table_lists_times_memory_and_folder(demo):
    for line in ("encode", "attention", "predict", "align", "write", "compiled", "peak memory"):
        assert line in demo[0].stdout


def test_a_first_run_compiles_few_programs(demo):
    """Every small one between the stages costs time: the comparisons of the bundled clip compile ten of these."""
    compiled = json.loads((demo[1] / "timings.json").read_text())["compiled"]
    assert 10 < compiled["programs"] <= 50 and compiled["seconds"] > 0


@pytest.mark.slow
def test_same_seed_same_result_and_an_older_result_is_replaced(command, demo):
    folder = demo[1]
    before = np.load(folder / "scene.npz")
    (folder / "scene.ply").write_text("older")
    done = command("reconstruct", "--seq=demo", *SHORT, f"--output={folder}", "--nocompare_plain")
    assert done.returncode == 0, done.stderr
    after = np.load(folder / "scene.npz")
    for name in before.files:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert (folder / "scene.ply").read_bytes().startswith(b"ply")
    assert set(json.loads((folder / "metrics.json").read_text())) == {"full method"}


def test_help_teaches_every_flag(here):
    done = here("reconstruct", "--help")
    assert done.returncode == 0
    for title in ("Input:", "Pairs:", "Motion:", "Alignment:", "Output:", "Computation:"):
        assert title in done.stdout
    for flag in ("--seq", "--checkpoint", "--output", "--[no]shared_focal", "--schedule=linear|cosine", "--clusters"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--sequence=demo",), "sequence"),
        (("demo",), "'demo'"),
        (("--every=0",), "every"),
        (("--schedule=step",), "it must be linear or cosine"),
        (("--first=many",), "first"),
    ],
    ids=lambda x: x if isinstance(x, str) else x[0],
)
def test_wrong_flags_fail_at_once(here, arguments, says):
    done = here("reconstruct", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_wrong_flags_end_the_process(command):
    done = command("reconstruct", "--sequence=demo")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


ROOT = pathlib.Path(__file__).parents[2]


def start(environment, *command):
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_interrupted(process, number=signal.SIGINT):
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert errors.splitlines() == ["error: Interrupted. Nothing half-written was left behind."]
    assert process.returncode == 128 + number


@pytest.fixture
def older(tmp_path):
    """A folder that holds an older result and nothing else."""
    output = tmp_path / "result"
    output.mkdir()
    (output / "scene.npz").write_bytes(b"older")
    yield output
    assert (output / "scene.npz").read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["result"]
    assert os.listdir(output) == ["scene.npz"]


def catches(process, number):
    """Whether a process has a handler for a signal."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not say what a process catches")
@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.0])
def test_ctrl_c_while_python_still_imports(environment, older, seconds):
    process = start(environment, "experiments.reconstruct", f"--output={older}")
    while not catches(process, signal.SIGTERM):  # Python itself has no handler for that one: ours are there
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(seconds)
    assert_interrupted(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_ctrl_c_and_kill_while_it_computes(environment, older, number):
    process = start(environment, "experiments.reconstruct", f"--output={older}")
    assert "16 frames" in process.stdout.readline()
    time.sleep(1.0)
    assert_interrupted(process, number)


@pytest.mark.parametrize("milliseconds", [0, *(pytest.param(ms, marks=pytest.mark.slow) for ms in (100, 250))])
def test_ctrl_c_while_it_writes(environment, older, milliseconds):
    short = ("--first=2", "--mode=feedforward", "--nocompare_plain")
    process = start(environment, "experiments.reconstruct", *short, f"--output={older}")
    while not list(older.parent.glob(".result.tmp-*")):
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(milliseconds / 1000)
    assert_interrupted(process)


def test_ctrl_c_while_a_checkpoint_is_written(environment, tmp_path):
    process = start(environment, "convert", "--source=easi3r_jax/assets/model", f"--output={tmp_path / 'network'}")
    while not list(tmp_path.glob(".network.tmp-*")):
        assert process.poll() is None
        time.sleep(0.002)
    assert_interrupted(process)
    assert os.listdir(tmp_path) == []
