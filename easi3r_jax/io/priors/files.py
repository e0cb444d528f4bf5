"""Reading of text and arrays written by users. Their contents are not trusted."""

from __future__ import annotations

import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from easi3r_jax.core.arrays import Float
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.files.names import require_utf8
from easi3r_jax.io.files.text import decoded, foreign_format, is_header, numbers_of

#: Largest file of cameras, in bytes. An hour of video at 30 frames per second takes 13 MB.
MAX_BYTES = 64 << 20


def read_text(path: pathlib.Path) -> str:
    """The text (UTF-8, or what its byte-order mark names) of a small file.

    Raises:
      InputError: the file does not exist, cannot be read, is not text, is empty, or is larger than MAX_BYTES.
    """
    try:
        _require_file(path)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = decoded(data)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file: save it as UTF-8.") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MB: it is not a file of cameras.")
    if not text.strip():
        raise InputError(f"{path} is empty: write it again.")
    return text


def lines_of_numbers(text: str, path: pathlib.Path) -> Iterator[tuple[str, list[float]]]:
    """Yields (name of the line for messages, its numbers) for each line that has numbers.

    For the form of a line see `files.text.numbers_of`. A first line of words that names the columns is skipped.

    Raises:
      InputError: a word is not a number, or the text is of another known format; `path` is for the message.
    """
    if foreign := foreign_format(text):
        raise InputError(f"{path} is {foreign}.")
    begun = False
    for number, line in enumerate(text.splitlines(), 1):
        if not begun and is_header(line):
            begun = True
            continue
        label = f"{path}, line {number}"
        values = numbers_of(line, label)
        if values:
            begun = True
            yield label, values


def read_npz(path: pathlib.Path, name: str) -> Float[np.ndarray, "..."]:
    """An array of real numbers from a .npz file, as float64. Nothing else is read, and nothing is ever executed.

    Raises:
      InputError: the file or the array does not exist, is in another format or damaged, or the array is larger than
        MAX_BYTES.
    """
    try:
        _require_file(path)
        with zipfile.ZipFile(path) as archive:
            member = f"{name}.npy"
            if member not in archive.namelist():
                raise InputError(f"{path} has no array {name!r}.")
            if archive.getinfo(member).file_size > MAX_BYTES:  # reading is limited to this declared size
                raise InputError(f"{name} in {path} is larger than {MAX_BYTES >> 20} MB: it does not hold cameras.")
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
    # RuntimeError: an encrypted archive. NotImplementedError, a subclass: an unknown compression method.
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read {path}: {reason}.") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} in {path} holds {array.dtype}, not real numbers: save it as float64.")
    return array.astype(np.float64)


def _require_file(path: pathlib.Path) -> None:
    require_utf8(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: copy it to one." if path.exists() else f"There is no file {path}.")
