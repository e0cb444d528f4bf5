"""A linear read-out of the attention moments, calibrated to one network.

Easi3R's formula multiplies four fused maps, the same for every network. Which layers and heads respond to motion, and
with which sign, differs between networks. A `Readout` has a weight for the mean and the deviation of every layer and
head; `python -m experiments.calibrate` fits it on clips with known masks and their motionless twins.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float, pytree_dataclass
from easi3r_jax.core.config import ReadoutConfig
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
      weights: (4, L, A) float, of mean_src, std_src, mean_ref and std_ref of every decoder layer and head.
      bias: () float.
      at_least: () float in [0, 1], minimum threshold of the masks: in a clip without motion nothing reaches it.
    """

    weights: Float[Array, "4 L A"]
    bias: Float[Array, ""]
    at_least: Float[Array, ""]

    #: A read-out needs no point maps, and ignores padding by itself: frames without pairs do not count.
    needs_points: ClassVar[bool] = False
    handles_padding: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: ReadoutConfig) -> Readout:
        """The read-out that a checkpoint carries."""
        weights = np.asarray(config.weights, np.float32).reshape(4, config.num_layers, config.num_heads)
        return cls(jnp.asarray(weights), jnp.float32(config.bias), jnp.float32(config.at_least))

    def __call__(self, evidence: Evidence) -> MotionResidual:
        """The score of every token, as a motion cue returns it."""
        return _compiled(self, evidence.statistics, evidence.grid)

    def residual(self, statistics: TemporalState, grid: tuple[int, int]) -> MotionResidual:
        """The same of the statistics of all pairs. Pure."""
        value, observed = readout_score(statistics, self, grid)
        return MotionResidual(value=value, observed=observed, at_least=self.at_least)


def centred_moments(
    state: TemporalState, grid: tuple[int, int]
) -> tuple[Float[Array, "T h w four_L_A"], Bool[Array, "T"]]:
    """What a read-out weights: every moment minus its median over the clip.

    The median, because most of a clip does not move. A moment that a frame lacks (the mean without a pair, the
    deviation with fewer than two) is 0 there, and does not count in the median. Pure.

    Args:
      state: statistics of all pairs.
      grid: (h, w) tokens.

    Returns:
      moments: (T, h, w, 4 L A) float32, ordered as `Readout.weights`.
      observed: (T,) bool, frames with a deviation, i.e. at least two pairs in one of the directions.
    """
    raw = raw_moments(state, grid)
    counts = {"mean_src": (raw.count_src, 1), "std_src": (raw.count_src, 2)}
    counts |= {"mean_ref": (raw.count_ref, 1), "std_ref": (raw.count_ref, 2)}
    parts = []
    for name, (count, needed) in counts.items():
        has = (count >= needed)[:, None, None, None]
        x = getattr(raw, name)
        middle = jnp.nanmedian(jnp.where(has, x, jnp.nan), axis=(0, 1, 2), keepdims=True)
        parts.append(jnp.where(has, x - jnp.where(jnp.any(has), middle, 0), 0))
    return jnp.concatenate(parts, axis=-1), (raw.count_src >= 2) | (raw.count_ref >= 2)


def readout_score(
    state: TemporalState, readout: Readout, grid: tuple[int, int]
) -> tuple[Float[Array, "T h w"], Bool[Array, "T h w"]]:
    """Probability that a token is dynamic, and whether its frame has enough pairs to tell; 0 where not. Pure.

    Args:
      state: statistics of all pairs.
      readout: calibrated to the same network.
      grid: (h, w) tokens.

    Raises:
      ConfigError: a read-out of a network with other layers or heads.
    """
    layers, heads = state.src.mean.shape[1:3]
    if readout.weights.shape != (4, layers, heads):
        raise ConfigError(
            f"The read-out is for a decoder of {readout.weights.shape[1]} layers and {readout.weights.shape[2]} heads; "
            f"this network has {layers} and {heads}. Calibrate one with experiments.calibrate."
        )
    moments, observed = centred_moments(state, grid)
    logit = readout.bias + jnp.sum(moments * readout.weights.reshape(1, 1, 1, -1), axis=-1)
    observed = jnp.broadcast_to(observed[:, None, None], logit.shape)
    return jnp.where(observed, jax.nn.sigmoid(logit), 0), observed


_compiled = jax.jit(Readout.residual, static_argnames=("grid",))
