"""What a run that has diverged leaves behind: a network to go on from, and advice that works.

Resuming would repeat the same steps, and diverge again. So the newest finite weights are written as a checkpoint.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from easi3r_jax.apps.training_log import NotFiniteError
from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.training.step import TrainState, averaged_model
from easi3r_jax.weights.checkpoint import load_newest, save_checkpoint, save_state


def require_finite(state: TrainState, step: int) -> None:
    """Raises NotFiniteError for weights that are not finite."""
    if not all(bool(ok) for ok in jax.device_get(_finite((state.trained, state.average)))):
        raise NotFiniteError(f"Not finite at step {step}: the weights.")


def save_finite_state(states: pathlib.Path, step: int, state: TrainState, recorded: Mapping[str, Any]) -> None:
    """As `save_state`, for finite weights alone: others must not replace the states before them.

    Raises:
      NotFiniteError: weights that are not finite.
      OutputError: the state cannot be written.
    """
    require_finite(state, step)
    save_state(states, step, state, recorded)


@jax.jit
def _finite(tree: Any) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]


@contextlib.contextmanager
def rescuing(
    output: pathlib.Path, state: TrainState, recorded: Mapping[str, Any], network: DUSt3RConfig, licence: str
) -> Iterator[None]:
    """If the block diverges, writes the network of the newest saved state to `model`, and says how to go on from it.

    Args:
      output: the run's folder.
      state: any state of the run, for its structure; its buffers may be deleted.
      recorded: the run's options, see `training_record.describe`.
      network: the architecture.
      licence: of the weights.

    Raises:
      NotFiniteError: the block's, with advice.
    """
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    try:
        yield
    except NotFiniteError as error:
        if jax.process_count() > 1:  # the others have not seen the error, and all would have to read the state
            raise NotFiniteError(
                f"{error} Resuming would repeat it: start again with a lower --learning_rate, in another --output."
            ) from error
        try:
            saved, step, _ = load_newest(output / "states", like, recorded)
            require_finite(saved, step)
        except (CheckpointError, NotFiniteError):  # there is none, or it is of an earlier version
            raise NotFiniteError(
                f"{error} No finite weights were saved before it. Start again with a lower --learning_rate, in another "
                "--output."
            ) from error
        model, path = averaged_model(saved, network), output / "model"
        origin = f"experiments.train, {step} steps, before a run diverged"
        save_checkpoint(path, model.config, model, source_name=origin, licence=licence)
        raise NotFiniteError(
            f"{error} Resuming would repeat it. The weights of step {step} are in {path}: start a new run from them, "
            f"with --checkpoint={path} and a lower --learning_rate, in another --output."
        ) from error
