"""Deterministic weights of the golden arrays: every tensor is a function of a seed, its name and its shape."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np


def golden_tensor(seed: int, name: str, shape: tuple[int, ...], gains: Mapping[str, float]) -> np.ndarray:
    """The tensor of a state-dict entry, as the golden format documents it; `name` is the canonical one of aliases."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if len(shape) >= 2:
        tensor = rng.standard_normal(shape) * np.sqrt(1.0 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        tensor = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        tensor = 0.1 * rng.standard_normal(shape)
    elif name.endswith((".weight", ".gamma")):
        tensor = 1.0 + 0.1 * rng.standard_normal(shape)
    else:
        tensor = 0.02 * rng.standard_normal(shape)
    tensor = tensor.astype(np.float32)
    for suffix, gain in gains.items():
        if name.endswith(suffix):
            tensor = tensor * np.float32(gain)
    return tensor
