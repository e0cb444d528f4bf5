"""Checkpoints on disk: networks (`weights`) and training runs (`state`). The only package that imports Orbax."""

from easi3r_jax.weights.checkpoint.state import (
    has_states,
    latest_state,
    load_newest,
    load_state,
    save_state,
    state_options,
)
from easi3r_jax.weights.checkpoint.weights import (
    FORMAT_VERSION,
    LICENCE_UNKNOWN,
    NamedParameters,
    is_checkpoint,
    load_checkpoint,
    load_flow_network,
    load_metadata,
    load_network,
    save_checkpoint,
)

__all__ = [
    "FORMAT_VERSION",
    "LICENCE_UNKNOWN",
    "NamedParameters",
    "has_states",
    "is_checkpoint",
    "latest_state",
    "load_checkpoint",
    "load_flow_network",
    "load_metadata",
    "load_network",
    "load_newest",
    "load_state",
    "save_checkpoint",
    "save_state",
    "state_options",
]
