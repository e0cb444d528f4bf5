"""Loads a network from anything that names weights."""

from __future__ import annotations

import os
import pathlib
from typing import Any, TypeVar

from flax import nnx

import easi3r_jax
from easi3r_jax.core import sharding
from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.core.types import Progress, silent
from easi3r_jax.io import remote
from easi3r_jax.models import VGGT, DUSt3R, FlowNetwork, Precision, model_from, policy
from easi3r_jax.weights import convert
from easi3r_jax.weights.checkpoint import is_checkpoint, load_network
from easi3r_jax.weights.hub import is_name
from easi3r_jax.weights.readout import READOUT, load_readout

_T = TypeVar("_T")
#: The small network that ships with the package, in the released layout.
EMBEDDED = pathlib.Path(easi3r_jax.__file__).parent / "assets" / "model"


def load_model(
    checkpoint: str | os.PathLike[str] = "embedded", precision: Precision | str = "auto", *, progress: Progress = silent
) -> DUSt3R:
    """Loads a DUSt3R or MonST3R network. Sources of other layouts are converted in memory, as fast as ours are read.

    Args:
      checkpoint: "embedded" (the small network that ships with the package), a converted folder, a `.pth` file, a
        folder with `model.safetensors` and `config.json`, the address of one of these (s3://...), or a name on the
        Hugging Face hub. A `readout.json` in the folder is the network's motion cue (see `Readout`).
      precision: what the network computes in: "exact", "tf32", "bf16", "auto" (bf16 on accelerators, exact on CPUs), or
        a policy of your own.
      progress: called during download and conversion.

    Raises:
      ConfigError: an unknown precision.
      CheckpointError: a source that is missing, damaged, unsafe or of another architecture.
    """
    return load_model_and_metadata(checkpoint, precision, progress=progress)[0]


def load_model_and_metadata(
    checkpoint: str | os.PathLike[str] = "embedded", precision: Precision | str = "auto", *, progress: Progress = silent
) -> tuple[DUSt3R, dict[str, Any]]:
    """As `load_model`, also returning the checkpoint's metadata: source, SHA-256, licence."""
    model, metadata = load_backbone_and_metadata(checkpoint, precision, progress=progress)
    if isinstance(model, VGGT):
        raise CheckpointError(
            f"{os.fspath(checkpoint)} has weights of VGGT, which takes a clip at once: this needs a network of pairs, "
            "such as DUSt3R or MonST3R."
        )
    return model, metadata


def load_multiview_model(
    checkpoint: str | os.PathLike[str], precision: Precision | str = "auto", *, progress: Progress = silent
) -> VGGT:
    """Loads a VGGT network, as `load_model` does; `reconstruct_multiview` takes it.

    Raises:
      CheckpointError, ConfigError: as `load_model`.
    """
    model, _ = load_backbone_and_metadata(checkpoint, precision, progress=progress)
    if not isinstance(model, VGGT):
        name = os.fspath(checkpoint)
        raise CheckpointError(f"{name} has weights of a network of pairs, not of VGGT: use load_model.")
    return model


def load_backbone_and_metadata(
    checkpoint: str | os.PathLike[str] = "embedded", precision: Precision | str = "auto", *, progress: Progress = silent
) -> tuple[DUSt3R | VGGT, dict[str, Any]]:
    """As `load_model_and_metadata`, for any network that `reconstruct_multiview` or `reconstruct` takes."""
    checkpoint, precision = os.fspath(checkpoint), policy(precision)
    if not checkpoint:
        raise CheckpointError("No checkpoint is named: name weights, or omit it for the small embedded network.")
    named, checkpoint = checkpoint, on_this_machine(checkpoint, progress)
    model, metadata = _load(EMBEDDED if checkpoint == "embedded" else checkpoint, precision, progress)
    if isinstance(model, VGGT):
        return model.with_precision(precision), metadata
    if not isinstance(model, DUSt3R):
        raise CheckpointError(f"{named} has weights of {model.config.network}, which estimates optical flow.")
    if checkpoint == "embedded":
        metadata |= {"source_name": "embedded", "licence": "Apache-2.0"}
    model = model.with_precision(precision)
    path = (EMBEDDED if checkpoint == "embedded" else pathlib.Path(checkpoint).expanduser()) / READOUT
    return (model.with_readout(load_readout(path)) if path.is_file() else model), metadata


def load_flow_model(
    checkpoint: str | os.PathLike[str], precision: Precision | str = "auto", *, progress: Progress = silent
) -> FlowNetwork:
    """Loads a RAFT or SEA-RAFT network, as `load_model` does.

    `functools.partial(network_flow, network)` is what `reconstruct(..., flow=...)` takes.

    Raises:
      CheckpointError, ConfigError: as `load_model`.
    """
    return load_flow_model_and_metadata(checkpoint, precision, progress=progress)[0]


def load_flow_model_and_metadata(
    checkpoint: str | os.PathLike[str], precision: Precision | str = "auto", *, progress: Progress = silent
) -> tuple[FlowNetwork, dict[str, Any]]:
    """As `load_flow_model`, also returning the checkpoint's metadata."""
    network, metadata = _load(on_this_machine(os.fspath(checkpoint), progress), policy(precision), progress)
    if isinstance(network, (DUSt3R, VGGT)):
        name = type(network).__name__
        raise CheckpointError(f"{os.fspath(checkpoint)} has weights of {name}, which estimates no optical flow.")
    return network, metadata


def on_this_machine(checkpoint: str, progress: Progress) -> str:
    """A copy of what an address names. Models on the hub are left to the hub's own client and cache."""
    on_hub = checkpoint.removeprefix("hf://")
    return on_hub if is_name(on_hub) else remote.local(checkpoint, progress=progress)


def _load(
    checkpoint: str | os.PathLike[str], precision: Precision, progress: Progress
) -> tuple[DUSt3R | VGGT | FlowNetwork, dict[str, Any]]:
    path = pathlib.Path(checkpoint).expanduser()
    if is_checkpoint(path):
        return load_network(path, precision=precision)
    source = convert.open_source(checkpoint, progress)
    parameters, metadata = convert.read_parameters(source, progress)
    return model_from(source.config, parameters, precision=precision), metadata


def on_devices(network: _T, count: int = 0, *, in_parts: bool = False, all_hosts: bool = False) -> _T:
    """Places a network on devices, replicated or sharded (see `sharding.shard_parameters`).

    Args:
      network: anything else (a folder, None) is returned unchanged, as is a network on one device.
      count: number of devices; 0: all.
      in_parts: shard the parameters instead of replicating them.
      all_hosts: on the devices of all processes that `jax.distributed.initialize` has joined, not of this one alone.

    Raises:
      ConfigError: there are fewer devices.
    """
    if not isinstance(network, nnx.Module):
        return network
    place = sharding.shard_parameters if in_parts else sharding.replicate
    return place(network, sharding.data_mesh(count or None, all_hosts=all_hosts))
