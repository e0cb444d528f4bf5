"""A network's parameters as a flat dict, {"encoder.norm.scale": array, …}, for optimisers and checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, overload

import flax.traverse_util
from flax import nnx

from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.dust3r import DUSt3R, abstract_model
from easi3r_jax.models.precision import Precision
from easi3r_jax.models.raft import RAFT
from easi3r_jax.models.sea_raft import SEARAFT
from easi3r_jax.models.vggt import VGGT, VGGTConfig, abstract_vggt

FlowNetwork = RAFT | SEARAFT


def flow_network(config: FlowConfig, *, seed: int = 0, precision: Precision = Precision()) -> FlowNetwork:
    """The network of a configuration, with randomly initialised weights."""
    return (SEARAFT if config.network == "sea-raft" else RAFT)(config, rngs=nnx.Rngs(seed), precision=precision)


def parameters_of(model: DUSt3R | VGGT | FlowNetwork) -> dict[str, Any]:
    """Path and value (in an abstract model: shape) of every parameter."""
    flat = flax.traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    return {".".join(map(str, path)): leaf for path, leaf in flat.items()}


@overload
def model_from(config: DUSt3RConfig, parameters: Mapping[str, Any], *, precision: Precision = ...) -> DUSt3R: ...
@overload
def model_from(config: VGGTConfig, parameters: Mapping[str, Any], *, precision: Precision = ...) -> VGGT: ...
@overload
def model_from(config: FlowConfig, parameters: Mapping[str, Any], *, precision: Precision = ...) -> FlowNetwork: ...
def model_from(
    config: DUSt3RConfig | VGGTConfig | FlowConfig, parameters: Mapping[str, Any], *, precision: Precision = Precision()
) -> DUSt3R | VGGT | FlowNetwork:
    """The network with these parameters; the inverse of `parameters_of`. Pure: works under `jax.jit` and `jax.grad`.

    Parameters stay in the number type that they have, and layers convert them: in training they are float32.

    Raises:
      KeyError: a parameter is missing.
    """
    graphdef, state = nnx.split(_abstract(config, precision))
    paths = flax.traverse_util.flatten_dict(nnx.to_pure_dict(state))
    tree = flax.traverse_util.unflatten_dict({path: parameters[".".join(map(str, path))] for path in paths})
    nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(graphdef, state)


def parameter_shapes(config: DUSt3RConfig | VGGTConfig | FlowConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of the network ("encoder.norm.scale": (1024,)). Allocates nothing."""
    return {path: leaf.shape for path, leaf in parameters_of(_abstract(config)).items()}


def _abstract(config: DUSt3RConfig | VGGTConfig | FlowConfig, precision: Precision = Precision()) -> Any:
    if isinstance(config, VGGTConfig):
        return abstract_vggt(config, precision=precision)
    if isinstance(config, FlowConfig):
        return nnx.merge(*_abstract_flow(config, precision), copy=True)
    return abstract_model(config, precision=precision)


@functools.lru_cache(maxsize=4)  # tracing the initialisers takes seconds; see `dust3r.abstract_parts`
def _abstract_flow(config: FlowConfig, precision: Precision) -> Any:
    return nnx.split(nnx.eval_shape(lambda: flow_network(config, precision=precision)))
