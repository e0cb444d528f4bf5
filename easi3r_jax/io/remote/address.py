"""Addresses, their file systems, and one-line errors for what may go wrong there.

Transfers are fsspec's. Its clients (botocore, aiohttp) raise errors of their own, which become the project's here and
nowhere else. Broken connections are tried again, other errors are not: a missing bucket will be missing next second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import pathlib
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn, TypeVar

from easi3r_jax.core.atomic import output_error
from easi3r_jax.core.errors import InputError, OutputError, UserError

_T = TypeVar("_T")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
#: Schemes, with the extra that installs their client.
SCHEMES = {"s3": "s3", "gs": "gcs", "hf": "", "https": "https", "http": "https", "file": "", "memory": ""}
_READ_ONLY = ("http", "https")
_LINK = re.compile(r"(https?://)(?:[^/\s@]*@)?([^\s?'\"]*)(?:\?[^\s'\")]*)?", re.IGNORECASE)
#: Seconds before another try after a broken connection. Clients also try again by themselves (botocore for 9 s).
PAUSES = (1.0, 3.0)
_CONNECT_SECONDS, _SILENT_SECONDS = 20.0, 60.0

#: Classes of errors by which clients report a broken connection, by name: the clients are optional.
_BROKEN = {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError"}
_BROKEN |= {"IncompleteReadError", "IncompleteRead", "FSTimeoutError", "ResponseParserError", "TransportError"}
_BROKEN_ERRNO = (errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.EPIPE)
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_DENIED |= {"AuthFailure", "InvalidClientTokenId", "Forbidden", "401", "403"}


def is_address(text: str) -> bool:
    """Whether the text has the form SCHEME://..."""
    return _ADDRESS.fullmatch(text) is not None


def shown(address: str) -> str:
    """A text for messages: links in it without names, passwords and queries, which may hold signatures."""
    return _LINK.sub(lambda found: f"{found[1]}{found[2]}", address)


def name_of(address: str) -> str:
    """The last part of an address: the name of the file or folder."""
    _, rest = _split(address)
    path = urllib.parse.unquote(shown(address)) if _LINK.match(address) else rest
    return path.rstrip("/").rpartition("/")[2] or "data"


def _split(address: str) -> tuple[str, str]:
    found = _ADDRESS.fullmatch(address)
    assert found is not None
    return found[1].lower(), found[2]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A stored file.

    Attributes:
      size: in bytes; None if the server does not say.
      version: changes with the content (an ETag, a time); empty if the server does not say.
    """

    size: int | None
    version: str


class Place:
    """An address and its file system. Every method raises the error of `kind`, in one line.

    Args:
      address: SCHEME://...
      kind: what it is used for, which selects the error and its words.

    Raises:
      UserError: an unknown scheme, or a client that is not installed.
    """

    def __init__(self, address: str, kind: Literal["read", "write"] = "read"):
        self.address, self._kind = address.rstrip("/"), kind
        scheme, rest = _split(address)
        error = self._error
        if scheme not in SCHEMES:
            raise error(f"{scheme}:// is not supported; use {', '.join(f'{name}://' for name in SCHEMES)}")
        if kind == "write" and scheme in _READ_ONLY:
            raise error("web servers do not take results; use s3:// or gs://")
        if name_of(address) in (".", "..") or "\0" in name_of(address):
            raise error("its last part is not the name of a file or folder")
        if not rest.strip("/"):
            raise error("the address names nothing: it is SCHEME://BUCKET/NAME")
        extra = f"pip install 'easi3r_jax[{SCHEMES[scheme]}]'"
        try:
            import fsspec

            if scheme in _READ_ONLY:
                import aiohttp

                # aiohttp's default ends every download after five minutes.
                timeout = aiohttp.ClientTimeout(None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
                options: dict[str, Any] = {"client_kwargs": {"timeout": timeout}}
            else:
                options = {"auto_mkdir": True} if scheme == "file" else {}
            self.files, self.path = fsspec.core.url_to_fs(self.address, **options)
        except ImportError as missing:
            raise error(f"its client is not installed: {extra}") from missing
        except Exception as refused:
            self._raise(refused)

    def _error(self, reason: str) -> UserError:
        kind, verb = (InputError, "read") if self._kind == "read" else (OutputError, "write")
        return kind(f"Cannot {verb} {shown(self.address) if '://' in self.address else self.address + '//'}: {reason}.")

    def at(self, name: str) -> str:
        """The path of a file below this place, as its file system takes it; the place itself for an empty name."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def attempt(self, action: Callable[[], _T]) -> _T:
        """Calls a function that uses the file system, again after broken connections."""
        for pause in (*PAUSES, None):
            try:
                return action()
            except Exception as error:
                if pause is None or not any(map(_is_broken, _chain(error))):
                    self._raise(error)
                time.sleep(pause)
        raise AssertionError

    def _raise(self, error: Exception) -> NoReturn:
        """Raises the project's error for a client's; anything else is a bug and stays what it is."""
        translated = self._translated(error)
        if translated is error:
            raise error
        raise translated from error

    def listing(self) -> dict[str, Stored]:
        """The files of a folder by relative name, or one file under the empty name; empty if nothing is there.

        Raises:
          InputError, OutputError: no bucket, no permission, no connection; a name that would leave the folder.
        """

        def find() -> dict[str, Stored]:
            self.files.invalidate_cache()
            if self.address.startswith(_READ_ONLY):
                return {"": _stored(self.files.info(self.path))}
            try:
                info = self.files.info(self.path)
            except FileNotFoundError:
                if self._has_bucket():
                    return {}
                raise
            if info["type"] == "file":
                return {"": _stored(info)}
            found = self.files.find(self.path, detail=True)
            start = len(self.path.rstrip("/")) + 1
            return {path[start:]: _stored(info) for path, info in found.items() if not path.endswith("/")}

        files = self.attempt(find)
        for name in files:
            if name and (set(pathlib.PurePosixPath(name).parts) & {"..", "/"} or "\0" in name or "//" in name):
                raise self._error(f"it holds a file with the name {name!r}, which is not a file's name on a disk")
        return files

    def _has_bucket(self) -> bool:
        """Raises what the client raises for a missing bucket."""
        if self.address.startswith(("s3:", "gs:")):
            self.files.ls(self.path.partition("/")[0])
        return True

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a file below this place; None if there is none."""

        def read() -> bytes | None:
            try:
                return self.files.cat_file(self.at(name))
            except FileNotFoundError:
                self._has_bucket()
                return None

        return self.attempt(read)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a small file below this place, at once."""
        self.attempt(lambda: self.files.pipe_file(self.at(name), content))

    def remove(self, names: list[str]) -> None:
        """Removes files below this place; those that are gone already are no error."""
        for name in names:
            self.attempt(lambda name=name: self._remove(name))

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self.at(name))

    def _translated(self, error: Exception) -> Exception:
        """The project's error for a client's, else the same error."""
        chain = list(_chain(error))
        codes = {code for link in chain for code in _codes(link)}
        told = next(filter(_is_broken, reversed(chain)), error)  # fsspec says "not found" of servers that are not there
        text = shown(" ".join(str(told).split()))[:300] or type(told).__name__
        local = getattr(error, "filename", None)
        if isinstance(error, UserError) or not any(map(_is_of_a_client, chain)):
            return error
        if isinstance(local, str) and pathlib.Path(local).is_absolute() and not self.address.startswith("file:"):
            return output_error(local, error) if isinstance(error, OSError) else error
        if any("NoCredentials" in type(link).__name__ for link in chain):
            return self._error("there are no credentials: set them as the store's own tools take them")
        if any(isinstance(link, PermissionError) for link in chain) or codes & _DENIED:
            return self._error(f"no permission ({text}): check your credentials and the address")
        if "NoSuchBucket" in codes or "bucket does not exist" in text:
            return self._error("there is no such bucket: correct the address, or create the bucket")
        if any(map(_is_broken, chain)):
            tries = f"{len(PAUSES) + 1} tries"
            return self._error(f"no connection in {tries} ({text}): try again when there is one")
        if any(isinstance(link, FileNotFoundError) for link in chain) or "404" in codes:
            return self._error("there is nothing there: check the address")
        return self._error(text)

    def missing(self) -> UserError:
        """The error for an address with nothing there."""
        return self._error("there is nothing there: check the address")

    def refused(self, reason: str) -> UserError:
        """An error of this place with a reason."""
        return self._error(reason)


def _stored(info: dict[str, Any]) -> Stored:
    version = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("blob_id") or ""
    if not version:
        version = info.get("LastModified") or info.get("mtime") or info.get("created") or ""
    return Stored(info.get("size"), str(version))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that caused it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__


def _codes(error: BaseException) -> set[str]:
    """Codes of a client's error: of an S3 response, of an HTTP response."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    status = getattr(error, "status", None) or (getattr(error, "code", None) if code is None else None)
    return {str(value) for value in (code, status) if value}


def _is_of_a_client(error: BaseException) -> bool:
    # Clients raise errors of any HTTP library. Python's own errors are bugs, except for refused names (ValueError).
    return isinstance(error, OSError | ValueError) or type(error).__module__ != "builtins"


def _is_broken(error: BaseException) -> bool:
    if not _is_of_a_client(error):
        return False
    if any(code.startswith("5") and len(code) == 3 for code in _codes(error)):
        return True
    by_number = isinstance(error, OSError) and error.errno in _BROKEN_ERRNO and error.filename is None
    return by_number or bool({kind.__name__ for kind in type(error).__mro__} & _BROKEN)
