"""Exports a checkpoint of ours as a folder of `model.safetensors` and `config.json`, in the released layout.

Our converter reads such a folder, and so do other programs that load the released networks.
"""

from __future__ import annotations

import json
import math
import os
import pathlib

import numpy as np
import safetensors.numpy

from easi3r_jax.core.atomic import atomic_folder
from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models import parameters_of
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.weights.checkpoint import load_checkpoint
from easi3r_jax.weights.convert.model_string import WIDTHS
from easi3r_jax.weights.convert.safetensors_folder import CONFIG, WEIGHTS
from easi3r_jax.weights.convert.table import official_tensors
from easi3r_jax.weights.readout import copy_readout


def release(checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], *, half: bool = False) -> pathlib.Path:
    """Writes a checkpoint in the released layout, atomically. An existing folder of this kind is replaced.

    Args:
      checkpoint: a folder that `save_checkpoint` wrote.
      output: folder to write.
      half: store weights in half precision: half the size, relative rounding errors up to 0.0005.

    Returns:
      The folder.

    Raises:
      CheckpointError: the checkpoint cannot be read, or has weights beyond the range of half precision.
      OutputError: the folder cannot be written.
    """
    config, model, metadata = load_checkpoint(checkpoint)
    parameters = {name: np.asarray(value) for name, value in parameters_of(model).items()}
    tensors = official_tensors(config, parameters)
    if half:
        largest = max(float(np.abs(t).max()) for t in tensors.values())
        if not largest < float(np.finfo(np.float16).max):
            raise CheckpointError(f"{checkpoint} has weights up to {largest:.3g}: too large for half precision.")
        tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    notes = {"source": str(metadata.get("source_name", "")), "licence": str(metadata.get("licence", ""))}
    with atomic_folder(output, marker=WEIGHTS) as folder:
        safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata=notes)
        (folder / WEIGHTS).chmod(0o644)  # the library makes it readable by its owner only
        (folder / CONFIG).write_text(json.dumps(official_arguments(config), indent=1) + "\n")
    copy_readout(checkpoint, output)
    return pathlib.Path(output)


def official_arguments(config: DUSt3RConfig) -> dict[str, object]:
    """The arguments of the released network's constructor; the inverse of `model_string.parse_arguments`.

    Infinity is written as in the hub's files, which is Python's extension of JSON.
    """
    more: dict[str, object] = {}
    if config.descriptor_dim:
        more = {"two_confs": True, "desc_conf_mode": ["exp", *config.descriptor_confidence_range]}
    if config.metric != (config.descriptor_dim > 0):  # ours: the released networks' arguments do not say it
        more["metric"] = config.metric
    return {
        "pos_embed": f"RoPE{config.rope_base:g}",
        "patch_embed_cls": "PatchEmbedDust3R",
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "head_type": config.head,
        "output_mode": f"pts3d+desc{config.descriptor_dim}" if config.descriptor_dim else "pts3d",
        "depth_mode": ["exp", -math.inf, math.inf],
        "conf_mode": ["exp", *config.confidence_range],
        **{theirs: getattr(config, ours) for theirs, ours in WIDTHS.items()},
        "mlp_ratio": config.mlp_ratio,
        "landscape_only": False,
        **more,
    }
