"""Converts a source of weights: in memory, or to a checkpoint on disk."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from typing import Any

import jax

from easi3r_jax.core.types import Progress, silent
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.vggt import VGGTConfig
from easi3r_jax.weights.checkpoint import LICENCE_UNKNOWN, save_checkpoint
from easi3r_jax.weights.convert.reading import Reading
from easi3r_jax.weights.convert.sources import open_source
from easi3r_jax.weights.convert.tensors import OpenedWeights
from easi3r_jax.weights.readout import copy_readout

_logger = logging.getLogger(__name__)


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
    config: DUSt3RConfig | VGGTConfig | FlowConfig
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
      progress: called for the stages "download" (in files) and "convert" (in megabytes).

    Raises:
      CheckpointError: the source is missing, damaged, unsafe or incomplete.
      OutputError: the output cannot be written.
    """
    reading = Reading(open_source(source, progress), progress)
    opened, digests = reading.source, []

    def digest() -> str:
        digests.append(reading.finish())
        return digests[0]

    licence = opened.licence or LICENCE_UNKNOWN
    save_checkpoint(output, opened.config, reading, source_name=opened.name, source_sha256=digest, licence=licence)
    copy_readout(source, output)
    path = pathlib.Path(output)
    return Summary(path, opened.config, reading.num_parameters, digests[0], licence, reading.notices)


def read_parameters(source: OpenedWeights, progress: Progress = silent) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Converts a source in memory.

    Returns:
      The parameters of the network `source.config`, float32, on JAX's default device but not committed to it; and the
      metadata that its checkpoint would have: source_name, source_sha256, licence.

    Raises:
      CheckpointError: the source is damaged, or does not match its network.
    """
    reading = Reading(source, progress)
    for notice in reading.notices:
        _logger.warning("%s: %s", source.name, notice)
    parameters = {name: jax.device_put(array) for name, array in reading}
    metadata = {
        "source_name": source.name,
        "source_sha256": reading.finish(),
        "licence": source.licence or LICENCE_UNKNOWN,
    }
    return jax.block_until_ready(parameters), metadata
