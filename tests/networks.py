"""The smallest network with all parts, for tests to modify, and its weights."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from easi3r_jax.models import DUSt3R, policy
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.dust3r import abstract_parts
from easi3r_jax.models.parameters import FlowNetwork, model_from, parameter_shapes

_SMALL = dataclasses.replace(DUSt3RConfig.thumbnail(), enc_dim=16, enc_depth=1, dec_dim=16)


def small_network(**changes: Any) -> DUSt3RConfig:
    """Its configuration, with these fields changed."""
    return dataclasses.replace(_SMALL, **changes)


def small_released(head: str) -> DUSt3RConfig:
    """As narrow, with the patches and the decoder's depth that the DPT head needs."""
    describes = {"descriptor_dim": 6, "metric": True} if head == "catmlp+dpt" else {}
    return small_network(patch_size=16, enc_depth=2, dec_dim=24, dec_depth=4, head=head, **describes)


def network(config: DUSt3RConfig, precision: str = "exact", *, seed: int = 0) -> DUSt3R:
    """As `random_model`, with other numbers: drawn by NumPy, since JAX would compile a program for every shape."""
    graphdef, _ = abstract_parts(config, policy(precision), None)
    # Its own arrays, which a test may donate or change.
    arrays = jax.tree.map(lambda x: jax.device_put(x.copy()), _drawn(config, precision, seed))
    return nnx.merge(graphdef, arrays, copy=True)


@functools.cache
def _drawn(config: DUSt3RConfig, precision: str, seed: int) -> nnx.State:
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if "kernel" not in name:
            return np.full(leaf.shape, 1.0 if "scale" in name else 0.0, leaf.dtype)
        if leaf.ndim == 4:  # of a convolution
            deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        else:  # of a linear layer, or of those of all blocks
            deviation = math.sqrt(2 / sum(leaf.shape[-2:])) * (0.02 if ".out." in name else 1.0)
        return (rng.uniform(-1, 1, leaf.shape) * math.sqrt(3) * deviation).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_parts(config, policy(precision), None)[1])


@functools.cache
def flow_network(config: FlowConfig) -> FlowNetwork:
    """A flow network of random weights, drawn once: not to be changed."""
    rng, shapes = np.random.default_rng(0), parameter_shapes(config)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        uniform = rng.random(shape, np.float32)
        if name.endswith("var"):
            return uniform + np.float32(0.5)
        return np.float32((3 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 1) * (2 * uniform - 1)

    return model_from(config, {name: jax.device_put(draw(name, shape)) for name, shape in shapes.items()})
