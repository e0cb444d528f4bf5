"""Folders are written atomically."""

import errno
import os
import pathlib

import pytest

from easi3r_jax.core import atomic, interrupt
from easi3r_jax.core.errors import OutputError

MARKER = "marker"


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(folder, text):
    with atomic.atomic_folder(folder, marker=MARKER) as new:
        (new / MARKER).write_text(text)
        (new / "sub").mkdir()
        (new / "sub" / "file").write_text(text)


@pytest.fixture
def older(tmp_path):
    folder = tmp_path / "result"
    write(folder, "old")
    (folder / "stale").write_text("of an older version")
    return folder


def test_writes_a_new_folder_and_its_parents(tmp_path):
    target = tmp_path / "a" / "b"
    write(target, "new")
    assert content(tmp_path) == {"a/b/marker": "new", "a/b/sub/file": "new"}


def test_nothing_is_seen_before_the_end(tmp_path):
    with atomic.atomic_folder(tmp_path / "x", marker=MARKER) as new:
        assert new.parent == tmp_path
        assert not (tmp_path / "x").exists()


def test_an_older_result_is_replaced_completely(older):
    write(older, "new")
    assert content(older.parent) == {"result/marker": "new", "result/sub/file": "new"}
    assert os.listdir(older.parent) == ["result"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("bug"), ValueError),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (OSError("encoder error -2"), OutputError),
    ],
)
@pytest.mark.parametrize("with_older", [True, False])
def test_failure_in_the_middle_leaves_everything_as_it_was(tmp_path, error, seen, with_older):
    target = tmp_path / "result"
    if with_older:
        write(target, "old")
    before = content(tmp_path)

    def failing():
        with atomic.atomic_folder(target, marker=MARKER) as new:
            (new / MARKER).write_text("half")
            raise error

    with pytest.raises(seen):
        failing()
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == (["result"] if with_older else [])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_failure_while_replacing_puts_the_older_result_back(older, monkeypatch, error):
    before = content(older)
    rename = pathlib.Path.rename

    def failing(self, target):
        if ".tmp-" in self.name:
            raise error
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", failing)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        write(older, "new")
    assert content(older) == before
    assert os.listdir(older.parent) == ["result"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_errors_say_what_and_where_in_one_line(tmp_path, code, words):
    with pytest.raises(OutputError, match=words) as caught, atomic.atomic_folder(tmp_path / "r", marker=MARKER):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path / "r") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("act", [atomic.ensure_writable, lambda p, marker: write(p, "new")])
class TestRefusals:
    def test_a_file_in_the_way(self, tmp_path, act):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match="is a file"):
            act(tmp_path / "file", marker=MARKER)

    def test_a_path_below_a_file(self, tmp_path, act):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match="is a file, not a folder"):
            act(tmp_path / "file" / "sub" / "result", marker=MARKER)

    def test_another_folder_in_the_way(self, tmp_path, act):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(OutputError, match="not an earlier result"):
            act(tmp_path, marker=MARKER)
        assert content(tmp_path) == {"thesis.tex": "years of work"}

    def test_a_mount_point(self, tmp_path, act, monkeypatch):
        monkeypatch.setattr(os.path, "ismount", lambda path: True)
        with pytest.raises(OutputError, match="mount point"):
            act(tmp_path, marker=MARKER)

    @pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
    def test_a_folder_without_write_permission(self, tmp_path, act):
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(OutputError, match="no permission"):
            act(locked / "result", marker=MARKER)


def test_the_early_check_tries_to_write(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OutputError, match="disk is full"):
        atomic.ensure_writable(tmp_path / "result", marker=MARKER)
    assert os.listdir(tmp_path) == []


def test_the_early_check_leaves_nothing_behind(tmp_path, older):
    before = content(tmp_path)
    atomic.ensure_writable(tmp_path / "a" / "b" / "c", marker=MARKER)
    atomic.ensure_writable(older, marker=MARKER)
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == ["result"]


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "result").mkdir()
    write(tmp_path / "result", "new")
    assert content(tmp_path / "result")["marker"] == "new"


def test_a_link_keeps_pointing_where_it_did(tmp_path):
    (tmp_path / "disk" / "result").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "result")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "disk") == {"result/marker": "new", "result/sub/file": "new"}


def test_a_function_may_decide_which_folders_are_replaced(older):
    def write_ours(is_ours):
        with atomic.atomic_folder(older, marker=is_ours) as new:
            (new / "file").write_text("new")

    before = content(older)
    with pytest.raises(OutputError, match="not an earlier result: choose"):
        write_ours(lambda folder: (folder / "missing").exists())
    assert content(older) == before
    write_ours(lambda folder: (folder / "stale").exists())
    assert content(older) == {"file": "new"}


def test_too_small_a_disk_is_detected_before_anything_is_written(older, monkeypatch):
    before = content(older)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})())
    with (
        pytest.raises(OutputError, match="2 MB needed, 1 MB free"),
        atomic.atomic_folder(older, marker=MARKER, size=2_000_000),
    ):
        raise AssertionError("begun")
    assert content(older) == before
    assert os.listdir(older.parent) == ["result"]


@pytest.mark.parametrize("durable", [True, False])
def test_files_are_on_the_disk_before_the_folder_has_its_name(older, monkeypatch, durable):
    flushed, replace = [], interrupt.replace_folder
    monkeypatch.setattr(atomic, "_flush", flushed.append)

    def renamed(target, new, aside):
        assert set(flushed) == ({new, *new.rglob("*")} if durable else set())
        replace(target, new, aside)

    monkeypatch.setattr(interrupt, "replace_folder", renamed)
    with atomic.atomic_folder(older, marker=MARKER, durable=durable) as new:
        (new / "sub").mkdir()
        (new / "sub" / MARKER).write_text("new")
    assert flushed[-1:] == ([older.parent] if durable else [])
