"""How well a motion cue tells clips from their motionless twins: of a read-out, a formula, or a single map."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.config import ReadoutConfig, SegmentationConfig
from easi3r_jax.evaluation.metrics import roc_auc
from easi3r_jax.inference import pipeline

SEGMENTATION = SegmentationConfig()
Setting = TypeVar("Setting", bound=Hashable)


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What the first pass sees of a clip or of its twin, and the truth.

    Attributes:
      statistics, labels: of the attention, and clusters of the features.
      moving: (T, H, W) bool.
      movers: (T, H, W) bool, objects that move in the clip, whether or not this is the twin; None if unknown.
      grid: (h, w) tokens.
    """

    statistics: motion.TemporalState
    labels: Array
    moving: np.ndarray
    movers: np.ndarray | None
    grid: tuple[int, int]


#: Clips and their twins; None where there is none.
Pairs = list[tuple[Seen, Seen | None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Figures:
    """Metrics of a cue on some clips.

    Attributes:
      means: over the clips. AUC over pixels, and that of the objects that would move in the twin; IoU; joint IoU, of
        clip and twin together, in which nothing moves; fractions of pixels marked. NaN if no clip has the metric.
      joint: (clips,) joint IoU of each.
    """

    means: dict[str, float]
    joint: Float[np.ndarray, "clips"]

    def below(self, best: Figures) -> tuple[float, float]:
        """What a choice by other criteria costs: how far the joint IoU is below another's.

        The mean difference, clip by clip, and its standard error.
        """
        difference = best.joint - self.joint
        count = len(difference)
        return float(difference.mean()), float(np.std(difference, ddof=1) / np.sqrt(count)) if count > 1 else 0.0


def chosen(rows: Mapping[Setting, Figures], most_in_twins: float) -> tuple[Setting, Setting]:
    """The setting to use, and the one with the best joint IoU.

    The best joint IoU among the settings whose score hardly responds to objects that do not move: whose AUC in the
    twins is at most `most_in_twins` (chance: 0.5). If there is none, the lowest AUC in the twins; without twins, the
    best joint IoU.
    """

    def in_twins(setting: Setting) -> float:
        return rows[setting].means["AUC, twin"]

    def joint(setting: Setting) -> float:
        return float(rows[setting].joint.mean())

    best = max(rows, key=joint)
    if np.isnan(in_twins(best)):
        return best, best
    few = [setting for setting in rows if in_twins(setting) <= most_in_twins]
    return (max(few, key=joint) if few else min(rows, key=lambda s: (in_twins(s), -joint(s)))), best


def measured(clips: Pairs, cue: ReadoutConfig | str, at_least: Sequence[float] = (0.0,)) -> list[Figures]:
    """Measures a cue: a read-out, the published formula, VGGT4D's, or one map.

    Args:
      clips: with their twins, if they have any; without, the joint IoU is the IoU.
      cue: a read-out, "formula", "gram", or the name of a map.
      at_least: minimum thresholds of the masks, each with a result.

    Returns:
      its figures with each threshold.
    """
    readout = motion.Readout.from_config(cue) if isinstance(cue, ReadoutConfig) else None
    rows: list[list[dict[str, float | None]]] = [[] for _ in at_least]
    for moving, still in clips:
        score, otsu = score_of(moving, cue, readout)
        auc, still_auc, still_score, still_otsu = roc_auc(score, moving.moving), None, np.zeros(0), 0.0
        if still is not None:
            still_score, still_otsu = score_of(still, cue, readout)
            still_auc = None if still.movers is None else roc_auc(still_score, still.movers)
        for row, least in zip(rows, at_least, strict=True):
            mask, still_mask = score > max(otsu, least), still_score > max(still_otsu, least)
            inside, union = (mask & moving.moving).sum(), (mask | moving.moving).sum()
            row.append(
                {
                    "AUC": auc,
                    "AUC, twin": still_auc,
                    "IoU": inside / union if union else None,
                    "joint IoU": inside / max(union + still_mask.sum(), 1),
                    "marked": mask.mean(),
                    "marked, twin": None if still is None else still_mask.mean(),
                }
            )
    return [
        Figures(
            {name: _mean(clip[name] for clip in row) for name in row[0]},
            np.array([clip["joint IoU"] for clip in row], np.float64),
        )
        for row in rows
    ]


def score_of(seen: Seen, cue: ReadoutConfig | str, readout: motion.Readout | None) -> tuple[np.ndarray, float]:
    """Score (T, H, W) of a cue, and its threshold."""
    residual = None
    if readout is not None:
        residual = _residual(readout, seen.statistics, seen.grid)
    elif cue == "gram":
        residual = _gram(seen.statistics, seen.grid)
    elif cue != "formula":
        value = getattr(_fuse(seen.statistics, seen.grid), str(cue))
        residual = motion.MotionResidual(value, jnp.ones(value.shape, bool))
    size = (seen.moving.shape[1], seen.moving.shape[2])
    _, found = pipeline.segment(seen.statistics, seen.labels, size, SEGMENTATION, residual)
    return np.asarray(found.score), float(found.threshold)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


_residual = jax.jit(motion.Readout.residual, static_argnames=("grid",))
_gram = jax.jit(motion.gram_residual, static_argnames=("grid",))
_fuse = jax.jit(motion.fuse_temporal, static_argnames=("grid",))
