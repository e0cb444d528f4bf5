"""All compared scores: the method's, its parts, single decoder layers, other cues; and the metrics of each.

All scores come from the first pass, in which nothing is masked yet. All are processed in the same way: min-max per
frame, mean over clusters or not, bilinear upsampling, one multi-Otsu threshold per clip.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.apps.study.clips import StudyClip, Twins
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import PipelineConfig, SegmentationConfig
from easi3r_jax.core.types import MotionResidual
from easi3r_jax.evaluation.metrics import pooled_iou, roc_auc
from easi3r_jax.inference import pipeline
from easi3r_jax.models import DUSt3R

ALL_LAYERS, FORMULA = "all layers", "formula"
_FACTORS = ("mean_src", "std_src", "mean_ref", "std_ref")
#: The method's score, each of its four maps and each complement.
MAPS = (FORMULA, *(sign + name for name in _FACTORS for sign in ("", "1 - ")))
READOUT = "read-out"
#: Names of motion cues; the read-out is that of the network, if it carries one.
CUES = (READOUT, "gram", "rigid", "match")


class Score(NamedTuple):
    """Identifies a score: the decoder layer ("all layers", "layer 1", ...) and map, or the cue; clustered or not."""

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
    """(L + 1, 9, T, h, w) float32 in [0, 1]: the MAPS of all layers together and of each layer."""
    num_layers = temporal.src.mean.shape[1]

    def of_layers(chosen: slice) -> Array:
        def sliced(moments: motion.Moments) -> motion.Moments:
            return dataclasses.replace(moments, mean=moments.mean[:, chosen], squares=moments.squares[:, chosen])

        maps = motion.fuse_temporal(motion.TemporalState(sliced(temporal.src), sliced(temporal.ref)), grid)
        factors = [getattr(maps, name) for name in _FACTORS]
        signed = [x for factor in factors for x in (factor, 1.0 - factor)]
        return jnp.stack([motion.dynamic_score(maps), *signed])

    return jnp.stack([of_layers(slice(None)), *(of_layers(slice(n, n + 1)) for n in range(num_layers))])


def scored(
    model: DUSt3R, clip: StudyClip, features: Array, config: PipelineConfig
) -> Iterator[tuple[Score, np.ndarray, np.ndarray]]:
    """Every score of a clip per pixel, (T, H, W) float32, and its mask. `features` are those of `pipeline.encode`."""
    size = clip.frames.rgb.shape[1:3]
    grid = model.grid(size)
    edges = pipeline.clip_edges(len(clip.frames.rgb), config.graph)
    predictions, temporal = pipeline.prediction_pass(model, features, edges, grid, gram=True, batch=config.pair_batch)
    labels = _cluster(features, grid, config.segmentation, jax.random.key(config.seed))

    def pixels(values: Array, observed: Array, at_least: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        return jax.device_get(_masks(values, observed, temporal, labels, size, config.segmentation, at_least))

    maps = attention_maps(temporal, grid)
    found, masks = pixels(maps.reshape(-1, *maps.shape[2:]), jnp.ones(labels.shape, bool))
    names = itertools.product(layer_names(model.config.dec_depth), MAPS)
    for number, (source, name) in enumerate(names):
        for clustered in (False, True):
            yield Score(source, name, clustered), found[int(clustered), number], masks[int(clustered), number]
    for cue in CUES:
        function = _readout(model) if cue == READOUT else motion.find_cue(cue)
        if function is None:
            continue
        residual = function(motion.Evidence(predictions, temporal, features, grid, config.seed))
        found, masks = pixels(residual.value[None], residual.observed, residual.at_least)
        for clustered in (False, True):
            yield Score(cue, "", clustered), found[int(clustered), 0], masks[int(clustered), 0]


def evaluated(
    model: DUSt3R, twins: Twins, features: tuple[Array, Array], config: PipelineConfig
) -> dict[Score, dict[str, float | None]]:
    """Metrics of each score on a clip and on its twin.

    Args:
      model: the network.
      twins: the clip and its twin.
      features: `pipeline.encode` of the two.
      config: graph, clusters, seed.

    Returns:
      for each score `auc` (over pixels) and `iou` against the moving objects; `still_auc` against the objects that
      would move in the twin; `gain`, the difference: the part of `auc` that comes from motion; `share` and
      `still_share`, the fractions of pixels marked.
    """
    masks = twins.moving.truth.masks
    assert masks is not None
    results: dict[Score, dict[str, float | None]] = {}
    for name, score, mask in scored(model, twins.moving, features[0], config):
        results[name] = {"auc": roc_auc(score, masks), "iou": pooled_iou(mask, masks), "share": float(mask.mean())}
    for name, score, mask in scored(model, twins.still, features[1], config):
        of_score, movers = results[name], twins.still.movers
        of_score["still_share"] = float(mask.mean())
        of_score["still_auc"] = None if movers is None else roc_auc(score, movers)
        moving, still = of_score["auc"], of_score["still_auc"]
        of_score["gain"] = None if moving is None or still is None else moving - still
    return results


def _readout(model: DUSt3R) -> motion.Cue | None:
    return None if model.readout is None else motion.Readout.from_config(model.readout)


_cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))


@partial(jax.jit, static_argnames=("size", "config"))
def _masks(
    values: Array,
    observed: Array,
    temporal: motion.TemporalState,
    labels: Array,
    size: tuple[int, int],
    config: SegmentationConfig,
    at_least: Array | None = None,
) -> tuple[Array, Array]:
    """Scores and masks (2, M, T, H, W) of M maps (M, T, h, w): without and with clustering."""

    def of_one(value: Array) -> tuple[Array, Array]:
        maps = motion.motion_maps(temporal, labels, config, MotionResidual(value, observed, at_least))
        both = [
            motion.masks_from_maps(m, size, config, at_least=at_least)
            for m in (dataclasses.replace(maps, score=maps.raw_score), maps)
        ]
        return jnp.stack([m.score for m in both]), jnp.stack([m.mask for m in both])

    found, masks = jax.lax.map(of_one, values)  # one after another: a threshold's histograms take much memory
    return jnp.swapaxes(found, 0, 1), jnp.swapaxes(masks, 0, 1)
