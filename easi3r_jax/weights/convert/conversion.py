"""Converts an opened source to a checkpoint on disk, one parameter at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.core.types import Progress, silent
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.weights.checkpoint import LICENCE_UNKNOWN, save_checkpoint
from easi3r_jax.weights.convert import table
from easi3r_jax.weights.convert.sources import open_source
from easi3r_jax.weights.convert.tensors import LazyTensor, OpenedWeights
from easi3r_jax.weights.readout import copy_readout

_BLOCK = 16 << 20


@dataclasses.dataclass(frozen=True)
class Summary:
    """Result of a conversion.

    Attributes:
      path: the checkpoint.
      config: the architecture.
      parameters: number of parameters.
      source_sha256: of the file with the weights.
      licence: of the weights.
      notices: sentences for the user.
    """

    path: pathlib.Path
    config: DUSt3RConfig | FlowConfig
    parameters: int
    source_sha256: str
    licence: str
    notices: tuple[str, ...]


def convert(source: str | os.PathLike[str], output: str | os.PathLike[str], progress: Progress = silent) -> Summary:
    """Converts a source to a checkpoint of ours.

    Args:
      source: a `.pth` file, a folder of `model.safetensors` and `config.json`, or a hub name. A folder's read-out of
        the attention (`readout.json`) is copied.
      output: folder to write. An existing checkpoint is replaced, atomically.
      progress: called for the stages "download" (in files), "hash" and "convert" (in megabytes).

    Raises:
      CheckpointError: the source is missing, damaged, unsafe or incomplete.
      OutputError: the output cannot be written.
    """
    opened = open_source(source, progress)
    stamps = [stamp(file) for file in opened.files]
    recipes, dropped, notices = table.match(opened)  # before the long work
    sha256 = hash_file(opened.files[0], progress)
    summary = write(opened, stamps, recipes, dropped, notices, sha256, output, progress)
    copy_readout(source, output)
    return summary


def write(
    source: OpenedWeights,
    stamps: list[tuple[int, int]],
    recipes: dict[str, table.Recipe],
    dropped: dict[str, LazyTensor],
    notices: list[str],
    sha256: str,
    output: str | os.PathLike[str],
    progress: Progress,
) -> Summary:
    """Reads every tensor of a matched source and writes the checkpoint.

    `stamps` are those of the source's files before they were hashed. If a file has changed since, the checksum may not
    be that of the weights, and nothing is written.
    """
    sizes = [tensor.nbytes for recipe in recipes.values() for _, tensor in recipe.tensors]
    total, done = _megabytes(sum(sizes)), 0
    non_finite: list[str] = []

    def check_finite(name: str, array: np.ndarray) -> None:
        # Minimum and maximum propagate NaN and infinity; an array of flags would take a quarter of the tensor's memory.
        if array.size and not (np.isfinite(array.max()) and np.isfinite(array.min())):
            non_finite.append(name)

    def read(target: str) -> np.ndarray:
        nonlocal done
        recipe = recipes[target]
        parameter = np.empty(recipe.shape, np.float32)
        rows = parameter if recipe.stacked else parameter[None]
        for row, (name, tensor), (_, array) in zip(rows, recipe.tensors, recipe.read(), strict=True):
            check_finite(name, array)
            row[...] = array
            done += tensor.nbytes
            progress("convert", _megabytes(done), total, "")
        return parameter

    def finish() -> None:
        for name, tensor in dropped.items():
            check_finite(name, tensor.read())
        if non_finite:
            shown = ", ".join(non_finite[:40]) + (f", and {len(non_finite) - 40} more" if len(non_finite) > 40 else "")
            raise CheckpointError(f"Cannot use {source.name}: NaN or infinite numbers in {shown}.")
        if stamps != [stamp(file) for file in source.files]:
            raise CheckpointError(f"{source.name} changed while it was read: convert it again when it is complete.")

    licence = source.licence or LICENCE_UNKNOWN
    progress("convert", 0, total, "")
    save_checkpoint(
        output, source.config, read, source_name=source.name, source_sha256=sha256, licence=licence, finish=finish
    )
    parameters = sum(int(np.prod(recipe.shape)) for recipe in recipes.values())
    return Summary(pathlib.Path(output), source.config, parameters, sha256, licence, tuple(notices))


def hash_file(path: pathlib.Path, progress: Progress = silent) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest, done = hashlib.sha256(), 0
    try:
        total = _megabytes(path.stat().st_size)
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                done += len(block)
                progress("hash", _megabytes(done), total, "")
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    return digest.hexdigest()


def _megabytes(count: int) -> int:
    return -(-count // 1_000_000)


def stamp(path: pathlib.Path) -> tuple[int, int]:
    """Size and modification time: they change when the file is written to."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    return status.st_size, status.st_mtime_ns
