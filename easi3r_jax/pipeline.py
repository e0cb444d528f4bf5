"""The stages in order: the table of contents of the library.

    frames ──encode──▶ features ──pass 1──▶ attention statistics ──▶ motion maps ──▶ masks
                          │                                                            │
                          └──────────────── pass 2 (masked re-attention) ◀─────────────┘
                                                  │
                              point maps + statistics ──▶ final masks, global alignment ──▶ Scene4D

Every frame is encoded once (a long clip's, once in each window). The first pass runs no prediction head (unless motion
is read from point maps: see `motion.cues`); statistics are accumulated as they come, so their memory does not grow with
the number of pairs. Batches are padded to one shape: each pass compiles once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import align, motion
from easi3r_jax.config import MotionConfig, PipelineConfig
from easi3r_jax.errors import ConfigError, InputError
from easi3r_jax.models import DUSt3R
from easi3r_jax.pairs import make_edges
from easi3r_jax.types import (
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
        flow where none is given.
      InputError: weights or frames that give no finite prediction; a refiner that returns no masks of the clip.
    """
    num_frames, height, width = frames.rgb.shape[:3]
    grid = model.grid((height, width))
    edges = clip_edges(num_frames, config.graph)
    given = given or Given()
    _check_given(given, config, len(edges), (num_frames, height, width))
    own_masks = given.masks if "given" in config.masks else None
    if features is None:
        features = encode(model, frames, batch=config.frame_batch, observer=observer)

    labels, motion_maps, masks = None, None, None
    masked = own_masks if config.reattention else None
    cue = motion.find_cue(config.motion)
    if config.motion != "none":  # features, and so their clusters, are the same in both passes
        labels = _cluster(features, grid, config.segmentation, jax.random.key(config.seed))

    def segmented(predictions: PairPredictions | None, temporal: motion.TemporalState):
        residual = None
        if cue is not None:
            observer("motion", 0, 1, "")
            residual = jax.block_until_ready(cue(predictions, features, grid, seed=config.seed))
            observer("motion", 1, 1, "")
        return segment(temporal, labels, (height, width), config.segmentation, residual)

    if config.motion != "none" and config.reattention:
        predictions = None
        if cue is None:
            temporal = attention_pass(model, features, edges, grid, batch=config.pair_batch, observer=observer)
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
        observer=observer,
    )
    if config.motion != "none":
        motion_maps, masks = segmented(predictions, temporal)

    refine = partial(_refined, refiner, frames.rgb, observer=observer)
    moving = final_masks(predictions, num_frames, config, masks, given, refine=refine, observer=observer)

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
        release=True,
        progress=report,
    )
    static = ~moving
    if given.flow is not None:
        agrees = static & align.static_regions(aligned, given.flow, edges, config.static_tolerance, given.flow_known)
        # Where flow and cameras agree nowhere, one of them is wrong, and nothing follows about what moves.
        shares = [jnp.mean(x.astype(jnp.float32)) for x in (agrees, static)]
        static = jnp.where(shares[0] < _LEAST_STATIC * shares[1], static, agrees)
    scene = Scene4D(
        world_from_cam=aligned.world_from_cam,
        intrinsics=aligned.intrinsics,
        depth=aligned.depth,
        confidence=align.clean_confidence(aligned, config.alignment),
        dynamic_mask=moving,
        dynamic_score=jnp.zeros(moving.shape, jnp.float32) if masks is None else masks.score,
        static_mask=static,
        rgb=jnp.asarray(frames.rgb),
    )
    return Reconstruction(scene=scene, motion=motion_maps, masks=masks, losses=aligned.losses)


def _check_given(given: Given, config: PipelineConfig, num_edges: int, size: tuple[int, int, int]) -> None:
    """Refuses masks from nowhere, and what is of another clip."""
    for source, value in (("flow", given.flow), ("given", given.masks)):
        if source in config.masks and value is None:
            raise ConfigError(f"Masks are to come from {source!r}, but it is not among what is given.")
    if given.flow is not None and given.flow.shape != (num_edges, *size[1:], 2):
        raise InputError(f"Flow of shape {given.flow.shape} does not fit {num_edges} pairs of {size[2]}x{size[1]}.")
    if given.masks is not None and given.masks.shape != size:
        raise InputError(f"Masks of shape {given.masks.shape} do not fit a clip of shape {size}.")


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


def encode(model: DUSt3R, frames: Frames, *, batch: int = 0, observer: Observer = silent) -> Array:
    """Encodes every frame once: (T, N, C) float32."""
    num_frames, height, width = frames.rgb.shape[:3]
    batch = batch or _batch_size(model.grid((height, width)), num_frames)
    parts = []
    for start in range(0, num_frames, batch):
        observer("encode", start, num_frames, "")
        rgb = _padded(np.asarray(frames.rgb[start : start + batch]), batch)
        parts.append(_encode_batch(model, rgb).block_until_ready())
    features = jnp.concatenate(parts)[:num_frames]
    observer("encode", num_frames, num_frames, "")
    return features


def attention_pass(
    model: DUSt3R,
    features: Array,
    edges: np.ndarray,
    grid: tuple[int, int],
    *,
    batch: int = 0,
    observer: Observer = silent,
) -> motion.TemporalState:
    """First pass: statistics of every pair's cross-attention, aggregated over the pairs of each frame. No heads."""
    state = _empty_temporal(model, len(features), grid)
    for part, valid in _batches(edges, batch or _batch_size(grid, len(edges)), "attention", observer):
        state = jax.block_until_ready(_attention_batch(model, features, part, valid, state, grid))
    observer("attention", len(edges), len(edges), "")
    return state


def prediction_pass(
    model: DUSt3R,
    features: Array,
    edges: np.ndarray,
    grid: tuple[int, int],
    *,
    dynamic: Array | None = None,
    dtype: str = "float32",
    batch: int = 0,
    observer: Observer = silent,
    stage: str = "predict",
) -> tuple[PairPredictions, motion.TemporalState]:
    """Point maps of every pair, and the statistics of this pass.

    Args:
      model, features, edges, grid: as in `attention_pass`.
      dynamic: (T, N) bool token masks for masked re-attention; None for plain attention.
      dtype: of the point maps.
      batch: pairs at a time.
      observer: told of progress.
      stage: what the observer hears this pass called.
    """
    batch = batch or _batch_size(grid, len(edges))
    state = _empty_temporal(model, len(features), grid)
    size = (grid[0] * model.config.patch_size, grid[1] * model.config.patch_size)
    room = -(-len(edges) // batch) * batch
    store = tuple(jnp.zeros((room, *size, *channels), dtype) for channels in ((3,), (), (3,), ()))
    for n, (part, valid) in enumerate(_batches(edges, batch, stage, observer)):
        store, state = jax.block_until_ready(
            _prediction_batch(model, features, part, valid, dynamic, store, state, n * batch, grid)
        )
    points_i, confidence_i, points_j, confidence_j = (x[: len(edges)] for x in store)
    observer(stage, len(edges), len(edges), "")
    predictions = PairPredictions(jnp.asarray(edges), points_i, points_j, confidence_i, confidence_j)
    return predictions, state


@partial(jax.jit, static_argnames=("image_size", "config"))
def segment(
    temporal: motion.TemporalState,
    labels: Array,
    image_size: tuple[int, int],
    config: MotionConfig,
    residual: MotionResidual | None = None,
) -> tuple[MotionMaps, MotionMasks]:
    """Statistics to scores to masks: aggregate, score, average over clusters, threshold (Easi3R, sec. 3.2).

    Args:
      temporal: statistics of all pairs.
      labels: (T, h, w) int32, clusters of the features.
      image_size: (H, W) of the masks.
      config: options.
      residual: what another cue says; takes the place of the attention's score.
    """
    maps = motion.motion_maps(temporal, labels, config, residual)
    return maps, motion.motion_masks(maps, image_size, config)


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
    refined = np.asarray(refiner(np.asarray(rgb), np.asarray(masks), observer=observer))
    if refined.dtype != bool or refined.shape != masks.shape:
        raise InputError(
            f"The refiner returns {refined.dtype} of shape {refined.shape}: it must be bool of shape {masks.shape}."
        )
    return jnp.asarray(refined)


# --- compiled batches -----------------------------------------------------------------------------------------------


_cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))


@jax.jit
def _encode_batch(model: DUSt3R, rgb: Array) -> Array:
    return model.encode(rgb)


@partial(jax.jit, static_argnames=("grid",), donate_argnames=("state",))
def _attention_batch(model, features, edges, valid, state, grid):
    decoded = model.decode(features[edges[:, 0]], features[edges[:, 1]], grid)
    return motion.update_temporal(state, decoded.stats, edges, valid, grid)


@partial(jax.jit, static_argnames=("grid",), donate_argnames=("store", "state"))
def _prediction_batch(model, features, edges, valid, dynamic, store, state, start, grid):
    features_i, features_j = features[edges[:, 0]], features[edges[:, 1]]
    pair_dynamic = None if dynamic is None else (dynamic[edges[:, 0]], dynamic[edges[:, 1]])
    decoded = model.decode(features_i, features_j, grid, pair_dynamic)
    state = motion.update_temporal(state, decoded.stats, edges, valid, grid)
    predicted = model.predict(features_i, features_j, decoded, grid)
    # Written in place: the store is donated, so the clip's predictions exist once.
    store = tuple(
        jax.lax.dynamic_update_slice_in_dim(s, _within(p, s.dtype), start, 0)
        for s, p in zip(store, predicted, strict=True)
    )
    return store, state


def _within(x: Array, dtype: jnp.dtype) -> Array:
    """The values in a shorter type, none of them infinite for being large."""
    if dtype == x.dtype:
        return x
    largest = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(dtype)


def _empty_temporal(model: DUSt3R, num_frames: int, grid: tuple[int, int]) -> motion.TemporalState:
    return motion.init_temporal(num_frames, model.config.dec_depth, model.config.dec_heads, grid[0] * grid[1])


def _batch_size(grid: tuple[int, int], most: int) -> int:
    """Pairs or frames at a time: as many tokens as keep the device busy, within modest memory."""
    tokens = 2048 if jax.default_backend() == "cpu" else 16384
    largest = max(1, tokens // (grid[0] * grid[1]))
    rounds = -(-most // largest)
    return -(-most // rounds)  # rounds of equal size: the last one is not mostly padding


def _padded(x: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last entry up to `length`, so that every batch has one shape."""
    return np.concatenate([x, np.repeat(x[-1:], length - len(x), axis=0)])


def _batches(edges: np.ndarray, batch: int, stage: str, observer: Observer):
    for start in range(0, len(edges), batch):
        observer(stage, start, len(edges), "")
        part = edges[start : start + batch]
        yield _padded(part, batch), np.arange(batch) < len(part)
