"""Advice of the training program, followed: nothing that can be saved is overwritten, and what is said works.

Also where a run is: its folder named relative to where the person stands, through a link, with `~`, with spaces.
"""

import dataclasses
import functools
import os
import re
import shutil

import jax.numpy as jnp
import pytest

from easi3r_jax.apps import train, training_run
from easi3r_jax.weights.load import load_model

SMALL = (
    *("--preset=tiny", "--steps=4", "--batch_size=2", "--held_out=2", "--held_out_final=2", "--check_every=2"),
    *("--log_every=1", "--matching_weight=0", "--attention_weight=0"),
)


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """All runs of this file have the same step and the same data: they are made once."""
    opened = train.open_source

    @functools.cache
    def open_source(*arguments, **options):
        source = opened(*arguments, **options)
        return dataclasses.replace(source, held_out=functools.cache(source.held_out))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.sharding, "split_cpu", lambda *_: None)  # JAX has begun, in this process
        patch.setattr(train, "open_source", open_source)
        patch.setattr(train, "make_step", functools.cache(train.make_step))
        patch.setattr(training_run, "preview", lambda *_: None)
        yield


@pytest.fixture
def run(here, tmp_path, monkeypatch):
    """Runs the program from a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *flags: here("train", *SMALL, *flags)


def steps_in(folder):
    return sorted(path.name for path in (folder / "states").iterdir())


def one_line(done):
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("place", ["../else/runs/a", "~/a run with spaces", "link/run", None])
def test_a_run_resumes_from_where_the_person_stands(run, tmp_path, monkeypatch, place):
    """With the same words, from the same folder; the last case is the default, runs/tiny."""
    work = tmp_path / "work"
    for name in ("work", "home", "target", "else"):
        (tmp_path / name).mkdir()
    (work / "link").symlink_to(tmp_path / "target")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(work)
    output = () if place is None else (f"--output={place}",)
    done = run(*output, "--stop_after=2")
    assert done.returncode == 0, done.stderr
    done = run(*output, "--resume")
    assert done.returncode == 0, done.stderr
    folder = work / os.path.expanduser(place or "runs/tiny")
    assert steps_in(folder) == ["step_00000002", "step_00000004"]
    assert (folder / "model" / "config.json").is_file()


def test_a_run_resumes_from_another_folder_with_other_words(run, tmp_path, monkeypatch):
    """Its initial weights too are the same from everywhere."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("--output=first", "--stop_after=1").returncode == 0
    assert run("--checkpoint=first/model", "--output=second", "--stop_after=2").returncode == 0
    monkeypatch.chdir(tmp_path / "there")
    done = run("--checkpoint=../here/first/model", "--output=../here/second", "--resume")
    assert done.returncode == 0, done.stderr


def test_states_without_their_headers_are_never_overwritten(run, tmp_path):
    output = tmp_path / "run"
    assert run("--output=run").returncode == 0
    kept = {path.name: path.read_bytes() for path in (output / "states").rglob("config.json")}
    for path in (output / "states").rglob("step_*/config.json"):
        path.unlink()
    before = sorted((output / "states").rglob("*"))
    assert kept and len(steps_in(output)) == 2
    resumed = one_line(run("--output=run", "--resume"))
    assert "can be read" in resumed and "Restore" in resumed and "--overwrite" in resumed and "omit" not in resumed
    begun = one_line(run("--output=run"))  # what earlier versions advised: it deleted them
    assert "contains a run" in begun and "--overwrite" in begun
    assert sorted((output / "states").rglob("*")) == before
    assert "give one of them" in one_line(run("--output=run", "--resume", "--overwrite"))
    done = run("--output=run", "--overwrite")  # the advice
    assert done.returncode == 0, done.stderr
    assert len((output / "log.csv").read_text().splitlines()) == 5


def test_overwriting_deletes_a_run_and_nothing_else(run, tmp_path):
    output = tmp_path / "run"
    assert run("--output=run").returncode == 0
    (output / "notes.txt").write_text("mine")
    done = run("--output=run", "--overwrite", "--stop_after=1")
    assert done.returncode == 0, done.stderr
    assert steps_in(output) == ["step_00000001"] and (output / "notes.txt").read_text() == "mine"
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.png").write_bytes(b"mine")
    assert "not an earlier result" in one_line(run("--output=holiday", "--overwrite"))


def diverging(at):
    """`make_step`, whose steps from that number on give NaN."""
    made = train.make_step

    def make_step(*arguments, **options):
        step = made(*arguments, **options)

        def diverges(state):
            number = int(state.step)
            state, terms = step(state)
            return (state, {**terms, "loss": jnp.float32(jnp.nan)}) if number + 1 >= at else (state, terms)

        return diverges

    return make_step


def test_advice_after_a_nan_is_a_command_that_works(run, tmp_path):
    output = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_step", diverging(at=3))
        message = one_line(run("--output=run"))
        assert "Not finite at step 3: loss." in message and "step 2" in message
        assert "step 3" in one_line(run("--output=run", "--resume"))  # a replay
    assert load_model(output / "model").config.image_size == (32, 48)
    (checkpoint,) = re.findall(r"--checkpoint=\S+", message)
    done = run(checkpoint, "--learning_rate=0.00001", "--output=another")
    assert done.returncode == 0, done.stderr
    assert steps_in(output) == ["step_00000002"]


def test_advice_after_a_nan_in_the_first_step(run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_step", diverging(at=1))
        message = one_line(run("--output=run"))
    assert "lower --learning_rate, in another --output" in message
    done = run("--output=another", "--learning_rate=0.00001")
    assert done.returncode == 0, done.stderr


def test_a_damaged_state_is_restored_as_its_message_says(run, tmp_path):
    assert run("--output=run", "--stop_after=1").returncode == 0
    shutil.copytree(tmp_path / "run", tmp_path / "backup")
    victim = max((path for path in (tmp_path / "run" / "states").rglob("weights/**/*") if path.is_file()), key=str)
    victim.write_bytes(b"")
    message = one_line(run("--output=run", "--resume"))
    assert "damaged or incomplete" in message and "Restore it" in message
    shutil.rmtree(tmp_path / "run" / "states")
    shutil.copytree(tmp_path / "backup" / "states", tmp_path / "run" / "states")
    assert run("--output=run", "--resume").returncode == 0
