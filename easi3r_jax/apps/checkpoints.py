"""`--checkpoint`: anything that names weights becomes a model."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any, TypeVar

from flax import nnx

import easi3r_jax
from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import layer_dtype
from easi3r_jax.core import sharding
from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.core.types import Observer, silent
from easi3r_jax.models import DUSt3R
from easi3r_jax.weights import convert
from easi3r_jax.weights.checkpoint import load_checkpoint

_T = TypeVar("_T")
EMBEDDED = pathlib.Path(easi3r_jax.__file__).parent / "assets" / "model"


def load_model(checkpoint: str, dtype: str = "auto", observer: Observer = silent) -> tuple[DUSt3R, dict[str, Any]]:
    """Loads a model from a converted checkpoint, or converts a source on first use.

    Args:
      checkpoint: "embedded", a converted folder, a `.pth` file, a safetensors folder, or a hub name.
      dtype: "float32", "bfloat16", or "auto": bfloat16 on accelerators, float32 on CPUs.
      observer: told of download and conversion.

    Returns:
      The model and the checkpoint's metadata (source, SHA-256, licence).

    Raises:
      CheckpointError: a source that is missing, damaged, unsafe or of another architecture.
    """
    if not checkpoint:
        raise CheckpointError("--checkpoint is empty: name weights, or leave it away for the small embedded network.")
    if checkpoint == "embedded":  # small: converted each time, so that it needs no cache
        with tempfile.TemporaryDirectory() as folder:
            path = convert.convert(EMBEDDED, pathlib.Path(folder) / "embedded").path
            _, model, metadata = load_checkpoint(path)
        metadata |= {"source_name": "embedded", "licence": "Apache-2.0"}
    else:
        _, model, metadata = load_checkpoint(convert.resolve(checkpoint, progress=observer))
    return model.with_dtype(layer_dtype(dtype)), metadata


def on_devices(network: _T, count: int, *, in_parts: bool = False) -> _T:
    """A network on devices of this process, whole or in parts (see `sharding.scattered`): they share its work.

    Args:
      network: what is none (a folder, None) is left as it is, and so is a network on one device.
      count: of devices; 0: all.
      in_parts: each keeps a part of every parameter.

    Raises:
      ConfigError: the process has fewer devices.
    """
    if not isinstance(network, nnx.Module):
        return network
    place = sharding.scattered if in_parts else sharding.whole
    return place(network, sharding.data_mesh(count or None))


def devices_flag(group: cli.Group):
    """`--devices`."""
    return group.integer("devices", 0, "Devices of this machine that share the work (0: all).", at_least=0)
