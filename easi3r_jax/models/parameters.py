"""A network's parameters as a flat dict, {"encoder.norm.scale": array, …}: what optimisers and checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.config import DUSt3RConfig
from easi3r_jax.models.dust3r import DType, DUSt3R, abstract_model

Array = jax.Array


def parameters_of(model: DUSt3R) -> dict[str, Any]:
    """Path and value (or, of an abstract model, shape) of every parameter."""
    flat = flax.traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    return {".".join(map(str, path)): leaf for path, leaf in flat.items()}


def model_from(config: DUSt3RConfig, parameters: Mapping[str, Array], *, dtype: DType = jnp.float32) -> DUSt3R:
    """The network that has these parameters; the inverse of `parameters_of`. `jax.jit` and `jax.grad` go through it.

    Raises:
      KeyError: a parameter is missing.
    """
    graphdef, state = nnx.split(abstract_model(config, dtype=dtype))
    paths = flax.traverse_util.flatten_dict(nnx.to_pure_dict(state))
    tree = flax.traverse_util.unflatten_dict({path: parameters[".".join(map(str, path))] for path in paths})
    nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(graphdef, state)
