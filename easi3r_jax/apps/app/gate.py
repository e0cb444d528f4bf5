"""Which requests reach the page's server at all.

Gradio serves more than this page needs: it fetches addresses for its clients, keeps links and histories, converts
recordings. What the page does not use is refused here, whatever later releases add.
"""

from __future__ import annotations

import asyncio
import pathlib
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from easi3r_jax.apps.app.store import Store
from easi3r_jax.viewer.listening import is_local

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
#: Bytes that come with the files of an upload: names and boundaries, of as many as gradio takes at once.
_WRAPPING = 1_000_000
#: Bytes of any other request: options and names of files. They are read into memory as a whole.
_LETTER = 1_000_000
#: Seconds without a byte, and bytes a second over the whole, below which an upload counts as broken off: it holds its
#: room on the disk.
_PATIENCE, _SLOWEST = 60.0, 20_000.0
# A browser shows what this server sends and nothing from elsewhere. Gradio's page has its scripts and styles in itself.
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


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
        self._coming: list[int] = []  # lengths of the uploads that are under way

    async def __call__(self, scope: _Scope, receive: _Message, send: _Message) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else (403, "Not here.")
        if refusal is not None:
            if scope["type"] == "http":
                await _answer(send, *refusal)
            else:
                await send({"type": "websocket.close"})
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        if scope["path"] == _UPLOAD:
            await self._take(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    async def _take(self, scope: _Scope, receive: _Message, send: _Message) -> None:
        """An upload; what comes of one that breaks off is removed."""
        length = _length(_headers(scope)) or 0
        is_whole = is_gone = is_late = is_answered = False
        end = time.monotonic() + _PATIENCE + length / _SLOWEST

        async def watched() -> MutableMapping[str, Any]:
            nonlocal is_whole, is_gone, is_late
            patience = None if is_whole else max(0.0, min(_PATIENCE, end - time.monotonic()))
            try:
                message = await asyncio.wait_for(receive(), patience)
            except TimeoutError:
                message, is_late = {"type": "http.disconnect"}, True
            is_whole |= not message.get("more_body", False)
            is_gone |= message["type"] == "http.disconnect"
            return message

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        self._coming.append(length)
        try:
            await self._app(scope, watched, answer)
        except Exception:
            if not is_gone:  # else it says only that nobody is there any more
                raise
        finally:
            self._coming.remove(length)
            if not self._coming:
                self._store.remove_halves()
        if is_late and not is_answered:
            await _answer(send, 408, "The upload does not go on.")

    def _refusal(self, scope: _Scope) -> tuple[int, str] | None:
        """Status and text where a request is refused."""
        path, headers = scope["path"], _headers(scope)
        if self._local and not is_local(re.sub(r":\d*$", "", headers.get("host", "")).strip("[]")):
            return 403, "This page is for this machine: open it as http://localhost with the port."
        if path.startswith(_FILE):
            is_served = self._is_served(path.removeprefix(_FILE))
            return None if is_served else (404, "There is no such file here (any more).")
        is_upload = path == _UPLOAD and scope["method"] == "POST"
        if not is_upload and not _OPEN.fullmatch(path):
            return 404, "Not here."
        if scope["method"] != "GET" and not _is_from_here(headers):
            return 403, "Another page may not ask for this."
        # Length is what the server takes at most, unless chunks are announced: they overrule it and may go on for ever.
        length = _length(headers)
        if "transfer-encoding" in headers or (length is None and is_upload):
            return 411, "Say how long it is (Content-Length)."
        if is_upload:
            return self._upload_refusal(length or 0)
        return (413, f"A request may have {_LETTER / 1e6:g} MB.") if (length or 0) > _LETTER else None

    def _upload_refusal(self, length: int) -> tuple[int, str] | None:
        if length > self._most + _WRAPPING:
            return 413, f"The upload has {length / 1e6:.0f} MB, and it may have {self._most / 1e6:g} MB here: cut it."
        # The results need room, too.
        if self._store.free_bytes() < sum(self._coming) + length + 2 * self._most:
            return 507, "The server's disk is full: try again later."
        return None

    def _is_served(self, name: str) -> bool:
        """Whether it is a file of the store's, by its absolute path."""
        try:
            path = pathlib.Path(name)
            return path.is_absolute() and path.resolve().is_relative_to(self._store.served) and path.is_file()
        except (OSError, ValueError):  # a name too long, or with a NUL
            return False


def _headers(scope: _Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _length(headers: dict[str, str]) -> int | None:
    """Bytes of a request as it says itself; None where it does not."""
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None


def _is_from_here(headers: dict[str, str]) -> bool:
    """Whether it is a page of ours that asks, or no page: browsers say so by themselves."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    # Browsers leave it out where the address is neither this machine's nor encrypted; old ones always.
    origin = headers.get("origin")
    return origin is None or urllib.parse.urlsplit(origin).netloc == headers.get("host")


async def _answer(send: _Message, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
