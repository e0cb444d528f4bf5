"""Text and arrays as users write them: nothing in them is trusted."""

from __future__ import annotations

import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from easi3r_jax.core.errors import InputError

#: A file of cameras that is larger is some other file. An hour of video at 30 frames per second takes 13 MB.
MAX_BYTES = 64 << 20


def read_text(path: pathlib.Path) -> str:
    """The text (UTF-8) of a small file.

    Raises:
      InputError: no such file, no permission, no text, an empty file, or one of more than MAX_BYTES.
    """
    try:
        _require_file(path)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file: save it as UTF-8.") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MB: it cannot be a file of cameras.")
    if not text.strip():
        raise InputError(f"{path} is empty: write it again.")
    return text


def lines_of_numbers(text: str, path: pathlib.Path) -> Iterator[tuple[str, list[float]]]:
    """Yields (name of the line in a message, its numbers, at least one).

    Spaces, commas or semicolons stand between the numbers; `-` stands for NaN. Empty lines and what follows # are
    passed over.

    Raises:
      InputError: a word that is no number; `path` names the file.
    """
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].replace(",", " ").replace(";", " ").split()
        label = f"{path}, line {number}"
        try:
            values = [float("nan" if word == "-" else word) for word in words]
        except ValueError as error:
            raise InputError(f"{label} is no list of numbers: {line.strip()[:60]!r}.") from error
        if values:
            yield label, values


def read_npz(path: pathlib.Path, name: str) -> np.ndarray:
    """An array of real numbers of a .npz file, as float64. Only it is read, and nothing in the file is ever executed.

    Raises:
      InputError: no such file or array, another format, damage, an array of more than MAX_BYTES.
    """
    try:
        _require_file(path)
        with zipfile.ZipFile(path) as archive:
            member = f"{name}.npy"
            if member not in archive.namelist():
                raise InputError(f"{path} has no array {name!r}.")
            if archive.getinfo(member).file_size > MAX_BYTES:  # reading stops there, whatever comes out
                raise InputError(f"{name} in {path} is larger than {MAX_BYTES >> 20} MB: it cannot be of cameras.")
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
    # RuntimeError: an encrypted archive; NotImplementedError, one of its kinds: an unknown way of compressing.
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read {path}: {reason}.") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} in {path} holds {array.dtype}, no real numbers: save it as float64.")
    return array.astype(np.float64)


def _require_file(path: pathlib.Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is no file: copy it to one." if path.exists() else f"There is no file {path}.")
