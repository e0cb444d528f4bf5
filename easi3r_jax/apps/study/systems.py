"""Ways to reconstruct a clip that the study compares: with or without optical flow, and with masks from where.

A system is written as its parts, joined by `+`: `plain` is DUSt3R alone, `flow+attention` the whole method.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from easi3r_jax.apps.study.clips import StudyClip
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import CUES, PipelineConfig
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Given, Reconstruction
from easi3r_jax.evaluation import metrics
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.dense_flow import dense_flow
from easi3r_jax.inference.refine import ReprojectionRefiner
from easi3r_jax.models import DUSt3R

PLAIN, FLOW, TRUTH, SINGLE_PASS, REPROJECTION = "plain", "flow", "truth", "single-pass", "reprojection"
#: Where masks come from: a motion cue, or the ground truth.
_MASKS = (*(cue for cue in CUES if cue != "none"), TRUTH)
_PARTS = (PLAIN, FLOW, *_MASKS, SINGLE_PASS, REPROJECTION)


@dataclasses.dataclass(frozen=True)
class System:
    """A way to reconstruct.

    Attributes:
      name: its parts, as given.
      flow: with optical flow by dense inverse search.
      masks: a motion cue, "truth" (the clip's true masks), or "" for none.
      reattention: masks count in the attention of a second pass; else only in the alignment.
      refined: by reprojection.
    """

    name: str
    flow: bool
    masks: str
    reattention: bool
    refined: bool


def parse(text: str) -> list[System]:
    """Systems separated by commas.

    Raises:
      ConfigError: a part that does not exist, or that does nothing beside the others; a system named twice.
    """
    found = [_parse_one(name.strip()) for name in text.split(",") if name.strip()]
    parts = [frozenset(system.name.split("+")) for system in found]
    if len(set(parts)) < len(parts):
        raise ConfigError(f"{text}: every system once.")
    return found


def _parse_one(name: str) -> System:
    parts = name.split("+")
    if unknown := [part for part in parts if part not in _PARTS]:
        raise ConfigError(f"{name}: {unknown[0]!r} is not one of {', '.join(_PARTS)}.")
    if len(set(parts)) < len(parts) or (PLAIN in parts and len(parts) > 1):
        raise ConfigError(f"{name}: every part once, and {PLAIN} alone.")
    masks = [part for part in parts if part in _MASKS]
    if len(masks) > 1:
        raise ConfigError(f"{name}: masks come from one of {' and '.join(masks)}.")
    if not masks and {SINGLE_PASS, REPROJECTION} & set(parts):
        raise ConfigError(f"{name}: there are no masks; add one of {', '.join(_MASKS)}.")
    if FLOW not in parts and (SINGLE_PASS in parts or {TRUTH, REPROJECTION} <= set(parts)):
        raise ConfigError(f"{name}: outside the attention, masks count only where flow is left out; add {FLOW}.")
    return System(
        name=name,
        flow=FLOW in parts,
        masks=masks[0] if masks else "",
        reattention=SINGLE_PASS not in parts,
        refined=REPROJECTION in parts,
    )


def reconstruct(
    model: DUSt3R,
    clip: StudyClip,
    features: Array,
    system: System,
    config: PipelineConfig,
    flow: tuple[np.ndarray, np.ndarray | None] | None,
) -> Reconstruction:
    """Reconstructs a clip.

    Args:
      model: the network.
      clip: the clip.
      features: of its frames.
      system: how.
      config: options that all systems share.
      flow: of `flow_of`; used if the system uses flow.
    """
    given_masks = system.masks == TRUTH
    config = dataclasses.replace(
        config,
        cue="none" if given_masks or not system.masks else system.masks,
        masks=("given",) if given_masks else ("motion",),
        reattention=system.reattention,
    )
    pixels, known = flow if system.flow and flow is not None else (None, None)
    given = Given(flow=pixels, flow_known=known, masks=clip.truth.masks if given_masks else None)
    refiner = ReprojectionRefiner() if system.refined else None
    return pipeline.reconstruct(model, clip.frames, config, given=given, refiner=refiner, features=features)


def flow_of(clip: StudyClip, config: PipelineConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """Optical flow of the clip's pairs, and where it holds."""
    return dense_flow(clip.frames, pipeline.clip_edges(len(clip.frames.rgb), config.graph))


def measured(
    model: DUSt3R,
    clip: StudyClip,
    features: Array,
    system: System,
    config: PipelineConfig,
    flow: tuple[np.ndarray, np.ndarray | None] | None,
) -> dict[str, float | None]:
    """Metrics of a full reconstruction; arguments of `reconstruct`. A twin's `score_auc` is that of what would move."""
    scene = reconstruct(model, clip, features, system, config, flow).scene
    if not system.masks or system.masks == TRUTH:  # no statement about motion
        return metrics.evaluate_scene(scene, dataclasses.replace(clip.truth, masks=None))
    values = metrics.evaluate_scene(scene, clip.truth)
    if clip.movers is not None:
        values["score_auc"] = metrics.roc_auc(np.asarray(scene.dynamic_score), clip.movers)
    return values
