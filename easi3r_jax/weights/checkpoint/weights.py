"""Networks on disk.

A checkpoint is a folder with `config.json` (architecture, format version, source and licence of the weights, checksums)
and `weights/`, one Orbax checkpoint for each top-level part of the network (encoder, decoder, head1, head2). A part is
written while the next is read: only these two are in memory. The folder is written atomically: under a temporary name,
then renamed.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

import jax
import numpy as np

from easi3r_jax.core.atomic import atomic_folder
from easi3r_jax.core.errors import CheckpointError, ConfigError
from easi3r_jax.models import (
    RAFT,
    SEARAFT,
    VGGT,
    DUSt3R,
    FlowNetwork,
    Precision,
    VGGTConfig,
    model_from,
    parameter_shapes,
    parameters_of,
)
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.weights.checkpoint import folder as folders

FORMAT = "easi3r_jax checkpoint"
#: Written; version 1 is read too (see `_stored_name`).
FORMAT_VERSION = 2
_REMEDY = "Restore it, or write it again, by the program that made it (convert, train)."
LICENCE_UNKNOWN = "The terms of the source apply; released DUSt3R, MonST3R and MASt3R weights are CC BY-NC-SA 4.0."

#: Pairs of a parameter's path ("encoder.norm.scale") and its float32 array, in the layout of our network.
NamedParameters = Iterable[tuple[str, np.ndarray]]


def save_checkpoint(
    path: str | os.PathLike[str],
    config: DUSt3RConfig | VGGTConfig | FlowConfig,
    weights: DUSt3R | VGGT | FlowNetwork | NamedParameters,
    *,
    source_name: str,
    source_sha256: str | Callable[[], str] = "",
    licence: str = LICENCE_UNKNOWN,
) -> None:
    """Writes a checkpoint atomically. An existing checkpoint at `path` is replaced; nothing else is.

    Args:
      path: folder to write.
      config: the architecture.
      weights: the network, or all its parameters, part by part: each part is written when it is complete.
      source_name: where the weights come from.
      source_sha256: of the file that they come from. If it is a function, it is called when everything is written,
        before the folder is renamed; if it raises, nothing is replaced.
      licence: of the weights.

    Raises:
      OutputError: the folder cannot be written.
      CheckpointError: a parameter that is missing, or of the wrong shape or dtype.
    """
    path = pathlib.Path(os.path.realpath(os.path.expanduser(path)))  # a symbolic link stays as it is
    named = _named(weights) if isinstance(weights, (DUSt3R, VGGT, RAFT, SEARAFT)) else weights
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": _config_to_json(config),
        "source_name": source_name,
        "source_sha256": "",
        "licence": licence,
        "versions": folders.versions(),
    }
    shapes = parameter_shapes(config)
    size = 4 * sum(map(math.prod, shapes.values())) + (4 << 20)  # and Orbax's own records
    with atomic_folder(path, marker=is_checkpoint, size=size, durable=True) as partial:
        header["files"] = _write_parts(path, partial / "weights", named, shapes)
        header["source_sha256"] = source_sha256 if isinstance(source_sha256, str) else source_sha256()
        (partial / "config.json").write_text(json.dumps(header, indent=1) + "\n")


def _write_parts(
    path: pathlib.Path, folder: pathlib.Path, named: NamedParameters, shapes: dict[str, tuple[int, ...]]
) -> dict[str, list[int]]:
    """Writes each part when all its parameters are there, while the next part is read. Returns the files' checksums."""
    missing = collections.Counter(map(_part, shapes))
    trees: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    files: dict[str, list[int]] = {}

    def write(part: str, tree: dict[str, np.ndarray]) -> None:
        folders.write_arrays(path, folder / part, tree)
        files.update({f"{part}/{name}": checksum for name, checksum in folders.checksums(folder / part).items()})

    with futures.ThreadPoolExecutor(1) as writer:
        writing: futures.Future[None] | None = None
        for name, value in named:
            part = _part(name)
            trees[part][name.removeprefix(part + ".")] = _checked(name, value, shapes[name])
            del value  # a generator's own reference to it would be the last one
            if len(trees[part]) == missing[part]:
                if writing is not None:
                    writing.result()
                writing = writer.submit(write, part, trees.pop(part))
                del missing[part]
        if writing is not None:
            writing.result()
    if missing:
        raise CheckpointError(f"Parameters of {', '.join(sorted(missing))} are missing.")
    return dict(sorted(files.items()))


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether the folder is one of our checkpoints, of any version."""
    return folders.has_format(path, FORMAT)


def load_metadata(path: str | os.PathLike[str]) -> tuple[DUSt3RConfig | VGGTConfig | FlowConfig, dict[str, Any]]:
    """Architecture and metadata (source_name, source_sha256, licence, versions) of a checkpoint. Reads no weights.

    Raises:
      CheckpointError: not a checkpoint of ours, or of another format version.
    """
    config, _, metadata = _read_header(pathlib.Path(path).expanduser())
    return config, metadata


def _read_header(
    path: pathlib.Path,
) -> tuple[DUSt3RConfig | VGGTConfig | FlowConfig, dict[str, list[int]], dict[str, Any]]:
    """Architecture, checksums of the weight files, and metadata."""
    try:
        header = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint at {path} (no config.json).") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"The checkpoint at {path} is damaged: config.json cannot be read ({reason}).") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a converted checkpoint. Convert it: python -m convert --source={path}.")
    if header.get("format_version") not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"The checkpoint at {path} has format version {header.get('format_version')!r}; this program reads "
            f"versions 1 to {FORMAT_VERSION}. Convert its source again."
        )
    if not isinstance(header.get("files"), dict):
        raise CheckpointError(f"The checkpoint at {path} is damaged: config.json has no checksums. Convert it again.")
    config = _config_from_json(path, header.pop("architecture", None))
    return config, header.pop("files"), header


def load_checkpoint(
    path: str | os.PathLike[str], *, sharding: jax.sharding.Sharding | None = None
) -> tuple[DUSt3RConfig, DUSt3R, dict[str, Any]]:
    """Loads a checkpoint of DUSt3R. It must have exactly the network's parameters, with their shapes and dtypes.

    Args:
      path: a folder written by `save_checkpoint`.
      sharding: of the parameters; by default, they are on JAX's default device, not bound to it.

    Returns:
      The architecture, the network (exact), and the metadata (see `load_metadata`).

    Raises:
      CheckpointError: missing, damaged, of another version, or a flow network's.
    """
    network, metadata = load_network(path, sharding=sharding)
    if isinstance(network, VGGT):
        raise CheckpointError(f"The checkpoint at {path} is of VGGT, not of a network of pairs such as DUSt3R.")
    if not isinstance(network, DUSt3R):
        name = network.config.network
        raise CheckpointError(f"The checkpoint at {path} is of {name}, which estimates optical flow.")
    return network.config, network, metadata


def load_flow_network(
    path: str | os.PathLike[str],
    *,
    precision: Precision = Precision(),
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[FlowConfig, FlowNetwork, dict[str, Any]]:
    """As `load_checkpoint`, for a network that estimates optical flow, with the given precision.

    Raises:
      CheckpointError: missing, damaged, of another version, or another network's.
    """
    network, metadata = load_network(path, precision=precision, sharding=sharding)
    if isinstance(network, (DUSt3R, VGGT)):
        name = type(network).__name__
        raise CheckpointError(f"The checkpoint at {path} is of {name}, which estimates no optical flow.")
    return network.config, network, metadata


def load_network(
    path: str | os.PathLike[str],
    *,
    precision: Precision = Precision(),
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[DUSt3R | VGGT | FlowNetwork, dict[str, Any]]:
    """As `load_checkpoint`, for any network. Parameters stay float32, whatever the precision."""
    path = pathlib.Path(path).expanduser().absolute()
    config, expected, metadata = _read_header(path)
    parameters = _read_weights(path, config, expected, metadata["format_version"], sharding)
    return model_from(config, parameters, precision=precision), metadata


def _read_weights(
    path: pathlib.Path,
    config: DUSt3RConfig | VGGTConfig | FlowConfig,
    expected: dict[str, list[int]],
    version: int,
    sharding: jax.sharding.Sharding | None,
) -> dict[str, jax.Array]:
    folders.check_files(path, expected, _REMEDY)
    shapes = parameter_shapes(config)
    stored = {
        _stored_name(n, version): jax.ShapeDtypeStruct(s, np.float32, sharding=sharding) for n, s in shapes.items()
    }
    parameters: dict[str, jax.Array] = {}
    for part in _parts(shapes):
        wanted = {name: leaf for name, leaf in stored.items() if _part(name) == part}
        leaves = folders.read_arrays(path, path / "weights" / part, _without(wanted, part), _REMEDY)
        parameters |= {f"{part}.{name}": leaf for name, leaf in leaves.items()}
    return {name: parameters[_stored_name(name, version)] for name in shapes}


# --- parameters and their names -------------------------------------------------------------------------------------


def _part(name: str) -> str:
    return name.partition(".")[0]


def _parts(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return sorted({_part(name) for name in shapes})


def _without(flat: dict[str, Any], part: str) -> dict[str, Any]:
    """The parameters of one part, without the part's name in their paths."""
    return {name.removeprefix(part + "."): value for name, value in flat.items()}


def _stored_name(name: str, version: int) -> str:
    """A parameter's name in a format version. Version 1 has `variance` for the `var` of batch norms."""
    return re.sub(r"\.var$", ".variance", name) if version == 1 else name


def _named(model: DUSt3R | VGGT | FlowNetwork) -> NamedParameters:
    return ((name, np.asarray(value)) for name, value in parameters_of(model).items())


def _checked(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.shape != shape or value.dtype != np.float32:
        hint = " Load the network with precision 'exact' to save it." if str(value.dtype) == "bfloat16" else ""
        raise CheckpointError(
            f"{name} is {value.dtype}{list(value.shape)}; the network needs float32{list(shape)}.{hint}"
        )
    return value


def _config_to_json(config: DUSt3RConfig | VGGTConfig | FlowConfig) -> dict[str, Any]:
    """Standard JSON has no infinity: it is written as the string "inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and math.isinf(value) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _is_size(name: str) -> bool:
    return type(getattr(DUSt3RConfig, name, None)) is int


def _config_from_json(path: pathlib.Path, fields: Any) -> DUSt3RConfig | VGGTConfig | FlowConfig:
    try:
        fields = dict(fields)
        if fields.get("network") == "vggt":
            return _vggt_config(fields)
        if "network" in fields:
            return FlowConfig(**fields)
        fields["image_size"] = tuple(fields["image_size"])
        ranges = {name for name in ("confidence_range", "descriptor_confidence_range") if name in fields}
        fields |= {name: tuple(float(bound) for bound in fields[name]) for name in ranges}
        sizes = [value for name, value in fields.items() if _is_size(name)]
        if any(type(size) is not int or size > 65536 for size in (*sizes, *fields["image_size"])):
            raise ValueError("a size is not a number, or too large for any network")
        (height, width), bounds = fields["image_size"], [fields[name] for name in ("confidence_range", *ranges)]
        ordered = all(-math.inf < low < high for low, high in bounds)
        if not (ordered and 0 < fields["mlp_ratio"] < 65536 and 1 < fields["rope_base"] < math.inf):
            raise ValueError("a number is out of range")
        if not isinstance(fields.get("metric", False), bool):
            raise ValueError("metric is neither true nor false")
        return DUSt3RConfig(**{**fields, "image_size": (height, width)})
    except (TypeError, ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(f"The checkpoint at {path} is damaged: its architecture is invalid.") from error


def _vggt_config(fields: dict[str, Any]) -> VGGTConfig:
    fields |= {name: tuple(fields[name]) for name in ("image_size", "heads", "level_dims")}
    sizes = [value for name, value in fields.items() if type(getattr(VGGTConfig, name, None)) is int]
    sizes += [*fields["image_size"], *fields["level_dims"]]
    if any(type(size) is not int or size > 65536 for size in sizes) or len(fields["level_dims"]) != 4:
        raise ValueError("a size is not a number, or too large for any network")
    if not (0 < fields["mlp_ratio"] < 65536 and 1 < fields["rope_base"] < math.inf and len(fields["image_size"]) == 2):
        raise ValueError("a number is out of range")
    return VGGTConfig(**fields)
