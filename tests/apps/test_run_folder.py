"""A run's folder is locked by one program, and is unchanged if no run began."""

import errno
import fcntl

import pytest

from easi3r_jax.apps.run_folder import LOCK, held
from easi3r_jax.core.errors import CheckpointError, OutputError


def test_a_second_holder_is_refused_until_the_first_has_left(tmp_path):
    output = tmp_path / "run"
    with held(output, resume=False) as begun:
        assert begun is None
        (output / "log.csv").write_text("step\n")
        with pytest.raises(OutputError, match=r"run is in use: .* choose another --output"), held(output, resume=False):
            raise AssertionError("held twice")
        assert (output / LOCK).exists()
    with held(output, resume=False):  # killed before its first state: it may begin again
        pass
    assert sorted(path.name for path in output.iterdir()) == ["log.csv", LOCK]


def test_an_unused_folder_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "run", resume=False):
        raise ZeroDivisionError
    with pytest.raises(CheckpointError, match="no training state"), held(tmp_path / "run", resume=True):
        pass
    assert not list(tmp_path.iterdir())


def test_only_incomplete_files_are_removed(tmp_path):
    half = (".log.csv.tmp-12", "states/.step_00000002.tmp-7", "states/.step_00000001.old-7", "preview/.a.tmp-3")
    kept = ("log.csv", ".hidden", "notes.tmp-12", "states/notes", "model/.x.tmp-3")
    for name in (LOCK, *half, *kept):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if "states" in name:
            (path / "weights").mkdir(parents=True)
        else:
            path.write_text("")
    with held(tmp_path, resume=False):
        assert not [name for name in half if (tmp_path / name).exists()]
        assert all((tmp_path / name).exists() for name in kept)


def test_a_disk_without_locks_is_trained_on(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path / "run", resume=False):
        assert (tmp_path / "run").is_dir()
