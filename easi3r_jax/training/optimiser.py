"""Which step is taken down the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax import contrib

from easi3r_jax.training.config import TrainConfig

Array = jax.Array


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then half a cosine down to `learning_rate_min`; both counted in samples (pairs)."""
    warmup = max(round(config.warmup_samples / config.batch_size), 1)
    return optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(warmup, config.steps - 1) if config.steps > 1 else 0,
        config.steps,
        end_value=config.learning_rate_min,
    )


def _is_matrix(name: str, value: Array) -> bool:
    """Whether Muon takes it: the kernels inside the stacked blocks, (depth, in, out)."""
    return name.endswith(".kernel") and getattr(value, "ndim", 0) == 3  # Optax asks about placeholders too


def is_trained(config: TrainConfig, name: str) -> bool:
    """Whether a parameter is trained: MonST3R's fine-tuning leaves the encoder as it is."""
    return not (config.freeze_encoder and name.startswith("encoder."))


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping by global norm, AdamW or Muon, the schedule. Takes flat dicts of parameters (`parameters_of`).

    Biases and norms are not decayed; with Muon, only the matrices that it takes are.
    """
    schedule = learning_rate(config)

    def matrices(parameters: Any) -> Any:
        axes = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        return {name: axes if _is_matrix(name, value) else None for name, value in parameters.items()}

    def decayed(parameters: Mapping[str, Array]) -> dict[str, bool]:
        return {name: name.endswith(".kernel") for name in parameters}

    if config.optimiser == "adamw":
        rule = optax.adamw(schedule, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=decayed)
    else:
        rule = contrib.muon(
            schedule,
            beta=0.95,
            nesterov=True,
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            consistent_rms=0.2,  # steps as large as Adam's, so one learning rate serves both (arXiv 2502.16982)
            muon_weight_dimension_numbers=matrices,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
