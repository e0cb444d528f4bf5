"""Folders of `model.safetensors` and `config.json`, as model hubs hold them.

A safetensors file is an 8-byte little-endian length, a JSON header of that length (name → dtype, shape and the byte
range of the data) and the data. Every number in the header is checked against the file before it is used.
"""

from __future__ import annotations

import collections
import json
import math
import os
import pathlib
from typing import Any, NoReturn

from convert.model_string import parse_arguments
from convert.tensors import ITEM_SIZES, LazyTensor, Source, as_float32, read_array
from easi3r_jax.errors import CheckpointError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_MAX_HEADER = 16 << 20
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def open_folder(folder: pathlib.Path, *, name: str = "", licence: str | None = None) -> Source:
    """Opens a folder of `model.safetensors` and `config.json`.

    Raises:
      CheckpointError: a file that is missing or damaged, or another network.
    """
    weights, config = folder / WEIGHTS, folder / CONFIG
    tensors, duplicates = read_header(weights)
    arguments = _read_config(config)
    try:
        return Source(name or str(folder), (weights, config), parse_arguments(arguments), tensors, duplicates, licence)
    except CheckpointError as error:
        _refuse(config, str(error), error)


def read_header(path: pathlib.Path) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Tensors of a safetensors file, and the names that occur more than once."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8 or length > _MAX_HEADER:
                _refuse(path, f"it is cut off or damaged: its header would be {length} bytes, the file has {size}")
            raw = file.read(length)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    seen: list[tuple[str, Any]] = []
    try:
        # Only the outermost object's pairs matter for duplicates: it is the last to be built.
        header = json.loads(raw, object_pairs_hook=lambda pairs: (seen.clear(), seen.extend(pairs), dict(pairs))[-1])
    except (ValueError, RecursionError) as error:
        _refuse(path, "it is damaged: its header is not readable", error)
    if not isinstance(header, dict):
        _refuse(path, "it is damaged: its header is not a table of tensors")
    duplicates = tuple(name for name, count in collections.Counter(name for name, _ in seen).items() if count > 1)
    start, room = 8 + length, size - 8 - length
    return {n: _tensor(path, n, entry, start, room) for n, entry in header.items() if n != "__metadata__"}, duplicates


def _tensor(path: pathlib.Path, name: str, entry: Any, start: int, room: int) -> LazyTensor:
    label = name[:100]
    entry = entry if isinstance(entry, dict) else {}
    shape, span, code = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        told = repr(code[:40]) if isinstance(code, str) else "not given"
        _refuse(path, f"the type of {label!r} is {told}, which no DUSt3R has")
    if not _sizes(shape) or len(shape) > 8 or not _sizes(span) or len(span) != 2:
        _refuse(path, f"it is damaged: the header's entry of {label!r} makes no sense")
    count = math.prod(shape)
    if span[1] > room:
        _refuse(path, f"it is cut off: {label!r} reaches beyond its end; download or copy it again")
    if span[1] - span[0] != count * ITEM_SIZES[dtype]:
        _refuse(path, f"it is damaged: {label!r} of shape {shape} does not fill its {span[1] - span[0]} bytes")

    def read():
        return as_float32(read_array(path, start + span[0], count, dtype), dtype).reshape(shape)

    return LazyTensor(tuple(shape), dtype, read, (span[0], dtype, tuple(shape)))


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in value
    )


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(1 << 20)
        arguments = json.loads(raw)  # takes the Infinity that hub configurations contain
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: it belongs beside {WEIGHTS} and names the architecture.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        _refuse(path, "it is not readable JSON", error)
    if not isinstance(arguments, dict):
        _refuse(path, "it is not a table of options")
    return arguments


def _refuse(path: pathlib.Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise CheckpointError(f"Cannot use {path}: {reason.rstrip('.')}.") from cause
