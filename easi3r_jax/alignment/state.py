"""What alignment optimises (`AlignState`), and what it is fitted to (`AlignProblem`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh

from easi3r_jax.alignment.narrow import in_bits, kept
from easi3r_jax.core import sharding
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import Array, Bool, Float, Int, PairPredictions, PyTree, Real, pytree_dataclass

#: Geometric mean of the pairs' scales: the gauge of the world's scale.
MEAN_PAIR_SCALE = 0.5
#: Parameter units per natural-log unit of focal length: Adam's steps in it are that much smaller.
FOCAL_PARAM_SCALE = 20.0
#: Pixels per parameter unit of the principal point: Adam's steps in it are that much larger.
PRINCIPAL_POINT_SCALE = 10.0
#: Pixels: flow of this size is not known, and does not count. Its square is still finite.
UNKNOWN_FLOW = 1e9


@pytree_dataclass
class AlignState:
    """Unknowns of the alignment, in the parametrisation that Adam walks in.

    Pairs and frames may include padding: `AlignProblem` says which count.

    Attributes:
      pair_poses: (E, 8), world from the pair's camera i: quaternion x y z w (any length), translation as
        sign(t) log(1 + |t|), log of the scale over 0.5. Translation *and* rotation are multiplied by the scale, after
        the scales' geometric mean is brought to 0.5, unless known poses give the world its scale: see
        `pair_transforms`.
      frame_poses: (T, 7), rigid world from camera: quaternion x y z w, translation as above.
      log_depth: (T, H, W), log of z.
      log_focal: (T,) or, shared by all frames, (1,): 20 log(focal in pixels).
      principal_offset: (T, 2), tenths of the principal point's distance from the problem's in pixels; None: it is that.
    """

    pair_poses: Float[Array, "E 8"]
    frame_poses: Float[Array, "T 7"]
    log_depth: Float[Array, "T H W"]
    log_focal: Float[Array, "T"] | Float[Array, "1"]
    principal_offset: Float[Array, "T 2"] | None = None


@pytree_dataclass
class FlowTargets:
    """Optical flow that camera motion and depth must explain where nothing moves by itself.

    Attributes:
      flow: (G, B, 2, P) float, from i to j, pixels (x, y); `UNKNOWN_FLOW` where it is not known.
      static: (T, P) bool, what does not move by itself.
      weight: () float.
      outlier, limit: () float, see `AlignConfig`.
      counts: () bool, False where the flow does not count yet.
    """

    flow: Float[Array, "G B 2 P"]
    static: Bool[Array, "T P"]
    weight: Float[Array, ""]
    outlier: Float[Array, ""]
    limit: Float[Array, ""]
    counts: Bool[Array, ""]


@pytree_dataclass
class DepthPrior:
    """Depth that the result should not leave, but for a factor per frame.

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
    """Cameras that the result should be close to.

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

    Edges that fill blocks have weight 0 and unknown flow. On a mesh, each device has its share of the blocks.

    Attributes:
      edges: (G, B, 2) int32.
      points_i, points_j: (G, B, 3, P) float of any length (bfloat16 as in `narrow`), both in camera i. Coordinates
        stand before pixels: the innermost axis is the one that vector units run along.
      weights_i, weights_j: (G, B, P) float of the same length, log confidence.
      principal_point: (T, 2) pixels, what `AlignState.principal_offset` counts from.
      scale_known: () bool, known poses give the world its scale: the pairs' scales are not normalised, and distances
        are measured in units of their mean.
      smoothing_weight, translation_weight: () float, see `terms.smoothness_loss`.
      flow: optical flow of the pairs, or None.
      depth_prior, camera_prior: or None.
      free: factors 0 or 1 of the optimiser's steps, broadcast to the state's shapes: 0 stays as it is. None: all free.
      pair_counts, frame_counts: (E,) and (T,) float, 0 for padding; None: all count.
      mesh: over which the blocks are divided; None: one device.
    """

    edges: Int[Array, "G B 2"]
    points_i: Real[Array, "G B 3 P"]
    points_j: Real[Array, "G B 3 P"]
    weights_i: Real[Array, "G B P"]
    weights_j: Real[Array, "G B P"]
    principal_point: Float[Array, "T 2"]
    smoothing_weight: Float[Array, ""]
    translation_weight: Float[Array, ""]
    scale_known: Bool[Array, ""]
    flow: FlowTargets | None = None
    depth_prior: DepthPrior | None = None
    camera_prior: CameraPrior | None = None
    free: PyTree[Float[Array, "..."]] | None = None
    pair_counts: Float[Array, "E"] | None = None
    frame_counts: Float[Array, "T"] | None = None
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})


def make_state(
    pair_poses: Float[Array, "E 8"],
    frame_poses: Float[Array, "T 7"],
    depth: Float[Array, "T H W"],
    focals: Float[Array, "T"] | Float[Array, "1"],
    *,
    shared_focal: bool,
    free_principal_point: bool = False,
) -> AlignState:
    """State from (E, 8) and (T, 7) parameters, (T, H, W) positive depth and (T,) focals in pixels.

    A shared focal is the arithmetic mean.
    """
    focals = jnp.mean(focals, keepdims=True) if shared_focal else focals
    offset = jnp.zeros((len(frame_poses), 2), depth.dtype) if free_principal_point else None
    return AlignState(pair_poses, frame_poses, jnp.log(depth), FOCAL_PARAM_SCALE * jnp.log(focals), offset)


def make_problem(
    predictions: PairPredictions,
    config: AlignConfig = AlignConfig(),
    *,
    flow: Float[Array, "E H W 2"] | None = None,
    flow_known: Bool[Array, "E H W"] | None = None,
    dynamic: Bool[Array, "T H W"] | None = None,
    block: int | None = None,
    release: bool = False,
) -> AlignProblem:
    """Lays the predictions out for the optimiser.

    Differentiable by points, confidences and flow in float32 or float64; in half precision, whoever differentiates by
    them gets a `GradientError`.

    Args:
      predictions: point maps of every pair. Where they are sharded over the devices of a mesh, so is the problem.
      config: gives the weights of the temporal term and of the flow's.
      flow: (E, H, W, 2) optical flow of every pair from i to j in pixels. Its term is omitted without it, and where
        `config.flow_weight` is 0.
      flow_known: (E, H, W) bool, where the flow is known; None: everywhere.
      dynamic: (T, H, W) bool, dynamic regions: flow does not count there.
      block: edges worked on at a time; None chooses for the backend.
      release: nobody needs the predictions' arrays any more: each is freed as soon as it is laid out, so that there is
        hardly more than one set of them in memory. While the function is traced, nothing is freed.

    Raises:
      InputError: flow of other pairs.
    """
    count, height, width = predictions.points_i.shape[:3]
    num_frames, pixels = predictions.total_frames, height * width
    mesh = sharding.mesh_of_rows(predictions)
    layout = _layout_of(count, pixels, block, mesh)
    dtype = predictions.confidence_i.dtype
    dtype = dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)  # what is computed with
    valid = jnp.ones(count, bool) if predictions.valid is None else jnp.asarray(predictions.valid)

    def laid_out(lay_out: Callable[..., Array], x: Array) -> Array:
        out = in_bits(lay_out(x, layout, valid))
        if release and isinstance(x, jax.Array) and not isinstance(x, Tracer):
            jax.block_until_ready(out)
            x.delete()
        return out

    targets = None
    if flow is not None and len(flow) != count:
        raise InputError(f"There is flow of {len(flow)} pairs for the point maps of {count}.")
    if flow is not None and config.flow_weight:
        known = kept(flow) if flow_known is None else jnp.where(flow_known[..., None], kept(flow), UNKNOWN_FLOW)
        is_dynamic = jnp.zeros((num_frames, pixels), bool) if dynamic is None else dynamic.reshape(num_frames, pixels)
        targets = FlowTargets(
            flow=_flow_rows(sharding.by_rows(known, mesh), layout, valid).astype(dtype),
            static=~is_dynamic,
            weight=jnp.asarray(config.flow_weight, dtype),
            outlier=jnp.asarray(config.flow_outlier, dtype),
            limit=jnp.asarray(config.flow_limit, dtype),
            counts=jnp.ones((), bool),
        )
    return AlignProblem(
        edges=_blocked(sharding.by_rows(jnp.asarray(predictions.edges, jnp.int32), mesh), layout),
        points_i=laid_out(_channels_first, predictions.points_i),
        points_j=laid_out(_channels_first, predictions.points_j),
        weights_i=laid_out(_log_confidence, predictions.confidence_i),
        weights_j=laid_out(_log_confidence, predictions.confidence_j),
        principal_point=jnp.tile(camera.default_principal_point(height, width, dtype)[None], (num_frames, 1)),
        smoothing_weight=jnp.asarray(config.smoothing_weight, dtype),
        translation_weight=jnp.asarray(config.translation_weight, dtype),
        scale_known=jnp.zeros((), bool),
        flow=targets,
        pair_counts=None if predictions.valid is None else valid.astype(dtype),
        frame_counts=_padding_counts(predictions, dtype),
        mesh=mesh,
    )


def _padding_counts(predictions: PairPredictions, dtype: jnp.dtype) -> Array | None:
    """(T,) 0 for padding, 1 for frames of the clip; None where nothing is padding."""
    if predictions.valid is None:
        return None
    last = jnp.max(jnp.where(jnp.asarray(predictions.valid)[:, None], jnp.asarray(predictions.edges), 0))
    return (jnp.arange(predictions.total_frames) <= last).astype(dtype)


class Layout(NamedTuple):
    """How rows become blocks.

    Attributes:
      shares: parts into which devices divide the rows; each is padded by itself.
      groups: blocks of a share.
      block: rows of a block.
    """

    shares: int
    groups: int
    block: int


def _layout_of(rows: int, pixels: int, block: int | None, mesh: Mesh | None) -> Layout:
    if block is None:
        # A CPU is fastest when one edge's intermediates stay in cache, an accelerator when about 2 M pixels fill it.
        block = 1 if jax.default_backend() == "cpu" else max(1, (1 << 21) // pixels)
    shares = sharding.num_shares(mesh)
    block = min(block, rows // shares)
    return Layout(shares, _divisible(-(-rows // (shares * block))), block)


def blocked_like(x: Float[Array, "E *rest"], problem: AlignProblem) -> Float[Array, "G B *rest"]:
    """Rows (R, ...) of the state's pairs to (G, B, ...), zeros where blocks are filled."""
    shares = sharding.num_shares(problem.mesh)
    groups, block = problem.edges.shape[:2]
    return _blocked(x, Layout(shares, groups // shares, block))


@partial(jax.jit, static_argnames=("layout", "filling"))
def _blocked(x: Array, layout: Layout, filling: float = 0) -> Array:
    """(R, ...) to (G, B, ...)."""
    shares, groups, block = layout
    x = x.reshape(shares, -1, *x.shape[1:])
    padding = [(0, 0), (0, groups * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding, constant_values=filling).reshape(shares * groups, block, *x.shape[2:])


@partial(jax.jit, static_argnames=("layout", "filling"))
def _channels_first(values: Array, layout: Layout, counts: Array, filling: float = 0) -> Array:
    """(R, H, W, C) to (G, B, C, P)."""
    del counts  # points that do not count have no weight
    rows, height, width, channels = values.shape
    return _blocked(jnp.moveaxis(values.reshape(rows, height * width, channels), -1, 1), layout, filling)


@partial(jax.jit, static_argnames=("layout",))
def _flow_rows(flow: Array, layout: Layout, counts: Array) -> Array:
    """As `_channels_first`; flow of rows that do not count is unknown."""
    flow = jnp.where(counts[:, None, None, None], flow, UNKNOWN_FLOW)
    return _channels_first(flow, layout, counts, UNKNOWN_FLOW)


@partial(jax.jit, static_argnames=("layout",))
def _log_confidence(confidence: Array, layout: Layout, counts: Array) -> Array:
    """(R, H, W) confidence to (G, B, P) weights, computed in float32 at least; 0 in rows that do not count."""
    wide = confidence if confidence.dtype.itemsize >= 4 else confidence.astype(jnp.float32)
    log = jnp.where(counts[:, None, None], jnp.log(jnp.maximum(wide, 1)), 0).astype(confidence.dtype)
    return _blocked(log.reshape(len(log), -1), layout)


def with_depth_prior(
    problem: AlignProblem, start: AlignState, config: AlignConfig, dynamic: Bool[Array, "T H W"] | None = None
) -> AlignProblem:
    """Lets depth stay close to the start's where `config.depth_weight` says so; twice as much where it moves.

    Twice, as the released programs have it: what moves is seen once, and no other frame corrects it.
    """
    if not config.depth_weight:
        return problem
    dtype = start.log_depth.dtype
    pixel_weight = jnp.ones_like(start.log_depth)
    if dynamic is not None:
        pixel_weight = pixel_weight + jnp.asarray(dynamic, dtype)
    weight = jnp.asarray(config.depth_weight, dtype)
    if problem.frame_counts is not None:  # the term is a mean over all frames that there is room for
        pixel_weight = pixel_weight * problem.frame_counts[:, None, None]
        weight = weight * len(pixel_weight) / jnp.sum(problem.frame_counts)
    return dataclasses.replace(problem, depth_prior=DepthPrior(start.log_depth, pixel_weight, weight))


def unroll_of(groups: int) -> int:
    """Blocks in one step of the loop over the problem, at most 4: a divisor, or the loop copies all observations."""
    return max(n for n in (1, 2, 3, 4) if groups % n == 0)


def _divisible(groups: int) -> int:
    """The number of blocks, with up to 1 in 8 of padding where a longer step is worth it."""
    return max((n for n in range(groups, groups + groups // 8 + 1)), key=lambda n: (unroll_of(n), -n))


def world_from_cam(state: AlignState) -> Float[Array, "T 4 4"]:
    """(T, 4, 4) rigid camera poses."""
    return _rigid(state.frame_poses)


def pair_scales(
    state: AlignState, scale_known: Bool[Array, ""] | bool = False, counts: Float[Array, "E"] | None = None
) -> Float[Array, "E"]:
    """(E,) scales; their geometric mean is 0.5 unless known poses give the world its scale.

    Args:
      state: of the alignment.
      scale_known, counts: `scale_known` and `pair_counts` of the problem.
    """
    return MEAN_PAIR_SCALE * jnp.exp(state.pair_poses[:, 7] - jnp.where(scale_known, 0, _mean_log_scale(state, counts)))


def unit_length(
    state: AlignState, scale_known: Bool[Array, ""] | bool, counts: Float[Array, "E"] | None = None
) -> Float[Array, ""]:
    """() float, what lengths are measured in: 1, or, where known poses fix the world's scale, the pairs' mean over 0.5.

    Without it, a world too small would be a good fit: all distances would be small.
    """
    return jnp.where(scale_known, jnp.exp(_mean_log_scale(state, counts)), 1)


def _mean_log_scale(state: AlignState, counts: Array | None) -> Array:
    log_scale = state.pair_poses[:, 7]
    return jnp.mean(log_scale) if counts is None else jnp.sum(counts * log_scale) / jnp.sum(counts)


def pair_transforms(
    state: AlignState, scale_known: Bool[Array, ""] | bool = False, counts: Float[Array, "E"] | None = None
) -> Float[Array, "E 4 4"]:
    """(E, 4, 4) similarities, world from the pair's points: the rigid motion, all of it times the scale."""
    rigid = _rigid(state.pair_poses)
    scale = pair_scales(state, scale_known, counts)[:, None]
    return se3.from_parts(scale[..., None] * rigid[:, :3, :3], scale * rigid[:, :3, 3])


def focals(state: AlignState) -> Float[Array, "T"]:
    """(T,) focal lengths in pixels."""
    return jnp.broadcast_to(jnp.exp(state.log_focal / FOCAL_PARAM_SCALE), (len(state.frame_poses),))


def intrinsics(state: AlignState, problem: AlignProblem) -> Float[Array, "T 3 3"]:
    """(T, 3, 3) in pixels."""
    centre = problem.principal_point
    if state.principal_offset is not None:
        centre = centre + PRINCIPAL_POINT_SCALE * state.principal_offset
    return camera.intrinsics(focals(state), centre)


def depth(state: AlignState) -> Float[Array, "T H W"]:
    """(T, H, W) z in the camera."""
    return jnp.exp(state.log_depth)


def world_points(state: AlignState, problem: AlignProblem) -> Float[Array, "T H W 3"]:
    """(T, H, W, 3): every pixel of every frame, unprojected to the world."""
    return se3.transform_points(world_from_cam(state), camera.unproject(depth(state), intrinsics(state, problem)))


def _rigid(params: Array) -> Array:
    return se3.from_parts(se3.matrix_from_quaternion(params[:, :4]), se3.signed_expm1(params[:, 4:7]))
