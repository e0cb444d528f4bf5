"""Which requests reach the page's server at all.

Gradio serves more than this page needs: it fetches addresses for its clients, keeps links and histories, converts
recordings. What the page does not use is refused here, whatever later releases add.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from experiments.app.store import Store

_Scope = MutableMapping[str, Any]
_Message = Callable[..., Awaitable[Any]]

_API = "/gradio_api"
_UPLOAD, _FILE = f"{_API}/upload", f"{_API}/file="
_OPEN = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    r"|/(?:assets|static|svelte)/.*"
    rf"|{_API}/(?:info|app_id|startup-events|theme\.css|cancel|reset|upload_progress|queue/join|queue/data)/?"
    rf"|{_API}/heartbeat/[\w-]+"
)
#: What comes with the files of an upload: names and boundaries, of as many as gradio takes at once.
_WRAPPING = 1_000_000
# A browser shows what this server sends and nothing from elsewhere. Gradio's page has its scripts and styles in itself.
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Gate:
    """ASGI middleware: lets through what the page needs.

    Args:
      app: what is behind it.
      store: whose served files may be sent.
      megabytes: of an upload at most.
      local: the server is for this machine (and tunnels to it): requests must be to it by such a name, so that no
        page from elsewhere reaches it through a name of its own that points here.
    """

    def __init__(self, app: Callable[..., Awaitable[Any]], store: Store, megabytes: float, local: bool):
        self._app, self._store, self._local = app, store, local
        self._most = 1e6 * megabytes

    async def __call__(self, scope: _Scope, receive: _Message, send: _Message) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else (403, "Not here.")
        if refusal is not None:
            if scope["type"] == "http":
                await _answer(send, *refusal)
            return  # a websocket is closed by whoever is asked and says nothing

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _refusal(self, scope: _Scope) -> tuple[int, str] | None:
        """Status and text where a request is refused."""
        path, method = scope["path"], scope["method"]
        headers = dict(scope["headers"])
        if self._local and re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1")) not in _LOCAL_NAMES:
            return 403, "This page is for this machine: open it as http://localhost with the port."
        if path.startswith(_FILE):
            return (
                None if self._is_served(path.removeprefix(_FILE)) else (404, "There is no such file here (any more).")
            )
        if path == _UPLOAD and method == "POST":
            return self._upload_refusal(headers.get(b"content-length", b"").decode("latin-1"))
        return None if _OPEN.fullmatch(path) else (404, "Not here.")

    def _upload_refusal(self, length: str) -> tuple[int, str] | None:
        if not length.isdecimal():
            return 411, "An upload says how long it is."
        if int(length) > self._most + _WRAPPING:
            return (
                413,
                f"The upload has {int(length) / 1e6:.0f} MB, and it may have {self._most / 1e6:g} MB here: cut it.",
            )
        if self._store.free_bytes() < int(length) + 2 * self._most:  # the results need room, too
            return 507, "The server's disk is full: try again later."
        return None

    def _is_served(self, name: str) -> bool:
        """Whether it is a file of the store's, by its absolute path."""
        try:
            path = pathlib.Path(name)
            return path.is_absolute() and path.resolve().is_relative_to(self._store.served) and path.is_file()
        except (OSError, ValueError):  # a name too long, or with a NUL
            return False


async def _answer(send: _Message, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
