"""Copies of what lies in a store: by a real S3 client from a real server, in a bounded cache."""

from __future__ import annotations

import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.io import remote
from easi3r_jax.io.remote import cache


def copies(cached: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in (cached / "remote").iterdir() if path.is_dir())


def test_a_path_stays_itself():
    assert remote.local("some/clip.mp4") == "some/clip.mp4"
    assert remote.local(pathlib.Path("clip.mp4")) == "clip.mp4"
    assert not remote.is_address("C:/clip.mp4")


def test_a_file_is_copied_once_and_keeps_its_name(bucket, forget):
    bucket.put("films/clip.mp4", b"frames")
    path = pathlib.Path(remote.local(f"{bucket.address}/films/clip.mp4"))
    assert path.name == "clip.mp4"
    assert path.read_bytes() == b"frames"
    path.write_bytes(b"mark")  # another download would replace it
    forget()
    assert remote.local(f"{bucket.address}/films/clip.mp4") == str(path)
    assert path.read_bytes() == b"mark"


def test_what_has_changed_is_copied_again(bucket):
    bucket.put("a.txt", b"one")
    first = pathlib.Path(remote.local(f"{bucket.address}/a.txt"))
    bucket.put("a.txt", b"two")  # of the same size
    second = pathlib.Path(remote.local(f"{bucket.address}/a.txt"))
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")


def test_a_folder_is_copied_whole(bucket):
    contents = {f"clip/frames/{n:05d}.png": bytes([n]) * (n + 1) for n in range(150)} | {"clip/a b/ü.txt": b"x"}
    for name, content in contents.items():
        bucket.put(name, content)
    bucket.put("clip2/other.txt", b"no")  # a longer name is another folder
    seen = []
    progress = lambda stage, done, total, note: seen.append((stage, done, total))  # noqa: E731
    folder = pathlib.Path(remote.local(f"{bucket.address}/clip/", progress=progress))
    found = {f"clip/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == contents
    assert seen[-1] == ("download", 151, 151)


def test_a_name_that_would_leave_the_folder_is_refused(bucket, cached):
    bucket.put("clip/../../escaped.txt", b"x")
    with pytest.raises(InputError, match="not a file's name"):
        remote.local(f"{bucket.address}/clip")
    assert not list(cached.rglob("escaped.txt"))


def test_the_cache_keeps_its_bound_and_what_was_used_last(bucket, cached, forget, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "0.000003")  # 3 kB
    for name in "abc":
        bucket.put(name, bytes(1000))
        os.utime(pathlib.Path(remote.local(f"{bucket.address}/{name}")).parent, (ord(name), ord(name)))
    forget()
    remote.local(f"{bucket.address}/a")  # now used last
    forget()
    bucket.put("d", bytes(1500))
    remote.local(f"{bucket.address}/d")
    names = sorted(path.name for folder in copies(cached) for path in folder.iterdir())
    assert names == ["a", "d"]


def test_what_is_in_use_is_never_deleted(bucket, cached, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "0.000001")
    bucket.put("a", bytes(900))
    bucket.put("b", bytes(900))
    path = pathlib.Path(remote.local(f"{bucket.address}/a"))
    with pytest.raises(InputError, match=r"the cache is full of what this and other programs use"):
        remote.local(f"{bucket.address}/b")
    assert path.is_file()


def test_what_another_process_uses_is_never_deleted(bucket, forget, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "0.000001")
    bucket.put("a", bytes(900))
    bucket.put("b", bytes(900))
    script = "import sys; from easi3r_jax.io import remote; print(remote.local(sys.argv[1]), flush=True); input()"
    command = [sys.executable, "-c", script, f"{bucket.address}/a"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        path = pathlib.Path(other.stdout.readline().strip())
        with pytest.raises(InputError, match="the cache is full"):
            remote.local(f"{bucket.address}/b")
        assert path.is_file()
        other.communicate("\n")
    assert other.returncode == 0
    remote.local(f"{bucket.address}/b")
    assert not path.exists()


def test_more_than_the_cache_may_hold_is_refused_before_the_download(bucket, cached, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "0.000001")
    bucket.put("big", bytes(2000))
    with pytest.raises(InputError, match=f"{cache.LIMIT}="):
        remote.local(f"{bucket.address}/big")
    assert not (cached / "remote").exists()


def test_a_bound_that_is_no_number(bucket, monkeypatch):
    monkeypatch.setenv(cache.LIMIT, "much")
    bucket.put("a", b"x")
    with pytest.raises(ConfigError, match="must be a number of gigabytes"):
        remote.local(f"{bucket.address}/a")


def test_two_processes_make_one_copy(bucket, cached):
    for number in range(70):
        bucket.put(f"clip/{number}", bytes([number]) * 5000)
    script = "import sys; from easi3r_jax.io import remote; print(remote.local(sys.argv[1]))"
    command = [sys.executable, "-c", script, f"{bucket.address}/clip"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=300)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (folder,) = printed
    assert len(list(pathlib.Path(folder).iterdir())) == 70
    assert len(copies(cached)) == 1


def test_a_copy_that_was_interrupted_goes_on_and_is_not_taken_for_whole(bucket, cached, monkeypatch):
    for number in range(130):
        bucket.put(f"clip/{number:03d}", bytes([number]))
    fetch, calls = cache._fetch, []

    def interrupted(place, files, names, scratch):
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        fetch(place, files, names, scratch)

    monkeypatch.setattr(cache, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remote.local(f"{bucket.address}/clip")
    assert [path.suffix for path in copies(cached)] == [".part"]
    folder = pathlib.Path(remote.local(f"{bucket.address}/clip"))
    assert len(list(folder.iterdir())) == 130
    assert [len(names) for names in calls] == [64, 64, 64, 2]  # the first 64 were kept


def test_locks_of_other_file_systems_are_done_without(bucket, monkeypatch):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    bucket.put("a", b"x")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert pathlib.Path(remote.local(f"{bucket.address}/a")).read_bytes() == b"x"


def test_nobody_waits_for_those_who_use_a_copy(bucket, cached, forget):
    """Another program holds the copy for as long as it runs."""
    bucket.put("a.txt", b"one")
    path = remote.local(f"{bucket.address}/a.txt")
    forget()
    (lock,) = (cached / "remote").glob("*.lock")
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert remote.local(f"{bucket.address}/a.txt") == path


def test_what_changes_while_it_is_downloaded_is_refused(bucket, cached, monkeypatch):
    bucket.put("clip/a", b"1")
    bucket.put("clip/b", b"1")
    download = cache.download

    def replaced_meanwhile(*arguments):
        download(*arguments)
        bucket.put("clip/a", b"2")  # of the same size

    monkeypatch.setattr(cache, "download", replaced_meanwhile)
    address = f"{bucket.address}/clip"
    with pytest.raises(InputError, match="it changed while it was downloaded"):
        remote.local(address)
    assert copies(cached) == []
