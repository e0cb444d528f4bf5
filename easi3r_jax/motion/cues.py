"""Motion cues besides the attention's: functions that measure how badly each token fits a static scene.

A cue is a function

    cue(predictions, features, grid, *, seed) -> MotionResidual

of a pass's point maps, the frames' features (T, N, C) and the token grid (h, w). `register_cue` makes it a choice of
`PipelineConfig.motion`. Its residuals are clustered, thresholded and masked like the attention's score.
"""

from __future__ import annotations

from collections.abc import Callable

from easi3r_jax.core.config import MOTION_SOURCES
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import MotionResidual
from easi3r_jax.motion.match import match_residual
from easi3r_jax.motion.rigid import rigid_residual

Cue = Callable[..., MotionResidual]

_CUES: dict[str, Cue] = {"rigid": rigid_residual, "match": match_residual}


def register_cue(name: str, cue: Cue) -> None:
    """Makes `cue` what `PipelineConfig(motion=name)` means.

    Raises:
      ConfigError: the name is taken.
    """
    if name in MOTION_SOURCES:
        raise ConfigError(f"There is a motion source {name!r} already: choose another name.")
    _CUES[name] = cue
    MOTION_SOURCES.append(name)


def find_cue(name: str) -> Cue | None:
    """The cue of this name; None for "attention" and "none", which look at no point maps."""
    return _CUES.get(name)
