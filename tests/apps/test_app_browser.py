"""The web app's page over its server, as a browser talks to it: `make test-browser` installs what that needs."""

from __future__ import annotations

import gc
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trimesh

from easi3r_jax.apps.app import options
from easi3r_jax.apps.app.job import Jobs, Limits, Networks
from easi3r_jax.apps.app.store import Store
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export
from easi3r_jax.viewer.listening import check_address
from tests.apps.app_program import ROOT, app_program
from tests.apps.app_stand_ins import FRAMES, quick_reconstruction, write_video

# Gradio asks pandas for what pandas is about to drop, and leaves the closing of files and loops to Python.
_OF_GRADIO = ("ignore:'future.no_silent_downcasting'", "ignore:unclosed:ResourceWarning")
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings(*_OF_GRADIO)]
pytest.importorskip("gradio_client", reason="gradio is missing: run `make test-browser`, which installs it")

import gradio_client  # noqa: E402
import httpx  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

QUICK = {"graph": "complete", "iterations": 5}


class Visitor:
    """One open page.

    Args:
      url: of the server.
      folder: where it downloads to.
    """

    def __init__(self, url: str, folder: pathlib.Path):
        self.url = url
        self.client = gradio_client.Client(url, verbose=False, download_files=str(folder))
        endpoints: Any = self.client.view_api(print_info=False, return_format="dict")
        self._parameters = endpoints["named_endpoints"]["/reconstruct"]["parameters"]

    def submit(self, files: list[Any], **values: Any):
        """Drops files, sets options, presses the button."""
        uploads = [gradio_client.handle_file(file) if isinstance(file, pathlib.Path) else file for file in files]
        named = {options.TITLES[name]: value for name, value in (QUICK | values).items()}
        given = {"Video or images": uploads, **named}
        assert set(given) <= {parameter["label"] for parameter in self._parameters}
        arguments = [given.get(p["label"], p.get("parameter_default")) for p in self._parameters]
        return self.client.submit(*arguments, api_name="/reconstruct")

    def join(self, files: list[dict[str, Any]]) -> str:
        """The answer to a job whose files are passed by path; clients would read and upload them first."""
        (number,) = (d["id"] for d in self.client.config["dependencies"] if d["api_name"] == "reconstruct")
        arguments = [files, *(p["parameter_default"] for p in self._parameters[1:])]
        job = {"data": arguments, "fn_index": number, "session_hash": "by_hand"}
        assert httpx.post(f"{self.url}/gradio_api/queue/join", json=job).status_code == 200
        return httpx.get(f"{self.url}/gradio_api/queue/data?session_hash=by_hand", timeout=60).text

    def status(self, path: str) -> int:
        """Of a GET request, sent as it is written."""
        return httpx.get(self.url + path).status_code

    def leave(self) -> None:
        """Closes the page."""
        self.client._kill_heartbeat.set()


def words(text: str) -> str:
    """A text without its tags."""
    return re.sub(r"<[^>]*>", "", text)


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.1)


# --- the program ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Iterator[tuple[str, pathlib.Path]]:
    """Its address, and the folder that it has its own in."""
    folder = tmp_path_factory.mktemp("temporary")
    with app_program(folder, "--max_frames=4") as url:
        yield url, folder


def test_from_upload_to_download(program, tmp_path):
    url, _ = program
    seen = set()
    job = Visitor(url, tmp_path).submit(FRAMES[:3], export=["colmap", "easi3r"], report=True)
    while not job.done():
        seen |= {unit.desc for unit in job.status().progress_data or ()}
        time.sleep(0.05)
    text, scene, downloads, *films = job.result()
    assert words(text).startswith("3 frames")
    assert len(seen) > 2
    player = re.search(r'src="(/viewer/[0-9a-f]{32}/)"', str(scene))
    assert player is not None and "<title>Viser</title>" in httpx.get(url + player[1]).text
    films = [film["video"] if isinstance(film, dict) else film for film in films if film]
    assert [pathlib.Path(film).name for film in films] == ["panel.mp4", "depth.mp4", "masks.mp4", "attention.mp4"]
    assert all(pathlib.Path(film).read_bytes()[4:8] == b"ftyp" for film in films)
    files = {pathlib.Path(path).name: path for path in downloads["value"]}
    assert set(files) == {"result.zip", "scene.glb", "report.html", "colmap.zip", "easi3r.zip"}
    assert trimesh.load(files["scene.glb"]).geometry
    with zipfile.ZipFile(files["result.zip"]) as archive:
        archive.extractall(tmp_path)
    assert export.load_scene(tmp_path / "result").depth.shape == (3, 64, 96)


def test_ctrl_c_in_the_middle_of_a_job_leaves_nothing(tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    with app_program(folder, end=signal.SIGINT) as url:  # looks at what is left
        job = Visitor(url, tmp_path / "downloads").submit(FRAMES[:4], iterations=3000)
        until(lambda: any(unit.desc.startswith("global alignment") for unit in job.status().progress_data or ()))
        began = time.monotonic()
    assert time.monotonic() - began < 20


def test_a_port_in_use_is_reported_in_one_line(program):
    port = program[0].rsplit(":", 1)[1]
    command = [sys.executable, "-m", "experiments.app", f"--port={port}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (
        done.returncode == 1
        and done.stderr == f"error: Port {port} is in use: choose another, or 0 for any free port.\n"
    )


# --- its page, with a reconstruction that takes no time --------------------------------------------------------------


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(["embedded"])


@pytest.fixture(scope="module")
def served(networks) -> Iterator[tuple[str, Store]]:
    """The page in this process."""
    with pytest.MonkeyPatch.context() as patch, Store(3600) as store:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(store.served))
        patch.setenv("GRADIO_EXAMPLES_CACHE", str(store.served))
        patch.setattr(pipeline, "encode", lambda *args, **options: None)
        from easi3r_jax.apps.app import page

        port = check_address("127.0.0.1", 0)
        running = page.serve(Jobs(store, networks, Limits(megabytes=1, frames=4)), "127.0.0.1", port, waiting=2)
        try:
            yield f"http://127.0.0.1:{port}", store
        finally:
            running.close(verbose=False)
            running.players.close()
            gc.collect()  # what gradio leaves to Python goes now, and not in somebody else's test


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction())


@pytest.fixture
def slow(monkeypatch) -> Iterator[threading.Event]:
    """A reconstruction that reports and reports until the event is set."""
    go_on = threading.Event()

    def work(progress):
        while not go_on.wait(0.05):
            progress("align", 1, 10, "")

    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction(work))
    yield go_on
    go_on.set()


def results(store: Store) -> list[pathlib.Path]:
    return [path.parent for path in store.served.glob("*/scene.glb")]


def large_files(store: Store) -> set[pathlib.Path]:
    return {path for path in store.served.rglob("*") if path.is_file() and path.stat().st_size > 100_000}


def at_work(store: Store) -> list[str]:
    return os.listdir(store.served.parent / "work")


def test_a_video(served, quick, tmp_path):
    visitor = Visitor(served[0], tmp_path)
    text, *_ = visitor.submit([write_video(tmp_path / "clip.mp4", FRAMES[:3])]).result()
    assert words(text).startswith("3 frames")


def test_a_file_that_is_not_a_clip_is_reported_and_the_server_stays_up(served, quick, tmp_path):
    visitor = Visitor(served[0], tmp_path)
    (tmp_path / "letter.mp4").write_text("Dear all,\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for files, values, expected in [
        ([tmp_path / "letter.mp4"], {}, "letter.mp4 cannot be opened as a video"),
        ([tmp_path / "empty.mp4"], {}, "is empty"),
        ([], {}, "nothing to reconstruct"),
        (FRAMES[:5], {}, "5 frames, and the limit is 4"),
        (FRAMES[:2], {"graph": "nothing"}, "graph"),
        (FRAMES[:2], {"iterations": 10**7}, "at most 3000"),
    ]:
        with pytest.raises(AppError, match=expected) as caught:
            visitor.submit(files, **values).result()
        assert str(served[1].served) not in str(caught.value)
    assert words(visitor.submit(FRAMES[:2]).result()[0]).startswith("2 frames")


def test_a_huge_file_is_refused_before_it_is_kept(served, quick, tmp_path):
    huge = tmp_path / "huge.mp4"
    huge.write_bytes(bytes(1_500_000))
    visitor, before = Visitor(served[0], tmp_path), large_files(served[1])
    with pytest.raises(ValueError, match="exceeds the maximum file size of 1000000"):  # the client knows the limit
        visitor.submit([huge]).result()
    answer = httpx.post(f"{served[0]}/gradio_api/upload", files={"files": huge.open("rb")})  # one that does not
    assert answer.status_code == 413 and "maximum allowed size" in answer.text
    until(lambda: large_files(served[1]) <= before)
    assert words(visitor.submit(FRAMES[:2]).result()[0]).startswith("2 frames")


def raw_upload(url: str, *headers: str) -> socket.socket:
    """The beginning of a malformed upload, which no library writes."""
    address = url.removeprefix("http://")
    connection = socket.create_connection(address.split(":"), timeout=60)
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    head = ["POST /gradio_api/upload HTTP/1.1", f"Host: {address}", "Content-Type: multipart/form-data; boundary=x"]
    if any("chunked" in header for header in headers):
        part = f"{len(part):x}\r\n{part}\r\n"
    connection.sendall(("\r\n".join([*head, *headers]) + "\r\n\r\n" + part).encode())
    return connection


def test_an_aborted_upload_leaves_nothing(served, caplog):
    url, store = served
    before = set(store.served.rglob("*"))
    with raw_upload(url, "Content-Length: 900000") as connection:
        connection.sendall(bytes(500_000))
        until(lambda: set(store.served.rglob("*")) - before)
    until(lambda: set(store.served.rglob("*")) <= before)
    assert "Traceback" not in caplog.text


def test_a_stalled_upload_is_ended(served, monkeypatch, capfd):
    url, store = served
    monkeypatch.setattr("easi3r_jax.apps.app.gate._UPLOAD_TIMEOUT_SECONDS", 0.5)
    before = set(store.served.rglob("*"))
    with raw_upload(url, "Content-Length: 900000") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
    assert set(store.served.rglob("*")) <= before
    assert capfd.readouterr().err == ""


def test_an_upload_in_chunks_cannot_say_that_it_is_short(served):
    url, store = served
    before = set(store.served.rglob("*"))
    with raw_upload(url, "Content-Length: 10", "Transfer-Encoding: chunked") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 411 ")
    assert set(store.served.rglob("*")) <= before


def test_an_internal_error_reveals_no_details(served, monkeypatch, tmp_path, caplog):
    def work(progress):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(pipeline, "reconstruct", quick_reconstruction(work))
    with pytest.raises(AppError, match="failed: see the server's log") as caught:
        Visitor(served[0], tmp_path).submit(FRAMES[:2]).result()
    assert "secret" not in str(caught.value) and "secret" in caplog.text


def test_no_file_of_the_machine_is_read_through_it(served, quick, tmp_path):
    url, store = served
    visitor = Visitor(url, tmp_path)
    for path in ("/etc/passwd", "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "%2Fetc%2Fpasswd", "//etc/passwd"):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"):
            assert visitor.status(prefix + path) in (403, 404), prefix + path
    for path in (f"{ROOT}/README.md", f"{store.served}/../work", f"{store.served}", "http://127.0.0.1:1/x"):
        assert visitor.status(f"/gradio_api/file={path}") in (403, 404), path
    for path in ("/gradio_api/proxy=http://127.0.0.1:1", "/docs", "/redoc", "/openapi.json", "/monitoring"):
        assert visitor.status(path) == 404, path
    for source in ("/etc/passwd", str(ROOT / "README.md"), str(FRAMES[0]), "http://127.0.0.1:1/clip.mp4"):
        answer = visitor.join([{"path": source, "meta": {"_type": "gradio.FileData"}}])
        assert '"success":false' in answer and source not in answer and "root:" not in answer
    assert not at_work(store)


def test_the_page_draws_nothing_from_elsewhere(served):
    answer = httpx.get(served[0])
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.googleapis.com/css" not in answer.text


def test_stopping_ends_the_job_and_the_next_one_works(served, slow, tmp_path):
    url, store = served
    visitor, before = Visitor(url, tmp_path), set(results(store))
    job = visitor.submit(FRAMES[:2])
    until(lambda: at_work(store))
    visitor.client.predict(api_name="/stop")
    with pytest.raises(AppError, match="Stopped"):
        job.result(timeout=60)
    assert not at_work(store) and not set(results(store)) - before
    slow.set()
    assert words(visitor.submit(FRAMES[:2]).result()[0]).startswith("2 frames")


def test_closing_the_page_in_the_middle_ends_its_job(served, slow, tmp_path):
    url, store = served
    visitor, before = Visitor(url, tmp_path), set(results(store))
    visitor.submit(FRAMES[:2])
    until(lambda: at_work(store))
    visitor.leave()
    until(lambda: not at_work(store))
    assert not set(results(store)) - before
    slow.set()
    assert words(Visitor(url, tmp_path).submit(FRAMES[:2]).result()[0]).startswith("2 frames")


def test_results_go_with_their_page(served, quick, tmp_path):
    url, store = served
    stays, leaves = Visitor(url, tmp_path / "a"), Visitor(url, tmp_path / "b")
    before = set(results(store))
    stays.submit(FRAMES[:2]).result()
    (kept,) = set(results(store)) - before
    leaves.submit(FRAMES[:2]).result()
    (removed,) = set(results(store)) - before - {kept}
    leaves.leave()
    until(lambda: not removed.exists())
    assert stays.status(f"/gradio_api/file={kept}/scene.glb") == 200
    assert stays.status(f"/gradio_api/file={removed}/scene.glb") == 404


def test_the_second_visitor_waits_and_sees_its_place_and_the_fourth_is_sent_away(served, slow, tmp_path):
    url, store = served
    first, second, third = (Visitor(url, tmp_path / name) for name in "abc")
    running = first.submit(FRAMES[:2])
    until(lambda: at_work(store))
    waiting = second.submit(FRAMES[:3])
    until(lambda: waiting.status().rank == 0)
    also_waiting = third.submit(FRAMES[:4])
    until(lambda: also_waiting.status().rank == 1)
    assert len(at_work(store)) == 1
    with pytest.raises(Exception, match=r"(?i)queue is full"):
        Visitor(url, tmp_path / "d").submit(FRAMES[:2]).result()
    slow.set()
    done = [words(job.result(timeout=120)[0]) for job in (running, waiting, also_waiting)]
    assert [text.split()[0] for text in done] == ["2", "3", "4"]


def test_the_page_offers_every_option(served, tmp_path):
    labels = {parameter["label"] for parameter in Visitor(served[0], tmp_path)._parameters}
    assert labels == {"Video or images", "Network", "Beside plain DUSt3R", *options.TITLES.values()}
