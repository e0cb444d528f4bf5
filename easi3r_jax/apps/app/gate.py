"""The requests that may reach the page's server.

Gradio serves more than this page needs: it fetches URLs for its clients, stores links and histories, converts
recordings. Requests that the page does not use are refused here, whatever later releases add.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from easi3r_jax.apps.app.players import Players
from easi3r_jax.apps.app.store import Store
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.viewer.listening import is_local

_Scope = MutableMapping[str, Any]
_Message = Callable[..., Awaitable[Any]]

_API = "/gradio_api"
_UPLOAD, _FILE, _STATUS = f"{_API}/upload", f"{_API}/file=", "/status"
_ALLOWED_PATHS = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    r"|/(?:assets|static|svelte)/.*"
    rf"|{_API}/(?:info|app_id|startup-events|theme\.css|cancel|reset|upload_progress|queue/join|queue/data)/?"
    rf"|{_API}/heartbeat/[\w-]+"
    rf"|{_API}/run/[\w-]+/?"  # what does not wait in the queue: Stop
)
#: First parts of the page's own paths, below which it cannot be shown.
_OWN_PATHS = ("assets", "config", "gradio_api", "static", "status", "svelte", "viewer")
#: Bytes of an upload beside its files: names and boundaries, for the maximum number of files that gradio accepts.
_MAX_FORM_BYTES = 1_000_000
#: Bytes of any other request: options and names of files. They are read into memory at once.
_MAX_REQUEST_BYTES = 1_000_000
#: An upload without a byte for this long, or with a lower average rate in bytes per second, is aborted, since it
#: reserves disk space.
_UPLOAD_TIMEOUT_SECONDS, _MIN_UPLOAD_RATE = 60.0, 20_000.0
# A browser loads only what this server sends. Gradio's page contains its scripts and styles.
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class PublicAddress:
    """Where a proxy shows the page.

    Args:
      root: a path such as /easi3r, or the whole address such as https://example.org/easi3r; empty without a
        proxy. For a page that listens on its own machine only, the whole address: it refuses other host names.

    Attributes:
      root: without a slash at its end.
      path: its path, "" at the root.
      host: its host with the port, "" if only a path is given.
    """

    def __init__(self, root: str = ""):
        self.root = root.rstrip("/")
        parts = urllib.parse.urlsplit(self.root)
        if parts.scheme not in ("", "http", "https") or bool(parts.scheme) is not bool(parts.netloc):
            raise ConfigError(f"--root_path={root}: give a path such as /easi3r, or https://HOST/PATH.")
        if (self.root and not parts.netloc and not self.root.startswith("/")) or parts.query or parts.fragment:
            raise ConfigError(f"--root_path={root}: a path begins with / and has no ? or #, such as /easi3r.")
        self.path, self.host = parts.path, parts.netloc.lower()
        if self.path.split("/")[1:2] in ([name] for name in _OWN_PATHS):
            raise ConfigError(f"--root_path={root}: the page itself has {self.path}: choose another path.")


#: Without a proxy.
DIRECT = PublicAddress()


class Gate:
    """ASGI middleware: lets through what the page needs.

    Args:
      app: the protected application.
      store: its served files may be sent.
      megabytes: maximum of an upload.
      local: the server is for this machine (and tunnels to it): requests must use a name of this machine, so that no
        other website reaches it through a host name of its own that points here.
      players: the viewers of the results.
      status: what the page's script asks for every few seconds.
      public: where a proxy shows the page.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[Any]],
        store: Store,
        megabytes: float,
        local: bool,
        players: Players | None = None,
        status: Callable[[], Mapping[str, object]] = dict,
        public: PublicAddress = DIRECT,
    ):
        self._app, self._store, self._local = app, store, local
        self._players, self._status, self._public = players or Players(store), status, public
        self._max_bytes = 1e6 * megabytes
        self._pending: list[int] = []  # lengths of the uploads in progress

    async def __call__(self, scope: _Scope, receive: _Message, send: _Message) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        prefix = self._public.path
        if prefix and scope["path"].startswith(f"{prefix}/"):  # a proxy that does not strip it
            path = scope["path"].removeprefix(prefix)
            scope = {**scope, "path": path, "raw_path": urllib.parse.quote(path).encode()}
        player = self._players.named(scope["path"])
        refusal = self._refusal(scope, player)
        if refusal is not None:
            if scope["type"] == "http":
                await _answer(send, *refusal)
            else:
                await send({"type": "websocket.close"})
            return

        if player is not None and scope["type"] == "websocket":
            await self._players.messages(player, scope, receive, send)
            return
        if player is not None:
            await self._players.page(player, send, _HEADERS)
            return
        if scope["path"] == _STATUS:
            await _answer(send, 200, json.dumps(self._status()), b"application/json")
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        if scope["path"] == _UPLOAD:
            await self._handle_upload(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    async def _handle_upload(self, scope: _Scope, receive: _Message, send: _Message) -> None:
        """Passes an upload on, and removes its remains if it breaks off."""
        length = _length(_headers(scope)) or 0
        is_received = is_gone = is_late = is_answered = False
        end = time.monotonic() + _UPLOAD_TIMEOUT_SECONDS + length / _MIN_UPLOAD_RATE

        async def watched() -> MutableMapping[str, Any]:
            nonlocal is_received, is_gone, is_late
            timeout = None if is_received else max(0.0, min(_UPLOAD_TIMEOUT_SECONDS, end - time.monotonic()))
            try:
                message = await asyncio.wait_for(receive(), timeout)
            except TimeoutError:
                message, is_late = {"type": "http.disconnect"}, True
            is_received |= not message.get("more_body", False)
            is_gone |= message["type"] == "http.disconnect"
            return message

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        self._pending.append(length)
        try:
            await self._app(scope, watched, answer)
        except Exception:
            if not is_gone:  # otherwise the exception only says that the client has left
                raise
        finally:
            self._pending.remove(length)
            if not self._pending:
                self._store.remove_partial_uploads()
        if is_late and not is_answered:
            await _answer(send, 408, "The upload has stalled.")

    def _refusal(self, scope: _Scope, player: str | None) -> tuple[int, str] | None:
        """Status and text if a request is refused."""
        path, headers = scope["path"], _headers(scope)
        host = headers.get("host", "")
        is_public = bool(self._public.host) and host.lower() == self._public.host
        if self._local and not is_public and not is_local(re.sub(r":\d*$", "", host).strip("[]")):
            return 403, (
                "This page is for this machine: open it as http://localhost with the port. Behind a proxy, start it "
                "with --root_path=https://HOST/PATH, the address that the proxy shows."
            )
        if scope["type"] == "websocket":
            is_ours = player is not None and self._is_from_here(headers)
            return None if is_ours else (403, "Not available.")
        if path == _STATUS or player is not None:
            return None if scope["method"] == "GET" else (404, "Not available.")
        if path.startswith(_FILE):
            is_served = self._is_served(path.removeprefix(_FILE))
            return None if is_served else (404, "This file does not exist (any more).")
        is_upload = path == _UPLOAD and scope["method"] == "POST"
        if not is_upload and not _ALLOWED_PATHS.fullmatch(path):
            return 404, "Not available."
        if scope["method"] != "GET" and not self._is_from_here(headers):
            return 403, "Other websites may not request this."
        # The server reads at most this length, unless chunked encoding overrides it, which has no limit.
        length = _length(headers)
        if "transfer-encoding" in headers or (length is None and is_upload):
            return 411, "A Content-Length is required."
        if is_upload:
            return self._upload_refusal(length or 0)
        return (
            (413, f"A request may have at most {_MAX_REQUEST_BYTES / 1e6:g} MB.")
            if (length or 0) > _MAX_REQUEST_BYTES
            else None
        )

    def _is_from_here(self, headers: dict[str, str]) -> bool:
        """Whether the request comes from this page or from no page: browsers tell by themselves."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        # Browsers omit it if the address is neither local nor encrypted; old ones always do.
        origin = headers.get("origin")
        ours = {headers.get("host", "").lower(), self._public.host} - {""}
        return origin is None or urllib.parse.urlsplit(origin).netloc.lower() in ours

    def _upload_refusal(self, length: int) -> tuple[int, str] | None:
        if length > self._max_bytes + _MAX_FORM_BYTES:
            return (
                413,
                f"The upload has {length / 1e6:.0f} MB, and the limit is {self._max_bytes / 1e6:g} MB: shorten it.",
            )
        # The results need space too.
        if self._store.free_bytes() < sum(self._pending) + length + 3 * self._max_bytes:
            return 507, "The server's disk is full: try again later."
        return None

    def _is_served(self, name: str) -> bool:
        """Whether it is the absolute path of a served file of the store."""
        try:
            path = pathlib.Path(name)
            return path.is_absolute() and path.resolve().is_relative_to(self._store.served) and path.is_file()
        except (OSError, ValueError):  # a name too long, or with a NUL
            return False


def _headers(scope: _Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _length(headers: dict[str, str]) -> int | None:
    """Length of a request according to its header; None without one."""
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None


async def _answer(send: _Message, status: int, text: str, kind: bytes = b"text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", kind), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
