"""Training states: exact, written atomically, and the last complete one always loads."""

import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core import atomic, interrupt
from easi3r_jax.core.errors import CheckpointError, ConfigError, OutputError
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.training.step import init_state
from easi3r_jax.weights.checkpoint import folder as folders
from easi3r_jax.weights.checkpoint import latest_state, load_newest, load_state, save_state, state_options

OPTIONS = {"steps": 10, "size": [64, 96], "seed": 0}


@pytest.fixture
def state():
    parameters = {
        "encoder.blocks.mlp.kernel": jax.random.normal(jax.random.key(0), (2, 3, 4)),
        "head1.proj.bias": jnp.asarray([np.float32(1) / 3, -0.0, 1e-38, 3e38]),
    }
    state = init_state(parameters, TrainConfig(optimiser="muon"))
    return jax.tree.map(lambda a: a + jnp.asarray(3, a.dtype), state)


def test_states_are_restored_bit_for_bit(state, tmp_path):
    path = save_state(tmp_path / "states", 7, state, OPTIONS)
    assert latest_state(tmp_path / "states") == path
    blank = jax.tree.map(jnp.zeros_like, state)
    loaded, step = load_state(path, blank, {**OPTIONS, "size": (64, 96)})  # a tuple is a list to JSON
    assert step == 7 and jax.tree.structure(loaded) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.atleast_1d(a).view(np.uint8), np.atleast_1d(b).view(np.uint8))


@pytest.mark.parametrize("spelt", ["states", "./a/../states", "~/states", "link"])
def test_folders_may_be_spelt_in_any_way(state, tmp_path, monkeypatch, spelt):
    """As `train --output=runs/x --resume` does: Orbax itself reads absolute paths only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "states")
    save_state(spelt, 4, state, OPTIONS)
    newest = latest_state(spelt)
    assert newest is not None and newest == tmp_path / "states" / "step_00000004"
    loaded, step, skipped = load_newest(spelt, jax.tree.map(jnp.zeros_like, state), OPTIONS)
    assert (step, skipped) == (4, [])
    jax.tree.map(np.testing.assert_array_equal, loaded, state)


def test_only_the_two_newest_states_are_kept(state, tmp_path):
    for step in (1, 2, 3, 10):
        save_state(tmp_path, step, state, OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000010"]
    newest = latest_state(tmp_path)
    assert newest is not None and newest.name == "step_00000010"


def test_a_folder_without_states_has_no_latest_state(tmp_path):
    assert latest_state(tmp_path / "nowhere") is None
    (tmp_path / "step_00000001").mkdir()  # killed while it was written: no config.json
    (tmp_path / "notes").mkdir()
    assert latest_state(tmp_path) is None


@pytest.mark.parametrize("when", ["arrays", "description"])
def test_a_full_disk_keeps_the_last_complete_state(state, tmp_path, monkeypatch, when):
    save_state(tmp_path, 1, state, OPTIONS)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "write_arrays" if when == "arrays" else "checksums", full)
    with pytest.raises(OutputError, match=r"Cannot write .*step_00000002: the disk is full"):
        save_state(tmp_path, 2, state, OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    monkeypatch.undo()
    found = latest_state(tmp_path)
    assert found is not None and load_state(found, state, OPTIONS)[1] == 1


def test_too_little_space_is_detected_before_anything_is_written(state, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutputError, match=r"MB needed, 0 MB free"):
        save_state(tmp_path / "states", 1, state, OPTIONS)


def test_runs_that_recorded_the_number_type_resume_in_exact_precision(state, tmp_path):
    path = save_state(tmp_path / "states", 1, state, OPTIONS | {"dtype": "float32"})
    assert load_state(path, state, OPTIONS | {"precision": "exact"})[1] == 1
    path = save_state(tmp_path / "states", 2, state, OPTIONS | {"dtype": "bfloat16"})  # its heads were exact
    with pytest.raises(ConfigError, match="dtype was 'bfloat16', is None; precision was None, is 'bf16'"):
        load_state(path, state, OPTIONS | {"precision": "bf16"})


def test_changed_options_are_listed(state, tmp_path):
    path = save_state(tmp_path / "states", 1, state, OPTIONS)
    with pytest.raises(ConfigError, match=r"other options \(seed was 0, is 1; steps was 10, is 20\)") as caught:
        load_state(path, state, {**OPTIONS, "steps": 20, "seed": 1})
    assert "Resume with the same ones" in str(caught.value)


def test_a_state_of_another_network_is_refused(state, tmp_path):
    path = save_state(tmp_path, 1, state, OPTIONS)
    other = init_state({"head1.proj.bias": jnp.zeros(4)}, TrainConfig())
    with pytest.raises(CheckpointError, match="do not match its configuration"):
        load_state(path, other, OPTIONS)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "json", "version"])
def test_damage_is_detected(state, tmp_path, damage):
    path = save_state(tmp_path, 1, state, OPTIONS)
    damaged(path, damage)
    with pytest.raises(CheckpointError, match=r"damaged|version"):
        load_state(path, state, OPTIONS)
    with pytest.raises(CheckpointError, match=r"damaged|version"):
        load_newest(tmp_path, state, OPTIONS)


def damaged(path, damage):
    largest = max((p for p in (path / "weights").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "flip":
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(data)
    elif damage == "truncate":
        largest.write_bytes(largest.read_bytes()[:-10])
    elif damage == "delete":
        largest.unlink()
    elif damage == "json":
        (path / "config.json").write_text('{"format": "easi3r_jax training state"}')
    else:
        header = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**header, "format_version": 99}))


@pytest.mark.parametrize("damage", ["flip", "delete", "json", "empty"])
def test_a_damaged_state_falls_back_to_the_one_before(state, tmp_path, damage):
    save_state(tmp_path, 4, state, OPTIONS)
    newest = save_state(tmp_path, 8, jax.tree.map(jnp.zeros_like, state), OPTIONS)
    if damage == "empty":  # as a power failure may leave files that were not flushed
        for path in newest.rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    else:
        damaged(newest, damage)
    loaded, step, passed_over = load_newest(tmp_path, jax.tree.map(jnp.zeros_like, state), OPTIONS)
    assert step == 4
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(passed_over) == 1 and "step_00000008 is damaged" in passed_over[0] and "\n" not in passed_over[0]


def test_a_run_that_skipped_a_damaged_state_replaces_it(state, tmp_path):
    for step in (4, 8):
        path = save_state(tmp_path, step, state, OPTIONS)
    (path / "config.json").write_bytes(b"")
    save_state(tmp_path, 6, state, OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000004", "step_00000006"]
    (tmp_path / "step_00000008" / "weights").mkdir(parents=True)
    save_state(tmp_path, 8, state, OPTIONS)
    _, step, passed_over = load_newest(tmp_path, state, OPTIONS)
    assert step == 8 and not passed_over
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000006", "step_00000008"]


def test_other_options_are_not_reported_as_damage(state, tmp_path):
    for step in (4, 8):
        save_state(tmp_path, step, state, OPTIONS)
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        load_newest(tmp_path, state, {**OPTIONS, "seed": 1})


def test_options_can_be_read_without_the_arrays(state, tmp_path):
    path = save_state(tmp_path, 1, state, {**OPTIONS, "size": (64, 96)})
    assert state_options(path) == OPTIONS
    (path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        state_options(path)


def test_everything_is_flushed_before_the_folder_is_renamed(state, tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic, "_flush", flushed.append)
    replace = interrupt.replace_folder

    def renamed(target, new, older):
        assert set(flushed) == {new, *new.rglob("*")}
        replace(target, new, older)

    monkeypatch.setattr(interrupt, "replace_folder", renamed)
    path = save_state(tmp_path / "states", 1, state, OPTIONS)
    assert flushed[-1] == path.parent
