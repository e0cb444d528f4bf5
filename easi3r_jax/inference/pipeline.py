"""The stages in order: the table of contents of the library.

    frames ──encode──▶ features ──pass 1──▶ attention statistics ──▶ motion maps ──▶ masks
                          │                                                            │
                          └──────────────── pass 2 (masked re-attention) ◀─────────────┘
                                                  │
                              point maps + statistics ──▶ final masks, global alignment ──▶ Scene4D

Every frame is encoded once (a long clip's, once in each window). The first pass runs no prediction head (unless motion
is read from point maps: see `motion.cues`); statistics are accumulated as they come, so their memory does not grow with
the number of pairs. `passes` has the network's part.

A network that lies on a mesh of devices (`sharding.whole(model, sharding.data_mesh())`) has frames, pairs and the
alignment's edges divided over them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from easi3r_jax import align, motion
from easi3r_jax.core import sharding
from easi3r_jax.core.batches import padded, room
from easi3r_jax.core.config import MotionConfig, PipelineConfig
from easi3r_jax.core.conversion import check_conversion
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.pairs import make_edges
from easi3r_jax.core.types import (
    Array,
    Frames,
    Given,
    MaskRefiner,
    MotionMaps,
    MotionMasks,
    MotionResidual,
    Observer,
    PairPredictions,
    Scene4D,
    pytree_dataclass,
    silent,
)
from easi3r_jax.inference.passes import attention_pass, encode, prediction_pass
from easi3r_jax.models import DUSt3R

# Share of the unmasked pixels whose flow the cameras must explain for it to say what is static.
_LEAST_STATIC = 0.05


@pytree_dataclass
class Reconstruction:
    """All that a reconstruction yields.

    Attributes:
      scene: cameras, geometry and masks over time.
      motion: score maps of the last pass, None without motion.
      masks: masks and threshold of the last pass as the motion's cue gives them, None without motion.
      losses: (iterations,) float32 loss of every alignment step; empty for one or two frames (closed form).
    """

    scene: Scene4D
    motion: MotionMaps | None
    masks: MotionMasks | None
    losses: Array


def reconstruct(
    model: DUSt3R,
    frames: Frames,
    config: PipelineConfig = PipelineConfig(),
    *,
    features: Array | None = None,
    given: Given | None = None,
    refiner: MaskRefiner | None = None,
    observer: Observer = silent,
) -> Reconstruction:
    """Reconstructs a clip: the whole method.

    Args:
      model: a DUSt3R or MonST3R network.
      frames: the clip, at a size that divides into the network's patches.
      config: options of every stage.
      features: `encode(model, frames)` where it is known already; spares the encoder.
      given: what is known beside the frames: optical flow, masks, cameras.
      refiner: improves the masks that the alignment and the result see, before `config.mask_dilation`.
      observer: told of progress.

    Raises:
      ConfigError: options that do not fit the clip, e.g. a pair graph that leaves frames unconnected, or masks from
        flow where none is given; point maps in a type that the device cannot convert.
      InputError: weights or frames that give no finite prediction; a refiner that returns no masks of the clip.
    """
    num_frames, height, width = frames.rgb.shape[:3]
    grid = model.grid((height, width))
    edges = clip_edges(num_frames, config.graph)
    given = given or Given()
    _check_given(given, config, len(edges), (num_frames, height, width))
    check_conversion(config.point_dtype)  # before the first pass, which needs no point maps
    length, rows = clip_room(num_frames, config, given)
    # Also where the clip fills its room: it shares what is compiled with those that do not.
    present = jnp.asarray(np.arange(length) < num_frames) if rows else None
    given = _placed(given, length, rows, sharding.mesh_of(model))
    own_masks = given.masks if "given" in config.masks else None
    if features is None:
        longer = dataclasses.replace(frames, rgb=padded(np.asarray(frames.rgb), length))
        features = encode(model, longer, batch=config.frame_batch, full=rows > 0, observer=observer)
    elif present is not None:
        features = jnp.asarray(padded(np.asarray(features), length))

    labels, motion_maps, masks = None, None, None
    masked = own_masks if config.reattention else None
    cue = motion.find_cue(config.motion)
    if config.motion != "none":  # features, and so their clusters, are the same in both passes
        count = None if present is None else jnp.int32(num_frames)
        labels = _cluster(features, grid, config.segmentation, jax.random.key(config.seed), count)

    def segmented(predictions: PairPredictions | None, temporal: motion.TemporalState):
        residual = None
        if cue is not None:
            observer("motion", 0, 1, "")
            of_pairs = jax.tree.map(lambda x: x[: len(edges)], predictions)  # devices may have rows to spare
            residual = jax.block_until_ready(cue(of_pairs, features, grid, seed=config.seed))
            observer("motion", 1, 1, "")
        return segment(temporal, labels, (height, width), config.segmentation, residual, present)

    if config.motion != "none" and config.reattention:
        predictions = None
        if cue is None:
            temporal = attention_pass(
                model, features, edges, grid, batch=config.pair_batch, rows=rows, observer=observer
            )
        else:
            predictions, temporal = prediction_pass(
                model,
                features,
                edges,
                grid,
                dtype=config.point_dtype,
                batch=config.pair_batch,
                observer=observer,
                stage="attention",
            )
        motion_maps, masks = segmented(predictions, temporal)
        masked = masks.masks if masked is None else masks.masks | masked
        del predictions  # point maps of all pairs are large: there is one set of them at a time

    dynamic = None if masked is None else motion.token_masks(masked, model.config.patch_size)
    predictions, temporal = prediction_pass(
        model,
        features,
        edges,
        grid,
        dynamic=dynamic,
        dtype=config.point_dtype,
        batch=config.pair_batch,
        rows=rows,
        observer=observer,
    )
    if config.motion != "none":
        motion_maps, masks = segmented(predictions, temporal)

    refine = partial(_refined, refiner, frames.rgb, observer=observer)
    moving = final_masks(predictions, length, config, masks, given, refine=refine, observer=observer)

    def report(done: int, total: int, loss: float) -> None:
        observer("align", done, total, f"loss {loss:.4f}" if math.isfinite(loss) else "")

    aligned = align.align(
        predictions,
        num_frames,
        config.alignment,
        flow=given.flow,
        flow_known=given.flow_known,
        dynamic=moving,
        known=given.cameras,
        seed=config.seed,
        room=0 if present is None else length,
        release=True,
        progress=report,
    )
    static = ~moving if present is None else ~moving & present[:, None, None]
    if given.flow is not None:
        agrees = static & align.static_regions(aligned, given.flow, edges, config.static_tolerance, given.flow_known)
        # Where flow and cameras agree nowhere, one of them is wrong, and nothing follows about what moves.
        shares = [jnp.mean(x.astype(jnp.float32)) for x in (agrees, static)]
        static = jnp.where(shares[0] < _LEAST_STATIC * shares[1], static, agrees)
    scene = Scene4D(
        world_from_cam=aligned.world_from_cam,
        intrinsics=aligned.intrinsics,
        depth=aligned.depth,
        confidence=align.clean_confidence(aligned, config.alignment, num_frames),
        dynamic_mask=moving,
        dynamic_score=jnp.zeros(moving.shape, jnp.float32) if masks is None else masks.score,
        static_mask=static,
        rgb=frames.rgb if rows else jnp.asarray(frames.rgb),
    )
    result = Reconstruction(scene=scene, motion=motion_maps, masks=masks, losses=jnp.zeros(0))
    if rows:  # cut on the host: there, no length has to be compiled for
        result = jax.tree.map(lambda x: np.asarray(x)[:num_frames] if x.ndim else x, result)
    return dataclasses.replace(result, losses=aligned.losses)


def clip_room(num_frames: int, config: PipelineConfig, given: Given) -> tuple[int, int]:
    """How many frames and pairs there is room for in a clip's arrays: its own, or with `shared_shapes` more.

    Known cameras and motion cues beside the attention's know of no such room: they get arrays of the clip's length.

    Returns:
      frames, and rows of the pairs' point maps (0: as many as there are pairs).
    """
    longer = room(num_frames)
    alone = given.cameras is not None or motion.find_cue(config.motion) is not None
    if not config.shared_shapes or alone:
        return num_frames, 0
    return longer, len(clip_edges(longer, config.graph))


def _check_given(given: Given, config: PipelineConfig, num_edges: int, size: tuple[int, int, int]) -> None:
    """Refuses masks from nowhere, and what is of another clip."""
    for source, value in (("flow", given.flow), ("given", given.masks)):
        if source in config.masks and value is None:
            raise ConfigError(f"Masks are to come from {source!r}, but it is not among what is given.")
    if given.flow is not None and (len(given.flow) < num_edges or given.flow.shape[1:] != (*size[1:], 2)):
        raise InputError(f"Flow of shape {given.flow.shape} does not fit {num_edges} pairs of {size[2]}x{size[1]}.")
    if given.masks is not None and given.masks.shape != size:
        raise InputError(f"Masks of shape {given.masks.shape} do not fit a clip of shape {size}.")


def _placed(given: Given, length: int, rows: int, mesh: Mesh | None) -> Given:
    """What is given, on the devices of the mesh: masks of `length` frames whole, flow of `rows` at least divided."""
    masks, flow, flow_known = given.masks, given.flow, given.flow_known
    if masks is not None:
        masks = sharding.whole(jnp.asarray(padded(np.asarray(masks), length)), mesh)
    if flow is not None and sharding.mesh_of_rows(flow) is None:
        shares = sharding.num_shares(mesh)
        rows = -(-max(len(flow), rows) // shares) * shares

        def place(x: Array) -> Array:
            longer = x if len(x) == rows else padded(np.asarray(x), rows)
            return jnp.asarray(longer) if mesh is None else sharding.by_rows(longer, mesh)

        flow = place(flow)
        flow_known = None if flow_known is None else place(flow_known)
    return dataclasses.replace(given, masks=masks, flow=flow, flow_known=flow_known)


def clip_edges(num_frames: int, graph: str) -> np.ndarray:
    """Directed pairs of a clip, (E, 2) int32, that connect all frames. One frame is paired with itself.

    Raises:
      ConfigError: an unknown graph, or one that leaves frames unconnected.
      InputError: no frames.
    """
    if num_frames < 1:
        raise InputError("The clip has no frames.")
    if num_frames == 1:
        return np.zeros((1, 2), np.int32)
    edges = make_edges(num_frames, graph)
    align.check_edges(edges, num_frames)
    return edges


@partial(jax.jit, static_argnames=("image_size", "config"))
def segment(
    temporal: motion.TemporalState,
    labels: Array,
    image_size: tuple[int, int],
    config: MotionConfig,
    residual: MotionResidual | None = None,
    present: Array | None = None,
) -> tuple[MotionMaps, MotionMasks]:
    """Statistics to scores to masks: aggregate, score, average over clusters, threshold (Easi3R, sec. 3.2).

    Args:
      temporal: statistics of all pairs.
      labels: (T, h, w) int32, clusters of the features.
      image_size: (H, W) of the masks.
      config: options.
      residual: what another cue says; takes the place of the attention's score.
      present: (T,) bool, which frames are the clip's; None: all.
    """
    maps = motion.motion_maps(temporal, labels, config, residual, present)
    return maps, motion.motion_masks(maps, image_size, config, present)


def final_masks(
    predictions: PairPredictions,
    num_frames: int,
    config: PipelineConfig,
    masks: MotionMasks | None,
    given: Given,
    *,
    refine: Callable[[Array], Array] = lambda masks: masks,
    observer: Observer = silent,
) -> Array:
    """What counts as moving in the alignment and the result: the union of what `config.masks` names, (T, H, W) bool.

    Args:
      predictions: of all pairs.
      num_frames: T.
      config: `masks`, `mask_dilation`, `flow_threshold`.
      masks: of the motion's cue; None without.
      given: flow and masks.
      refine: from that union to better masks, which are then grown.
      observer: told of progress.
    """
    parts = [jnp.zeros((num_frames, *predictions.confidence_i.shape[1:]), bool)]
    if "given" in config.masks and given.masks is not None:
        parts.append(given.masks)
    if "motion" in config.masks and masks is not None:
        parts.append(masks.masks)
    if "flow" in config.masks and num_frames > 1:
        residual = align.flow_residual(
            predictions,
            given.flow,
            num_frames,
            config.alignment,
            flow_known=given.flow_known,
            seed=config.seed,
            progress=lambda done, total, _: observer("flow masks", done, total, ""),
        )
        parts.append(residual > config.flow_threshold)
    return motion.dilate(refine(functools.reduce(jnp.logical_or, parts)), config.mask_dilation)


def _refined(refiner: MaskRefiner | None, rgb: Array, masks: Array, observer: Observer) -> Array:
    """What the refiner makes of masks (T, H, W) bool, checked; the masks themselves without one."""
    if refiner is None:
        return masks
    of_clip = np.asarray(masks)[: len(rgb)]
    refined = np.asarray(refiner(np.asarray(rgb), of_clip, observer=observer))
    if refined.dtype != bool or refined.shape != of_clip.shape:
        raise InputError(
            f"The refiner returns {refined.dtype} of shape {refined.shape}: it must be bool of shape {of_clip.shape}."
        )
    return jnp.asarray(padded(refined, len(masks)))


_cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))
