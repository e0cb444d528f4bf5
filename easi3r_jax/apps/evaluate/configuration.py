"""What decides a run's numbers, and so what may be set beside what, or taken over from an earlier run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import easi3r_jax
from easi3r_jax.core.config import FrameConfig, PipelineConfig
from easi3r_jax.evaluation.datasets import TestSet

#: Of `PipelineConfig`: they decide how fast it is done, or, the seed, stand beside the configuration in a record.
_NOT_DECIDING = ("pair_batch", "frame_batch", "shared_shapes", "seed")


def describe(
    test_set: TestSet,
    protocol: Mapping[str, Any],
    pipeline: PipelineConfig,
    frames: FrameConfig,
    *,
    dtype: str,
    weights: Mapping[str, str | None],
) -> dict[str, Any]:
    """Everything that decides the numbers, but for the seed: no path, no size of a batch.

    Args:
      test_set: whose protocol it is.
      protocol: what else belongs to it.
      pipeline, frames: options.
      dtype: of the network's layers.
      weights: of networks, by name: see `weights_hash`.
    """
    return {
        "easi3r_jax": easi3r_jax.__version__,
        "dataset": test_set.name,
        "tasks": test_set.tasks,
        "single_frames": test_set.single_frames,
        "depth": test_set.depth,
        "protocol": dict(protocol),
        "pipeline": {name: v for name, v in dataclasses.asdict(pipeline).items() if name not in _NOT_DECIDING},
        "frames": frames,
        "dtype": dtype,
        "weights": dict(weights),
    }


def weights_hash(metadata: Mapping[str, Any] | None, network: Any) -> str | None:
    """SHA-256 of the file that the weights are from, or of the weights, where they are of no file; None without any."""
    if metadata is None:
        return None
    if metadata.get("source_sha256"):
        return str(metadata["source_sha256"])
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(network):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
