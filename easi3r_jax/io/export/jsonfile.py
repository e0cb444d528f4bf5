"""Strict JSON for configurations and metrics."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.core.errors import InputError


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `to_json(value)`, indented, as UTF-8, atomically.

    Raises:
      OutputError: the file cannot be written.
    """
    text = json.dumps(to_json(value), indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_file(path) as new:
        new.write_text(text + "\n", encoding="utf-8")


def read_object(path: str | os.PathLike) -> Mapping[str, Any]:
    """Reads a JSON object; an empty one if the file does not exist.

    Raises:
      InputError: the file cannot be read, or is not a JSON object.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"Cannot read {path}: {error}. Restore it, or remove it.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object. Restore it, or remove it.")
    return value


def to_json(value: Any) -> Any:
    """Converts a value to JSON's types: `null`, booleans, numbers, strings, lists, objects.

    NaN becomes null; infinities, which JSON cannot represent, become "Infinity" and "-Infinity". Dataclasses become
    objects, arrays and other sequences become lists, paths become strings.

    Raises:
      TypeError: for any other type.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(float(value))
    if hasattr(value, "__array__"):  # arrays and scalars of numpy and JAX, whatever their type
        plain = np.asarray(value)
        if plain.dtype.kind not in "biufOUS":  # bfloat16 and similar types
            plain = plain.astype(np.float32)
        return to_json(plain.tolist())
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON.")


def _number(x: float) -> float | str | None:
    if math.isnan(x):
        return None
    if math.isinf(x):
        return "Infinity" if x > 0 else "-Infinity"
    return x
