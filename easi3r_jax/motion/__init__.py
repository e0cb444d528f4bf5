"""Dynamic regions from attention statistics: aggregate → score → cluster → threshold → masks (Easi3R, sec. 3.2).

Other cues (`cues`) replace the first two steps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, Int, Key
from easi3r_jax.core.config import SegmentationConfig
from easi3r_jax.core.types import MotionMaps, MotionResidual, Segmentation, TemporalMaps
from easi3r_jax.motion.aggregate import (
    Moments,
    RawMoments,
    TemporalState,
    fuse_temporal,
    init_temporal,
    raw_moments,
    update_temporal,
)
from easi3r_jax.motion.cluster import Clusters, cluster_mean, cluster_score, kmeans
from easi3r_jax.motion.cues import (
    Cue,
    Evidence,
    find_cue,
    handles_padding,
    needs_gram,
    needs_points,
    reads_attention,
    reads_gram,
)
from easi3r_jax.motion.gram import GRAM_FACTORS, PAPER_FACTORS, GramFactor, gram_bands, gram_residual, gram_score
from easi3r_jax.motion.masks import dilate, token_masks, upsample
from easi3r_jax.motion.match import match_residual
from easi3r_jax.motion.normalise import min_max
from easi3r_jax.motion.partners import mean_over_partners
from easi3r_jax.motion.readout import Readout, centred_moments, readout_score
from easi3r_jax.motion.rigid import rigid_residual
from easi3r_jax.motion.score import CueWeights, dynamic_score
from easi3r_jax.motion.threshold import Otsu, multi_otsu

__all__ = [
    "GRAM_FACTORS",
    "PAPER_FACTORS",
    "Clusters",
    "Cue",
    "CueWeights",
    "Evidence",
    "GramFactor",
    "Moments",
    "Otsu",
    "RawMoments",
    "Readout",
    "TemporalState",
    "centred_moments",
    "cluster_labels",
    "cluster_mean",
    "cluster_score",
    "dilate",
    "dynamic_score",
    "find_cue",
    "fuse_temporal",
    "gram_bands",
    "gram_residual",
    "gram_score",
    "handles_padding",
    "init_temporal",
    "kmeans",
    "masks_from_maps",
    "match_residual",
    "mean_over_partners",
    "min_max",
    "motion_maps",
    "multi_otsu",
    "needs_gram",
    "needs_points",
    "raw_moments",
    "readout_score",
    "reads_attention",
    "reads_gram",
    "rigid_residual",
    "token_masks",
    "update_temporal",
    "upsample",
]


def motion_maps(
    temporal: TemporalState | TemporalMaps,
    labels: Int[Array, "T h w"],
    config: SegmentationConfig,
    residual: MotionResidual | None = None,
    valid: Bool[Array, "T"] | None = None,
    weights: CueWeights | None = None,
) -> MotionMaps:
    """Scores every token of a clip. Pure; `config` is static under `jit`.

    Args:
      temporal: statistics of all pairs, or the maps fused from them.
      labels: (T, h, w) int from `cluster_labels`. Features do not change between passes: k-means runs once.
      config: number of clusters.
      residual: output of another cue, which replaces the published formula; min-max normalised per frame, unless it is
        absolute (`at_least`).
      valid: (T,) bool, as `Frames.valid`; the scores of padding are meaningless.
      weights: of the attention's layers, heads and maps; maps that are fused already keep their layers and heads. None:
        as in the paper.
    """
    channels, factors = (None, None) if weights is None else (weights.channels, weights.maps)
    maps = fuse_temporal(temporal, labels.shape[1:], channels) if isinstance(temporal, TemporalState) else temporal
    if residual is None:
        raw_score, observed = dynamic_score(maps, factors), None
    elif residual.at_least is not None:
        raw_score, observed = residual.value, residual.observed
    else:
        raw_score, observed = min_max(residual.value, axis=(-2, -1), where=residual.observed), residual.observed
    if valid is not None:
        of_clip = jnp.broadcast_to(valid[:, None, None], labels.shape)
        observed = of_clip if observed is None else observed & of_clip
    absolute = residual is not None and residual.at_least is not None
    score = (cluster_mean if absolute else cluster_score)(raw_score, labels, config.num_clusters, observed)
    return MotionMaps(temporal=maps, raw_score=raw_score, labels=labels, score=score)


def cluster_labels(
    features: Float[Array, "T N C"],
    grid: tuple[int, int],
    config: SegmentationConfig,
    key: Key[Array, ""],
    valid: Bool[Array, "T"] | None = None,
) -> Int[Array, "T h w"]:
    """k-means clusters of all tokens of a clip, (T, N, C) to (T, h, w) int32, joint over frames.

    Pure; `grid` and `config` are static under `jit`. `valid` is (T,) bool, as `Frames.valid`: padding is at the end.
    """
    num_frames, num_tokens, channels = features.shape
    # Labels are piecewise constant: skip setting up derivatives of the iterations.
    features = jax.lax.stop_gradient(features)
    points = features.reshape(-1, channels)
    clusters = kmeans(
        points,
        config.num_clusters,
        key,
        count=None if valid is None else jnp.sum(valid) * num_tokens,
        restarts=config.restarts,
        max_iterations=config.kmeans_iterations,
    )
    return clusters.labels.reshape(num_frames, *grid)


def masks_from_maps(
    maps: MotionMaps,
    image_size: tuple[int, int],
    config: SegmentationConfig,
    valid: Bool[Array, "T"] | None = None,
    at_least: Float[Array, ""] | None = None,
) -> Segmentation:
    """Upsamples the scores to pixels and thresholds them. Pure; `image_size` and `config` are static under `jit`.

    Args:
      maps: scores per token.
      image_size: (H, W) pixels.
      config: class counts of multi-Otsu.
      valid: (T,) bool, as `Frames.valid`.
      at_least: () float, minimum threshold, for scores that are absolute (`MotionResidual.at_least`).

    Returns:
      Dynamic regions; the mask is all False where the scores are constant, and in padding.
    """
    score = upsample(maps.score, image_size)
    where = None if valid is None else jnp.broadcast_to(valid[:, None, None], score.shape)
    threshold = multi_otsu(score, config.otsu_classes, where).threshold
    if at_least is not None:
        threshold = jnp.maximum(threshold, at_least)
    moving = score > threshold
    return Segmentation(score=score, threshold=threshold, mask=moving if where is None else moving & where)
