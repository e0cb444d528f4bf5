"""What the hub answers, and what its cache holds, by a server on this machine: each message is followed.

The hub's own client downloads; only the address of the hub and its pauses differ.
"""

import contextlib
import hashlib
import http.server
import json
import logging
import pathlib
import re
import shutil
import threading

import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from easi3r_jax.apps import convert as program

NAME = "someone/tiny"


class Hub:
    """A hub with one model. `status`: the answer to every request; `cut`: whether answers end in the middle."""

    def __init__(self, folder):
        self.folder, self.status, self.cut = folder, 200, False

    def answer(self, request, with_body):
        found = re.fullmatch(rf"/{NAME}/resolve/main/([\w.-]+)", request.path)
        if self.status != 200 or found is None:
            request.send_response(self.status if found else 404)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if not (self.folder / found[1]).exists():
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        content = (self.folder / found[1]).read_bytes()
        request.send_response(200)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("X-Repo-Commit", "1" * 40)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if with_body:
            request.wfile.write(content[: len(content) // 2] if self.cut else content)


@pytest.fixture
def hub(files, tmp_path, monkeypatch):
    hub = Hub(files / "hf_tiny")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            hub.answer(self, with_body=False)

        def do_GET(self):
            with contextlib.suppress(BrokenPipeError):
                hub.answer(self, with_body=True)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda _: None)  # between tries
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it reports its tries
        yield hub
        server.shutdown()
        thread.join()


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Converts the model: exit code and stderr."""
    monkeypatch.chdir(tmp_path)

    def run():
        code = program.FLAGS.execute(program.main, ["convert", f"--source={NAME}", "--output=converted"])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0)
        return code, "".join(errors)

    return run


def test_a_model_is_downloaded_once(hub, run):
    assert run() == (0, "")
    hub.status = 503
    assert run() == (0, "")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "hf auth login"),
        (403, "accept the model's terms"),
        (404, "nothing of that name"),
        (429, "Wait some minutes"),
        (500, "does not work at the moment (HTTP 500). Try again later"),
        (503, "does not work at the moment (HTTP 503). Try again later"),
        (418, "HTTP 418"),
    ],
)
def test_the_hubs_own_answer_is_told_and_followed(hub, run, status, says):
    hub.status = status
    code, message = run()
    assert code == 1 and says in message and f"HTTP {status}" in message and NAME in message
    assert "no connection" not in message and "By hand" not in message
    hub.status = 200  # waited, or logged in
    assert run() == (0, "")


def test_a_download_that_breaks_off_is_no_missing_connection(hub, run):
    hub.cut = True
    code, message = run()
    assert code == 1 and "broke off. Run the same command again" in message
    hub.cut = False
    assert run() == (0, "")


def test_without_a_connection(hub, run, monkeypatch):
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    code, message = run()
    assert code == 1 and "no connection" in message and "By hand" in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_of_the_cache_is_named_and_downloaded_again(hub, run, tmp_path, name):
    assert run()[0] == 0
    (victim,) = (tmp_path / "cache").rglob(name)
    victim.resolve().write_bytes(victim.read_bytes()[:-100])
    code, message = run()
    assert code == 1 and "download or copy it again" not in message
    (named,) = re.findall(r"Delete (\S+), and run the same command", message)
    path = pathlib.Path(named)
    assert path.parent.name == "blobs" and path == victim.resolve()
    path.unlink()
    assert run() == (0, "")


def test_weights_in_parts_are_downloaded_once(hub, run, weights, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    shutil.copy(hub.folder / "config.json", folder)
    placed = {name: f"model-{k % 2 + 1:05d}-of-00002.safetensors" for k, name in enumerate(sorted(weights))}
    for part in set(placed.values()):
        save_file({name: weights[name] for name in weights if placed[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    hub.folder = folder
    assert run() == (0, "")
    hub.status = 503
    assert run() == (0, "")


def test_a_model_without_weights_names_the_usual_files(hub, run, tmp_path):
    folder = tmp_path / "none"
    folder.mkdir()
    shutil.copy(hub.folder / "config.json", folder)
    hub.folder = folder
    code, message = run()
    assert code == 1 and "has no config.json and model.safetensors: no DUSt3R or MASt3R in that format" in message
