"""Folders uploaded to a real S3 server by a real client: whole or recognisably not, and resumed."""

from __future__ import annotations

import json
import pathlib

import fsspec
import pytest

from easi3r_jax.core.errors import ConfigError, InputError, OutputError
from easi3r_jax.io import remote
from easi3r_jax.io.remote import upload


def write(address: str, contents: dict[str, str], *, replaces: str = "scene.npz") -> None:
    with remote.writing(address, replaces=replaces) as output:
        fill(output.folder, contents)


def fill(folder: pathlib.Path, contents: dict[str, str]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def read(address: str) -> dict[str, str]:
    folder = pathlib.Path(remote.local(address, result=True))
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def marker(bucket, name: str) -> dict:
    return json.loads(bucket.get(f"{name}/{remote.MARKER}"))


class Break:
    """Breaks a file system's uploads, after so many."""

    def __init__(self, monkeypatch, after: int):
        self.left = after
        put = upload._Uploaded._put

        def breaking(uploaded, names):
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("the line is dead")
            put(uploaded, names)

        monkeypatch.setattr(upload._Uploaded, "_put", breaking)


def test_a_path_is_written_where_it_is(tmp_path):
    with remote.writing(tmp_path / "result") as output:
        fill(output.folder, {"a": "1"})
        output.save()
    assert [path.name for path in tmp_path.rglob("*")] == ["result", "a"]


def test_a_result_is_uploaded_and_nothing_is_left_here(bucket, cached):
    contents = {"scene.npz": "all", "depth/0.png": "near", "empty": ""}
    write(f"{bucket.address}/results/clip", contents)
    assert bucket.names("results/clip") == {*contents, remote.MARKER}
    assert read(f"{bucket.address}/results/clip") == contents
    assert list((cached / "writing").iterdir()) == []


def test_an_earlier_result_is_replaced_whole(bucket):
    address = f"{bucket.address}/clip"
    write(address, {"scene.npz": "1", "old/0.png": "1", "same": "same"})
    write(address, {"scene.npz": "2", "same": "same"})
    assert bucket.names("clip") == {"scene.npz", "same", remote.MARKER}
    assert read(address) == {"scene.npz": "2", "same": "same"}


def test_what_is_not_an_earlier_result_is_never_replaced(bucket):
    bucket.put("photos/1.jpg", b"precious")
    with pytest.raises(OutputError, match="not empty and not an earlier result"):
        write(f"{bucket.address}/photos", {"scene.npz": ""})
    write(f"{bucket.address}/clips", {"clip_0/frames/0.png": ""}, replaces="")
    with pytest.raises(OutputError, match=r"not an earlier result \(no scene.npz in it\)"):
        write(f"{bucket.address}/clips", {"scene.npz": ""})
    assert bucket.names("photos") == {"1.jpg"}
    assert marker(bucket, "clips")["complete"]


def test_a_folder_without_marker_is_no_result_but_it_is_data(bucket):
    bucket.put("clip/scene.npz", b"")
    with pytest.raises(InputError, match=f"it is not a result: it has no {remote.MARKER}"):
        remote.local(f"{bucket.address}/clip", result=True)
    assert (pathlib.Path(remote.local(f"{bucket.address}/clip")) / "scene.npz").is_file()


def test_a_broken_upload_is_not_taken_for_whole_and_the_same_command_completes_it(bucket, cached, monkeypatch):
    address, contents = f"{bucket.address}/clip", {f"{number:03d}": str(number) for number in range(100)}
    with monkeypatch.context() as patched:
        Break(patched, after=1)
        with pytest.raises(OutputError, match=r"no connection in 3 tries \(the line is dead\).*Everything is on this"):
            write(address, contents | {"scene.npz": ""})
    assert len(bucket.names("clip")) == 65  # the first of two parts, and the marker
    for result in (False, True):
        with pytest.raises(InputError, match="it was not completely written"):
            remote.local(address, result=result)
    write(address, contents | {"scene.npz": ""})
    assert read(address) == contents | {"scene.npz": ""}


def test_a_broken_replacement_is_not_taken_for_either_result(bucket, monkeypatch):
    address = f"{bucket.address}/clip"
    write(address, {"scene.npz": "1"} | {str(n): "1" for n in range(90)})
    with monkeypatch.context() as patched:
        Break(patched, after=1)
        with pytest.raises(OutputError):
            write(address, {"scene.npz": "2"} | {str(n): "2" for n in range(90)})
    with pytest.raises(InputError, match="it was not completely written"):
        remote.local(address)


def test_a_failure_before_the_upload_leaves_the_earlier_result(bucket):
    address = f"{bucket.address}/clip"
    write(address, {"scene.npz": "1"})

    def fail() -> None:
        with remote.writing(address, replaces="scene.npz") as output:
            fill(output.folder, {"scene.npz": "half"})
            raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong"):
        fail()
    assert read(address) == {"scene.npz": "1"}
    assert bucket.names("clip") == {"scene.npz", remote.MARKER}


def test_files_that_were_lost_or_changed_are_missed(bucket):
    address = f"{bucket.address}/clip"
    write(address, {"scene.npz": "1", "a": "22"})
    bucket.put("clip/a", b"333")
    with pytest.raises(InputError, match="1 of its 2 files are missing or changed, such as a"):
        remote.local(address)
    bucket.files.rm_file(f"{address}/a")
    with pytest.raises(InputError, match="1 of its 2 files are missing or changed, such as a"):
        remote.local(address)


def test_a_damaged_marker(bucket):
    bucket.put(f"clip/{remote.MARKER}", b"{")
    bucket.put("clip/a", b"1")
    with pytest.raises(InputError, match="is damaged"):
        remote.local(f"{bucket.address}/clip")


def start(address: str, added: str, error: type[BaseException] | None = None) -> dict[str, str]:
    """A run that goes on: what it found. It adds a file, saves it, and ends or fails."""
    with remote.writing(address) as output:
        found = {p.name: p.read_text() for p in output.folder.iterdir()} if output.folder.is_dir() else {}
        fill(output.folder, {added: added})
        output.save()
        if error is not None:
            raise error("stop")
    return found


def test_a_run_goes_on_with_what_was_finished(bucket, cached):
    address = f"{bucket.address}/run"
    with pytest.raises(KeyboardInterrupt):
        start(address, "a", KeyboardInterrupt)
    assert marker(bucket, "run") == {"complete": False, "files": {"a": 1}, "id": marker(bucket, "run")["id"]}
    (work,) = (cached / "writing").iterdir()
    (work / "run" / "local").write_text("not uploaded yet")
    assert start(address, "b") == {"a": "a", "local": "not uploaded yet"}  # on the machine that began it
    assert start(address, "c") == {"a": "a", "b": "b", "local": "not uploaded yet"}  # on any
    assert marker(bucket, "run")["complete"]


def test_another_machine_goes_on_and_the_first_notices(bucket, cached, tmp_path, monkeypatch):
    address = f"{bucket.address}/run"
    with pytest.raises(KeyboardInterrupt):
        start(address, "a", KeyboardInterrupt)
    with monkeypatch.context() as patched:
        patched.setenv("EASI3R_JAX_CACHE", str(tmp_path / "another"))
        assert start(address, "b") == {"a": "a"}
    assert start(address, "c") == {"a": "a", "b": "b"}


def test_a_run_that_fails_uploads_what_is_finished(bucket):
    address = f"{bucket.address}/run"

    def fail() -> None:
        with remote.writing(address) as output:
            fill(output.folder, {"a": "a"})
            raise InputError("a bad clip")

    with pytest.raises(InputError, match="a bad clip"):
        fail()
    assert marker(bucket, "run")["files"] == {"a": 1}
    assert not marker(bucket, "run")["complete"]


def test_what_a_broken_upload_of_a_run_left_is_not_gone_on_with(bucket, cached, tmp_path, monkeypatch):
    """Files of a state may only come together: those of a broken upload are not in the marker."""
    address = f"{bucket.address}/run"
    with pytest.raises(KeyboardInterrupt):
        start(address, "a", KeyboardInterrupt)
    bucket.put("run/states/half", b"half")  # as a process killed during an upload leaves it
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(tmp_path / "another"))
    assert start(address, "b") == {"a": "a"}


def test_uploads_on_the_way_have_their_pace(bucket, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(upload.time, "monotonic", lambda: clock[0])
    with remote.writing(f"{bucket.address}/run") as output:
        fill(output.folder, {"a": "a"})
        output.save(every=30)
        assert bucket.names("run") == set()
        clock[0] += 31
        output.save(every=30)
        assert bucket.names("run") == {"a", remote.MARKER}


def test_unfinished_files_are_not_uploaded(bucket):
    with remote.writing(f"{bucket.address}/run") as output:
        fill(output.folder, {"a": "a", ".b.tmp-12": "half", ".states.old-3/c": "old"})
    assert bucket.names("run") == {"a", remote.MARKER}


def test_two_programs_on_a_machine_do_not_write_one_address(bucket):
    with remote.writing(f"{bucket.address}/run"), pytest.raises(OutputError, match="is in use"):
        start(f"{bucket.address}/run/", "a")


def test_other_stores_take_results_too(cached, tmp_path):
    for address in (f"file://{tmp_path}/out/run", "memory://bucket/run"):
        write(address, {"scene.npz": "1", "a/b": "2"})
        write(address, {"scene.npz": "2", "a/b": "2"})
        assert read(address) == {"scene.npz": "2", "a/b": "2"}
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_run_whose_first_upload_broke_keeps_its_work(bucket, monkeypatch):
    address = f"{bucket.address}/run"
    with monkeypatch.context() as patch:
        Break(patch, after=0)
        with pytest.raises(OutputError, match="Everything is on this machine"):
            write(address, {"results.jsonl": "an hour"}, replaces="")
    with remote.writing(address) as output:
        assert (output.folder / "results.jsonl").read_text() == "an hour"
    assert read(address) == {"results.jsonl": "an hour"}


def test_work_that_another_machine_overtook_is_moved_aside(bucket, cached, monkeypatch):
    address = f"{bucket.address}/run"
    write(address, {"results.jsonl": "1"}, replaces="")
    with monkeypatch.context() as patch:
        Break(patch, after=0)
        with pytest.raises(OutputError, match="Everything is on this machine"):
            write(address, {"mine": "unsaved"}, replaces="")
    state = next((cached / "writing").glob("*/uploaded.json"))
    state.write_text(state.read_text()[:10])  # cut: it no longer says what this machine has
    with remote.writing(address) as output:
        assert (output.folder / "results.jsonl").read_text() == "1" and not (output.folder / "mine").exists()
        (aside,) = output.folder.parent.glob("run.before-*/mine")
    assert aside.read_text() == "unsaved" and not output.folder.exists()


def test_a_complete_folder_stays_complete_if_nothing_changes(bucket):
    address = f"{bucket.address}/run"
    write(address, {"report.md": "1"}, replaces="")
    with pytest.raises(ConfigError), remote.writing(address):
        raise ConfigError("a wrong flag")
    assert marker(bucket, "run")["complete"] and read(address) == {"report.md": "1"}
