"""What determines a training run: recorded with its states, and compared when it is resumed."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from easi3r_jax.apps.training_data import PairSource
from easi3r_jax.core.errors import CheckpointError, ConfigError
from easi3r_jax.io import remote
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.weights.checkpoint import state_options
from easi3r_jax.weights.hub import is_name

_REMEDY = "Restore it, or start a new run in another folder."


def describe(
    model_config: DUSt3RConfig, config: TrainConfig, source: PairSource, *, seed: int, checkpoint: str
) -> dict[str, Any]:
    """Everything that determines a run's results: stored with its states, and compared when it is resumed."""
    network = dataclasses.asdict(model_config)
    network["confidence_range"] = [str(bound) for bound in model_config.confidence_range]  # JSON has no infinity
    training = dataclasses.asdict(config)
    objective = training.pop("objective")
    return {
        **{f"network.{name}": value for name, value in network.items()},
        **training,
        **{f"objective.{name}": value for name, value in objective.items()},
        "data": source.description,
        "seed": seed,
        "checkpoint": checkpoint,
    }


def named_weights(checkpoint: str, begun: pathlib.Path | None) -> str:
    """What `describe` records of the initial weights: a path that is the same from every folder.

    Args:
      checkpoint: as typed.
      begun: the state to resume from; earlier versions recorded the name as it was typed.
    """
    is_elsewhere = not checkpoint or checkpoint == "embedded" or remote.is_address(checkpoint)
    path = os.path.realpath(os.path.expanduser(checkpoint))
    recorded = None if begun is None else state_options(begun).get("checkpoint")
    if (
        is_elsewhere
        or recorded == checkpoint
        or (is_name(checkpoint) and not os.path.exists(path) and recorded != path)
    ):
        return checkpoint
    return path


def described_network(options: dict[str, Any], state: pathlib.Path) -> DUSt3RConfig:
    """The architecture recorded by `describe` in a state."""
    fields = {name.removeprefix("network."): value for name, value in options.items() if name.startswith("network.")}
    try:
        fields["image_size"] = tuple(fields["image_size"])
        fields["confidence_range"] = tuple(map(float, fields["confidence_range"]))
        return DUSt3RConfig(**fields)
    except (TypeError, ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(f"The training state at {state} is damaged (its network). {_REMEDY}") from error
