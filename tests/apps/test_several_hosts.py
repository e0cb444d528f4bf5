"""Programs on the devices of two processes: results, states, and what is left when one of them is killed."""

import csv
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from easi3r_jax.io.export.npz import load_scene
from tests.flags import on_hosts, run_on_devices

TRAIN = "--preset=tiny --batch_size=4 --log_every=1 --check_every=2 --held_out=1 --held_out_final=1 --steps=4"
#: The last flags of each of two processes.
JOINED = ("--coordinator=127.0.0.1:PORT", "--num_processes=2", "--process_id=NUMBER")
#: `program(kill, process, name, flags)`: that process is killed when a step begins, or while it writes a state.
PROGRAM = """
import os, signal, sys
from easi3r_jax.apps import clips, train
from easi3r_jax.weights.checkpoint import folder
name, kill, victim, *flags = sys.argv[1:]
sys.argv[1:] = flags
if flags[-1] == f"--process_id={victim}":
    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
    if kill == "save":
        folder.write_arrays = killed
    if kill == "step":
        made = train.make_step
        def make_step(*arguments, **options):
            step = made(*arguments, **options)
            return lambda state: killed() if int(state.step) == 3 else step(state)
        train.make_step = make_step
program = {"train": train, "reconstruct": clips}[name]
program.FLAGS.run(program.main)
"""


def on_two(name: str, *flags: str, kill: str = "none", victim: int = 1):
    return on_hosts(2, 2, "-c", PROGRAM, name, kill, str(victim), *flags, *JOINED)


def losses(run: pathlib.Path) -> list[float]:
    with (run / "log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_training_on_two_hosts_is_that_on_one_with_as_many_devices(tmp_path):
    """Also resumed: on two hosts, and on one."""
    one, two = tmp_path / "one", tmp_path / "two"
    run_on_devices(4, "-m", "experiments.train", *TRAIN.split(), f"--output={one}")
    first, second = on_two("train", *TRAIN.split(), f"--output={two}", "--stop_after=2")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "2 processes with 2 x cpu each" in first.stdout and second.stdout + second.stderr == ""
    assert {p.name for p in (two / "states/step_00000002/weights/state").glob("ocdbt.*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    printed = run_on_devices(4, "-c", COPY_AND_RESUME, str(two), str(tmp_path / "resumed"), *TRAIN.split())
    assert "resumed" in printed
    for done in on_two("train", *TRAIN.split(), f"--output={two}", "--resume"):
        assert done.returncode == 0, done.stderr
    expected = losses(one)
    assert len(expected) == 4
    np.testing.assert_allclose(losses(two), expected, rtol=1e-5)
    np.testing.assert_allclose(losses(tmp_path / "resumed"), expected, rtol=1e-5)


COPY_AND_RESUME = """
import shutil, sys
from easi3r_jax.apps import train
two, resumed, *flags = sys.argv[1:]
shutil.copytree(two, resumed)
sys.argv[1:] = [*flags, f"--output={resumed}", "--resume"]
train.FLAGS.run(train.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "victim"), [("step", 1), ("save", 1), ("save", 0)])
def test_a_killed_host_ends_the_others_with_one_line_and_training_resumes(tmp_path, kill, victim):
    run = tmp_path / "run"
    for done in on_two("train", *TRAIN.split(), f"--output={run}", "--stop_after=2"):
        assert done.returncode == 0, done.stderr
    began = time.monotonic()
    ended = on_two("train", *TRAIN.split(), f"--output={run}", "--resume", kill=kill, victim=victim)
    survivor = ended[1 - victim]
    assert ended[victim].returncode == -9 and survivor.returncode != 0
    lines = [line for line in survivor.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "another process was lost" in lines[0].lower(), lines
    assert time.monotonic() - began < 120  # start, compilation, and at most a minute until the loss is noticed
    assert [path.name for path in (run / "states").glob("step_*")] == ["step_00000002"]
    for done in on_two("train", *TRAIN.split(), f"--output={run}", "--resume"):
        assert done.returncode == 0, done.stderr
    assert len(losses(run)) == 4


@pytest.mark.slow
def test_a_clip_is_reconstructed_by_two_hosts_and_written_by_the_first(tmp_path):
    flags = ("--seq=demo", "--first=3", "--size=48", "--iterations=5", "--nocompare_plain")
    first, second = on_two("reconstruct", *flags, f"--output={tmp_path}/NUMBER")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout + second.stderr == "" and "[Gloo]" not in first.stdout + first.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert load_scene(tmp_path / "0" / "scene.npz").depth.shape[0] == 3


@pytest.mark.parametrize("name", ["train", "reconstruct"])
def test_flags_that_belong_together(name, tmp_path):
    def error(*flags: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", *flags], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        return done.stderr

    assert "give all three" in error("--coordinator=127.0.0.1:1")
    assert "not an address" in error("--coordinator=here", "--num_processes=2", "--process_id=0")
    assert "numbered from 0" in error("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=2")
    if name == "reconstruct":
        assert "one device" in error("--mode=feedforward", "--distributed")
        (tmp_path / "my.mp4").touch()
        (tmp_path / "two.txt").write_text(f"demo\n{tmp_path}/my.mp4\n")
        assert "names 2" in error("--distributed", f"--seq=@{tmp_path}/two.txt")
    else:
        assert "all share" in error("--distributed", "--output=s3://bucket/run")
