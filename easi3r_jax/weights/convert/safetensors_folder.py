"""Folders of `model.safetensors` and `config.json`, the layout of model hubs.

The `safetensors` library checks the weights' file. It consists of an 8-byte little-endian length, a JSON header of that
length (name → dtype, shape and byte range of the data) and the data.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
import re
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert import flow_table, vggt_shapes, vggt_table
from easi3r_jax.weights.convert.model_string import parse_arguments
from easi3r_jax.weights.convert.tensors import LazyTensor, Location, OpenedWeights, as_float32, without_wrappers

WEIGHTS, CONFIG = "model.safetensors", "config.json"
#: Of weights in several files: which one holds each tensor.
INDEX = "model.safetensors.index.json"
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


def holds_weights(folder: pathlib.Path) -> bool:
    """Whether a folder has weights in this layout.

    Raises:
      OSError: no permission, or a name that is too long.
    """
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def open_folder(folder: pathlib.Path, *, name: str = "", licence: str | None = None, index: str = "") -> OpenedWeights:
    """Opens a folder of `model.safetensors` and `config.json`, or of an index and several files of weights.

    Args:
      folder: of the files.
      name: as the user gave it.
      licence: of the weights.
      index: name of the index to go by, though there may be `model.safetensors`, too.

    Raises:
      CheckpointError: a missing or damaged file, or an unknown network.
    """
    config = folder / CONFIG
    if index or ((folder / INDEX).exists() and not (folder / WEIGHTS).exists()):
        tensors, weights = _read_parts(folder / (index or INDEX))
        duplicates = ()
    else:
        weights = (folder / WEIGHTS,)
        tensors, duplicates = read_header(folder / WEIGHTS)
    tensors = without_wrappers(tensors)
    if (flow := flow_table.network_of(tensors)) is not None:  # its config.json, if any, describes its training
        return OpenedWeights(name or str(folder), weights, flow, tensors, duplicates, licence or flow_table.LICENCE)
    try:
        vggt = vggt_shapes.network_of({name: tensor.shape for name, tensor in tensors.items()})
    except CheckpointError as error:
        _refuse(weights[0], str(error), error)
    if vggt is not None:
        return OpenedWeights(name or str(folder), weights, vggt, tensors, duplicates, licence or vggt_table.LICENCE)
    arguments = _read_json(config, f"it describes the architecture of {WEIGHTS}")
    try:
        return OpenedWeights(
            name or str(folder), (*weights, config), parse_arguments(arguments), tensors, duplicates, licence
        )
    except CheckpointError as error:
        _refuse(config, str(error), error)


def read_header(path: pathlib.Path) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Tensors of a safetensors file, and names that occur more than once. The library validates the header."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
        header, start, repeated = _header(path)
        return {name: _tensor(path, name, header[name], start) for name in names}, repeated
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        _refuse(path, f"it is truncated or damaged ({error}): download or copy it again", error)


def is_part(path: pathlib.Path) -> bool:
    """Whether a file's name is that of one of several with the weights."""
    return re.search(r"-\d+-of-\d+\.safetensors$", path.name) is not None


def read_index(index: pathlib.Path) -> dict[str, str]:
    """Which file beside an index holds each tensor.

    Raises:
      CheckpointError: a missing or damaged index, or one that names something else than files beside it.
    """
    placed = _read_json(index, "it says in which file each tensor is").get("weight_map")
    if not isinstance(placed, dict) or not placed:
        _refuse(index, "it has no 'weight_map'")
    for part in placed.values():  # names of files beside it, never paths
        if not isinstance(part, str) or not re.fullmatch(r"(?!.*[/\\])[ -~]{1,200}\.safetensors", part):
            _refuse(index, f"{str(part)[:100]!r} is not the name of a file of weights")
    return placed


def _read_parts(index: pathlib.Path) -> tuple[dict[str, LazyTensor], tuple[pathlib.Path, ...]]:
    """Tensors of the files that an index names, and these files with the index."""
    folder, placed = index.parent, read_index(index)
    parts = sorted(set(placed.values()))
    tensors: dict[str, LazyTensor] = {}
    for part in parts:
        found, repeated = read_header(folder / part)
        wanted = {name for name, where in placed.items() if where == part}
        if repeated or found.keys() != wanted:
            odd = sorted([*repeated, *(found.keys() ^ wanted)])
            _refuse(folder / part, f"it and {index.name} do not agree about {odd[0][:100]!r}")
        tensors |= found
    return tensors, (*(folder / part for part in parts), index)


def _tensor(path: pathlib.Path, name: str, entry: dict[str, Any], start: int) -> LazyTensor:
    code, shape = entry["dtype"], tuple(entry["shape"])
    dtype = _DTYPES.get(code)
    if dtype is None:
        _refuse(path, f"{name[:100]!r} has dtype {code[:40]!r}, which DUSt3R does not use")
    location = Location(path, start + entry["data_offsets"][0], math.prod(shape), dtype)
    return LazyTensor.stored(shape, location, lambda flat: as_float32(flat, dtype).reshape(shape), (path, name))


def _header(path: pathlib.Path) -> tuple[dict[str, dict[str, Any]], int, tuple[str, ...]]:
    """The entries of a valid file by name, where its data begins, and names that occur twice: the last one counts."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size)
    seen: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen[:] = [name for name, _ in pairs]  # of the outermost object, which is the last one to be built
        return dict(pairs)

    entries = json.loads(header, object_pairs_hook=build)
    return entries, 8 + size, tuple(name for name, count in collections.Counter(seen).items() if count > 1)


def _read_json(path: pathlib.Path, purpose: str) -> dict[str, Any]:
    """A JSON object; `purpose` is said where it is missing."""
    try:
        with path.open("rb") as file:
            raw = file.read(1 << 20)
        arguments = json.loads(raw)  # accepts the Infinity in configurations of the hub
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: {purpose}.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        _refuse(path, "it is not valid JSON", error)
    if not isinstance(arguments, dict):
        _refuse(path, "it is not a JSON object")
    return arguments


def _refuse(path: pathlib.Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise CheckpointError(f"Cannot use {path}: {reason.rstrip('.')}.") from cause
