"""The viewer inside the page: a viewer for each result that is looked at, behind the page's own address.

A viewer starts when a browser asks for it and ends when no browser has been connected for a while, so that memory is
taken only by scenes that somebody looks at. It listens on this machine only; the page's server passes its page and its
messages on, so that one address, one tunnel and one proxy suffice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import html
import http.client
import pathlib
import re
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from easi3r_jax.apps.app.store import Store
from easi3r_jax.core.errors import UserError
from easi3r_jax.io import results
from easi3r_jax.viewer import Budget, Viewer

_Message = Callable[..., Awaitable[Any]]

#: The folder within a published result that holds what the viewer shows: one result, or two of the same clip.
SCENES = "scenes"
#: Fewer points than in a viewer of one's own: they go through a network.
_BUDGET = Budget(static=300_000, moving=2_000_000)
#: Viewers at once. The ones that nobody looks at are closed first.
_MAX_OPEN = 8
#: A viewer without a browser is closed after this long; a browser that loses its connection is back within seconds.
_IDLE_SECONDS = 30.0
_ADDRESS = re.compile(r"/viewer/([0-9a-f]{32})/?")
_GONE = "This scene is gone: its page was closed, or it has expired. Reconstruct the clip again."
_BUSY = "Too many scenes are being looked at. This one follows by itself as soon as there is room."
# Seconds between two looks for viewers to end, and until a browser asks again.
_SWEEP_SECONDS, _RETRY_SECONDS = 5.0, 10
# The ports of 127.0.0.1 are known to every website that is open on this machine. Linux has more such addresses.
_HAS_MANY_ADDRESSES = sys.platform == "linux"


@dataclasses.dataclass(eq=False)
class _Player:
    viewer: Viewer
    host: str
    browsers: int = 0
    since: float = dataclasses.field(default_factory=time.monotonic)  # the last browser came or went


class Players:
    """The viewers of a store's results.

    Args:
      store: of the results.
    """

    def __init__(self, store: Store):
        self._store = store
        # Of the dictionary only, and never held during work: the server's event loop takes it.
        self._lock = threading.Lock()
        self._open: dict[str, _Player] = {}
        self._starting = threading.Lock()  # one viewer starts at a time
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_often, daemon=True).start()

    @staticmethod
    def address(folder: pathlib.Path, root_path: str) -> str:
        """Path of the viewer of a published result within the page's server."""
        return f"{root_path}/viewer/{folder.name}/"

    @staticmethod
    def named(path: str) -> str | None:
        """The result that a request is about; None if it is not about a viewer."""
        found = _ADDRESS.fullmatch(path)
        return found[1] if found else None

    def close(self) -> None:
        """Ends all viewers."""
        self._closed.set()
        with self._lock:
            players, self._open = list(self._open.values()), {}
        for player in players:
            player.viewer.close()

    def sweep(self) -> None:
        """Ends the viewers that nobody looks at, and those whose result is gone."""
        now = time.monotonic()
        with self._lock:
            names = list(self._open)
        gone = {name for name in names if not self._scenes(name)}
        with self._lock:
            ended = [
                n for n, p in self._open.items() if n in gone or (not p.browsers and now - p.since > _IDLE_SECONDS)
            ]
            players = [self._open.pop(name) for name in ended]
        for player in players:
            player.viewer.close()

    def _sweep_often(self) -> None:
        while not self._closed.wait(_SWEEP_SECONDS):
            self.sweep()

    async def page(self, name: str, send: _Message, headers: list[tuple[bytes, bytes]]) -> None:
        """Answers a request for a viewer's page."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, self._started, name)
        page = found if isinstance(found, str) else await loop.run_in_executor(None, _fetched, found)
        if isinstance(page, str):
            status, body = (404 if page == _GONE else 503), _told(page)
        else:
            status, body = 200, page
        head = [(b"content-type", b"text/html; charset=utf-8"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def messages(self, name: str, scope: MutableMapping[str, Any], receive: _Message, send: _Message) -> None:
        """Passes messages on between a browser and its viewer until one of them leaves."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, WebSocketException

        found = await asyncio.get_running_loop().run_in_executor(None, self._started, name)
        if isinstance(found, str):
            await send({"type": "websocket.close"})
            return
        await receive()  # "websocket.connect"
        self._count(found, 1)
        try:
            protocols = scope.get("subprotocols") or None
            address = f"ws://{found.host}:{found.viewer.port}"
            async with connect(address, subprotocols=protocols, max_size=None, compression=None, proxy=None) as inner:
                await send({"type": "websocket.accept", "subprotocol": inner.subprotocol})
                passing = [
                    asyncio.create_task(_to_viewer(receive, inner)),
                    asyncio.create_task(_to_browser(inner, send)),
                ]
                _, pending = await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
                for task in pending:
                    task.cancel()
                await asyncio.gather(*passing, return_exceptions=True)
        except (OSError, ConnectionClosed, WebSocketException):  # the viewer was closed meanwhile
            pass
        finally:
            self._count(found, -1)
            with contextlib.suppress(Exception):  # the browser may be gone
                await send({"type": "websocket.close"})

    def _count(self, player: _Player, change: int) -> None:
        with self._lock:
            player.browsers += change
            player.since = time.monotonic()

    def _running(self, name: str) -> _Player | None:
        with self._lock:
            player = self._open.get(name)
            if player is not None:
                player.since = time.monotonic()
            return player

    def _started(self, name: str) -> _Player | str:
        """The running viewer of a result, or why there is none."""
        if (player := self._running(name)) is not None:
            return player
        if not self._scenes(name):
            return _GONE
        with self._starting:  # about a second; a browser asks for each twice
            if (player := self._running(name)) is not None:
                return player
            self.sweep()
            if len(self._open) >= _MAX_OPEN:
                return _BUSY
            try:
                saved = [results.load_result(scene) for scene in self._scenes(name)]
                host = _own_address()
                player = _Player(Viewer(saved, host=host, port=0, budget=_BUDGET, playing=True), host)
            except UserError as error:
                return str(error) if self._scenes(name) else _GONE
            with self._lock:
                self._open[name] = player
            return player

    def _scenes(self, name: str) -> list[pathlib.Path]:
        """The folders that the viewer of a result shows, in order."""
        with contextlib.suppress(OSError):
            return sorted((self._store.served / name / SCENES).iterdir())
        return []


def _own_address() -> str:
    """An address of this machine only, that cannot be guessed where the system has more than one."""
    if not _HAS_MANY_ADDRESSES:
        return "127.0.0.1"
    return f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(255)}.{1 + secrets.randbelow(254)}"


def _fetched(player: _Player) -> bytes | str:
    """The page of a viewer, or why there is none."""
    try:
        connection = http.client.HTTPConnection(player.host, player.viewer.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            return connection.getresponse().read()
    except (OSError, http.client.HTTPException):  # it was closed meanwhile
        return _BUSY


def _told(text: str) -> bytes:
    """A page of one sentence; the one about others asks again by itself."""
    again = f'<meta http-equiv="refresh" content="{_RETRY_SECONDS}">' if text == _BUSY else ""
    style = (
        "margin:0;height:100vh;display:grid;place-items:center;background:#262932;color:#e6e8ee;font:1rem sans-serif"
    )
    return (
        f'<!doctype html><html lang="en"><head><title>Scene</title>{again}</head>'
        f'<body style="{style}"><p>{html.escape(text)}</p></body></html>'
    ).encode()


async def _to_viewer(receive: _Message, inner: Any) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        data = message.get("bytes")
        await inner.send(message["text"] if data is None else data)


async def _to_browser(inner: Any, send: _Message) -> None:
    async for data in inner:
        kind = "text" if isinstance(data, str) else "bytes"
        await send({"type": "websocket.send", kind: data})
