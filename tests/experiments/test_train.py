"""The training program, run as its users run it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.checkpoint import load_checkpoint
from easi3r_jax.models import parameters_of

SMALL = ("--preset=tiny", "--batch_size=2", "--held_out=2", "--held_out_final=3", "--check_every=2", "--log_every=1")


@pytest.fixture(scope="module")
def runs(command, tmp_path_factory):
    """Four steps at one go, and the same with a stop after the second."""
    folder = tmp_path_factory.mktemp("runs")
    through = command("train", *SMALL, "--steps=4", f"--output={folder / 'through'}")
    stopped = command("train", *SMALL, "--steps=4", "--stop_after=2", f"--output={folder / 'stopped'}")
    resumed = command("train", *SMALL, "--steps=4", "--resume", f"--output={folder / 'stopped'}")
    for done in (through, stopped, resumed):
        assert done.returncode == 0, done.stderr[-2000:]
    assert "Stopped at step 2 of 4" in stopped.stdout
    return folder, through


def test_a_stopped_and_resumed_run_is_the_run_that_was_not_stopped(runs):
    folder, _ = runs
    for name in ("log.csv", "validation.csv", "metrics.json"):
        assert (folder / "through" / name).read_text() == (folder / "stopped" / name).read_text(), name
    models = [parameters_of(load_checkpoint(folder / name / "model")[1]) for name in ("through", "stopped")]
    for name, value in models[0].items():
        np.testing.assert_array_equal(value, models[1][name], err_msg=name)


def test_the_log_counts_steps_and_samples(runs):
    folder, _ = runs
    with (folder / "through" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["step"]), int(r["samples"])) for r in rows] == [(1, 2), (2, 4), (3, 6), (4, 8)]
    assert {"loss", "regression", "error_1", "error_2", "matching", "attention", "gradient_norm"} <= rows[0].keys()
    for row in rows:
        parts = float(row["regression"]) + 0.01 * float(row["scale_anchor"])
        parts += 0.1 * (float(row["matching"]) + float(row["attention"]))
        assert abs(float(row["loss"]) - parts) < 1e-3


def test_the_run_leaves_what_its_help_says(runs):
    folder, through = runs
    run = folder / "through"
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("run.json", "log.csv", "validation.csv", "tensorboard", "preview", "states", "model", "metrics.json"),
    }
    with Image.open(run / "preview" / "00000004.png") as picture:
        assert picture.size == (2 * 6 * 48, 2 * 2 * 32)  # six pictures of each of two pairs, twice as large
    assert any((run / "tensorboard").iterdir())
    config = json.loads((run / "run.json").read_text())
    assert config["seed"] == 0 and config["steps"] == 4 and config["objective.matching_weight"] == 0.1
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["model"].keys() == metrics["view_1_twice"].keys()
    for name in metrics["model"]:
        assert name in through.stdout


def test_a_trained_model_reconstructs(runs, command, tmp_path):
    folder, _ = runs
    done = command(
        "reconstruct",
        "--first=3",
        "--iterations=3",
        "--nocompare_plain",
        f"--checkpoint={folder / 'through' / 'model'}",
        f"--output={tmp_path / 'scene'}",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "scene" / "scene.npz").is_file()


def refused(done, text: str, code: int = 1):
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and text in lines[0], done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_not_begun_over_another(runs, command):
    folder, _ = runs
    refused(command("train", *SMALL, f"--output={folder / 'through'}"), "holds a run: add --resume")


def test_changed_options_are_named_on_resume(runs, command):
    folder, _ = runs
    done = command("train", *SMALL, "--steps=9", "--seed=3", "--resume", f"--output={folder / 'stopped'}")
    refused(done, "other options (seed was 0, is 3; steps was 4, is 9)")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--resume",), "no training state"),
        (("--finetune=monst3r",), "needs --checkpoint"),
        (("--checkpoint=nowhere.pth",), "nowhere.pth"),
        (("--seed=2147483647",), "--seed must be below"),
        (("--data=shapes:/tmp",), "shapes"),
        (("--data=pairs:/nowhere",), "/nowhere"),
    ],
)
def test_mistakes_are_told_in_a_line(command, tmp_path, arguments, text):
    refused(command("train", "--preset=tiny", f"--output={tmp_path / 'run'}", *arguments), text)
    assert not (tmp_path / "run").exists()


def test_a_checkpoints_folder_is_left_alone(runs, command):
    folder, _ = runs
    model = folder / "through" / "model"
    before = (model / "config.json").read_text()
    refused(command("train", "--preset=tiny", f"--output={model}"), "not empty")
    assert (model / "config.json").read_text() == before


def test_fine_tuning_on_clip_folders(runs, command, tmp_path):
    """A small run of each kind on read data; the encoder stays as it was."""
    folder, _ = runs
    done = command("synthesize", "--num=1", "--frames=4", "--size=32x48", "--notwins", f"--output={tmp_path / 'clips'}")
    assert done.returncode == 0, done.stderr[-2000:]
    arguments = (f"--data=pairs:{tmp_path / 'clips'}", f"--checkpoint={folder / 'through' / 'model'}")
    small = ("--batch_size=2", "--steps=4", "--held_out=2", "--held_out_final=2", "--check_every=2", "--log_every=1")
    done = command("train", "--finetune=monst3r", *arguments, *small, f"--output={tmp_path / 'tuned'}")
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (
        parameters_of(load_checkpoint(path)[1]) for path in (folder / "through" / "model", tmp_path / "tuned" / "model")
    )
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and not any(name.startswith("encoder.") for name in moved)
    with (tmp_path / "tuned" / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_somebody_elses_folder_is_left_alone(command, tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    refused(command("train", "--preset=tiny", f"--output={tmp_path}"), "not empty")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
