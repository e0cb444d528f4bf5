"""The stages in order: a table of contents of the library.

    frames ──encode──▶ features ──pass 1──▶ attention statistics ──▶ motion maps ──▶ masks
                          │                                                            │
                          └──────────────── pass 2 (masked re-attention) ◀─────────────┘
                                                  │
                              point maps + statistics ──▶ final masks, global alignment ──▶ Scene4D

Every frame is encoded once (once per window in a long clip). The first pass runs no prediction head unless the motion
cue reads point maps. Statistics are accumulated on the fly, so their memory does not grow with the number of pairs.
`passes` runs the network; `pure` has the same stages as pure functions.

If the network lies on a mesh of devices (`sharding.replicate(model, sharding.data_mesh())`), frames, pairs and the
alignment's edges are sharded over it. `clip.prepare` pads and places the inputs.
"""

from __future__ import annotations

import dataclasses
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import alignment, motion
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.config import PipelineConfig, SegmentationConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.reciprocal import Matches
from easi3r_jax.core.types import (
    Frames,
    Geometry,
    Given,
    MotionMaps,
    MotionResidual,
    PairPredictions,
    Progress,
    Reconstruction,
    Scene4D,
    Segmentation,
    silent,
)
from easi3r_jax.inference.clip import ClipInputs, FlowSource, Refiner, clip_edges, needs_geometry, prepare, unit_of
from easi3r_jax.inference.matching import check_descriptors, descriptor_matches
from easi3r_jax.inference.passes import attention_pass, encode, prediction_pass
from easi3r_jax.models import PairNetwork

__all__ = [
    "attention_pass",
    "clip_edges",
    "encode",
    "joined_masks",
    "prediction_pass",
    "reconstruct",
    "refine_and_align",
    "segment",
]

# Minimum share of unmasked pixels whose flow the cameras explain; below it, flow is not used for the static mask.
_MIN_STATIC_SHARE = 0.05


def reconstruct(
    model: PairNetwork,
    frames: Frames,
    config: PipelineConfig = PipelineConfig(),
    *,
    given: Given | None = None,
    cue: motion.Cue | None = None,
    flow: FlowSource | None = None,
    refiner: Refiner | None = None,
    features: Float[Array, "T N C"] | None = None,
    progress: Progress = silent,
) -> Reconstruction:
    """Reconstructs a clip: the whole method. Runs on the host; its stages are pure functions (see docs/extending.md).

    Args:
      model: a DUSt3R, MonST3R or MASt3R network, or one of your own (docs/backbones.md).
      frames: the clip, at a size divisible into the network's patches and near its training size.
      config: options of every stage.
      given: priors: optical flow, masks, cameras.
      cue: motion cue that replaces `config.cue`.
      flow: provides optical flow if `given` has none, e.g. `dense_flow`.
      refiner: refines the masks for the alignment and the result, before `config.mask_dilation`. One that is marked by
        `reads_geometry` gets that of a first alignment.
      features: precomputed `encode(model, frames)`; skips the encoder.
      progress: called during each stage.

    Raises:
      ConfigError: options that do not fit the clip, e.g. a pair graph that leaves frames unconnected, or masks from
        flow without flow; point maps in a type that the device cannot convert; a network that needs no pairs.
      InputError: frames of a size that the network cannot take or was not trained for; weights or frames whose
        predictions are not finite; a refiner whose masks do not fit the clip.
    """
    if config.alignment.match_weight:
        check_descriptors(model)
    clip = prepare(model, frames, config, given or Given(), cue, flow, progress)
    features = clip.padded(features) if features is not None else encode(
        model, clip.frames, batch=config.frame_batch, progress=progress
    )  # fmt: skip
    labels = _cluster(features, clip.grid, config.segmentation, jax.random.key(config.seed), clip.frames.valid)
    attended = clip.given.masks if "given" in config.masks and config.reattention else None

    if clip.finds_motion and config.reattention:
        evidence = _first_pass(model, features, clip, config, progress)
        _, found = _segmented(evidence, labels, clip, config, progress)
        attended = found.mask if attended is None else found.mask | attended
        del evidence  # point maps of all pairs are large: hold only one set of them

    evidence = _second_pass(model, features, clip, config, attended, progress)
    maps, found = _segmented(evidence, labels, clip, config, progress) if clip.finds_motion else (None, None)
    predictions = evidence.points()
    masks = joined_masks(predictions, clip, config, found, progress)
    matches = _matches(model, features, clip, config, attended, progress)
    cameras = alignment.decided_cameras(predictions, clip.given.cameras, config.alignment, config.seed)
    decided = dataclasses.replace(clip, given=dataclasses.replace(clip.given, cameras=cameras))
    dynamic, geometry, losses = refine_and_align(predictions, masks, decided, config, refiner, progress, matches)
    scene = _scene(geometry, dynamic, found, clip, config)
    unit = unit_of(model, config.alignment, cameras)
    return clip.result(scene, maps, None if found is None else found.threshold, losses, config, unit)


def _first_pass(model: PairNetwork, features: Array, clip: ClipInputs, config: PipelineConfig, progress: Progress):
    """Statistics of plain attention, and point maps if the cue reads them."""
    gram = motion.needs_gram(clip.cue)
    shared = {"valid": clip.valid, "gram": gram, "batch": config.pair_batch, "progress": progress}
    if not motion.needs_points(clip.cue):
        statistics = attention_pass(model, features, clip.edges, clip.grid, **shared)
        return motion.Evidence(None, statistics, features, clip.grid, config.seed)
    predictions, statistics = prediction_pass(
        model, features, clip.edges, clip.grid, dtype=config.point_dtype, stage="attention", **shared
    )
    return motion.Evidence(predictions, statistics, features, clip.grid, config.seed)


def _second_pass(
    model: PairNetwork,
    features: Array,
    clip: ClipInputs,
    config: PipelineConfig,
    masks: Array | None,
    progress: Progress,
) -> motion.Evidence:
    """Point maps and statistics under masked re-attention (Easi3R, sec. 3.3); plain attention without masks."""
    predictions, statistics = prediction_pass(
        model,
        features,
        clip.edges,
        clip.grid,
        valid=clip.valid,
        dynamic_tokens=None if masks is None else _token_masks(masks, model.config.patch_size),
        gram=motion.needs_gram(clip.cue),
        dtype=config.point_dtype,
        batch=config.pair_batch,
        progress=progress,
    )
    return motion.Evidence(predictions, statistics, features, clip.grid, config.seed)


def _matches(
    model: PairNetwork,
    features: Array,
    clip: ClipInputs,
    config: PipelineConfig,
    masks: Array | None,
    progress: Progress,
) -> Matches | None:
    """Matches of descriptors under masked re-attention, if the alignment uses them."""
    if not config.alignment.match_weight or clip.length < 3:
        return None
    tokens = None if masks is None else _token_masks(masks, model.config.patch_size)
    return descriptor_matches(model, features, clip.edges, clip.grid, dynamic_tokens=tokens, progress=progress)


def _segmented(
    evidence: motion.Evidence, labels: Array, clip: ClipInputs, config: PipelineConfig, progress: Progress
) -> tuple[MotionMaps, Segmentation]:
    """Motion maps and segmentation that the cue derives from a pass."""
    residual = None
    if clip.cue is not None:
        progress("motion", 0, 1, "")
        seen = evidence if motion.handles_padding(clip.cue) else clip.without_padding(evidence)
        residual = jax.block_until_ready(clip.cue(seen))
        progress("motion", 1, 1, "")
    return segment(evidence.statistics, labels, clip.size, config.segmentation, residual, clip.frames.valid)


@partial(jax.jit, static_argnames=("image_size", "config"))
def segment(
    temporal: motion.TemporalState,
    labels: Int[Array, "T h w"],
    image_size: tuple[int, int],
    config: SegmentationConfig,
    residual: MotionResidual | None = None,
    valid: Bool[Array, "T"] | None = None,
) -> tuple[MotionMaps, Segmentation]:
    """From statistics to scores to masks: aggregate, score, average over clusters, threshold (Easi3R, sec. 3.2). Pure.

    Args:
      temporal: statistics of all pairs.
      labels: (T, h, w) int32, clusters of the features.
      image_size: (H, W) of the masks.
      config: options.
      residual: output of another cue; replaces the published formula.
      valid: (T,) bool, as `Frames.valid`.
    """
    maps = motion.motion_maps(temporal, labels, config, residual, valid)
    at_least = None if residual is None else residual.at_least
    return maps, motion.masks_from_maps(maps, image_size, config, valid, at_least)


def joined_masks(
    predictions: PairPredictions,
    clip: ClipInputs,
    config: PipelineConfig,
    found: Segmentation | None,
    progress: Progress = silent,
) -> Bool[Array, "T H W"]:
    """The union of the sources of dynamic masks in `config.masks`, (T, H, W) bool."""
    parts = []
    if "given" in config.masks and clip.given.masks is not None:
        parts.append(clip.given.masks)
    if "motion" in config.masks and found is not None:
        parts.append(found.mask)
    if "flow" in config.masks and clip.length > 1:
        residual = alignment.flow_residual(
            predictions,
            clip.given.flow,
            config.alignment,
            flow_known=clip.given.flow_known,
            seed=config.seed,
            progress=progress,
        )
        parts.append(_above(residual, config.flow_threshold))
    return _union(parts) if parts else jnp.zeros((len(clip.frames.rgb), *clip.size), bool)


def refine_and_align(
    predictions: PairPredictions,
    masks: Bool[Array, "T H W"],
    clip: ClipInputs,
    config: PipelineConfig,
    refiner: Refiner | None = None,
    progress: Progress = silent,
    matches: Matches | None = None,
) -> tuple[Bool[Array, "T H W"], Geometry, Float[Array, "iterations"]]:
    """Refines the masks, dilates them by `config.mask_dilation`, and aligns the clip. Frees the predictions.

    A refiner that reads geometry gets that of an alignment with the unrefined masks. If it changes them, the clip is
    aligned again, unless nothing in the alignment depends on them.

    Returns:
      the dynamic masks (T, H, W), geometry, and losses of the (last) alignment.
    """
    align = partial(
        alignment.align,
        predictions,
        config.alignment,
        flow=clip.given.flow,
        flow_known=clip.given.flow_known,
        known=clip.given.cameras,
        matches=matches,
        seed=config.seed,
        progress=progress,
    )
    if not needs_geometry(refiner):
        dynamic = _dilate(_refined(masks, clip, refiner, progress), config.mask_dilation)
        return dynamic, *align(dynamic_mask=dynamic, release=True)
    has_flow = clip.given.flow is not None and config.alignment.flow_weight > 0
    reads_masks = has_flow or matches is not None or config.alignment.depth_weight > 0
    unrefined = _dilate(masks, config.mask_dilation)
    geometry, losses = align(dynamic_mask=unrefined, release=not reads_masks)
    dynamic = _dilate(_refined(masks, clip, refiner, progress, geometry), config.mask_dilation)
    if reads_masks and np.any(sharding.on_host(dynamic) != sharding.on_host(unrefined)):
        geometry, losses = align(dynamic_mask=dynamic, release=True)
    return dynamic, geometry, losses


def _refined(
    masks: Array, clip: ClipInputs, refiner: Any, progress: Progress, geometry: Geometry | None = None
) -> Array:
    """Refines masks (T, H, W) bool, without padding, and checks the refiner's output."""
    if refiner is None:
        return masks
    on = sharding.mesh_of(masks)
    rgb, masks, geometry = jax.tree.map(
        lambda x: sharding.on_host(x)[: clip.length], (clip.frames.rgb, masks, geometry)
    )
    reads = {} if geometry is None else {"geometry": geometry}
    refined = np.asarray(refiner(rgb, masks, **reads, progress=progress))
    refined = sharding.agreed(refined, on)
    if refined.dtype != bool or refined.shape != masks.shape:
        raise InputError(
            f"The refiner returns {refined.dtype} of shape {refined.shape}: it must be bool of shape {masks.shape}."
        )
    return clip.padded(refined)


def _scene(
    geometry: Geometry, dynamic: Array, found: Segmentation | None, clip: ClipInputs, config: PipelineConfig
) -> Scene4D:
    """Geometry with cleaned confidence, and its dynamic and static masks."""
    valid = clip.frames.valid
    agrees = None
    if clip.given.flow is not None:
        agrees = alignment.static_regions(
            geometry, clip.given.flow, clip.edges, config.static_tolerance, clip.given.flow_known, clip.valid
        )
    return Scene4D(
        world_from_cam=geometry.world_from_cam,
        intrinsics=geometry.intrinsics,
        depth=geometry.depth,
        confidence=alignment.clean_confidence(geometry, config.alignment, valid),
        dynamic_mask=dynamic,
        dynamic_score=np.zeros(dynamic.shape, np.float32) if found is None else found.score,
        static_mask=_static(dynamic, agrees, valid),
        rgb=clip.frames.rgb,
    )


# --- compiled ------------------------------------------------------------------------------------------------------

_cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))
_token_masks = jax.jit(motion.token_masks, static_argnames=("patch_size",))
_dilate = jax.jit(motion.dilate, static_argnames=("pixels",))


@jax.jit
def _union(parts: list[Array]) -> Array:
    return reduce(jnp.logical_or, parts)


@jax.jit
def _above(residual: Array, threshold: Array) -> Array:
    return residual > threshold


@jax.jit
def _static(dynamic: Array, agrees: Array | None, valid: Array | None) -> Array:
    """Static pixels, confirmed by the flow if it agrees with the cameras anywhere."""
    static = ~dynamic if valid is None else ~dynamic & valid[:, None, None]
    if agrees is None:
        return static
    confirmed = static & agrees
    # If flow and cameras agree almost nowhere, one of them is wrong, and flow cannot identify static pixels.
    shares = [jnp.mean(x.astype(jnp.float32)) for x in (confirmed, static)]
    return jnp.where(shares[0] < _MIN_STATIC_SHARE * shares[1], static, confirmed)
