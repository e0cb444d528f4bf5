"""Which requests the web app accepts."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib

import pytest

from easi3r_jax.apps.app import gate as gates
from easi3r_jax.apps.app.gate import Gate, PublicAddress
from easi3r_jax.apps.app.players import Players
from easi3r_jax.core.errors import ConfigError

UPLOAD = "/gradio_api/upload"


@pytest.fixture
def gate(store) -> Gate:
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return Gate(page, store, megabytes=1, local=True)


def written(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / name
    path.write_bytes(b"x")
    return path


async def answered(gate: Gate, path: str, method: str = "GET", receive=None, **headers: str) -> int:
    """Status of a request; 200 where it is let through."""
    given = {"host": "localhost:7860", **headers}
    encoded = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in given.items()]
    sent = []

    async def send(message):
        sent.append(message)

    await gate({"type": "http", "path": path, "method": method, "headers": encoded}, receive, send)
    assert [message["type"] for message in sent].count("http.response.start") < 2
    assert b"content-security-policy" in dict(sent[0]["headers"])
    return sent[0]["status"]


def asked(gate: Gate, path: str, method: str = "GET", **headers: str) -> int:
    return asyncio.run(answered(gate, path, method, **headers))


def test_only_served_files_leave_the_machine(gate, store, tmp_path):
    result = store.new_result()
    scene = written(result, "scene 1.glb")
    os.symlink("/etc/passwd", result / "link")
    inside = written(store.served.parent / "work", "secret")
    api = "/gradio_api/file="
    assert asked(gate, f"{api}{scene}") == 200
    for path in (
        "/etc/passwd",
        "etc/passwd",
        "../../../../etc/passwd",
        f"{store.served}/../work/secret",
        f"{result}/link",
        f"{result}/nothing",
        f"{result}",
        f"{store.served}",
        "http://127.0.0.1/x",
        "x" * 5000,
        "/etc/pass\0wd",
        f"{inside}",
        __file__,
        "",
    ):
        assert asked(gate, f"{api}{path}") == 404, path
    for path in ("/gradio_api/proxy=http://127.0.0.1", "/gradio_api/file/etc/passwd", "/docs", "/monitoring"):
        assert asked(gate, path) == 404


def test_uploads_that_are_too_large_are_refused_before_they_are_read(gate, store, monkeypatch):
    assert asked(gate, UPLOAD, "POST", content_length="1000000") == 200
    assert asked(gate, UPLOAD, "POST", content_length="3000000") == 413
    for length in ("", "-1", "1e3", "²", "9" * 5000):
        assert asked(gate, UPLOAD, "POST", content_length=length) == 411
    assert asked(gate, UPLOAD, "POST") == 411
    assert asked(gate, UPLOAD, "POST", content_length="10", transfer_encoding="chunked") == 411  # the chunks would win
    monkeypatch.setattr(store, "free_bytes", lambda: 1_000_000)
    assert asked(gate, UPLOAD, "POST", content_length="1000") == 507


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/cancel", "/"])
def test_no_request_fills_the_memory(gate, path):
    assert asked(gate, path, "POST", content_length="100000") == 200
    assert asked(gate, path, "POST", content_length="2000000") == 413
    assert asked(gate, path, "POST", content_length="10", transfer_encoding="chunked") == 411


def test_uploads_at_once_share_the_disk(store, monkeypatch):
    monkeypatch.setattr(store, "free_bytes", lambda: 4_500_000)  # for one, and what it becomes
    second = []

    async def page(scope, receive, send):
        if not second:
            second.append(0)
            second.append(await answered(gate, UPLOAD, "POST", content_length="1000000"))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    gate = Gate(page, store, megabytes=1, local=True)
    assert asked(gate, UPLOAD, "POST", content_length="1000000") == 200
    assert second == [0, 507]
    assert asked(gate, UPLOAD, "POST", content_length="1000000") == 200  # the first has come


def test_an_aborted_upload_is_removed_even_if_no_other_follows(store):
    finished = store.new_result()

    async def gone():
        return {"type": "http.disconnect"}

    async def page(scope, receive, send):
        half = written(store.served, f"half {len(os.listdir(store.served))}")
        if len(os.listdir(store.served)) < 3:
            with pytest.raises(IndexError):  # nobody listens
                await answered(gate, UPLOAD, "POST", receive=gone, content_length="1000")
            assert half.exists()  # the first still comes
        assert (await receive())["type"] == "http.disconnect"
        raise ConnectionError

    gate = Gate(page, store, megabytes=1, local=True)
    with pytest.raises(IndexError):
        asyncio.run(answered(gate, UPLOAD, "POST", receive=gone, content_length="1000"))
    assert list(store.served.iterdir()) == [finished]

    async def broken(scope, receive, send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # a fault of ours is not hidden
        asked(Gate(broken, store, megabytes=1, local=True), UPLOAD, "POST", content_length="1000")


def test_a_stalled_upload_frees_its_space(store, monkeypatch):
    monkeypatch.setattr(gates, "_UPLOAD_TIMEOUT_SECONDS", 0.05)

    async def receive():
        await asyncio.sleep(5)

    async def page(scope, receive, send):
        written(store.served, "half")
        assert (await receive())["type"] == "http.disconnect"
        raise ConnectionError

    gate = Gate(page, store, megabytes=1, local=True)
    assert asked(gate, UPLOAD, "POST", receive=receive, content_length="1000") == 408
    assert gate._pending == os.listdir(store.served) == []


def test_a_slow_upload_is_ended_too(store, monkeypatch):
    """Each byte comes in time, all of them do not."""
    monkeypatch.setattr(gates, "_UPLOAD_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(gates, "_MIN_UPLOAD_RATE", 10_000)
    came = []

    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def page(scope, receive, send):
        while not came or came[-1]["type"] == "http.request":
            came.append(await receive())
        await send({"type": "http.response.start", "status": 400, "headers": []})  # a second answer would be a fault

    gate = Gate(page, store, megabytes=1, local=True)
    assert asked(gate, UPLOAD, "POST", receive=receive, content_length="1000") == 400  # 0.3 s
    assert 3 <= len(came) <= 8


def test_only_http_is_accepted(gate):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(gate({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close"}]


def test_what_the_page_sends_without_the_queue_passes(gate):
    """Stop is such a request."""
    assert asked(gate, "/gradio_api/run/predict", "POST", content_length="100", sec_fetch_site="same-origin") == 200
    assert asked(gate, "/gradio_api/run/predict", "POST", content_length="100", sec_fetch_site="cross-site") == 403
    assert asked(gate, "/gradio_api/run/../file=/etc/passwd", "POST", content_length="100") == 404


def test_the_status_is_answered_here(gate, store):
    own = Gate(gate._app, store, megabytes=1, local=True, status=lambda: {"waiting": 3})
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/status", "method": "GET", "headers": [(b"host", b"localhost:1")]}
    asyncio.run(own(scope, None, send))
    assert sent[0]["status"] == 200 and json.loads(sent[1]["body"]) == {"waiting": 3}
    assert asked(own, "/status", "POST", content_length="1") == 404


def test_viewers_of_results_that_do_not_exist(gate):
    assert asked(gate, f"/viewer/{'0' * 32}/") == 404
    assert asked(gate, "/viewer/../served/") == asked(gate, "/viewer/") == 404
    assert asked(gate, f"/viewer/{'0' * 32}/", host="somewhere.example") == 403


def test_a_viewer_is_not_opened_for_another_website(store, monkeypatch):
    opened = []

    class Open(Players):
        async def messages(self, name, scope, receive, send):
            opened.append(name)

    gate = Gate(None, store, megabytes=1, local=True, players=Open(store))
    name = store.new_result().name

    def begin(origin: str) -> None:
        async def send(message):
            assert message == {"type": "websocket.close"}

        headers = [(b"host", b"localhost:7860"), (b"origin", origin.encode())]
        asyncio.run(gate({"type": "websocket", "path": f"/viewer/{name}", "headers": headers}, None, send))

    begin("https://elsewhere.example")
    assert not opened
    begin("http://localhost:7860")
    assert opened == [name]


def test_behind_a_proxy(store):
    seen = []

    async def page(scope, receive, send):
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    public = PublicAddress("https://example.org/easi3r/")
    gate = Gate(page, store, megabytes=1, local=True, public=public)
    assert (public.path, public.host) == ("/easi3r", "example.org")
    assert asked(gate, "/config", host="example.org") == asked(gate, "/easi3r/config", host="example.org") == 200
    assert seen == ["/config", "/config"]
    given = {"content_length": "1", "host": "127.0.0.1:7860"}  # a proxy that does not pass the name on
    assert asked(gate, "/gradio_api/queue/join", "POST", origin="https://example.org", **given) == 200
    assert asked(gate, "/gradio_api/queue/join", "POST", origin="https://other.example", **given) == 403
    assert asked(gate, "/", host="other.example") == 403


@pytest.mark.parametrize(
    "wrong", ["easi3r", "/viewer", "/static/x", "ftp://x/y", "https:///y", "/a?b", "//host/path", "http:/x"]
)
def test_an_address_of_no_proxy(wrong):
    with pytest.raises(ConfigError, match="--root_path"):
        PublicAddress(wrong)


def test_a_complete_upload_may_wait(store, monkeypatch):
    monkeypatch.setattr(gates, "_UPLOAD_TIMEOUT_SECONDS", 0.05)
    waits = iter([0, 0.2])

    async def receive():
        await asyncio.sleep(next(waits))
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def page(scope, receive, send):
        assert await receive() == await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    gate = Gate(page, store, megabytes=1, local=True)
    assert asked(gate, UPLOAD, "POST", receive=receive, content_length="1000") == 200


def test_other_pages_in_the_same_browser_begin_nothing(gate):
    for path in (UPLOAD, "/gradio_api/queue/join"):
        for site, status in (("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)):
            assert asked(gate, path, "POST", content_length="1000", sec_fetch_site=site) == status
    assert asked(gate, "/", sec_fetch_site="cross-site") == 200  # a link to it


def test_browsers_without_fetch_metadata_are_checked_by_origin(store, gate):
    given = {"content_length": "1000", "host": "10.0.0.7:7860"}
    for where, status in (("10.0.0.7:7860", 200), ("10.0.0.7:80", 403), ("elsewhere.example", 403)):
        assert (
            asked(Gate(gate._app, store, 1, local=False), UPLOAD, "POST", origin=f"http://{where}", **given) == status
        )
    assert asked(gate, UPLOAD, "POST", origin="null", content_length="1000") == 403
    # Behind a proxy names differ: where the browser says it, its word counts.
    proxied = {"origin": "https://public.example", "sec_fetch_site": "same-origin"}
    assert asked(gate, UPLOAD, "POST", content_length="1000", **proxied) == 200


def test_a_local_page_is_not_reached_by_another_name(gate, store):
    assert asked(gate, "/", host="127.0.0.1:1") == asked(gate, "/", host="[::1]:1") == asked(gate, "/") == 200
    assert asked(gate, "/", host="somewhere.example") == asked(gate, "/", host="") == 403
    assert asked(Gate(gate._app, store, 1, local=False), "/", host="somewhere.example") == 200
