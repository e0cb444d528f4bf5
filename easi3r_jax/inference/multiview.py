"""Feed-forward reconstruction by a network that sees all frames at once, with its motion cue (VGGT, VGGT4D).

    frames ──encode──▶ features ──pass 1──▶ depth, confidence, intrinsics, statistics of queries and keys
                          │                                                        │
                          │                   clusters of features ──▶ score ──▶ masks
                          └──────────────── pass 2 (dynamic keys left out) ◀───────┘
                                                  │
                                               poses ──▶ Scene4D

Nothing is optimised. As in the released program, only the poses come from the second pass (arXiv 2511.19971).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.alignment import clean_confidence
from easi3r_jax.core.arrays import Array, Bool, Float, Int, all_finite
from easi3r_jax.core.config import PipelineConfig, SegmentationConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.types import Frames, Geometry, Given, Progress, Reconstruction, Scene4D, Segmentation, silent
from easi3r_jax.inference.clip import Refiner, check_size, needs_geometry
from easi3r_jax.models import VGGT, check_multiview
from easi3r_jax.models.vggt import Band, cameras_of
from easi3r_jax.models.vggt.statistics import window_weights

#: Cues of this network: its own, by either name, or none.
_CUES = ("attention", "gram", "none")


def reconstruct_multiview(
    model: VGGT,
    frames: Frames,
    config: PipelineConfig = PipelineConfig(),
    *,
    given: Given | None = None,
    refiner: Refiner | None = None,
    factors: tuple[motion.GramFactor, ...] = motion.GRAM_FACTORS,
    progress: Progress = silent,
) -> Reconstruction:
    """Reconstructs a clip from one pass over all of its frames, and a second one for the poses if it is dynamic.

    The world is the network's: the first camera is near its origin, at a scale of its own. The cue compares a frame
    with those 2, 4 and 6 before and after. A frame without such others (both of a clip of two, the middle one of three)
    gets no dynamic pixels.

    Args:
      model: a network with camera and depth heads.
      frames: the clip, at a size divisible into the network's patches.
      config: of its options, `cue` ("attention", "gram": the network's; "none": one pass, no masks), `reattention`,
        `masks`, `mask_dilation`, `seed`, `segmentation`, and `alignment.clean_tolerance`.
      given: masks, if `config.masks` names them. Other priors are not used here.
      refiner: refines the masks, before `config.mask_dilation`.
      factors: of the cue's score, as released; `motion.PAPER_FACTORS` for the paper's.
      progress: called during each stage.

    Raises:
      ConfigError: options or priors that need pairs of frames; a network of pairs.
      InputError: frames of a size that the network cannot take; masks of another clip; predictions that are not finite.
    """
    check_multiview(model)
    size, count = (frames.rgb.shape[1], frames.rgb.shape[2]), len(frames.rgb)
    given = given or Given()
    _check(config, given, (count, *size))
    check_size(model, size)
    grid = model.grid(size)
    bands = motion.gram_bands(model.config.depth, factors) if config.cue != "none" else ()
    timed = partial(_timed, progress)

    features = timed("encode", lambda: _encode(model, frames.rgb))
    encoding, depth, confidence, statistics = timed("attention", lambda: _first_pass(model, features, grid, bands))
    found = None
    if bands and np.any(_observed(count)):
        labels = _cluster(features, grid, config.segmentation, jax.random.key(config.seed))
        found = timed("motion", lambda: segment(statistics, labels, size, config.segmentation, factors))
    masks = _joined(found, given, config, (count, *size))
    if config.reattention and np.any(masks):
        tokens = motion.token_masks(jnp.asarray(masks), model.config.patch_size).reshape(count, -1)
        encoding = encoding.at[:, :7].set(
            timed("attention", lambda: _second_pass(model, features, tokens, grid))[:, :7]
        )
    cam_from_world, intrinsics = cameras_of(encoding, size)
    geometry = Geometry(se3.inverse(cam_from_world), intrinsics, depth, confidence)
    if not bool(all_finite(geometry)):
        raise InputError("The clip gets no finite cameras or depth: wrong weights, or frames of pure noise.")
    geometry = jax.tree.map(np.asarray, geometry)
    masks = _refined(masks, frames, geometry, refiner, config, progress)
    cleaned = dataclasses.replace(geometry, confidence=clean_confidence(geometry, config.alignment))
    scene = Scene4D(
        **vars(cleaned),
        dynamic_mask=masks,
        dynamic_score=np.zeros(masks.shape, np.float32) if found is None else found.score,
        static_mask=~masks,
        rgb=frames.rgb,
    )
    return Reconstruction(
        jax.tree.map(np.asarray, scene),
        frames,
        threshold=None if found is None else np.asarray(found.threshold),
        losses=np.zeros(0, np.float32),
        given=given,
        record={"pipeline": dataclasses.asdict(config)},
    )


@partial(jax.jit, static_argnames=("size", "config", "factors"))
def segment(
    statistics: Float[Array, "F T N"],
    labels: Int[Array, "T h w"],
    size: tuple[int, int],
    config: SegmentationConfig,
    factors: tuple[motion.GramFactor, ...] = motion.GRAM_FACTORS,
) -> Segmentation:
    """From the statistics of `motion.gram_bands` to score, threshold and masks. Pure.

    Args:
      statistics: (F, T, N), of each factor.
      labels: (T, h, w) int32, clusters of the features.
      size: (H, W) of the masks.
      config: options.
      factors: of the score.
    """
    observed = jnp.asarray(_observed(len(labels)))
    where = jnp.broadcast_to(observed[:, None, None], labels.shape)
    values = statistics.reshape(len(factors), *labels.shape)
    score = motion.min_max(motion.gram_score(values, where, factors), axis=(-2, -1), where=where)
    score = motion.upsample(motion.cluster_score(score, labels, config.num_clusters, where), size)
    where = jnp.broadcast_to(observed[:, None, None], score.shape)
    threshold = motion.multi_otsu(score, config.otsu_classes, where).threshold
    return Segmentation(score=score, threshold=threshold, mask=(score > threshold) & where)


def _observed(num_frames: int) -> Bool[np.ndarray, "T"]:
    """Frames that have others in their window."""
    return window_weights(num_frames).sum(axis=1) > 0


def _check(config: PipelineConfig, given: Given, shape: tuple[int, int, int]) -> None:
    """Refuses what this network does not do, and masks of another clip."""
    if config.cue not in _CUES:
        raise ConfigError(
            f"The motion cue {config.cue!r} needs a network of pairs (DUSt3R, MonST3R); this one, which takes all "
            f"frames at once, has its own: choose one of {', '.join(_CUES)}."
        )
    if "flow" in config.masks or given.flow is not None or given.cameras is not None:
        raise ConfigError(
            "Optical flow and known cameras are used by the alignment of pairs; a network that takes all frames at "
            "once (VGGT) is not aligned: omit them."
        )
    if ("given" in config.masks) != (given.masks is not None):
        raise ConfigError("Masks are given if, and only if, PipelineConfig(masks=...) names 'given'.")
    if given.masks is not None and given.masks.shape != shape:
        raise InputError(f"Masks of shape {given.masks.shape} do not fit a clip of shape {shape}.")


def _joined(found: Segmentation | None, given: Given, config: PipelineConfig, shape: tuple[int, ...]) -> np.ndarray:
    """The union of the masks' sources."""
    masks = np.zeros(shape, bool)
    if found is not None and "motion" in config.masks:
        masks |= np.asarray(found.mask)
    return masks if given.masks is None else masks | np.asarray(given.masks)


def _refined(
    masks: np.ndarray, frames: Frames, geometry: Geometry, refiner: Any, config: PipelineConfig, progress: Progress
) -> np.ndarray:
    if refiner is not None:
        reads = {"geometry": geometry} if needs_geometry(refiner) else {}
        masks = np.asarray(refiner(np.asarray(frames.rgb), masks, **reads, progress=progress))
        if masks.dtype != bool or masks.shape != frames.rgb.shape[:3]:
            raise InputError(f"The refiner returns {masks.dtype} of shape {masks.shape}, not masks of the clip.")
    return np.asarray(motion.dilate(jnp.asarray(masks), config.mask_dilation)) if config.mask_dilation else masks


def _timed(progress: Progress, stage: str, work: Any) -> Any:
    progress(stage, 0, 1, "")
    done = jax.block_until_ready(work())
    progress(stage, 1, 1, "")
    return done


# --- compiled ------------------------------------------------------------------------------------------------------

_cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))


@jax.jit
def _encode(model: VGGT, rgb: Array) -> Array:
    return model.encode(rgb)


@partial(jax.jit, static_argnames=("grid", "bands"))
def _first_pass(
    model: VGGT, features: Array, grid: tuple[int, int], bands: tuple[Band, ...]
) -> tuple[Array, Array, Array, Array]:
    """Encoded cameras, depth, its confidence, and the cue's statistics."""
    found = model.aggregate(features, grid, bands=bands)
    return model.cameras(found), *model.depth(found, grid), found.statistics


@partial(jax.jit, static_argnames=("grid",))
def _second_pass(model: VGGT, features: Array, dynamic_tokens: Array, grid: tuple[int, int]) -> Array:
    """Encoded cameras."""
    return model.cameras(model.aggregate(features, grid, dynamic_tokens))
