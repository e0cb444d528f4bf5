"""An S3 server and a cache folder for these tests. They are skipped only where s3fs or moto is not installed."""

from __future__ import annotations

import dataclasses
import pathlib
import uuid
from collections.abc import Callable, Iterator

import fsspec
import pytest

from easi3r_jax.io.remote import address as addresses
from easi3r_jax.io.remote import cache
from tests import object_store


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A new bucket on the server.

    Attributes:
      address: s3://NAME.
      server: the server's address.
    """

    address: str
    server: str

    @property
    def files(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem("s3", endpoint_url=self.server)

    def put(self, name: str, content: bytes) -> None:
        self.files.pipe_file(f"{self.address}/{name}", content)

    def get(self, name: str) -> bytes:
        return self.files.cat_file(f"{self.address}/{name}")

    def names(self, under: str = "") -> set[str]:
        files, start = self.files, f"{self.address[5:]}/{under}"
        files.invalidate_cache()
        return {name[len(start) :].lstrip("/") for name in files.find(start)}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with object_store.serving() as address:
        yield address


@pytest.fixture
def forget(monkeypatch) -> Iterator[Callable[[], None]]:
    """Forgets clients and copies, as a new process would; called before and after each test, too."""
    monkeypatch.setattr(addresses, "PAUSES", (0.01, 0.01))

    def clear() -> None:
        for scheme in ("s3", "https", "memory"):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
        for lock in cache._USED.values():
            cache.os.close(lock)
        cache._USED.clear()

    clear()
    yield clear
    clear()


@pytest.fixture
def cached(tmp_path, monkeypatch, forget) -> pathlib.Path:
    """The cache's folder."""
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cache.LIMIT, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def bucket(server, cached, monkeypatch) -> Bucket:
    for name, value in (object_store.KEYS | {"AWS_ENDPOINT_URL": server}).items():
        monkeypatch.setenv(name, value)
    made = Bucket(f"s3://tests-{uuid.uuid4().hex[:12]}", server)
    made.files.mkdir(made.address[5:])
    return made
