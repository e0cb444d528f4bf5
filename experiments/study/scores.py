"""Every score that is compared: the method's, its parts, single decoder layers, other cues; and what each is worth.

All scores are of the first pass, in which nothing is masked yet, and all go the same way: min-max per frame, average
over clusters or not, bilinear upsampling, one multi-Otsu threshold per clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion, pipeline
from easi3r_jax.config import PipelineConfig
from easi3r_jax.metrics import pooled_iou, roc_auc
from easi3r_jax.models import DUSt3R
from easi3r_jax.types import Array, MotionResidual
from experiments.study.clips import StudyClip, Twins

ALL_LAYERS, FORMULA = "all layers", "formula"
_FACTORS = ("mean_src", "std_src", "mean_ref", "std_ref")
#: The method's score, each of its four maps and each complement.
MAPS = (FORMULA, *(sign + name for name in _FACTORS for sign in ("", "1 - ")))
CUES = ("rigid", "match")


class Score(NamedTuple):
    """Which score: of which decoder layer ("all layers", "layer 1", ...) and map, or of which cue; clustered or not."""

    source: str
    map: str
    clustered: bool

    @property
    def name(self) -> str:
        what = f"{self.map}, {self.source}" if self.map else self.source
        return f"{what}, {'clustered' if self.clustered else 'not clustered'}"


def layer_names(num_layers: int) -> tuple[str, ...]:
    return ALL_LAYERS, *(f"layer {n + 1}" for n in range(num_layers))


@partial(jax.jit, static_argnames=("grid",))
def attention_maps(temporal: motion.TemporalState, grid: tuple[int, int]) -> Array:
    """(L + 1, 9, T, h, w) float32 in [0, 1]: the MAPS of all layers together and of each alone."""
    num_layers = temporal.src.mean.shape[1]

    def of_layers(chosen: slice) -> Array:
        def sliced(moments: motion.Moments) -> motion.Moments:
            return dataclasses.replace(moments, mean=moments.mean[:, chosen], squares=moments.squares[:, chosen])

        maps = motion.fuse_temporal(motion.TemporalState(sliced(temporal.src), sliced(temporal.ref)), grid)
        factors = [getattr(maps, name) for name in _FACTORS]
        signed = [x for factor in factors for x in (factor, 1.0 - factor)]
        return jnp.stack([motion.dynamic_score(maps), *signed])

    return jnp.stack([of_layers(slice(None)), *(of_layers(slice(n, n + 1)) for n in range(num_layers))])


def scored(model: DUSt3R, clip: StudyClip, config: PipelineConfig) -> Iterator[tuple[Score, np.ndarray, np.ndarray]]:
    """Every score of a clip as pixels: (T, H, W) float32, and the mask it gives."""
    frames = clip.frames
    size = frames.rgb.shape[1:3]
    grid = model.grid(size)
    edges = pipeline.clip_edges(len(frames.rgb), config.graph)
    features = pipeline.encode(model, frames, batch=config.frame_batch)
    predictions, temporal = pipeline.prediction_pass(model, features, edges, grid, batch=config.pair_batch)
    labels = _cluster(features, grid, config.segmentation, jax.random.key(config.seed))

    def pixels(residual: MotionResidual) -> Iterator[tuple[bool, np.ndarray, np.ndarray]]:
        for clustered in (False, True):
            masks = _masks(residual, temporal, labels, clustered, size, config.segmentation)
            yield clustered, np.asarray(masks.score), np.asarray(masks.masks)

    observed = jnp.ones(labels.shape, bool)
    for source, maps in zip(layer_names(model.config.dec_depth), attention_maps(temporal, grid), strict=True):
        for name, values in zip(MAPS, maps, strict=True):
            for clustered, score, mask in pixels(MotionResidual(values, observed)):
                yield Score(source, name, clustered), score, mask
    for cue in CUES:
        function = motion.find_cue(cue)
        assert function is not None
        for clustered, score, mask in pixels(function(predictions, features, grid, seed=config.seed)):
            yield Score(cue, "", clustered), score, mask


def judged(model: DUSt3R, twins: Twins, config: PipelineConfig) -> dict[Score, dict[str, float | None]]:
    """What each score is worth on a clip and on its twin.

    Returns:
      for each score `auc` (of pixels) and `iou` against what moves; `still_auc` against what would move in the twin,
      and `gain`, the difference: what of `auc` comes from motion; `share` and `still_share` of pixels marked.
    """
    masks = twins.moving.truth.masks
    assert masks is not None
    figures: dict[Score, dict[str, float | None]] = {}
    for name, score, mask in scored(model, twins.moving, config):
        figures[name] = {"auc": roc_auc(score, masks), "iou": pooled_iou(mask, masks), "share": float(mask.mean())}
    for name, score, mask in scored(model, twins.still, config):
        figure, movers = figures[name], twins.still.movers
        figure["still_share"] = float(mask.mean())
        figure["still_auc"] = None if movers is None else roc_auc(score, movers)
        moving, still = figure["auc"], figure["still_auc"]
        figure["gain"] = None if moving is None or still is None else moving - still
    return figures


_cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))


@partial(jax.jit, static_argnames=("clustered", "size", "config"))
def _masks(residual, temporal, labels, clustered, size, config):
    maps = motion.motion_maps(temporal, labels, config, residual)
    chosen = maps if clustered else dataclasses.replace(maps, score=maps.raw_score)
    return motion.motion_masks(chosen, size, config)
