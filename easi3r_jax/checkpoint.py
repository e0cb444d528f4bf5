"""Our checkpoints on disk. The only module that knows Orbax.

A checkpoint is a folder of `config.json` (architecture, format version, where the weights come from and their licence,
checksums) and `weights/`, one Orbax checkpoint for each top-level part of the network (encoder, decoder, head1, head2):
they are written one after another, so that no more than one part is in memory. It is written under a temporary name
beside its place and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import absl.logging
import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

import easi3r_jax
from easi3r_jax import interrupt
from easi3r_jax.config import DUSt3RConfig
from easi3r_jax.errors import CheckpointError, ConfigError, OutputError
from easi3r_jax.models import DUSt3R, abstract_model

FORMAT = "easi3r_jax checkpoint"
FORMAT_VERSION = 1
LICENCE_RELEASED = "CC BY-NC-SA 4.0 (released DUSt3R and MonST3R weights: attribution, non-commercial, share alike)"
LICENCE_UNKNOWN = "The terms of the source apply; released DUSt3R and MonST3R weights are CC BY-NC-SA 4.0."

#: Reads one parameter, given its path ("encoder.norm.scale"), in the network's layout.
ReadParameter = Callable[[str], np.ndarray]


def parameter_shapes(config: DUSt3RConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of the network ("encoder.norm.scale": (1024,)). No memory is taken."""
    return {path: leaf.shape for path, leaf in _flat(nnx.state(abstract_model(config))).items()}


def save_checkpoint(
    path: str | os.PathLike[str],
    config: DUSt3RConfig,
    weights: DUSt3R | ReadParameter,
    *,
    source_name: str,
    source_sha256: str = "",
    licence: str = LICENCE_UNKNOWN,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Writes a checkpoint, whole or not at all. An older checkpoint at `path` is replaced, nothing else ever is.

    Args:
      path: folder to write.
      config: the architecture.
      weights: the network, or a function that gives each of its parameters (float32) when it is asked.
      source_name: where the weights come from.
      source_sha256: of the file they come from.
      licence: of the weights.
      finish: called when all is written and before it takes its place; what it raises prevents that.

    Raises:
      OutputError: the folder cannot be written.
      CheckpointError: a parameter of the wrong shape or type.
    """
    path = pathlib.Path(os.path.realpath(os.path.expanduser(path)))  # a link keeps pointing where it does
    read = _reader(weights) if isinstance(weights, DUSt3R) else weights
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": _config_to_json(config),
        "source_name": source_name,
        "source_sha256": source_sha256,
        "licence": licence,
        "versions": {
            "easi3r_jax": easi3r_jax.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "orbax-checkpoint": getattr(ocp, "__version__", "unknown"),
        },
    }
    shapes = parameter_shapes(config)
    need = 4 * sum(map(math.prod, shapes.values())) + (4 << 20)  # and Orbax's own records
    with _replacing(path, need=need) as partial:
        for part in _parts(shapes):
            tree = {name: _checked(name, read(name), shape) for name, shape in shapes.items() if _part(name) == part}
            with _orbax(path) as checkpointer:
                checkpointer.save(partial / "weights" / part, args=ocp.args.PyTreeSave(_nested(tree, part)))
            del tree
        header["files"] = _checksums(partial / "weights")
        (partial / "config.json").write_text(json.dumps(header, indent=1) + "\n")
        finish()


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether the folder says that it is one of our checkpoints, of any version."""
    try:
        header = json.loads((pathlib.Path(path) / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.get("format") == FORMAT


def load_metadata(path: str | os.PathLike[str]) -> tuple[DUSt3RConfig, dict[str, Any]]:
    """Architecture, and source_name, source_sha256, licence, versions of a checkpoint; reads no weights.

    Raises:
      CheckpointError: not a checkpoint of ours, or of another format version.
    """
    config, _, metadata = _read_header(pathlib.Path(path))
    return config, metadata


def _read_header(path: pathlib.Path) -> tuple[DUSt3RConfig, dict[str, list[int]], dict[str, Any]]:
    """Architecture, checksums of the weight files, and the rest."""
    try:
        header = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint at {path} (no config.json).") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"The checkpoint at {path} is damaged: config.json cannot be read ({reason}).") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of easi3r_jax; make one: python -m convert --source={path}.")
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"The checkpoint at {path} has format version {header.get('format_version')!r}; this program reads "
            f"{FORMAT_VERSION}. Convert its source again."
        )
    if not isinstance(header.get("files"), dict):
        raise CheckpointError(f"The checkpoint at {path} is damaged: config.json lacks checksums. Convert it again.")
    config = _config_from_json(path, header.pop("architecture", None))
    return config, header.pop("files"), header


def load_checkpoint(
    path: str | os.PathLike[str], *, sharding: jax.sharding.Sharding | None = None
) -> tuple[DUSt3RConfig, DUSt3R, dict[str, Any]]:
    """Loads a checkpoint. Every parameter must be there, of the right shape and type, and nothing else.

    Args:
      path: a folder that `save_checkpoint` wrote.
      sharding: where parameters go; by default all on the first local device.

    Returns:
      The architecture, the network in float32, and the metadata (see `load_metadata`).

    Raises:
      CheckpointError: missing, damaged, or another version.
    """
    path = pathlib.Path(path).absolute()
    config, checksums, metadata = _read_header(path)
    _check_files(path, checksums)
    graphdef, state = nnx.split(abstract_model(config))
    shapes = {name: leaf.shape for name, leaf in _flat(state).items()}
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    leaves: dict[str, jax.Array] = {}
    for part in _parts(shapes):
        wanted = {
            n: jax.ShapeDtypeStruct(s, np.float32, sharding=sharding) for n, s in shapes.items() if _part(n) == part
        }
        leaves |= _restore(path, part, wanted)
    nnx.replace_by_pure_dict(state, _unflatten(state, leaves))
    return config, nnx.merge(graphdef, state), metadata


def _restore(path: pathlib.Path, part: str, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    folder = path / "weights" / part
    tree = _nested(wanted, part)
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            stored = checkpointer.metadata(folder).item_metadata.tree
            found = {
                name: (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for name, leaf in _flat_dict(stored, part).items()
            }
            needed = {name: (leaf.shape, "float32") for name, leaf in wanted.items()}
            if found != needed:
                different = sorted(n for n in found.keys() | needed.keys() if found.get(n) != needed.get(n))
                raise CheckpointError(f"its parameters do not fit its architecture: {', '.join(different[:5])}")
            arguments = ocp.checkpoint_utils.construct_restore_args(tree)
            restored = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments))
            return {name: jax.block_until_ready(leaf) for name, leaf in _flat_dict(restored, part).items()}
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise a dozen types for what is always the same to a user
        if "RESOURCE_EXHAUSTED" in str(error) and not isinstance(error, CheckpointError):
            raise  # the device is full: the weights may well be whole
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The checkpoint at {path} is damaged or incomplete ({part}: {reason}). Delete it and convert again."
        ) from error


# --- integrity ------------------------------------------------------------------------------------------------------


def _checksums(folder: pathlib.Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a folder. Without them, Orbax would load flipped bits as weights."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with futures.ThreadPoolExecutor() as pool:  # zlib lets go of the interpreter
        return dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: pathlib.Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(4 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _check_files(path: pathlib.Path, expected: dict[str, list[int]]) -> None:
    try:
        found = _checksums(path / "weights")
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint at {path}: {error.strerror or error}.") from error
    if wrong := sorted(name for name, checksum in expected.items() if found.get(name) != checksum):
        state = "has changed" if wrong[0] in found else "is missing"
        raise CheckpointError(
            f"The checkpoint at {path} is damaged or incomplete (weights/{wrong[0]} {state}"
            f"{f', and {len(wrong) - 1} more' if wrong[1:] else ''}). Delete it and convert again."
        )


# --- parameters and their names -------------------------------------------------------------------------------------


def _flat(state: nnx.State) -> dict[str, Any]:
    flat = flax.traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): leaf for path, leaf in flat.items()}


def _unflatten(state: nnx.State, leaves: dict[str, jax.Array]) -> dict[Any, Any]:
    paths = flax.traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return flax.traverse_util.unflatten_dict({path: leaves[".".join(map(str, path))] for path in paths})


def _part(name: str) -> str:
    return name.partition(".")[0]


def _parts(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return sorted({_part(name) for name in shapes})


def _nested(flat: dict[str, Any], part: str) -> dict[str, Any]:
    """The tree of one part, with the part's own name left away."""
    return flax.traverse_util.unflatten_dict({tuple(n.removeprefix(part + ".").split(".")): v for n, v in flat.items()})


def _flat_dict(tree: dict[str, Any], part: str) -> dict[str, Any]:
    return {".".join((part, *path)): leaf for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def _reader(model: DUSt3R) -> ReadParameter:
    leaves = _flat(nnx.state(model))
    return lambda name: np.asarray(leaves[name])


def _checked(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.shape != shape or value.dtype != np.float32:
        raise CheckpointError(f"{name} is {value.dtype}{list(value.shape)}; the network needs float32{list(shape)}.")
    return value


def _config_to_json(config: DUSt3RConfig) -> dict[str, Any]:
    """Standard JSON has no infinity: it becomes the string "inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and math.isinf(value) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _config_from_json(path: pathlib.Path, fields: Any) -> DUSt3RConfig:
    try:
        fields = dict(fields)
        fields["image_size"] = tuple(fields["image_size"])
        fields["confidence_range"] = tuple(float(bound) for bound in fields["confidence_range"])
        sizes = [value for name, value in fields.items() if isinstance(getattr(DUSt3RConfig, name, None), int)]
        if any(type(size) is not int or size > 65536 for size in (*sizes, *fields["image_size"])):
            raise ValueError("a size is no number, or beyond any network's")
        (height, width), (low, high) = fields["image_size"], fields["confidence_range"]
        if not (-math.inf < low < high and 0 < fields["mlp_ratio"] < 65536 and 1 < fields["rope_base"] < math.inf):
            raise ValueError("a number outside its range")
        return DUSt3RConfig(**{**fields, "image_size": (height, width)})
    except (TypeError, ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(f"The checkpoint at {path} is damaged: its architecture makes no sense.") from error


# --- writing --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replacing(path: pathlib.Path, need: int) -> Iterator[pathlib.Path]:
    """A temporary folder that takes `path`'s place when the block ends well, and disappears when it does not."""
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    older = path.parent / f".{path.name}.older-{os.getpid()}"
    try:
        if path.exists() and not is_checkpoint(path) and not (path.is_dir() and not any(path.iterdir())):
            raise OutputError(f"{path} exists and is no checkpoint: it is left alone. Choose another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < need:
            raise OutputError(
                f"Cannot write {path}: {need / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free on that disk."
            )
        shutil.rmtree(partial, ignore_errors=True)
        with interrupt.removed_on_exit(partial):
            partial.mkdir()
            (partial / "weights").mkdir()
            yield partial
            interrupt.replace_folder(path, partial, older)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _orbax(path: pathlib.Path) -> Iterator[ocp.Checkpointer]:
    """An Orbax writer that takes host arrays as they are.

    By default it copies every host array and compresses: twice the memory, and on trained weights a saving of 8 %.
    """
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    try:
        with _quiet(), ocp.Checkpointer(handler) as checkpointer:
            yield checkpointer
    except OSError:
        raise
    except Exception as error:  # TensorStore reports a full disk as a ValueError
        reasons = ("No space left", "quota exceeded", "File too large", "Permission denied", "Read-only", "I/O error")
        reason = next((r for r in reasons if r.lower() in str(error).lower()), None)
        if reason is None:
            raise
        raise OutputError(f"Cannot write {path}: {reason.lower()}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns of matters that are as they should be here, and logs pages about errors that we tell in a line."""
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)
