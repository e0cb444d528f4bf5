"""What goes wrong with a store is one line; what helps is tried again."""

from __future__ import annotations

import http.server
import pathlib
import sys
import threading
import urllib.parse
from collections.abc import Iterator

import fsspec
import pytest

from easi3r_jax.core.errors import InputError, OutputError, UserError
from easi3r_jax.io import remote
from easi3r_jax.io.remote.address import Place, shown
from tests import object_store


def write(address: str) -> None:
    with remote.writing(address) as output:
        output.folder.mkdir()
        (output.folder / "a").write_text("a")


def errors(address: str) -> tuple[str, str]:
    """The lines of reading and writing."""
    with pytest.raises(InputError) as reading:
        remote.local(address)
    with pytest.raises(OutputError) as writing:
        write(address)
    lines = str(reading.value), str(writing.value)
    assert not any("\n" in line for line in lines)
    return lines


def test_no_bucket(bucket):
    for line in errors("s3://no-such-bucket-of-ours/clip"):
        assert "there is no such bucket" in line


def test_nothing_there(bucket):
    with pytest.raises(InputError, match=r"Cannot read s3://.*/clip: there is nothing there: check the address\."):
        remote.local(f"{bucket.address}/clip")


def test_no_rights(bucket, forget):
    bucket.put("clip/a", b"1")
    with object_store.require_rights(bucket.server):
        forget()
        for line in errors(f"{bucket.address}/clip"):
            assert "no permission" in line
    forget()
    assert bucket.names() == {"clip/a"}


def test_no_credentials(bucket, forget, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget()
    for line in errors(f"{bucket.address}/clip"):
        assert "there are no credentials" in line


def test_no_server(bucket, forget, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{object_store.free_port()}")
    forget()
    for line in errors(f"{bucket.address}/clip"):
        assert "no connection in 3 tries" in line


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ftp://host/clip.mp4", "ftp:// is not supported; use s3://"),
        ("s3://", "the address names nothing"),
    ],
)
def test_addresses_that_are_none(cached, address, says):
    for line in errors(address):
        assert says in line


def test_a_client_that_is_not_installed(cached, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # importing it fails, as if it were not there
    for line in errors("gs://bucket/clip"):
        assert "pip install 'easi3r_jax[gcs]'" in line


def test_no_connection_to_the_hub(cached, forget, monkeypatch):
    files = fsspec.filesystem("hf", endpoint=f"http://127.0.0.1:{object_store.free_port()}", skip_instance_cache=True)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address, **options: (files, address.removeprefix("hf://")))
    for line in errors("hf://datasets/owner/name/clip.mp4"):
        assert "no connection in 3 tries" in line


def test_a_bug_keeps_its_traceback(bucket):
    def wrong() -> None:
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        Place(bucket.address).attempt(wrong)


@pytest.fixture
def proxied(bucket, forget, monkeypatch):
    """Connects the client to the bucket through a proxy that breaks connections."""
    made = []

    def connect(**breaks: int) -> object_store.BreakingProxy:
        port = urllib.parse.urlsplit(bucket.server).port
        assert port is not None
        proxy = object_store.BreakingProxy(port, **breaks)
        made.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        forget()
        return proxy

    yield connect
    for proxy in made:
        proxy.close()


def test_a_broken_connection_is_tried_again(bucket, proxied):
    content = bytes(range(256)) * 4000
    bucket.put("clip.mp4", content)
    proxy = proxied(bytes_each=200_000, breaks=2)
    assert pathlib.Path(remote.local(f"{bucket.address}/clip.mp4")).read_bytes() == content
    assert proxy.broken == 2
    proxied(bytes_each=0, breaks=2)
    write(f"{bucket.address}/result")
    assert bucket.names("result") == {"a", remote.MARKER}


def test_connections_that_always_break_leave_nothing_that_looks_whole(bucket, proxied, cached):
    bucket.put("clip.mp4", bytes(1_000_000))
    proxied(bytes_each=200_000, breaks=10**6)
    with pytest.raises(InputError, match="no connection in 3 tries"):
        remote.local(f"{bucket.address}/clip.mp4")
    assert not [path for path in cached.rglob("clip.mp4") if path.is_file()]


class _Web(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with an ETag unless the name says otherwise; some answers end early."""

    root = pathlib.Path()
    cuts = 0
    gets = 0

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        type(self).gets += 1
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.root / urllib.parse.unquote(self.path.partition("?")[0].lstrip("/"))
        if "secret" in path.name or not path.is_file():
            self.send_error(403 if "secret" in path.name else 404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if "untagged" not in path.name:
            self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        if body and type(self).cuts:
            type(self).cuts -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path, cached) -> Iterator[tuple[str, pathlib.Path]]:
    pytest.importorskip("aiohttp")
    root = tmp_path / "web"
    root.mkdir()
    _Web.root, _Web.cuts, _Web.gets = root, 0, 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", root
        server.shutdown()


def test_a_file_on_a_web_server(web, forget):
    address, root = web
    (root / "my clip.mp4").write_bytes(b"frames" * 1000)
    for _ in range(2):
        path = pathlib.Path(remote.local(f"{address}/my%20clip.mp4?signature=abc"))
        assert (path.name, path.read_bytes()) == ("my clip.mp4", b"frames" * 1000)
        forget()
    assert _Web.gets == 1
    (root / "my clip.mp4").write_bytes(b"framed" * 1000)
    path = pathlib.Path(remote.local(f"{address}/my%20clip.mp4?signature=abc"))
    assert path.read_bytes() == b"framed" * 1000


def test_a_file_that_may_have_changed_is_downloaded_again(web):
    address, root = web
    for content in (b"one", b"two"):
        (root / "untagged.mp4").write_bytes(content)
        assert pathlib.Path(remote.local(f"{address}/untagged.mp4")).read_bytes() == content


def test_answers_that_end_early_are_tried_again(web):
    address, root = web
    (root / "clip.mp4").write_bytes(bytes(100_000))
    _Web.cuts = 2
    assert pathlib.Path(remote.local(f"{address}/clip.mp4")).stat().st_size == 100_000
    assert _Web.cuts == 0


def test_messages_have_no_names_passwords_and_signatures():
    text = shown("cannot get HTTPS://me:secret@host/a%20b.mp4?X-Sig=abc&n=1, url='http://host/x?s=abc' (s3://b/a?b)")
    assert text == "cannot get HTTPS://host/a%20b.mp4 url='http://host/x' (s3://b/a?b)"


@pytest.mark.parametrize("address", ["s3://b/..", "s3://b/r/.", "memory://a/%2e%2e/..", "https://host/%00"])
def test_an_address_must_end_in_a_name(address):
    with pytest.raises(UserError, match="its last part is not the name of a file or folder"):
        remote.local(address)


def test_what_a_web_server_refuses(web):
    address, root = web
    (root / "secret.mp4").write_bytes(b"")
    for name, says in (("none.mp4", "there is nothing there"), ("secret.mp4", "no permission")):
        with pytest.raises(InputError, match=says) as refused:
            remote.local(f"{address}/{name}?signature=abc")
        assert "abc" not in str(refused.value)
    with pytest.raises(OutputError, match="web servers do not take results"):
        write(f"{address}/result")
    with pytest.raises(UserError, match="no connection in 3 tries"):
        remote.local(f"http://127.0.0.1:{object_store.free_port()}/clip.mp4")
