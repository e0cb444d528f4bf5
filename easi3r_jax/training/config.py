"""Frozen configurations of training runs, with named presets."""

from __future__ import annotations

import dataclasses
from typing import Literal

from easi3r_jax.core.config import check_at_least
from easi3r_jax.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The training objective. The defaults are DUSt3R's (sec. 3.2); the other terms are not in the paper.

    Attributes:
      alpha: weight of the logarithm of the confidence.
      scale_weight: weight of the squared logarithm of the predicted scale, which otherwise drifts freely.
      matching_weight: weight of InfoNCE between encoder tokens that show the same place.
      attention_weight: weight of the cross-entropy between half the cross-attention heads of a decoder layer and the
        matches.
      attention_layer: index of that layer, from 0.
    """

    alpha: float = 0.2
    scale_weight: float = 0.0
    matching_weight: float = 0.0
    attention_weight: float = 0.0
    attention_layer: int = 1

    def __post_init__(self):
        check_at_least(self, 0, "alpha", "scale_weight", "matching_weight", "attention_weight", "attention_layer")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      steps: optimiser steps of the whole run; the schedule ends there.
      batch_size: pairs per step; each is trained in both directions.
      optimiser: "adamw", or "muon" for the matrices of the transformer's blocks and AdamW elsewhere.
      learning_rate, learning_rate_min: maximum and final learning rate.
      warmup_samples: number of pairs in the warm-up.
      weight_decay: for matrices.
      beta1, beta2: of Adam.
      clip_norm: maximum gradient norm; larger gradients are clipped.
      average_decay: decay of the parameters' moving average.
      freeze_encoder: train decoder and heads only (MonST3R, sec. 3.2).
      objective: the objective's weights.
    """

    steps: int = 1000
    batch_size: int = 8
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    learning_rate_min: float = 1e-6
    warmup_samples: int = 1000
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    average_decay: float = 0.999
    freeze_encoder: bool = False
    objective: ObjectiveConfig = ObjectiveConfig()

    def __post_init__(self):
        check_at_least(self, 1, "steps", "batch_size")
        check_at_least(self, 0, "warmup_samples", "weight_decay", "learning_rate_min")
        if self.optimiser not in ("adamw", "muon"):
            raise ConfigError(f"Unknown optimiser {self.optimiser!r}: 'adamw' or 'muon'.")
        if not self.learning_rate_min <= self.learning_rate:
            raise ConfigError("The final learning rate must not exceed the maximum.")
        if not self.warmup_samples < self.steps * self.batch_size:
            raise ConfigError(
                f"The warm-up has {self.warmup_samples} pairs, but the whole run has {self.steps * self.batch_size}: "
                "use more steps, or a shorter warm-up."
            )

    @classmethod
    def dust3r(cls) -> TrainConfig:
        """DUSt3R's own objective and optimiser (sec. 4, supplementary); clipping and the moving average are ours."""
        return cls(learning_rate=1e-4, learning_rate_min=1e-6, weight_decay=0.05)

    @classmethod
    def embedded(cls) -> TrainConfig:
        """The network that ships with the package.

        Not in the paper: Muon, and three terms without which so small a network takes far longer to learn matching.
        """
        return cls(
            steps=6_000,
            batch_size=16,
            optimiser="muon",
            learning_rate=3e-3,
            learning_rate_min=3e-5,
            warmup_samples=1600,
            weight_decay=0.01,
            average_decay=0.998,
            objective=ObjectiveConfig(alpha=0.4, scale_weight=0.01, matching_weight=0.1, attention_weight=0.1),
        )

    @classmethod
    def embedded_wide(cls) -> TrainConfig:
        """As `embedded`, with a longer schedule for accelerators."""
        return dataclasses.replace(cls.embedded(), steps=30_000, batch_size=64, learning_rate=2e-3)

    @classmethod
    def monst3r(cls) -> TrainConfig:
        """MonST3R's fine-tuning (arXiv 2410.03825, sec. 4): 50 epochs of 20,000 pairs, 3 of them warm-up."""
        return cls(
            steps=50 * 20_000 // 8,
            batch_size=8,
            learning_rate=5e-5,
            learning_rate_min=1e-6,
            warmup_samples=3 * 20_000,
            weight_decay=0.05,
            freeze_encoder=True,
        )
