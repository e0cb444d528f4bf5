"""Files with a calibrated read-out of a network's attention: `readout.json`, in the folder of a checkpoint or alone.

    {"format": "easi3r_jax read-out, 1", "num_layers": 4, "num_heads": 4, "bias": -2.1, "at_least": 0.5,
     "weights": {"mean_src": [...], "std_src": [...], "mean_ref": [...], "std_ref": [...]},
     "origin": "..."}

Each list has a number for every layer and head, layer by layer. Only the moments that are named are weighted; besides
these four, there are the deviations of the Gram statistics (`core.config.GRAM_MOMENTS`).
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.core.config import ReadoutConfig
from easi3r_jax.core.errors import CheckpointError, ConfigError

READOUT = "readout.json"
_FORMAT = "easi3r_jax read-out, 1"
# A read-out of the largest network has some thousand numbers.
_MAX_BYTES = 1 << 20


def load_readout(path: str | os.PathLike[str]) -> ReadoutConfig:
    """Reads a read-out.

    Raises:
      CheckpointError: the file is missing, damaged, or no read-out.
    """
    path = pathlib.Path(path).expanduser()
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"Cannot read the read-out {path}: {error.strerror or error}.") from error
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError("it is too large")
        found = json.loads(content, object_pairs_hook=_without_repetition)
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError(f'it does not say "format": "{_FORMAT}"')
        names, lists = tuple(found["weights"]), list(found["weights"].values())
        layers, heads = (_whole(found[name]) for name in ("num_layers", "num_heads"))
        if any(len(numbers) != layers * heads for numbers in lists):
            raise ValueError(f"each moment needs {layers * heads} weights")
        return ReadoutConfig(
            num_layers=layers,
            num_heads=heads,
            weights=tuple(_number(x) for numbers in lists for x in numbers),
            bias=_number(found["bias"]),
            at_least=_number(found["at_least"]),
            origin=str(found.get("origin", "")),
            moments=names,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ConfigError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"{path} is not a read-out of attention ({reason}): make it with `python -m experiments.calibrate`."
        ) from error


def save_readout(path: str | os.PathLike[str], readout: ReadoutConfig) -> None:
    """Writes a read-out, atomically.

    Raises:
      OutputError: the file cannot be written.
    """
    each = readout.num_layers * readout.num_heads
    content = {
        "format": _FORMAT,
        "num_layers": readout.num_layers,
        "num_heads": readout.num_heads,
        "bias": readout.bias,
        "at_least": readout.at_least,
        "weights": {name: list(readout.weights[n * each : (n + 1) * each]) for n, name in enumerate(readout.moments)},
        "origin": readout.origin,
    }
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def copy_readout(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Copies the read-out of a checkpoint's folder, if it has one, to another folder."""
    path = pathlib.Path(source).expanduser() / READOUT
    if path.is_file():
        save_readout(pathlib.Path(output) / READOUT, load_readout(path))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _whole(x: Any) -> int:
    if isinstance(x, bool) or not isinstance(x, int) or not 0 < x < 1000:
        raise ValueError(f"{x!r} is not a number of layers or heads")
    return x


def _number(x: Any) -> float:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise ValueError(f"{x!r} is not a number")
    return float(x)
