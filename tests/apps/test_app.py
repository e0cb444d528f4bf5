"""The web app without its page: jobs, and the lifetime of their files. The page: test_app_browser.py."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import os
import pathlib
import re
import shutil
import sys
import threading
import time
import zipfile

import pytest
import trimesh
from PIL import Image

from easi3r_jax.apps.app import main as program
from easi3r_jax.apps.app import options
from easi3r_jax.apps.app import players as players_module
from easi3r_jax.apps.app.job import Jobs, Limits, Networks
from easi3r_jax.apps.app.players import SCENES, Players
from easi3r_jax.apps.app.preview import preview
from easi3r_jax.apps.app.sessions import Sessions
from easi3r_jax.apps.app.store import Store
from easi3r_jax.apps.app.uploads import ServerError, StoppedError
from easi3r_jax.core.errors import ConfigError, InputError, OutputError
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export, results
from tests.apps.app_stand_ins import FRAMES, quick_reconstruction, write_video


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(["embedded"])


@pytest.fixture
def jobs(store, networks, monkeypatch, no_summary) -> Jobs:
    """Jobs in which all is real but the network's and the alignment's work."""
    monkeypatch.setattr(pipeline, "encode", lambda *args, **options: None)
    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction())
    return Jobs(store, networks, Limits(megabytes=1, frames=4, minutes=5))


def working(store: Store) -> list[str]:
    """What jobs have under their hands."""
    return os.listdir(store.served.parent / "work")


def served(store: Store) -> list[str]:
    return os.listdir(store.served)


def test_an_upload_becomes_a_scene_films_and_packed_exports(jobs, store, tmp_path):
    seen = []
    values = {"graph": "complete", "export": ["colmap", "ply"], "report": True, "iterations": 5, "fps": None}
    products = jobs.run(FRAMES[:3], "embedded", values, lambda *report: seen.append(report))
    assert {stage for stage, *_ in seen} >= {"read", "write", "export", "pictures", "pack"}
    assert trimesh.load(products.scene).geometry
    assert set(products.films) == {"panel", "depth", "masks", "attention"}
    assert [path.name for path in products.downloads] == [
        *("result.zip", "scene.glb", "report.html", "colmap.zip", "ply.zip")
    ]
    assert {path.parent for path in (products.scene, *products.films.values(), *products.downloads)} == {
        products.folder
    }
    with zipfile.ZipFile(products.downloads[0]) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert export.load_scene(tmp_path / "unpacked" / "result").depth.shape == (3, 64, 96)
    with zipfile.ZipFile(products.downloads[3]) as archive:
        assert {"colmap/images/00000.png", "colmap/sparse/0/cameras.bin"} <= set(archive.namelist())
    assert working(store) == []


def test_downloads_do_not_reveal_paths_of_the_server(jobs, store):
    products = jobs.run(FRAMES[:2], "embedded", {"export": list(export.FORMATS), "report": True})
    root = str(store.served.parent).encode()
    for path in filter(pathlib.Path.is_file, products.folder.rglob("*")):
        assert root not in path.read_bytes()
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    assert root not in archive.read(name), name
                    assert not name.startswith("/") and ".." not in name


def test_a_video_is_reconstructed_though_its_upload_is_removed_meanwhile(jobs, tmp_path, monkeypatch):
    video = write_video(tmp_path / "../clip.mp4", FRAMES[:4])
    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction(lambda progress: video.unlink()))
    products = jobs.run([video], "embedded", {"every": 2, "export": ["colmap"]})
    assert products.text.startswith("2 frames")
    with zipfile.ZipFile(products.downloads[-1]) as archive:  # of the video itself, when it was gone
        assert sum(name.startswith("colmap/images/") for name in archive.namelist()) == 2


def test_images_go_by_their_names_and_numbers(jobs, store, tmp_path):
    names = ["frame_10.png", "frame_2.png", "frame_1.png"]
    for name, frame in zip(names, FRAMES, strict=False):
        shutil.copy(frame, tmp_path / name)
    products = jobs.run([tmp_path / name for name in names], "embedded", {"export": ["npz"]})
    with zipfile.ZipFile(products.downloads[0]) as archive:
        archive.extractall(tmp_path / "unpacked")
    images = export.load_scene(tmp_path / "unpacked" / "result").rgb
    straight = jobs.run(FRAMES[:3], "embedded", {})
    with zipfile.ZipFile(straight.downloads[0]) as archive:
        archive.extractall(tmp_path / "straight")
    assert (images == export.load_scene(tmp_path / "straight" / "result").rgb[::-1]).all()


def test_exports_repeat_the_names_of_images(jobs, tmp_path):
    """Whatever the suffix says: a file is an image by its content."""
    shutil.copy(FRAMES[0], tmp_path / "IMG_1.jpg")
    shutil.copy(FRAMES[1], tmp_path / "IMG_2")
    products = jobs.run([tmp_path / "IMG_2", tmp_path / "IMG_1.jpg"], "embedded", {"export": ["colmap"]})
    with zipfile.ZipFile(products.downloads[-1]) as archive:
        names = [name for name in archive.namelist() if name.startswith("colmap/images/")]
    assert [pathlib.PurePath(name).name.split(".")[0] for name in names] == ["IMG_1", "IMG_2"]


def test_images_of_the_same_name_are_numbered(jobs, tmp_path):
    paths = [tmp_path / folder / "a.png" for folder in "xy"]
    for path, frame in zip(paths, FRAMES, strict=False):
        path.parent.mkdir()
        shutil.copy(frame, path)
    assert jobs.run(paths, "embedded", {}).text.startswith("2 frames")


@pytest.mark.parametrize("count", [1, 3])
def test_photos_of_a_phone(jobs, tmp_path, count):
    """One, or several: the same rule."""
    paths = [tmp_path / f"IMG_{n}.HEIC" for n in range(count)]
    for path, frame in zip(paths, FRAMES, strict=False):
        with Image.open(frame) as image:
            image.save(path, "AVIF")
    assert jobs.run(paths, "embedded", {"motion": "none"} if count == 1 else {}).text.startswith(f"{count} frame")


def test_beside_plain_dust3r(jobs, monkeypatch):
    seen = []
    quick = quick_reconstruction()

    def recorded(model, frames, config, **given):
        seen.append((config.cue, config.masks))
        return quick(model, frames, config, **given)

    monkeypatch.setattr(pipeline, "reconstruct", recorded)
    products = jobs.run(FRAMES[:2], "embedded", {"export": ["npz"]}, beside_plain=True)
    assert seen == [("none", ()), ("attention", ("motion",))]
    scenes = sorted((products.folder / SCENES).iterdir())
    assert [scene.name for scene in scenes] == ["1 plain DUSt3R", "2 whole method"]
    assert all(results.load_result(scene).scene.depth.shape == (2, 64, 96) for scene in scenes)
    with pytest.raises(ConfigError, match="needs the mode align"):
        jobs.run(FRAMES[:2], "embedded", {"mode": "feedforward"}, beside_plain=True)


def test_a_preview_shows_what_will_be_used(jobs, store, tmp_path):
    shown = preview(jobs, [str(path) for path in FRAMES[:4]], "embedded", {"every": 2})
    assert "2 frames will be used, 96 × 64 pixels (of 96 × 64)" in shown
    data = re.search(r'alt="Frames 1, 2" src="data:image/jpeg;base64,([^"]+)"', shown)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as strip:
        assert strip.size == (2 * 144 + 4, 96)
    assert "More than 4 frames" in preview(jobs, [str(path) for path in FRAMES[:5]], "embedded", {})
    with pytest.raises(InputError, match=r"notes\.txt"):
        preview(jobs, [str(upload(tmp_path, "notes.txt", b"hello"))], "embedded", {})
    assert working(store) == []


def test_jobs_of_a_page_do_not_share_their_end(jobs):
    """A page may begin the next job while a stopped one is on its way out."""
    sessions = Sessions(jobs)
    first = sessions.begin("page")
    sessions.stop("page")
    second = sessions.begin("page")
    assert first.is_set() and not second.is_set()
    sessions.end("page", threading.Event(), None)
    late, wanted = (jobs.run(FRAMES[:2], "embedded", {}) for _ in range(2))
    sessions.end("page", first, late)
    sessions.end("page", second, wanted)
    assert not late.folder.exists() and wanted.scene.is_file()
    newer = jobs.run(FRAMES[:2], "embedded", {})
    sessions.end("page", sessions.begin("page"), newer)  # takes the place of the one before
    assert not wanted.folder.exists()
    both = [sessions.begin("page"), sessions.begin("page")]
    sessions.end("page", both[0], None)
    sessions.close("page")
    assert both[1].is_set() and not both[0].is_set() and not newer.folder.exists()


def test_a_job_can_be_stopped_before_it_begins(jobs):
    sessions = Sessions(jobs)
    sessions.press("page")
    sessions.stop("page")
    assert sessions.begin("page").is_set()
    sessions.press("page")
    assert not sessions.begin("page").is_set()
    with jobs._one_at_a_time, pytest.raises(StoppedError):  # while another one is on its way to its end
        jobs.run(FRAMES[:2], "embedded", {}, stopped=lambda: True)


def test_a_job_that_is_stopped_at_its_very_end_leaves_no_result(jobs, store, monkeypatch):
    stop, published = threading.Event(), jobs._published

    def stopped_meanwhile(*args):
        products = published(*args)
        stop.set()
        return products

    monkeypatch.setattr(jobs, "_published", stopped_meanwhile)
    with pytest.raises(StoppedError):
        jobs.run(FRAMES[:2], "embedded", {}, stopped=stop.is_set)
    assert served(store) == []


def test_a_full_disk_is_said_before_the_work(jobs, store, monkeypatch):
    monkeypatch.setattr(store, "free_bytes", lambda: 1_000_000)
    with pytest.raises(InputError, match="disk is full"):
        jobs.run(FRAMES[:2], "embedded", {})


def test_examples_are_copied_once(jobs, store):
    first, second = jobs.example("demo"), jobs.example("demo")
    assert first == second and len(first) == 16 and len(served(store)) == 1
    store.remove(first[0].parent)
    assert jobs.example("demo")[0].is_file()


def soon(condition) -> None:
    """Waits for another thread to make the condition true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class FakeViewer:
    """Stands in for a viewer."""

    def __init__(self, saved, **options):
        self.titles, self.closed, self.port = [s.folder.name for s in saved], False, 1

    def close(self):
        self.closed = True


def test_viewers_live_as_long_as_they_are_looked_at(jobs, store, monkeypatch):
    monkeypatch.setattr(players_module, "Viewer", FakeViewer)
    monkeypatch.setattr(players_module, "_MAX_OPEN", 2)
    monkeypatch.setattr(players_module, "_SWEEP_SECONDS", 0.05)
    players = Players(store)
    results_ = [jobs.run(FRAMES[:2], "embedded", {}).folder for _ in range(3)]
    first, second = (players._started(folder.name) for folder in results_[:2])
    assert players._started(results_[0].name) is first and first.viewer.titles == ["images"]
    players._count(first, 1)
    assert players._started(results_[2].name) == players_module._BUSY  # the second has just begun
    monkeypatch.setattr(players_module, "_IDLE_SECONDS", 0.0)
    soon(lambda: second.viewer.closed)  # by itself
    third = players._started(results_[2].name)
    assert not first.viewer.closed
    players._count(first, -1)
    soon(lambda: first.viewer.closed and third.viewer.closed)
    monkeypatch.setattr(players_module, "_IDLE_SECONDS", 60.0)
    again = players._started(results_[0].name)
    players._count(again, 1)
    store.remove(results_[0])
    soon(lambda: again.viewer.closed)
    assert "gone" in players._started(results_[0].name)
    players.close()


def test_a_viewer_is_found_at_no_address_that_websites_try(jobs, store):
    with contextlib.closing(Players(store)) as players:
        player = players._started(jobs.run(FRAMES[:2], "embedded", {}).folder.name)
        assert player.host.startswith("127.") and (sys.platform != "linux" or player.host != "127.0.0.1")
        assert b"<title>Viser</title>" in players_module._fetched(player)
        player.viewer.close()
        assert players_module._fetched(player) == players_module._BUSY
    assert b"refresh" in players_module._told(players_module._BUSY) and b"refresh" not in players_module._told("x")


def test_too_many_scenes_at_once_are_said(jobs, store, monkeypatch):
    monkeypatch.setattr(players_module, "Viewer", FakeViewer)
    monkeypatch.setattr(players_module, "_MAX_OPEN", 1)
    players = Players(store)
    first, second = (jobs.run(FRAMES[:2], "embedded", {}).folder.name for _ in range(2))
    players._count(players._started(first), 1)
    assert players._started(second) == players_module._BUSY


def upload(tmp_path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_a_file_that_is_not_a_clip_is_refused_in_the_users_terms(jobs, store, tmp_path):
    text = upload(tmp_path, "holiday <b>.mp4", b"this is no video\n" * 100)
    theirs = write_video(tmp_path / "theirs.mp4", FRAMES[:2])  # a file of the server, which a list of files names
    lists = [
        ("hls", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{theirs}\n#EXT-X-ENDLIST\n".encode()),
        ("concat", f"ffconcat version 1.0\nfile '{theirs}'\n".encode()),
        ("sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"),
    ]
    cases = [
        ([], "nothing to reconstruct"),
        ([text], "holiday <b>.mp4 cannot be opened as a video"),
        ([upload(tmp_path, "empty.mp4", b"")], "empty.mp4 is empty"),
        ([upload(tmp_path, "notes.txt", b"hello\n")], "notes.txt"),
        ([upload(tmp_path, "torn.png", FRAMES[0].read_bytes()[:500])], "torn.png"),
        *(([upload(tmp_path, f"{kind}.mp4", content)], f"{kind}.mp4 cannot be opened") for kind, content in lists),
        ([upload(tmp_path, "huge.mp4", bytes(1_000_001))], "the limit is 1 MB"),
        ([FRAMES[0], text], "one video, or images only"),
        ([tmp_path / "gone.mp4"], "has expired"),
        (FRAMES[:5], "5 frames, and the limit is 4"),
        ([write_video(tmp_path / "long.mp4", FRAMES[:6])], "6 frames, and the limit is 4"),
    ]
    for files, expected in cases:
        with pytest.raises(InputError) as caught:
            jobs.run(files, "embedded", {})
        assert expected in str(caught.value)
        assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)
    assert working(store) == served(store) == []


def test_a_clip_of_undeclared_length_is_cut_as_soon_as_it_is_too_long(jobs, tmp_path):
    seen = []
    video = write_video(tmp_path / "long.mp4", FRAMES[:16])
    with pytest.raises(InputError, match="more than 4 frames"):
        jobs.run([video], "embedded", {"fps": 1000.0}, lambda *report: seen.append(report))
    assert max(done for stage, done, *_ in seen if stage == "read") == 4
    assert jobs.run([video], "embedded", {"first": 3}).text.startswith("3 frames")
    assert jobs.run([video], "embedded", {"first": 1, "motion": "none"}).text.startswith("1 frame in")


def test_a_clip_of_declared_length_is_refused_before_it_is_read(jobs, tmp_path):
    seen = []
    video = write_video(tmp_path / "long.mp4", FRAMES[:16])
    with pytest.raises(InputError, match="16 frames"):
        jobs.run([video], "embedded", {}, lambda *report: seen.append(report))
    assert not [done for stage, done, *_ in seen if stage == "read" and done]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"output": "/tmp/x"}, "not an option"),
        ({"seq": "/etc"}, "not an option"),
        ({"checkpoint": "/weights"}, "not an option"),
        ({"masks": "/etc"}, "masks must be one of motion, none"),
        ({"masks": "motion+/etc"}, "masks must be one of"),
        ({"motion": "x"}, "motion must be one of"),
        ({"report": "yes"}, "not a valid value"),
        ({"iterations": True}, "not a valid value"),
        ({"iterations": "5"}, "not a valid value"),
        ({"iterations": 2.5}, "whole number"),
        ({"iterations": 0}, "iterations"),
        ({"iterations": 10**6}, "at most 3000"),
        ({"size": 10**4}, "at most 512"),
        ({"fps": float("nan")}, "fps must be finite"),
        ({"fps": 1e-6}, "at least 0.1"),
        ({"graph": "x" * 65}, "not a valid value"),
        ({"graph": "nothing"}, "graph"),
        ({"foreground": "9"}, "frame number from 0 to 1"),
        ({"export": ["colmap", "../x"]}, "Export format"),
        ({"mode": "feedforward", "iterations": 5}, "does not use --iterations=5"),
    ],
)
def test_options_that_the_page_does_not_allow_are_refused(jobs, store, values, expected):
    with pytest.raises(ConfigError, match=expected):
        jobs.run(FRAMES[:2], "embedded", values)
    assert working(store) == served(store) == []


def test_checkpoints_are_those_of_the_operator(jobs, tmp_path):
    with pytest.raises(ConfigError, match="one of embedded"):
        jobs.run(FRAMES[:2], "naver/DUSt3R", {})
    weights = tmp_path / "a_network"
    weights.mkdir()
    names = Networks([str(weights), "someone/network"], load=lambda name, *_, **__: (None, {"source": name})).names
    assert names == ("a_network", "someone/network")
    for wrong in ([], ["a/b", "a/b"]):
        with pytest.raises(ConfigError, match="--checkpoints"):
            Networks(wrong, load=lambda *_, **__: (None, {}))


def test_every_option_of_the_page_is_a_flag_and_its_default_changes_nothing():
    described = [options.described(name) for name in options.NAMES]
    assert options.checked({flag.name: flag.default for flag in described}) == {}
    assert all(flag.text and (not flag.choices or flag.default in flag.choices) for flag in described)
    assert not {"seq", "output", "checkpoint", "intrinsics", "poses", "flow", "ground_truth"} & set(options.NAMES)


def test_a_stopped_job_ends_at_the_next_report_and_leaves_nothing(jobs, store, monkeypatch):
    stop, after = threading.Event(), []

    def work(progress):
        stop.set()
        progress("align", 1, 10, "")
        after.append("went on")

    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction(work))
    with pytest.raises(StoppedError):
        jobs.run(FRAMES[:2], "embedded", {}, stopped=stop.is_set)
    assert not after and working(store) == served(store) == []
    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction())
    assert jobs.run(FRAMES[:2], "embedded", {}).scene.is_file()  # the next one works


def test_progress_shows_the_remaining_time(jobs, monkeypatch):
    took, left = [], {}

    def work(progress):
        start = time.perf_counter()
        progress("align", 0, 10, "")
        time.sleep(0.2)
        progress("align", 8, 10, "")
        took.append(time.perf_counter() - start)
        progress("align", 10, 10, "")

    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction(work))
    jobs.run(FRAMES[:2], "embedded", {}, lambda stage, done, total, seconds: left.update({(stage, done): seconds}))
    assert left["align", 0] is None and left["align", 10] is None
    assert 0.2 * 2 / 8 <= left["align", 8] <= took[0] * 2 / 8


def test_a_job_that_takes_too_long_is_ended(jobs, store, networks, monkeypatch):
    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction(lambda progress: progress("align", 1, 10, "")))
    monkeypatch.setattr(time, "monotonic", itertools.count(step=15.0).__next__)  # a quarter of a minute at each look
    assert Jobs(store, networks, Limits(minutes=600)).run(FRAMES[:2], "embedded", {}).scene.is_file()
    with pytest.raises(InputError, match="longer than the limit of 2 minutes"):
        Jobs(store, networks, Limits(minutes=2)).run(FRAMES[:2], "embedded", {})
    assert working(store) == []


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: out of memory")])
def test_too_little_memory_is_reported(jobs, monkeypatch, error):
    def work(progress):
        raise error

    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction(work))
    with pytest.raises(InputError, match="memory does not suffice"):
        jobs.run(FRAMES[:2], "embedded", {})


def test_a_server_error_is_not_explained_to_the_user(jobs, monkeypatch):
    def full(*args, **options):
        raise OutputError("Cannot write /secret/place: the disk is full.")

    monkeypatch.setattr(results, "save_result", full)
    with pytest.raises(ServerError):
        jobs.run(FRAMES[:2], "embedded", {})


def test_results_expire_and_all_are_removed_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Store(keep_seconds=100) as store:
        assert os.stat(store.served.parent).st_mode & 0o077 == 0
        old, new = store.new_result(), store.new_result()
        (old / "scene.glb").write_bytes(b"x")
        for path in (old, upload(store.served, "upload", b"x")):
            os.utime(path, times=(time.time() - 101,) * 2)
        store.sweep()
        assert list(store.served.iterdir()) == [new]
        assert len(new.name) >= 32  # not to be guessed
        with store.job() as folder:
            upload(folder, "half", b"x")
        assert working(store) == []
    assert list(tmp_path.iterdir()) == []


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch, capsys):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # what the program sets goes with the test
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "easi3r_jax.apps.app.page", raising=False)  # where another test has it
    monkeypatch.delattr("easi3r_jax.apps.app.page", raising=False)
    code = program.FLAGS.execute(program.main, ["", "--port=0"])
    complaint = capsys.readouterr().err
    assert code == 1 and "pip install -e '.[app]'" in complaint and len(complaint.splitlines()) == 1
