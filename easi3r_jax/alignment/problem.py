"""The alignment's observations, `AlignProblem`, laid out for streaming."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from easi3r_jax.alignment.narrow import forbid_half_gradient, in_bits
from easi3r_jax.alignment.state import AlignState
from easi3r_jax.core import sharding, target
from easi3r_jax.core.arrays import Array, Bool, Float, Int, PyTree, Real, pytree_dataclass, static_field
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.types import PairPredictions

#: Pixels: flow of this size is unknown, and is ignored. Its square is still finite.
UNKNOWN_FLOW = 1e9


@pytree_dataclass
class FlowTargets:
    """Optical flow that camera motion and depth must explain in static regions.

    Attributes:
      flow: (G, B, 2, P) float, from i to j, pixels (x, y); `UNKNOWN_FLOW` where it is unknown.
      static: (T, P) bool, static pixels.
      weight: () float.
      outlier, limit: () float, see `AlignConfig`.
      counts: () bool, False while the flow term is switched off.
    """

    flow: Float[Array, "G B 2 P"]
    static: Bool[Array, "T P"]
    weight: Float[Array, ""]
    outlier: Float[Array, ""]
    limit: Float[Array, ""]
    counts: Bool[Array, ""]


@pytree_dataclass
class MatchTargets:
    """Matched pixels of static regions: a point of frame i must be seen at its match in frame j.

    Attributes:
      edges: (M, 2) int32, frames (i, j) of the pairs.
      index_i, index_j: (M, K) int32, pixels as y * W + x.
      counts: (M, K) bool, which matches there are.
      weight: () float.
      outlier: () float, see `AlignConfig.flow_outlier`.
    """

    edges: Int[Array, "M 2"]
    index_i: Int[Array, "M K"]
    index_j: Int[Array, "M K"]
    counts: Bool[Array, "M K"]
    weight: Float[Array, ""]
    outlier: Float[Array, ""]


@pytree_dataclass
class DepthPrior:
    """Prior on depth, up to a factor per frame.

    Attributes:
      log_depth: (T, H, W) float.
      pixel_weight: (T, H, W) float.
      weight: () float.
    """

    log_depth: Float[Array, "T H W"]
    pixel_weight: Float[Array, "T H W"]
    weight: Float[Array, ""]


@pytree_dataclass
class CameraPrior:
    """Prior on cameras.

    Attributes:
      world_from_cam: (T, 4, 4) float, in the world of the alignment.
      poses_known: (T,) float, 0 or 1.
      log_focal: (T,) float, as in `AlignState`.
      focals_known: (T,) float, 0 or 1.
      weight: () float.
    """

    world_from_cam: Float[Array, "T 4 4"]
    poses_known: Float[Array, "T"]
    log_focal: Float[Array, "T"]
    focals_known: Float[Array, "T"]
    weight: Float[Array, ""]


@pytree_dataclass
class AlignProblem:
    """Observations and weights of the objective, laid out for streaming: G blocks of B edges, P = H W pixels.

    Edges that pad blocks have weight 0 and unknown flow. On a mesh, the blocks are sharded over the devices.

    Attributes:
      edges: (G, B, 2) int32.
      points_i, points_j: x, y and z, each (G, B, P) float of any width (bfloat16 as in `narrow`), both in camera i.
        Three arrays, as XLA's CPU compiler does not vectorise a loop that reads several rows of a slice.
      weights_i, weights_j: (G, B, P) float of the same width, log confidence.
      principal_point: (T, 2) pixels, the origin of `AlignState.principal_offset`.
      scale_known: () bool, known poses fix the world's scale: the pairs' scales are not normalised, and distances are
        measured in units of their mean.
      smoothing_weight, translation_weight: () float, see `terms.smoothness_loss`.
      flow: optical flow of the pairs, or None.
      matches: matched pixels of the pairs, or None.
      depth_prior, camera_prior: or None.
      free: 0 or 1 factors on the optimiser's steps, broadcast to the state's shapes: 0 is held fixed. None: all free.
      pair_counts, frame_counts: (E,) and (T,) float, 0 for padding, else 1; None: no padding.
      mesh: over which the blocks are sharded; None: one device.
    """

    edges: Int[Array, "G B 2"]
    points_i: tuple[Real[Array, "G B P"], Real[Array, "G B P"], Real[Array, "G B P"]]
    points_j: tuple[Real[Array, "G B P"], Real[Array, "G B P"], Real[Array, "G B P"]]
    weights_i: Real[Array, "G B P"]
    weights_j: Real[Array, "G B P"]
    principal_point: Float[Array, "T 2"]
    smoothing_weight: Float[Array, ""]
    translation_weight: Float[Array, ""]
    scale_known: Bool[Array, ""]
    flow: FlowTargets | None = None
    matches: MatchTargets | None = None
    depth_prior: DepthPrior | None = None
    camera_prior: CameraPrior | None = None
    free: PyTree[Float[Array, "..."]] | None = None
    pair_counts: Float[Array, "E"] | None = None
    frame_counts: Float[Array, "T"] | None = None
    mesh: Mesh | None = static_field(default=None)


def make_problem(
    predictions: PairPredictions,
    config: AlignConfig = AlignConfig(),
    *,
    flow: Float[Array, "E H W 2"] | None = None,
    flow_known: Bool[Array, "E H W"] | None = None,
    dynamic_mask: Bool[Array, "T H W"] | None = None,
    block: int | None = None,
    release: bool = False,
) -> AlignProblem:
    """Lays the predictions out for the optimiser.

    Differentiable with respect to points, confidences and flow in float32 or float64; in half precision, this raises a
    `GradientError`.

    Args:
      predictions: point maps of every pair. If they are sharded over the devices of a mesh, so is the problem.
      config: provides the weights of the smoothness and flow terms.
      flow: (E, H, W, 2) optical flow of every pair from i to j in pixels. The flow term is omitted without it, and if
        `config.flow_weight` is 0.
      flow_known: (E, H, W) bool, where the flow is known; None: everywhere.
      dynamic_mask: (T, H, W) bool, dynamic regions, where flow is ignored.
      block: edges processed at a time; None chooses for the backend.
      release: free each of the predictions' arrays as soon as it is laid out, so that memory holds little more than one
        set of them; the caller must not use them again. Nothing is freed under tracing.

    Raises:
      InputError: flow for a different number of pairs.
    """
    count, height, width = predictions.points_i.shape[:3]
    num_frames, pixels = predictions.total_frames, height * width
    mesh = sharding.mesh_of_rows(predictions)
    layout = _layout_of(count, pixels, block, mesh)
    dtype = predictions.confidence_i.dtype
    dtype = dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)  # of the computation
    valid = np.ones(count, bool) if predictions.valid is None else predictions.valid

    def laid_out(lay_out: Callable[..., Any], x: Array) -> Any:
        out = in_bits(lay_out(x, layout, valid))
        if release and isinstance(x, jax.Array) and not isinstance(x, Tracer):
            jax.block_until_ready(out)
            x.delete()
        return out

    targets = None
    if flow is not None and len(flow) != count:
        raise InputError(f"There is flow for {len(flow)} pairs, but there are point maps for {count}.")
    if flow is not None and config.flow_weight:
        rows = sharding.shard_rows((forbid_half_gradient(flow), flow_known), mesh)
        targets = FlowTargets(
            flow=_flow_rows(*rows, layout, valid).astype(dtype),
            static=np.ones((num_frames, pixels), bool) if dynamic_mask is None else _static_pixels(dynamic_mask),
            weight=jnp.asarray(config.flow_weight, dtype),
            outlier=jnp.asarray(config.flow_outlier, dtype),
            limit=jnp.asarray(config.flow_limit, dtype),
            counts=np.ones((), bool),
        )
    return AlignProblem(
        edges=_blocked(sharding.shard_rows(jnp.asarray(predictions.edges, jnp.int32), mesh), layout),
        points_i=laid_out(_coordinates, predictions.points_i),
        points_j=laid_out(_coordinates, predictions.points_j),
        weights_i=laid_out(_log_confidence, predictions.confidence_i),
        weights_j=laid_out(_log_confidence, predictions.confidence_j),
        principal_point=jax.device_put(np.tile(camera.default_principal_point(height, width, dtype), (num_frames, 1))),
        smoothing_weight=jnp.asarray(config.smoothing_weight, dtype),
        translation_weight=jnp.asarray(config.translation_weight, dtype),
        scale_known=jax.device_put(np.zeros((), bool)),
        flow=targets,
        pair_counts=None if predictions.valid is None else valid.astype(dtype),
        frame_counts=_padding_counts(predictions, dtype),
        mesh=mesh,
    )


def _padding_counts(predictions: PairPredictions, dtype: jnp.dtype) -> Array | None:
    """(T,) 0 for padding, 1 for frames of the clip; None without padding."""
    if predictions.valid is None:
        return None
    return _up_to_last(predictions.edges, predictions.valid, predictions.total_frames, dtype)


@partial(jax.jit, static_argnames=("num_frames", "dtype"))
def _up_to_last(edges: Array, valid: Array, num_frames: int, dtype: jnp.dtype) -> Array:
    return (jnp.arange(num_frames) <= jnp.max(jnp.where(valid[:, None], edges, 0))).astype(dtype)


class Layout(NamedTuple):
    """How rows are arranged in blocks.

    Attributes:
      shards: number of shards of the rows; each is padded separately.
      groups: blocks in a shard.
      block: rows in a block.
    """

    shards: int
    groups: int
    block: int


def _layout_of(rows: int, pixels: int, block: int | None, mesh: Mesh | None) -> Layout:
    if block is None:
        # A CPU is fastest if a block's intermediates stay in cache, an accelerator with about 2 M pixels at a time.
        block = max(1, (1 << 16 if target.platform() == "cpu" else 1 << 21) // pixels)
    shards = sharding.num_shards(mesh)
    groups = -(-rows // (shards * block))
    return Layout(shards, groups, -(-rows // (shards * groups)))  # blocks of equal size need the least padding


def blocked_like(x: Float[Array, "E *rest"], problem: AlignProblem) -> Float[Array, "G B *rest"]:
    """Rows (R, ...) of the state's pairs to (G, B, ...); padding is zero."""
    shards = sharding.num_shards(problem.mesh)
    groups, block = problem.edges.shape[:2]
    return _blocked(x, Layout(shards, groups // shards, block))


@partial(jax.jit, static_argnames=("layout", "filling"))
def _blocked(x: Array, layout: Layout, filling: float = 0) -> Array:
    """(R, ...) to (G, B, ...)."""
    shards, groups, block = layout
    x = x.reshape(shards, -1, *x.shape[1:])
    padding = [(0, 0), (0, groups * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding, constant_values=filling).reshape(shards * groups, block, *x.shape[2:])


@partial(jax.jit, static_argnames=("layout",))
def _coordinates(points: Array, layout: Layout, counts: Array) -> tuple[Array, ...]:
    """(R, H, W, 3) to three (G, B, P)."""
    del counts  # points of padding have weight 0
    return tuple(_blocked(points[..., a].reshape(len(points), -1), layout) for a in range(3))


@partial(jax.jit, static_argnames=("layout", "filling"))
def _channels_first(values: Array, layout: Layout, filling: float) -> Array:
    """(R, H, W, C) to (G, B, C, P)."""
    rows, height, width, channels = values.shape
    return _blocked(jnp.moveaxis(values.reshape(rows, height * width, channels), -1, 1), layout, filling)


@partial(jax.jit, static_argnames=("layout",))
def _flow_rows(flow: Array, known: Array | None, layout: Layout, counts: Array) -> Array:
    """As `_channels_first`; flow is unknown where it is not `known` (R, H, W), and in padding rows."""
    counted = counts[:, None, None] if known is None else counts[:, None, None] & known
    flow = jnp.where(counted[..., None], flow, UNKNOWN_FLOW)
    return _channels_first(flow, layout, UNKNOWN_FLOW)


@jax.jit
def _static_pixels(dynamic_mask: Array) -> Array:
    return ~dynamic_mask.reshape(len(dynamic_mask), -1)


@partial(jax.jit, static_argnames=("layout",))
def _log_confidence(confidence: Array, layout: Layout, counts: Array) -> Array:
    """(R, H, W) confidence to (G, B, P) weights, computed in at least float32; 0 in padding rows."""
    wide = confidence if confidence.dtype.itemsize >= 4 else confidence.astype(jnp.float32)
    log = jnp.where(counts[:, None, None], jnp.log(jnp.maximum(wide, 1)), 0).astype(confidence.dtype)
    return _blocked(log.reshape(len(log), -1), layout)


def with_depth_prior(
    problem: AlignProblem, start: AlignState, config: AlignConfig, dynamic_mask: Bool[Array, "T H W"] | None = None
) -> AlignProblem:
    """Adds a prior that keeps depth close to its start if `config.depth_weight` is set; doubled in dynamic regions.

    Doubled as in the released programs: a moving point is seen only once, and no other frame corrects its depth.
    """
    if not config.depth_weight:
        return problem
    prior = _depth_prior(start.log_depth, dynamic_mask, problem.frame_counts, config.depth_weight)
    return dataclasses.replace(problem, depth_prior=prior)


@jax.jit
def _depth_prior(log_depth: Array, dynamic_mask: Array | None, counts: Array | None, weight: Array) -> DepthPrior:
    dtype = log_depth.dtype
    pixel_weight, weight = jnp.ones_like(log_depth), weight.astype(dtype)
    if dynamic_mask is not None:
        pixel_weight = pixel_weight + dynamic_mask.astype(dtype)
    if counts is not None:  # the term is a mean over all frames, including padding
        pixel_weight = pixel_weight * counts[:, None, None]
        weight = weight * len(pixel_weight) / jnp.sum(counts)
    return DepthPrior(log_depth, pixel_weight, weight)
