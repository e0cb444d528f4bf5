"""Everything that determines a run's results: runs with equal configurations may be compared and resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import easi3r_jax
from easi3r_jax.core.config import FrameConfig, PipelineConfig
from easi3r_jax.evaluation.datasets import TestSet

#: Fields of `PipelineConfig` that only affect speed; and the seed, which a record has beside the configuration.
_EXCLUDED = ("pair_batch", "frame_batch", "shared_shapes", "seed")


def describe(
    test_set: TestSet,
    protocol: Mapping[str, Any],
    *,
    pipeline: PipelineConfig,
    frames: FrameConfig,
    precision: str,
    weights: Mapping[str, str | None],
) -> dict[str, Any]:
    """Everything that determines the results, except the seed. No paths, no batch sizes.

    Args:
      test_set: the data set with its protocol.
      protocol: further entries of the protocol.
      pipeline, frames: options.
      precision: name of the networks' policy.
      weights: hashes of the networks' weights by name, see `weights_hash`.
    """
    return {
        "easi3r_jax": easi3r_jax.__version__,
        "dataset": test_set.name,
        "tasks": test_set.tasks,
        "single_frames": test_set.single_frames,
        "depth": test_set.depth,
        "protocol": dict(protocol),
        "pipeline": {name: v for name, v in dataclasses.asdict(pipeline).items() if name not in _EXCLUDED},
        "frames": frames,
        "precision": precision,
        "weights": dict(weights),
    }


def weights_hash(metadata: Mapping[str, Any] | None, network: Any) -> str | None:
    """SHA-256 of the file that the weights come from, or of the weights if there is no file.

    Of a part without a network, such as `dense_flow` or `ReprojectionRefiner`, it is the hash of its description; None
    without metadata.
    """
    if metadata is None:
        return None
    if metadata.get("source_sha256"):
        return str(metadata["source_sha256"])
    digest = hashlib.sha256()
    leaves = [leaf for leaf in jax.tree.leaves(network) if hasattr(leaf, "shape")]
    if not leaves:
        digest.update(json.dumps(metadata, sort_keys=True).encode())
    for leaf in leaves:
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
