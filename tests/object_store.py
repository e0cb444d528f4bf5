"""An S3 server on this machine for tests (moto, in a process of its own), and a proxy that breaks connections to it."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

#: Its only buckets are those that tests make; every key is accepted until `require_rights`.
KEYS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # botocore's own tries, which take seconds each
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Starts the server; yields its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-c", "from moto.server import main; import sys; main(sys.argv[1:])"]
    process = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        began = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/moto-api/", timeout=10).close()
                break
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < began + 120, "the S3 server does not answer"
            time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def require_rights(address: str) -> Iterator[None]:
    """The server refuses every key that it has not given out, as a real one does."""

    def after(requests: str) -> None:
        request = urllib.request.Request(
            f"{address}/moto-api/reset-auth", requests.encode(), {"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()

    after("0")
    try:
        yield
    finally:
        after("inf")


class BreakingProxy:
    """Forwards connections to a server, and breaks some.

    Args:
      port: of the server on this machine.
      bytes_each: of an answer that pass before a connection is broken.
      breaks: how many connections are broken; later ones are not.

    Attributes:
      address: of the proxy.
      broken: connections broken so far.
    """

    def __init__(self, port: int, *, bytes_each: int, breaks: int):
        self.broken, self._breaks, self._bytes = 0, breaks, bytes_each
        self._lock = threading.Lock()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", port)) as upstream:
                    thread = threading.Thread(target=_pump, args=(self.request, upstream))
                    thread.start()
                    proxy._answer(upstream, self.request)
                    thread.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, upstream: socket.socket, client: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := upstream.recv(1 << 16):
                with self._lock:
                    breaks = passed + len(data) > self._bytes and self.broken < self._breaks
                    self.broken += breaks
                if breaks:
                    client.sendall(data[: max(self._bytes - passed, 0)])
                    break
                client.sendall(data)
                passed += len(data)
        for end in (client, upstream):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
