"""Groups of files are written atomically beside others."""

import errno
import os
import pathlib

import pytest

from easi3r_jax.core import atomic, interrupt
from easi3r_jax.core.errors import OutputError

MARKER, NAMES = "marker", {"marker", "a", "b"}


def write(folder, **files):
    with atomic.atomic_files(folder, NAMES, marker=MARKER) as new:
        for name, text in files.items():
            (new / name).write_text(text)


def content(folder):
    return {p.name: p.read_text() for p in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    """Somebody's, with files of an earlier time in it."""
    write(tmp_path / "f", marker="1", a="1", b="1")
    (tmp_path / "f" / "notes").write_text("mine")
    return tmp_path / "f"


def test_new_files_join_existing_ones_and_replace_earlier_exports(folder):
    assert content(folder) == {"marker": "1", "a": "1", "b": "1", "notes": "mine"}
    write(folder, marker="2", b="2")
    assert content(folder) == {"marker": "2", "b": "2", "notes": "mine"}


def test_files_move_the_marker_first_and_signals_wait(folder, monkeypatch):
    """Killed in between, the folder is still recognised as ours."""
    replace, moved = pathlib.Path.replace, []

    def watched(self, target):
        moved.append((pathlib.Path(target).name, interrupt._holds))
        return replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", watched)
    write(folder, a="2", b="2", marker="2")
    assert moved[0] == ("marker", 1) and sorted(moved) == [("a", 1), ("b", 1), ("marker", 1)]
    assert interrupt._holds == 0


def test_nothing_is_seen_before_the_end(folder):
    with atomic.atomic_files(folder, NAMES, marker=MARKER) as new:
        (new / "marker").write_text("2")
        assert (folder / "marker").read_text() == "1" and (folder / "a").exists()
    assert content(folder) == {"marker": "2", "notes": "mine"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bug"), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("is_new", [False, True])
def test_failure_in_the_middle_leaves_everything_as_it_was(folder, tmp_path, error, is_new):
    before = content(folder)

    def failing():
        with atomic.atomic_files(tmp_path / "new" if is_new else folder, NAMES, marker=MARKER) as new:
            (new / "marker").write_text("2")
            raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        failing()
    assert content(folder) == before
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_other_files_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for call in (
        lambda: write(tmp_path, marker="1"),
        lambda: atomic.ensure_files_writable(tmp_path, NAMES, marker=MARKER),
    ):
        with pytest.raises(OutputError, match=f"{name} is in the way.*choose another folder"):
            call()
    assert content(tmp_path) == {name: "mine"}


def test_a_file_for_a_folder_is_refused(folder):
    for call in (lambda p: write(p, marker="1"), lambda p: atomic.ensure_files_writable(p, NAMES, marker=MARKER)):
        for path in (folder / "notes", folder / "notes" / "deeper"):
            with pytest.raises(OutputError, match="a file") as error:
                call(path)
            assert "\n" not in str(error.value)


def test_the_early_check_leaves_nothing_behind_and_tries_to_write(folder, tmp_path, monkeypatch):
    before = content(folder)
    atomic.ensure_files_writable(folder, NAMES, marker=MARKER)
    atomic.ensure_files_writable(tmp_path / "a" / "b", NAMES, marker=MARKER)
    assert content(folder) == before and os.listdir(tmp_path) == ["f"]

    def fail(*arguments):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(pathlib.Path, "write_bytes", fail)
    with pytest.raises(OutputError, match="read-only"):
        atomic.ensure_files_writable(folder, NAMES, marker=MARKER)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_files_are_replaced_by_files(tmp_path, make):
    """Even for root, who could delete a device."""
    target = tmp_path / "in the way"
    make(target)
    with pytest.raises(OutputError, match="a folder or a device"), atomic.atomic_file(target) as new:
        new.write_text("new")
    assert list(tmp_path.iterdir()) == [target] and not target.is_file()


@pytest.mark.parametrize("context", ["atomic_files", "atomic_folder"])
def test_a_file_that_fails_in_a_folder_is_reported_by_the_folders_name(tmp_path, context):
    """Not by the hidden one that it is built in, and that is gone when the message is read."""
    names = {"names": NAMES} if context == "atomic_files" else {}

    def failing():
        folder = getattr(atomic, context)(tmp_path / "result", marker=MARKER, **names)
        with folder as new, atomic.atomic_file(new / "a") as file:
            file.write_text("1")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OutputError, match="disk is full") as error:
        failing()
    assert f"Cannot write {tmp_path / 'result'}: " in str(error.value) and not os.listdir(tmp_path)
