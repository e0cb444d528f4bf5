"""Motion cues: functions that say how badly each token fits a static scene.

A cue is a function of the `Evidence` of one decoder pass:

    cue(evidence) -> MotionResidual

Pass it to `reconstruct(..., cue=my_cue)`. Its residual goes through the same clustering, threshold and masks as the
attention's score. A cue that reads no point maps is marked by `reads_attention`: the first pass then runs no heads.
One that reads Gram statistics is marked by `reads_gram`: without a mark they are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax

from easi3r_jax.core.arrays import Array, Float, pytree_dataclass, static_field
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import MotionResidual, PairPredictions
from easi3r_jax.motion.aggregate import TemporalState
from easi3r_jax.motion.gram import gram_residual
from easi3r_jax.motion.match import match_residual
from easi3r_jax.motion.rigid import rigid_residual


@pytree_dataclass
class Evidence:
    """The output of one decoder pass for a clip.

    Within `reconstruct`, the point maps are freed after the last cue: copy what you keep.

    Attributes:
      predictions: point maps of all pairs, without padding; None in the first pass of a cue that `reads_attention`.
      statistics: attention statistics of all pairs; `statistics.gram` is None unless the cue is marked by `reads_gram`.
      features: (T, N, C) encoder features.
      grid: (h, w) tokens.
      seed: for random numbers in a cue.
    """

    predictions: PairPredictions | None
    statistics: TemporalState
    features: Float[Array, "T N C"]
    grid: tuple[int, int] = static_field()
    seed: int = static_field(default=0)

    def points(self) -> PairPredictions:
        """The point maps, for cues that need them.

        Raises:
          ConfigError: there are none: the cue is marked by `reads_attention`.
        """
        if self.predictions is None:
            raise ConfigError("A cue marked by reads_attention gets no point maps in the first pass: remove the mark.")
        return self.predictions


Cue: TypeAlias = Callable[[Evidence], MotionResidual]


def reads_attention(cue: Cue) -> Cue:
    """Marks a cue that reads attention statistics and features only: the first pass then runs no prediction heads."""
    cue.needs_points = False  # type: ignore[attr-defined]
    return cue


def reads_gram(cue: Cue) -> Cue:
    """Marks a cue that reads Gram statistics, `evidence.statistics.gram`: the passes then compute them.

    These are moments over pairs, as the attention's, of six statistics of every head: mean and deviation, over the
    other frame's tokens, of query · query, key · key, and query · key. Channel `s * A + head` is statistic s. If the
    cue reads no point maps, mark it by `reads_attention` too.
    """
    cue.needs_gram = True  # type: ignore[attr-defined]
    return cue


def needs_gram(cue: Cue | None) -> bool:
    """Whether the cue reads Gram statistics."""
    return getattr(cue, "needs_gram", False)


def needs_points(cue: Cue | None) -> bool:
    """Whether the cue reads point maps; the attention's own score (None) does not."""
    return cue is not None and getattr(cue, "needs_points", True)


def handles_padding(cue: Cue | None) -> bool:
    """Whether the cue ignores padding of frames and pairs by itself, as the published formula (None) does."""
    return cue is None or getattr(cue, "handles_padding", False)


def _rigid(evidence: Evidence) -> MotionResidual:
    return rigid_residual(evidence.points(), evidence.features, evidence.grid, seed=evidence.seed)


def _match(evidence: Evidence) -> MotionResidual:
    return match_residual(evidence.points(), evidence.features, evidence.grid, seed=evidence.seed)


class _Gram:
    """The Gram cue of the whole clip's statistics."""

    needs_points = False
    needs_gram = True
    handles_padding = True

    def __call__(self, evidence: Evidence) -> MotionResidual:
        return _gram(evidence.statistics, evidence.grid)


_gram = jax.jit(gram_residual, static_argnames=("grid",))
_CUES: dict[str, Cue] = {"gram": _Gram(), "rigid": _rigid, "match": _match}


def find_cue(name: str) -> Cue | None:
    """The cue that `PipelineConfig.cue` names; None for "attention", "formula" and "none"."""
    return _CUES.get(name)
