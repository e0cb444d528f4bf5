"""Arrays in folders, with checksums: the basis of all our checkpoints. `core.atomic` writes the folders atomically.

Only this package imports Orbax, and only when it reads or writes: importing it takes half a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import TYPE_CHECKING, Any

import absl.logging
import flax.traverse_util
import jax
import numpy as np

import easi3r_jax
from easi3r_jax.core.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


def has_format(path: str | os.PathLike[str], name: str) -> bool:
    """Whether the folder's `config.json` declares this format, in any version."""
    try:
        header = json.loads((pathlib.Path(path).expanduser() / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.get("format") == name


def versions() -> dict[str, str]:
    """Versions of the software that writes a checkpoint."""
    import orbax.checkpoint as ocp

    return {
        "easi3r_jax": easi3r_jax.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "orbax-checkpoint": getattr(ocp, "__version__", "unknown"),
    }


def write_arrays(
    path: pathlib.Path, folder: pathlib.Path, arrays: Mapping[str, Any], *, together: bool = False
) -> None:
    """Writes named arrays ("encoder.norm.scale") as one Orbax checkpoint into `folder`, a part of `path`.

    Args:
      path: named in errors.
      folder: to write.
      arrays: host arrays, or arrays of a mesh.
      together: all processes call this, with a folder that all of them see, and each writes a part.
    """
    import orbax.checkpoint as ocp

    folder.parent.mkdir(exist_ok=True)
    with _writer(path, together) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(_nested(arrays)))


def read_arrays(
    path: pathlib.Path, folder: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct], remedy: str
) -> dict[str, jax.Array]:
    """Reads the arrays of `write_arrays` with the wanted shapes, dtypes and shardings.

    Without a sharding, an array is on the default device and not committed to it, as results of `jnp` are. A program is
    compiled separately for committed and for uncommitted arguments, and a committed network would lead to both kinds.

    Raises:
      CheckpointError: other arrays than those wanted, or unreadable ones. The message ends with the remedy.
    """
    import orbax.checkpoint as ocp

    tree = _nested(wanted)
    try:
        with _quiet(), _checkpointer() as checkpointer:
            described = checkpointer.metadata(folder).item_metadata
            if described is None:
                raise CheckpointError("it has no arrays")
            stored = _flat(described.tree)
            found = {name: (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for name, leaf in stored.items()}
            needed = {name: (leaf.shape, str(np.dtype(leaf.dtype))) for name, leaf in wanted.items()}
            if found != needed:
                different = sorted(n for n in found.keys() | needed.keys() if found.get(n) != needed.get(n))
                names = ", ".join(f"{folder.name}.{name}" for name in different[:5])
                raise CheckpointError(f"its arrays do not match its configuration: {names}")
            arguments = jax.tree.map(_restore_args, tree)
            restored = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments))
            leaves = _flat(restored)
            del restored  # each array is freed as soon as its copy is on the device
            return {name: jax.block_until_ready(_on_device(leaves.pop(name))) for name in tuple(leaves)}
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise a dozen types; to a user they mean the same
        if "RESOURCE_EXHAUSTED" in str(error) and not isinstance(error, CheckpointError):
            raise  # the device is out of memory; the arrays may be intact
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"The checkpoint at {path} is damaged or incomplete ({reason}). {remedy}") from error


def _on_device(x: Any) -> jax.Array:
    return x if isinstance(x, jax.Array) and not x.is_fully_addressable else jax.device_put(x)


def _restore_args(wanted: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    import orbax.checkpoint as ocp

    if wanted.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=wanted.dtype)
    return ocp.checkpoint_utils.construct_restore_args(wanted)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict({tuple(name.split(".")): value for name, value in flat.items()})


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    return {".".join(path): leaf for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def checksums(folder: pathlib.Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a folder. Orbax itself does not detect flipped bits."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with futures.ThreadPoolExecutor() as pool:  # zlib releases the GIL
        return dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: pathlib.Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(4 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def check_files(path: pathlib.Path, expected: dict[str, list[int]], remedy: str) -> None:
    """Raises CheckpointError, ending with the remedy, if a file below `weights/` is missing or has changed."""
    try:
        found = checksums(path / "weights")
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint at {path}: {error.strerror or error}.") from error
    if damaged := sorted(name for name, checksum in expected.items() if found.get(name) != checksum):
        state = "has changed" if damaged[0] in found else "is missing"
        raise CheckpointError(
            f"The checkpoint at {path} is damaged or incomplete (weights/{damaged[0]} {state}"
            f"{f', and {len(damaged) - 1} more' if damaged[1:] else ''}). {remedy}"
        )


@contextlib.contextmanager
def _writer(path: pathlib.Path, together: bool) -> Iterator[ocp.Checkpointer]:
    """An Orbax writer that writes host arrays without copies and compression.

    By default, Orbax copies every host array (twice the memory) and compresses, which saves 8 % on trained weights.
    """
    import orbax.checkpoint as ocp

    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    try:
        with _quiet(), _checkpointer(together, use_compression=False, type_handler_registry=handlers) as checkpointer:
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
def _checkpointer(together: bool = False, **options: Any) -> Iterator[ocp.Checkpointer]:
    """Orbax for all processes together, or for the calling one alone, which Orbax takes for process 0.

    By default, all processes must read and write together. Orbax has options against that. But host arrays are written
    by process 0 regardless of them (0.12.8), hence the patched function.
    """
    import orbax.checkpoint as ocp

    if together:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
            yield checkpointer
        return
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone, **options)
    with contextlib.ExitStack() as stack:
        if jax.process_index() != 0:
            stack.enter_context(_as_process_0())
        yield stack.enter_context(ocp.Checkpointer(handler, multiprocessing_options=alone))


@contextlib.contextmanager
def _as_process_0() -> Iterator[None]:
    from orbax.checkpoint._src.multihost import multihost  # private; not needed in programs of one process

    original = multihost.process_index
    multihost.process_index = lambda: 0
    try:
        yield
    finally:
        multihost.process_index = original


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax: its warnings do not apply here, and it logs pages about errors that we report in one line."""
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)
