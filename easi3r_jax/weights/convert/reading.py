"""Reads a matched source once, in the order of its file.

While the next tensors are read, earlier ones are hashed, checked and brought into our layout by other threads: these
steps release the interpreter's lock. At most `_AHEAD` tensors are on their way.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any, BinaryIO

import numpy as np

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.core.types import Progress, silent
from easi3r_jax.weights.convert import table
from easi3r_jax.weights.convert.tensors import LazyTensor, OpenedWeights

_AHEAD = 8
_THREADS = max(1, min(_AHEAD, os.cpu_count() or 1))
# Data that belongs to no tensor is read in blocks of this size, in bytes, for the checksum only.
_BLOCK = 16 << 20
# XLA on a CPU uses host memory with this alignment as it is, and copies other memory.
_ALIGNMENT = 64


@dataclasses.dataclass
class _Job:
    """A tensor with its names in the source, and the parameters and rows that it fills; none if it is only checked."""

    tensor: LazyTensor
    names: list[str] = dataclasses.field(default_factory=list)
    places: list[tuple[str, int]] = dataclasses.field(default_factory=list)


class Reading:
    """The parameters of a source, which is read while they are iterated over: (name, array) pairs.

    An array appears when its last tensor has been read. It is float32, in our layout, and aligned so that XLA on a CPU
    uses it without a copy. Iterate once, to the end, then call `finish`.

    Attributes:
      source: the source.
      notices: sentences for the user.

    Raises:
      CheckpointError: the source does not match its network; while iterating: it is damaged or cannot be read.
    """

    def __init__(self, source: OpenedWeights, progress: Progress = silent):
        self._stamps = [_stamp(file) for file in source.files]
        self.source = source
        self._recipes, self._dropped, notices = table.match(source)
        self.notices = (*source.notices, *notices)
        self._progress = progress
        self._non_finite: list[str] = []
        self._sha256 = ""

    @property
    def num_parameters(self) -> int:
        """Number of scalars of the network."""
        return sum(math.prod(recipe.shape) for recipe in self._recipes.values())

    def finish(self) -> str:
        """The SHA-256 of the file with the weights, in hexadecimal; "" if they are in no file.

        Of several files: the SHA-256 of the lines that `sha256sum *.safetensors` prints for them.

        Raises:
          CheckpointError: tensors with NaN or infinite numbers, or a source that changed while it was read.
        """
        name, found = self.source.name, sorted(self._non_finite)
        if found:
            shown = ", ".join(found[:40]) + (f", and {len(found) - 40} more" if len(found) > 40 else "")
            raise CheckpointError(f"Cannot use {name}: NaN or infinite numbers in {shown}.")
        if self._stamps != [_stamp(file) for file in self.source.files]:
            raise CheckpointError(f"{name} changed while it was read: convert it again when it is complete.")
        return self._sha256

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        arrays: dict[str, np.ndarray] = {}
        missing = {name: len(recipe.tensors) for name, recipe in self._recipes.items()}
        total, done = _megabytes(sum(t.nbytes for r in self._recipes.values() for _, t in r.tensors)), 0
        self._progress("convert", 0, total, "")
        waiting: collections.deque[tuple[_Job, futures.Future[None]]] = collections.deque()
        jobs, hashed = self._jobs(), _Hashes(_weight_files(self.source))
        with hashed, _pool(_THREADS) as pool:
            while jobs or waiting:
                if jobs and len(waiting) < _AHEAD:
                    job = jobs.popleft()
                    for target, _ in job.places:
                        if target not in arrays:
                            arrays[target] = _aligned(self._recipes[target].shape)
                    stored = None if job.tensor.location is None else hashed.read(job.tensor)
                    waiting.append((job, pool.submit(self._convert, job, stored, arrays)))
                    continue
                job, converted = waiting.popleft()
                converted.result()
                done += job.tensor.nbytes * len(job.places)
                self._progress("convert", _megabytes(done), total, "")
                for target, _ in job.places:
                    missing[target] -= 1
                    if not missing[target]:
                        yield target, arrays.pop(target)
            self._sha256 = hashed.hexdigest()

    def _jobs(self) -> collections.deque[_Job]:
        """Every tensor once, in the file's order."""
        jobs: dict[object, _Job] = {}
        used = [
            (name, tensor, (target, row))
            for target, recipe in self._recipes.items()
            for row, (name, tensor) in enumerate(recipe.tensors)
        ]
        for name, tensor, place in (*used, *((name, tensor, None) for name, tensor in self._dropped.items())):
            job = jobs.setdefault(tensor.identity, _Job(tensor))
            job.names.append(name)
            job.places += [place] if place is not None else []

        def where(job: _Job) -> tuple[str, int]:
            location = job.tensor.location
            return ("", -1) if location is None else (os.fspath(location.path), location.offset)

        return collections.deque(sorted(jobs.values(), key=where))

    def _convert(self, job: _Job, stored: np.ndarray | None, arrays: dict[str, np.ndarray]) -> None:
        tensor = job.tensor
        array = tensor.read() if stored is None or tensor.decode is None else tensor.decode(stored)
        # Minimum and maximum propagate NaN and infinity; an array of flags would take a quarter of the tensor's memory.
        if array.size and not (np.isfinite(array.max()) and np.isfinite(array.min())):
            self._non_finite.extend(job.names)
        for target, row in job.places:
            recipe = self._recipes[target]
            recipe.transform.write(array, arrays[target][row] if recipe.stacked else arrays[target])


def _weight_files(source: OpenedWeights) -> list[pathlib.Path]:
    """The files that hold the weights, by name."""
    found = {tensor.location.path for tensor in source.tensors.values() if tensor.location is not None}
    return sorted(found) or list(source.files[:1])


class _Hashes:
    """The SHA-256 of one file, or of several that are read one after the other, by name."""

    def __init__(self, paths: list[pathlib.Path]):
        self._paths, self._digests = paths, []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Hashes:
        self._current = self._stack.enter_context(_Hash(self._paths[0] if self._paths else None))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def read(self, tensor: LazyTensor) -> np.ndarray:
        """The elements of a tensor as they are stored."""
        assert tensor.location is not None
        while tensor.location.path != self._paths[len(self._digests)]:
            self._next()
        return self._current.read(tensor)

    def hexdigest(self) -> str:
        """Of everything, the rest of which is read now; "" without a file."""
        while len(self._digests) < len(self._paths) - 1:
            self._next()
        last = self._current.hexdigest()
        if len(self._paths) < 2:
            return last
        names = zip([*self._digests, last], self._paths, strict=True)
        return hashlib.sha256("".join(f"{digest}  {path.name}\n" for digest, path in names).encode()).hexdigest()

    def _next(self) -> None:
        self._digests.append(self._current.hexdigest())
        self._stack.close()
        self._current = self._stack.enter_context(_Hash(self._paths[len(self._digests)]))


class _Hash:
    """The SHA-256 of a file whose tensors are read in order: hashed from the same reads, by another thread."""

    def __init__(self, path: pathlib.Path | None):
        self._path, self._digest, self._position = path, hashlib.sha256(), 0
        self._file: BinaryIO | None = None
        self._pool = _pool(1)
        self._waiting: collections.deque[futures.Future[None]] = collections.deque()

    def __enter__(self) -> _Hash:
        if self._path is not None:
            try:
                self._file = self._path.open("rb", buffering=0)
            except OSError as error:
                raise CheckpointError(f"Cannot read {self._path}: {error.strerror}.") from error
        self._pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)
        if self._file is not None:
            self._file.close()

    def read(self, tensor: LazyTensor) -> np.ndarray:
        """The elements of a tensor as they are stored. What lies between it and the one before is hashed, too."""
        location = tensor.location
        assert location is not None
        self._skip(location.offset)
        stored = location.read()
        new = stored.view(np.uint8)[max(0, self._position - location.offset) :]
        if new.size:  # tensors may overlap
            self._update(new.data)
        return stored

    def hexdigest(self) -> str:
        """Of the whole file, the rest of which is read now; "" without a file."""
        if self._path is None:
            return ""
        self._skip(None)
        while self._waiting:
            self._waiting.popleft().result()
        return self._digest.hexdigest()

    def _skip(self, end: int | None) -> None:
        """Reads and hashes up to a byte; None: the end of the file."""
        assert self._file is not None
        try:
            self._file.seek(self._position)
            while end is None or self._position < end:
                block = self._file.read(_BLOCK if end is None else min(_BLOCK, end - self._position))
                if not block:
                    return
                self._update(memoryview(block))
        except OSError as error:
            raise CheckpointError(f"Cannot read {self._path}: {error.strerror}.") from error

    def _update(self, data: memoryview) -> None:
        while len(self._waiting) >= _AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._digest.update, data))
        self._position += data.nbytes


class _pool(futures.ThreadPoolExecutor):  # noqa: N801 (used as a function)
    """Threads that are left at once on failure: what has not begun is cancelled."""

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=True, cancel_futures=error[0] is not None)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    size = 4 * math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def _megabytes(count: int) -> int:
    return -(-count // 1_000_000)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    """Size and modification time: they change when the file is written to."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    return status.st_size, status.st_mtime_ns
