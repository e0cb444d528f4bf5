"""The training program, run as its users run it."""

import csv
import functools
import json
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from easi3r_jax.apps import train, training_log
from easi3r_jax.apps.training_data import PairSource
from easi3r_jax.core.types import PairPredictions
from easi3r_jax.models import parameters_of
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.synthetic import PairSampling
from easi3r_jax.training.batch import edges_both_ways, targets_of
from easi3r_jax.training.config import ObjectiveConfig, TrainConfig
from easi3r_jax.training.rendered import draw_static, held_out_pairs
from easi3r_jax.weights.checkpoint import latest_state, load_checkpoint
from tests.flags import on_devices

ROOT = pathlib.Path(__file__).parents[2]

SMALL = ("--preset=tiny", "--batch_size=2", "--held_out=2", "--held_out_final=3", "--check_every=2", "--log_every=1")


#: Runs the program several times: the later times with what the first one has compiled.
SEVERAL = """
import dataclasses, functools, sys
from easi3r_jax.apps import train
opened = train.open_source
@functools.cache
def open_source(*arguments, **options):
    source = opened(*arguments, **options)
    return dataclasses.replace(source, held_out=functools.cache(source.held_out))
train.open_source, train.make_step = open_source, functools.cache(train.make_step)
sys.exit(any(train.FLAGS.execute(train.main, ["train", *flags.split()]) for flags in sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def trained(environment):
    """`trained(*flags)` runs the program once for each line of flags, on two devices, and returns what it printed."""

    def run(*lines: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SEVERAL, *(f"{' '.join(SMALL)} --steps=4 {line}" for line in lines)],
            cwd=ROOT,
            env={**environment, "XLA_FLAGS": on_devices(2)["XLA_FLAGS"]},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """The folder of a run of four steps with a stop after the second, and what the program printed."""
    folder = tmp_path_factory.mktemp("runs")
    output = f"--output={folder / 'stopped'}"
    printed = trained(f"{output} --stop_after=2", f"{output} --resume")
    assert printed.count("Stopped at step 2 of 4") == 1
    return folder, printed


@pytest.mark.slow
def test_a_stopped_and_resumed_run_is_the_run_that_was_not_stopped(runs, trained):
    """In another process, as users do; the states themselves: tests/training/test_step.py."""
    folder, _ = runs
    trained(f"--output={folder / 'through'}")
    trained(f"--output={folder / 'apart'} --stop_after=2")
    trained(f"--output={folder / 'apart'} --resume")
    for name in ("log.csv", "validation.csv", "metrics.json"):
        assert (folder / "through" / name).read_text() == (folder / "apart" / name).read_text(), name
    models = [parameters_of(load_checkpoint(folder / name / "model")[1]) for name in ("through", "apart")]
    for name, value in models[0].items():
        np.testing.assert_array_equal(value, models[1][name], err_msg=name)


def test_the_log_counts_steps_and_samples(runs):
    folder, _ = runs
    with (folder / "stopped" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["step"]), int(r["samples"])) for r in rows] == [(1, 2), (2, 4), (3, 6), (4, 8)]
    assert {"loss", "regression", "error_1", "error_2", "matching", "attention", "gradient_norm"} <= rows[0].keys()
    for row in rows:
        parts = float(row["regression"]) + 0.01 * float(row["scale_anchor"])
        parts += 0.1 * (float(row["matching"]) + float(row["attention"]))
        assert abs(float(row["loss"]) - parts) < 1e-3


def test_the_run_writes_what_its_help_lists(runs):
    folder, printed = runs
    run = folder / "stopped"
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("run.json", "run.lock", "log.csv", "validation.csv", "tensorboard", "preview", "states"),
        *("model", "metrics.json"),
    }
    with Image.open(run / "preview" / "00000004.png") as picture:
        assert picture.size == (2 * 7 * 48, 2 * 2 * 32)  # seven pictures of each of two pairs, twice as large
    config = json.loads((run / "run.json").read_text())
    assert config["seed"] == 0 and config["steps"] == 4 and config["objective.matching_weight"] == 0.1
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["model"].keys() == metrics["view_1_twice"].keys()
    resumed = printed.split("Stopped at step 2 of 4")[1]
    for name in metrics["model"]:
        assert name in resumed


def events(run: pathlib.Path) -> list[event_pb2.Event]:
    """What a run wrote for TensorBoard, file after file: records of a length, a checksum, the event, a checksum."""
    found = []
    for path in sorted((run / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_the_curves_of_a_resumed_run_have_every_step_once(runs):
    """TensorBoard hides what is at or after the step that a resumed run begins with."""
    curve: dict[int, float] = {}
    for event in events(runs[0] / "stopped"):
        if event.HasField("session_log"):
            curve = {step: value for step, value in curve.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == "held_out/error_2":
                assert event.step not in curve
                curve[event.step] = value.simple_value
    assert sorted(curve) == [2, 4]


@pytest.mark.slow
def test_the_preview_of_a_perfect_prediction_has_no_error(tmp_path, monkeypatch):
    pairs = held_out_pairs(functools.partial(draw_static, PairSampling(size=(32, 48))), 2)
    truth = targets_of(pairs)
    ones = jnp.ones(truth.valid_i.shape)
    for off in (0.0, 1.0):
        perfect = PairPredictions(edges_both_ways(2), truth.points_i, truth.points_j + off, ones, ones)
        monkeypatch.setattr(training_log, "predict", lambda model, rgb, answer=perfect: (answer, None, None))
        training_log._predict_errors.clear_cache()
        training_log.preview(tmp_path / "a.png", None, pairs)
        with Image.open(tmp_path / "a.png") as picture:
            cells = np.split(np.asarray(picture), 7, axis=1)
        np.testing.assert_array_equal(cells[2], cells[3])
        # Both views' errors are of one scale: points of view 2 that are off move it, and so those of view 1.
        assert (cells[6].mean() > 20) == (off > 0) and (cells[6].max() < 10) == (off == 0)
        assert (cells[5].max() < 10) == (off == 0)


@pytest.mark.slow
def test_a_trained_model_reconstructs(runs, command, tmp_path):
    folder, _ = runs
    done = command(
        "reconstruct",
        "--first=3",
        "--iterations=3",
        "--nocompare_plain",
        f"--checkpoint={folder / 'stopped' / 'model'}",
        f"--output={tmp_path / 'scene'}",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "scene" / "scene.npz").is_file()


def refused(done, text: str, code: int = 1):
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and text in lines[0], done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def refusing(here, monkeypatch):
    """The program in this process, whose devices are fixed: for command lines that it refuses before it trains."""
    monkeypatch.setattr(train.sharding, "split_cpu", lambda *_: None)
    return functools.partial(here, "train")


def test_a_run_does_not_overwrite_another(runs, refusing):
    folder, _ = runs
    refused(refusing(*SMALL, f"--output={folder / 'stopped'}"), "contains a run: add --resume")


def test_changed_options_are_named_on_resume(runs, command):
    folder, _ = runs
    done = command("train", *SMALL, "--steps=9", "--seed=3", "--resume", f"--output={folder / 'stopped'}")
    refused(done, "other options (seed was 0, is 3; steps was 4, is 9)")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--resume",), "no training state"),
        (("--finetune=monst3r", "--checkpoint=embedded"), "omit --preset"),
        (("--checkpoint=nowhere.pth",), "nowhere.pth"),
        (("--data=shapes:/tmp",), "shapes"),
        (("--data=pairs:/nowhere",), "/nowhere"),
    ],
)
def test_mistakes_are_reported_in_one_line(refusing, tmp_path, arguments, text):
    refused(refusing("--preset=tiny", f"--output={tmp_path / 'run'}", *arguments), text)
    assert not (tmp_path / "run").exists()


def test_a_checkpoints_folder_is_left_alone(runs, refusing):
    folder, _ = runs
    model = folder / "stopped" / "model"
    before = (model / "config.json").read_text()
    refused(refusing("--preset=tiny", f"--output={model}"), "not empty")
    assert (model / "config.json").read_text() == before


@pytest.mark.slow
def test_fine_tuning_on_clip_folders(runs, command, tmp_path):
    """A small run of each kind on read data; the encoder stays as it was."""
    folder, _ = runs
    done = command("synthesize", "--num=1", "--frames=4", "--size=32x48", "--notwins", f"--output={tmp_path / 'clips'}")
    assert done.returncode == 0, done.stderr[-2000:]
    arguments = (f"--data=pairs:{tmp_path / 'clips'}", f"--checkpoint={folder / 'stopped' / 'model'}")
    small = ("--batch_size=2", "--steps=4", "--held_out=2", "--held_out_final=2", "--check_every=2", "--log_every=1")
    done = command("train", "--finetune=monst3r", *arguments, *small, f"--output={tmp_path / 'tuned'}")
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (
        parameters_of(load_checkpoint(path)[1]) for path in (folder / "stopped" / "model", tmp_path / "tuned" / "model")
    )
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and not any(name.startswith("encoder.") for name in moved)
    with (tmp_path / "tuned" / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


# --- stopped by Ctrl-C ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(runs, command, environment, tmp_path_factory):
    """A run in bfloat16 from given weights: another program tries its folder, Ctrl-C comes, it is resumed.

    Meanwhile its newest state is damaged, its first weights are deleted, and something half-written lies about.
    """
    folder, _ = runs
    work = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(folder / "stopped" / "model", work / "weights")
    output = work / "run"
    small = (*SMALL, "--check_every=1", "--steps=500", "--precision=bf16")
    arguments = (*small, f"--checkpoint={work / 'weights'}", f"--output={output}")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 300
    while len(list((output / "states").glob("step_*"))) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    second = command("train", *arguments)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    newest = latest_state(output / "states")
    assert newest is not None
    (newest / "config.json").write_bytes(b"")
    shutil.rmtree(work / "weights")
    (output / "states" / ".step_00000400.tmp-1").mkdir()
    (output / ".metrics.json.tmp-1").write_text("{")
    resumed = command("train", *arguments, "--resume", "--stop_after=2")
    return output, second, (process.returncode, errors), int(newest.name.removeprefix("step_")), resumed


@pytest.mark.slow
def test_a_folder_in_use_is_left_to_who_uses_it(interrupted):
    _, second, _, _, _ = interrupted
    refused(second, "is in use: another program trains there")


@pytest.mark.slow
def test_ctrl_c_is_answered_at_once_and_at_the_end(interrupted):
    _, _, (code, errors), _, _ = interrupted
    assert code == 130
    notice, error = errors.splitlines()
    assert notice == "Stopping after this step; its state will be saved. Again: stop at once."
    assert re.fullmatch(r"error: Interrupted at step \d+ of 500\. Add --resume to continue\.", error)


@pytest.mark.slow
def test_ctrl_c_saves_the_state_of_the_current_step(command, environment, tmp_path):
    """Also long before a regular check; the run goes on from there."""
    arguments = (*SMALL, "--check_every=1000", "--log_every=1", "--steps=5000", f"--output={tmp_path / 'run'}")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, until = tmp_path / "run" / "log.csv", time.monotonic() + 300
    while not log.is_file() or log.read_text().count("\n") < 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    (state,) = (tmp_path / "run" / "states").iterdir()
    step = int(state.name.removeprefix("step_"))
    assert 2 <= step < 1000 and f"Interrupted at step {step} of 5000" in errors
    resumed = command("train", *arguments, "--resume", "--stop_after=1")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert f"Stopped at step {step + 1} of 5000" in resumed.stdout
    assert [line.split(",")[0] for line in log.read_text().splitlines()[1:]] == [str(n + 1) for n in range(step + 1)]


@pytest.mark.slow
def test_a_run_resumes_from_the_state_before_a_damaged_one(interrupted):
    output, _, _, newest, resumed = interrupted
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    warnings = [line for line in resumed.stderr.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert f"step_{newest:08d} is damaged (config.json). The run resumes from step {newest - 1}." in warnings[0]
    assert f"Stopped at step {newest + 1} of 500" in resumed.stdout
    states = sorted(path.name for path in (output / "states").iterdir())
    assert states == [f"step_{newest:08d}", f"step_{newest + 1:08d}"]  # and nothing half-written
    assert not (output / ".metrics.json.tmp-1").exists()


@pytest.mark.slow
def test_bfloat16_trains(interrupted):
    output, _, _, newest, _ = interrupted
    with (output / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, newest + 2))
    assert np.isfinite([[float(value) for value in row.values()] for row in rows]).all()
    assert json.loads((output / "run.json").read_text())["precision"] == "bf16"
    for name, value in parameters_of(load_checkpoint(output / "model")[1]).items():
        assert value.dtype == np.float32 and np.isfinite(value).all(), name


# --- options that make no sense together ----------------------------------------------------------------------------


def complaint(capsys, main, *arguments):
    assert train.FLAGS.execute(main, ["train", *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_fine_tuning_needs_weights(capsys, tmp_path):
    assert "requires --checkpoint" in complaint(
        capsys, train.main, "--finetune=monst3r", f"--output={tmp_path / 'run'}"
    )


def test_too_little_memory_names_a_flag_that_there_is(capsys):
    def main():
        raise MemoryError

    assert complaint(capsys, main) == "error: Out of memory: use a smaller --batch_size."


def check(objective, network, is_static):
    source = PairSource({}, None, lambda count: None, is_static, (), dict, lambda step, size: None)  # pyright: ignore

    def work() -> None:
        chosen = {"matching_weight": train.MATCHING.value, "attention_weight": train.ATTENTION.value}
        train.check_terms(TrainConfig(objective=objective), network, source, chosen)

    return work


BOTH = ObjectiveConfig(matching_weight=0.1, attention_weight=0.2)


@pytest.mark.parametrize("objective", [BOTH, ObjectiveConfig(matching_weight=1), ObjectiveConfig(attention_weight=1)])
def test_terms_for_scenes_at_rest_are_refused_where_scenes_move(capsys, objective):
    line = complaint(capsys, check(objective, DUSt3RConfig.embedded(), is_static=False))
    assert "this data has dynamic ones" in line
    for name in ("matching_weight", "attention_weight"):
        assert (f"--{name}=0" in line) == (getattr(objective, name) > 0)
    assert train.FLAGS.execute(check(objective, DUSt3RConfig.embedded(), is_static=True), ["train"]) == 0
    assert train.FLAGS.execute(check(ObjectiveConfig(), DUSt3RConfig.embedded(), is_static=False), ["train"]) == 0


def test_terms_for_scenes_at_rest_must_be_asked_for_where_scenes_may_move(capsys):
    unknown = check(BOTH, DUSt3RConfig.embedded(), is_static=None)
    line = complaint(capsys, unknown)
    assert "--matching_weight=0 --attention_weight=0, or --matching_weight=0.1 --attention_weight=0.2 if" in line
    assert "attention_weight=0.2" in complaint(capsys, unknown, "--matching_weight=0.1")
    assert train.FLAGS.execute(unknown, ["train", "--matching_weight=0.1", "--attention_weight=0.2"]) == 0


@pytest.mark.parametrize("sizes", [{"dec_depth": 1}, {"dec_heads": 1}])
def test_attention_that_the_network_lacks_is_not_supervised(capsys, sizes):
    network = DUSt3RConfig(**{"head": "linear", "dec_depth": 2, "dec_heads": 2, **sizes})
    assert "add --attention_weight=0" in complaint(capsys, check(BOTH, network, is_static=True))
    assert train.FLAGS.execute(check(ObjectiveConfig(matching_weight=0.1), network, is_static=True), ["train"]) == 0


def test_another_folder_is_left_unchanged(refusing, tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    refused(refusing("--preset=tiny", f"--output={tmp_path}"), "not empty")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
