"""Global alignment of pairwise point maps, with or without optical flow (DUSt3R sec. 3.4, MonST3R sec. 3.3).

    predictions ──initial_state──▶ AlignState ──optimise──▶ AlignState ──▶ cameras and depth ──clean_confidence──▶

`align` is the stage; its parts are public so that the method can be changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.assembly import assemble
from easi3r_jax.alignment.clean import clean_confidence
from easi3r_jax.alignment.confidence import edge_scores, frame_confidence
from easi3r_jax.alignment.descent import adam_steps, init_moments, iterate, learning_rates, optimise
from easi3r_jax.alignment.flow import ego_flow, flow_loss, robust_sum
from easi3r_jax.alignment.flow_masks import flow_residual, static_regions
from easi3r_jax.alignment.graph import SpanningTree, check_edges, spanning_tree
from easi3r_jax.alignment.implicit import at_minimum
from easi3r_jax.alignment.initialise import initial_state, start_state, with_scale
from easi3r_jax.alignment.known import (
    check_known,
    clip_focal,
    decide_scale,
    in_known_world,
    nothing_known,
    scale_is_known,
    with_known_cameras,
)
from easi3r_jax.alignment.matching import match_loss, with_matches
from easi3r_jax.alignment.metric import metres_per_unit, scaled
from easi3r_jax.alignment.pair import one_frame, two_frames
from easi3r_jax.alignment.problem import AlignProblem, CameraPrior, DepthPrior, make_problem, with_depth_prior
from easi3r_jax.alignment.residuals import pair_terms, points_loss
from easi3r_jax.alignment.state import AlignState, make_state
from easi3r_jax.alignment.terms import (
    DEFAULT_TERMS,
    Term,
    cameras_loss,
    depth_loss,
    loss_terms,
    smoothness_loss,
    softened,
    total_loss,
)
from easi3r_jax.alignment.windows import join_windows, keyframe_numbers, window_ranges
from easi3r_jax.core.arrays import Array, Bool, Float, all_finite
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.reciprocal import Matches
from easi3r_jax.core.types import Geometry, KnownCameras, PairPredictions, Progress, silent

__all__ = [
    "DEFAULT_TERMS",
    "AlignProblem",
    "AlignState",
    "CameraPrior",
    "DepthPrior",
    "SpanningTree",
    "Term",
    "adam_steps",
    "align",
    "at_minimum",
    "cameras_loss",
    "check_edges",
    "check_known",
    "clean_confidence",
    "clip_focal",
    "decide_scale",
    "decided_cameras",
    "depth_loss",
    "edge_scores",
    "ego_flow",
    "flow_loss",
    "flow_residual",
    "frame_confidence",
    "geometry_of",
    "init_moments",
    "initial_state",
    "iterate",
    "join_windows",
    "keyframe_numbers",
    "learning_rates",
    "loss_terms",
    "make_problem",
    "make_state",
    "match_loss",
    "metres_per_unit",
    "nothing_known",
    "one_frame",
    "optimise",
    "pair_terms",
    "points_loss",
    "robust_sum",
    "scale_is_known",
    "scaled",
    "smoothness_loss",
    "softened",
    "spanning_tree",
    "static_regions",
    "total_loss",
    "two_frames",
    "window_ranges",
    "with_depth_prior",
    "with_known_cameras",
    "with_matches",
]


def align(
    predictions: PairPredictions,
    config: AlignConfig = AlignConfig(),
    *,
    flow: Float[Array, "E H W 2"] | None = None,
    flow_known: Bool[Array, "E H W"] | None = None,
    dynamic_mask: Bool[Array, "T H W"] | None = None,
    known: KnownCameras | None = None,
    matches: Matches | None = None,
    seed: int = 0,
    release: bool = False,
    progress: Progress = silent,
    terms: Sequence[Term] = DEFAULT_TERMS,
) -> tuple[Geometry, Float[Array, "iterations"]]:
    """Cameras and depth of a clip from its pairs. Runs on the host: differentiate `adam_steps` or `at_minimum` instead.

    Three or more frames are optimised from the spanning-tree start. Two are solved in closed form from the better of
    their two directions. A single frame defines its own world. The result is finite if the predictions are.

    If the pairs' points are metric (`predictions.metric`), so is the result, unless known poses give it their unit.

    If the predictions are sharded over the devices of a mesh, so is the work.

    Args:
      predictions: point maps of pairs that connect all frames; for one frame, the pair (0, 0).
      config: options.
      flow: (E, H, W, 2) optical flow from i to j of every pair, in pixels; pairs come in both directions. None: no
        flow.
      flow_known: (E, H, W) bool, where the flow is known; None: everywhere.
      dynamic_mask: (T, H, W) bool, dynamic regions. There flow is ignored, and a depth prior (`config.depth_weight`) is
        stronger.
      known: known cameras. They are held fixed or act as a prior (`config.camera_weight`). With known poses the result
        is in their world and units.
      matches: of descriptors of every pair, with a leading axis E; used if `config.match_weight` is set, outside of
        dynamic regions, for three or more frames.
      seed: for RANSAC.
      release: free the predictions' arrays once they are laid out; the caller must not use them again. Nearly halves
        peak memory.
      progress: called for the stage "align": at the start, every few iterations, and at the end.
      terms: of the objective, for three or more frames; create them once (see `iterate`).

    Returns:
      cameras and depth of all frames of the predictions (values of padding are meaningless), with confidence before
      clean-up; and the (iterations,) float32 loss before each step, empty for one or two frames.

    Raises:
      ConfigError: a pair graph that leaves frames unconnected; an unknown schedule; differing known focal lengths
        although all frames share one.
      InputError: pairs of frames that do not exist; predictions that are not finite, or whose squares are not.
    """
    num_frames = predictions.clip_length
    check_edges(predictions.clip_edges, num_frames)
    if not bool(all_finite(predictions)):
        raise InputError(
            "The pairs' points or confidences are infinite or NaN: wrong weights, or frames of pure noise."
        )
    if known is not None:
        check_known(known, num_frames)
        if num_frames < predictions.total_frames:
            raise InputError("Known cameras do not go together with padding: leave out the frames that are padding.")
    if num_frames <= 2:
        geometry, losses = _closed_form(predictions, config, known, seed, progress), np.zeros(0, np.float32)
    else:
        assembly = assemble(predictions, config, known, seed)
        known = with_scale(known, assembly, predictions, config)
        start = start_state(assembly, predictions, config, known)
        confidence = frame_confidence(predictions)
        problem = make_problem(
            predictions, config, flow=flow, flow_known=flow_known, dynamic_mask=dynamic_mask, release=release
        )
        problem = with_depth_prior(with_known_cameras(problem, start, known, config), start, config, dynamic_mask)
        problem = with_matches(problem, predictions, matches, config, dynamic_mask)
        state, losses = optimise(start, problem, config, terms=terms, progress=progress)
        geometry = geometry_of(state, problem, confidence)
        if predictions.metric and config.keep_metres and not scale_is_known(known):
            geometry = scaled(geometry, metres_per_unit(geometry, problem))
    geometry = in_known_world(geometry, known, config)
    if not bool(all_finite((geometry, losses))):
        raise InputError("The alignment overflows: the network predicts points too far away. Wrong weights?")
    return geometry, losses


def decided_cameras(
    predictions: PairPredictions, known: KnownCameras | None, config: AlignConfig, seed: int = 0
) -> KnownCameras | None:
    """Known cameras with `align`'s decision whether their poses fix the unit; `scale_is_known` of them tells it.

    `align` decides for itself if the cameras come without a decision, and keeps one that they carry. Poses of a camera
    that only turns differ by rounding or by play in its mount: lengths then have the unit of the pairs.

    Args:
      predictions, known, config, seed: as in `align`.
    """
    if predictions.clip_length <= 2 or not scale_is_known(known) or not bool(all_finite(predictions)):
        return known  # two frames have no path to compare; what is not finite, `align` refuses
    check_edges(predictions.clip_edges, predictions.clip_length)
    return with_scale(known, assemble(predictions, config, known, seed), predictions, config)


def _closed_form(
    predictions: PairPredictions, config: AlignConfig, known: KnownCameras | None, seed: int, progress: Progress
) -> Geometry:
    """One or two frames."""
    progress("align", 0, 1, "")
    if predictions.clip_length == 1:
        geometry = one_frame(predictions, known=known)
    else:
        geometry = two_frames(predictions, config, known=known, seed=seed)
    progress("align", 1, 1, "")
    return geometry


@jax.jit
def geometry_of(state: AlignState, problem: AlignProblem, confidence: Float[Array, "T H W"]) -> Geometry:
    """Cameras and depth of a state. Pure."""
    return Geometry(
        world_from_cam=state_of.world_from_cam(state),
        intrinsics=state_of.intrinsics(state, problem.principal_point),
        depth=state_of.depth(state),
        confidence=confidence.astype(jnp.float32),
    )
