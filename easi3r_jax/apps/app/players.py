"""The viewer inside the page: a viewer for each result that is looked at, behind the page's own address.

A viewer starts when a browser asks for it and ends when no browser has been connected for a while, so that memory is
taken only by scenes that somebody looks at. It listens on this machine only; the page's server passes its page and its
messages on, so that one address, one tunnel and one proxy suffice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import http.client
import pathlib
import re
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
_BUSY = "Too many scenes are being looked at: try again in a minute."


@dataclasses.dataclass(eq=False)
class _Player:
    viewer: Viewer
    browsers: int = 0
    since: float = dataclasses.field(default_factory=time.monotonic)  # the last browser came or went


class Players:
    """The viewers of a store's results.

    Args:
      store: of the results.
    """

    def __init__(self, store: Store):
        self._store = store
        self._lock = threading.Lock()
        self._open: dict[str, _Player] = {}

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
        with self._lock:
            players, self._open = list(self._open.values()), {}
        for player in players:
            player.viewer.close()

    def sweep(self) -> None:
        """Ends the viewers that nobody looks at, and those whose result is gone."""
        now = time.monotonic()
        with self._lock:
            idle = [
                name
                for name, player in self._open.items()
                if (not player.browsers and now - player.since > _IDLE_SECONDS) or not self._scenes(name)
            ]
            players = [self._open.pop(name) for name in idle]
        for player in players:
            player.viewer.close()

    async def page(self, name: str, send: _Message, headers: list[tuple[bytes, bytes]]) -> None:
        """Answers a request for a viewer's page."""
        found = await self._player(name)
        if isinstance(found, str):
            status, kind, body = 404 if found == _GONE else 503, b"text/plain; charset=utf-8", found.encode()
        else:
            status, kind = 200, b"text/html; charset=utf-8"
            body = await asyncio.get_running_loop().run_in_executor(None, _fetched, found.viewer.port)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *headers]})
        await send({"type": "http.response.body", "body": body})

    async def messages(self, name: str, scope: MutableMapping[str, Any], receive: _Message, send: _Message) -> None:
        """Passes messages on between a browser and its viewer until one of them leaves."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, WebSocketException

        found = await self._player(name)
        if isinstance(found, str):
            await send({"type": "websocket.close"})
            return
        await receive()  # "websocket.connect"
        self._count(found, 1)
        try:
            protocols = scope.get("subprotocols") or None
            address = f"ws://127.0.0.1:{found.viewer.port}"
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

    async def _player(self, name: str) -> _Player | str:
        """The running viewer of a result, or why there is none."""
        return await asyncio.get_running_loop().run_in_executor(None, functools.partial(self._started, name))

    def _started(self, name: str) -> _Player | str:
        self.sweep()
        with self._lock:  # also while it starts, which takes about a second: a browser asks for each twice
            if (player := self._open.get(name)) is not None:
                player.since = time.monotonic()
                return player
            scenes = self._scenes(name)
            if not scenes:
                return _GONE
            if len(self._open) >= _MAX_OPEN:
                idle = [other for other, player in self._open.items() if not player.browsers]
                if not idle:
                    return _BUSY
                self._open.pop(min(idle, key=lambda other: self._open[other].since)).viewer.close()
            try:
                saved = [results.load_result(scene) for scene in scenes]
                player = self._open[name] = _Player(Viewer(saved, port=0, budget=_BUDGET, playing=True))
            except UserError as error:
                return str(error) if self._scenes(name) else _GONE
            return player

    def _scenes(self, name: str) -> list[pathlib.Path]:
        """The folders that the viewer of a result shows, in order."""
        with contextlib.suppress(OSError):
            return sorted((self._store.served / name / SCENES).iterdir())
        return []


def _fetched(port: int) -> bytes:
    """The page of a viewer of this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().read()


async def _to_viewer(receive: _Message, inner: Any) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        data = message.get("bytes")
        await inner.send(message["text"] if data is None else data)


async def _to_browser(inner: Any, send: _Message) -> None:
    async for data in inner:
        kind = "text" if isinstance(data, str) else "bytes"
        await send({"type": "websocket.send", kind: data})
