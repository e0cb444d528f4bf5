"""The optimiser: schedule, gradient clipping, AdamW or Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax
from optax import contrib

from easi3r_jax.core.arrays import Array
from easi3r_jax.training.config import TrainConfig


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then half a cosine down to `learning_rate_min`. The warm-up is counted in samples (pairs)."""
    warmup = max(round(config.warmup_samples / config.batch_size), 1)
    return optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(warmup, config.steps - 1) if config.steps > 1 else 0,
        config.steps,
        end_value=config.learning_rate_min,
    )


def _is_matrix(name: str, value: Array) -> bool:
    """Whether Muon updates it: the kernels of the stacked blocks, (depth, in, out)."""
    return name.endswith(".kernel") and getattr(value, "ndim", 0) == 3  # Optax also calls this with placeholders


def is_trained(config: TrainConfig, name: str) -> bool:
    """Whether a parameter is trained: MonST3R's fine-tuning freezes the encoder."""
    return not (config.freeze_encoder and name.startswith("encoder."))


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Muon with the schedule, for flat dicts of parameters (`parameters_of`).

    Weight decay does not apply to biases and norms. With Muon, it applies only to the matrices that Muon updates.
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
            consistent_rms=0.2,  # updates as large as Adam's, so that one learning rate fits both (arXiv 2502.16982)
            muon_weight_dimension_numbers=matrices,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
