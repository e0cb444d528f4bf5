"""Arrays and tables of numbers.

Arrays are read in pieces, starting with the header by NumPy's reader: shapes are checked before memory is allocated,
pickled objects are refused, and reading one frame of a long depth array costs no more than that frame (in a compressed
file: no more than everything up to it).
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.files.text import decoded, numbers_of


def read_table(path: pathlib.Path, *columns: int) -> np.ndarray:
    """Reads lines of numbers, for their form see `text.numbers_of`. Empty lines and comments are skipped.

    Args:
      path: a text file.
      columns: allowed numbers of columns; all lines must have the same number.

    Returns:
      (lines, columns) float64.

    Raises:
      InputError: the file does not exist, or a line does not have that many numbers.
    """
    if not path.is_file():
        raise InputError(f"No file {path}: restore it, or remove the sequence.")
    rows = []
    try:
        for number, line in enumerate(decoded(path.read_bytes(), "replace").splitlines(), 1):
            values = numbers_of(line, f"Line {number} of {path}")
            if not values:
                continue
            rows.append(values)
            if len(values) not in columns or len(values) != len(rows[0]):
                needed = len(rows[0]) if len(rows) > 1 else " or ".join(map(str, columns))
                raise InputError(f"Line {number} of {path} has {len(values)} numbers, but {needed} are needed.")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    return np.array(rows, np.float64).reshape(len(rows), len(rows[0]) if rows else columns[0])


def read_npy(path: pathlib.Path, *shapes: tuple[int, ...]) -> np.ndarray:
    """Reads a .npy file of real numbers, which must have one of the shapes."""
    with reported(path), path.open("rb") as file:
        return _Array(file, str(path)).read(*shapes)


def npz_names(path: pathlib.Path) -> list[str]:
    """Names of the arrays of a .npz file."""
    with reported(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def npz_shape(path: pathlib.Path, name: str) -> tuple[int, ...]:
    """Shape of an array of a .npz file; only its header is read."""
    with _npz_member(path, name) as array:
        return array.shape


def read_npz(path: pathlib.Path, name: str, *shapes: tuple[int, ...]) -> np.ndarray:
    """Reads an array of numbers or booleans from a .npz file, which must have one of the shapes."""
    with _npz_member(path, name) as array:
        return array.read(*shapes)


def read_npz_frame(path: pathlib.Path, name: str, frame: int, shape: tuple[int, ...]) -> np.ndarray:
    """Reads `array[frame]` of an array of known shape (T, ...) from a .npz file."""
    with _npz_member(path, name) as array:
        return array.read_frame(frame, shape)


class _Array:
    """An open .npy file whose header has been read."""

    def __init__(self, file: IO[bytes], label: str):
        self._file, self._label = file, label
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"format version {version} is unknown")
        self.shape, self._is_fortran, self._dtype = header
        if self._dtype.hasobject:
            raise InputError(f"{label} holds pickled objects, which are never loaded: save it as plain numbers.")
        if self._dtype.kind not in "fiub":
            raise InputError(f"{label} holds {self._dtype}, not real numbers: save it as float32.")

    def read(self, *shapes: tuple[int, ...]) -> np.ndarray:
        """The whole array."""
        if self.shape not in shapes:
            needed = " or ".join(map(str, shapes))
            raise InputError(f"{self._label} has shape {self.shape}, but {needed} is needed: restore or fix the file.")
        return self._take(self.shape).reshape(self.shape, order="F" if self._is_fortran else "C")

    def read_frame(self, frame: int, shape: tuple[int, ...]) -> np.ndarray:
        """Entry `frame` along the first axis."""
        if self._is_fortran or self.shape != shape:
            return self.read(shape)[frame]
        self._file.seek(math.prod(shape[1:]) * self._dtype.itemsize * frame, os.SEEK_CUR)
        return self._take(shape[1:]).reshape(shape[1:])

    def _take(self, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape) * self._dtype.itemsize
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("it is truncated")
        return np.frombuffer(data, self._dtype)


@contextlib.contextmanager
def _npz_member(path: pathlib.Path, name: str) -> Iterator[_Array]:
    with reported(path), zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise InputError(f"{path} has no array {name!r}: add it, or remove the sequence.")
        with archive.open(f"{name}.npy") as file:
            yield _Array(file, f"{name} in {path}")


@contextlib.contextmanager
def reported(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of reading a file into an InputError of one line that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"No file {path}: restore it, or remove the sequence.") from error
    # RuntimeError: an encrypted archive. NotImplementedError, a subclass: an unknown compression method.
    # TokenError, SyntaxError: raised by NumPy on a damaged array header.
    except (
        *(OSError, EOFError, ValueError, RuntimeError, SyntaxError),
        *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read {path}: {reason}. Restore it, or remove the sequence.") from error
