"""Folders of `model.safetensors` and `config.json`, the layout of model hubs.

The `safetensors` library reads the weights. A file consists of an 8-byte little-endian length, a JSON header of that
length (name → dtype, shape and byte range of the data) and the data.
"""

from __future__ import annotations

import collections
import json
import pathlib
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert import flow_table
from easi3r_jax.weights.convert.model_string import parse_arguments
from easi3r_jax.weights.convert.tensors import LazyTensor, OpenedWeights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
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


def open_folder(folder: pathlib.Path, *, name: str = "", licence: str | None = None) -> OpenedWeights:
    """Opens a folder of `model.safetensors` and `config.json`.

    Raises:
      CheckpointError: a missing or damaged file, or an unknown network.
    """
    weights, config = folder / WEIGHTS, folder / CONFIG
    tensors, duplicates = read_header(weights)
    if (flow := flow_table.network_of(tensors)) is not None:  # its config.json, if any, describes its training
        return OpenedWeights(name or str(folder), (weights,), flow, tensors, duplicates, licence or flow_table.LICENCE)
    arguments = _read_config(config)
    try:
        return OpenedWeights(
            name or str(folder), (weights, config), parse_arguments(arguments), tensors, duplicates, licence
        )
    except CheckpointError as error:
        _refuse(config, str(error), error)


def read_header(path: pathlib.Path) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Tensors of a safetensors file, and names that occur more than once. The library validates the header."""
    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                entry = file.get_slice(name)
                tensors[name] = _tensor(path, name, tuple(entry.get_shape()), entry.get_dtype())
        return tensors, _repeated_names(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        _refuse(path, f"it is truncated or damaged ({error}): download or copy it again", error)


def _tensor(path: pathlib.Path, name: str, shape: tuple[int, ...], code: str) -> LazyTensor:
    dtype = _DTYPES.get(code)
    if dtype is None:
        _refuse(path, f"{name[:100]!r} has dtype {code[:40]!r}, which DUSt3R does not use")

    def read() -> np.ndarray:
        # Opened for each tensor: while a mapped file is open, its pages count as memory of this process.
        try:
            with safe_open(path, framework="numpy") as file, np.errstate(over="ignore"):
                return file.get_tensor(name).astype(np.float32, copy=False)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"Cannot read {path}: {error}.") from error

    return LazyTensor(shape, dtype, read, (path, name))


def _repeated_names(path: pathlib.Path) -> tuple[str, ...]:
    """Names that occur twice in the header: the library uses the last one."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    seen: list[str] = []
    # Only the outermost object matters. It is the last one to be built.
    json.loads(header, object_pairs_hook=lambda pairs: (seen.clear(), seen.extend(name for name, _ in pairs)))
    return tuple(name for name, count in collections.Counter(seen).items() if count > 1)


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(1 << 20)
        arguments = json.loads(raw)  # accepts the Infinity in configurations of the hub
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: it describes the architecture of {WEIGHTS}.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        _refuse(path, "it is not valid JSON", error)
    if not isinstance(arguments, dict):
        _refuse(path, "it is not a JSON object")
    return arguments


def _refuse(path: pathlib.Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise CheckpointError(f"Cannot use {path}: {reason.rstrip('.')}.") from cause
