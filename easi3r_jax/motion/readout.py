"""A linear read-out of the attention moments, calibrated to one network.

Easi3R's formula multiplies four fused maps, the same for every network. Which layers and heads respond to motion, and
with which sign, differs between networks. A `Readout` has a weight for each of several moments of every layer and head:
mean and deviation over pairs of the attention, deviation of its Gram statistics. `python -m experiments.calibrate` fits
it on clips with known masks and their motionless twins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float, pytree_dataclass, static_field
from easi3r_jax.core.config import ATTENTION_MOMENTS, GRAM_STATISTICS, ReadoutConfig
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import MotionResidual
from easi3r_jax.motion.aggregate import TemporalState, raw_moments
from easi3r_jax.motion.cues import Evidence


@pytree_dataclass
class Readout:
    """Weights of the attention moments: a motion cue. `reconstruct(..., cue=readout)` takes it.

    The score of a token is the probability sigmoid(bias + sum of weight · (moment - its median over the clip)). It is
    differentiable in the weights, the bias and the moments, and `jax.vmap` takes many read-outs at once.

    Attributes:
      weights: (M, L, A) float, of each moment of every decoder layer and head.
      bias: () float.
      at_least: () float in [0, 1], minimum threshold of the masks: in a clip without motion nothing reaches it.
      moments: names of the M moments, from `ATTENTION_MOMENTS` and `GRAM_MOMENTS`.
    """

    weights: Float[Array, "M L A"]
    bias: Float[Array, ""]
    at_least: Float[Array, ""]
    moments: tuple[str, ...] = static_field(default=ATTENTION_MOMENTS)

    #: A read-out needs no point maps, and ignores padding by itself: frames without pairs do not count.
    needs_points: ClassVar[bool] = False
    handles_padding: ClassVar[bool] = True

    @property
    def needs_gram(self) -> bool:
        """Whether it weights moments of Gram statistics."""
        return not set(self.moments) <= set(ATTENTION_MOMENTS)

    @classmethod
    def from_config(cls, config: ReadoutConfig) -> Readout:
        """The read-out that a checkpoint carries."""
        weights = np.asarray(config.weights, np.float32).reshape(-1, config.num_layers, config.num_heads)
        bias, at_least = np.float32(config.bias), np.float32(config.at_least)
        weights, bias, at_least = jax.device_put((weights, bias, at_least))
        return cls(weights, bias, at_least, config.moments)

    def __call__(self, evidence: Evidence) -> MotionResidual:
        """The score of every token, as a motion cue returns it."""
        return _compiled(self, evidence.statistics, evidence.grid)

    def residual(self, statistics: TemporalState, grid: tuple[int, int]) -> MotionResidual:
        """The same of the statistics of all pairs. Pure."""
        value, observed = readout_score(statistics, self, grid)
        return MotionResidual(value=value, observed=observed, at_least=self.at_least)


def centred_moments(
    state: TemporalState, grid: tuple[int, int], moments: tuple[str, ...] = ATTENTION_MOMENTS
) -> tuple[Float[Array, "T h w M_L_A"], Bool[Array, "T"]]:
    """What a read-out weights: every moment minus its median over the clip.

    The median, because most of a clip does not move. A moment that a frame lacks (the mean without a pair, the
    deviation with fewer than two) is 0 there, and does not count in the median. Pure; `grid` and `moments` are static.

    Args:
      state: statistics of all pairs.
      grid: (h, w) tokens.
      moments: names, from `ATTENTION_MOMENTS` and `GRAM_MOMENTS`.

    Returns:
      moments: (T, h, w, M L A) float32, ordered as `Readout.weights`.
      observed: (T,) bool, frames with a deviation, i.e. at least two pairs in one of the directions.

    Raises:
      ConfigError: moments of Gram statistics, which the state does not hold.
    """
    centred = []
    for x, has in _moments(state, grid, moments):
        has = has[:, None, None, None]
        middle = jnp.nanmedian(jnp.where(has, x, jnp.nan), axis=(0, 1, 2), keepdims=True)
        centred.append(jnp.where(has, x - jnp.where(jnp.any(has), middle, 0), 0))
    return jnp.concatenate(centred, axis=-1), (state.src.count >= 2) | (state.ref.count >= 2)


def _moments(
    state: TemporalState, grid: tuple[int, int], names: tuple[str, ...]
) -> Iterator[tuple[Float[Array, "T h w L_A"], Bool[Array, "T"]]]:
    """Each moment, and the frames that have it."""
    attention = raw_moments(state, grid)
    gram = None if state.gram is None else raw_moments(state.gram, grid)
    for name in names:
        statistic, side = name.rsplit("_", 1)
        over_pairs, *over_tokens = statistic.split("_", 1)  # ["std"] or ["std", "qq_mean"]
        raw = gram if over_tokens else attention
        if raw is None:
            raise ConfigError(
                f"The read-out weights {name}, but Gram statistics were not computed: pass gram=True, or mark the cue "
                "by reads_gram."
            )
        x = getattr(raw, f"{over_pairs}_{side}")
        if over_tokens:
            by_statistic = x.reshape(*x.shape[:3], state.src.mean.shape[1], len(GRAM_STATISTICS), -1)
            x = by_statistic[..., GRAM_STATISTICS.index(over_tokens[0]), :].reshape(*x.shape[:3], -1)
        yield x, getattr(raw, f"count_{side}") >= (2 if over_pairs == "std" else 1)


def readout_score(
    state: TemporalState, readout: Readout, grid: tuple[int, int]
) -> tuple[Float[Array, "T h w"], Bool[Array, "T h w"]]:
    """Probability that a token is dynamic, and whether its frame has enough pairs to tell; 0 where not. Pure.

    Args:
      state: statistics of all pairs, with Gram statistics if the read-out weights them.
      readout: calibrated to the same network.
      grid: (h, w) tokens.

    Raises:
      ConfigError: a read-out of a network with other layers or heads; Gram statistics are missing.
    """
    layers, heads = state.src.mean.shape[1:3]
    if readout.weights.shape[1:] != (layers, heads):
        raise ConfigError(
            f"The read-out is for a decoder of {readout.weights.shape[1]} layers and {readout.weights.shape[2]} heads; "
            f"this network has {layers} and {heads}. Calibrate one with experiments.calibrate."
        )
    moments, observed = centred_moments(state, grid, readout.moments)
    logit = readout.bias + jnp.sum(moments * readout.weights.reshape(1, 1, 1, -1), axis=-1)
    observed = jnp.broadcast_to(observed[:, None, None], logit.shape)
    return jnp.where(observed, jax.nn.sigmoid(logit), 0), observed


_compiled = jax.jit(Readout.residual, static_argnames=("grid",))
