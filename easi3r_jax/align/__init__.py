"""Global alignment of pairwise point maps, with optical flow or without (DUSt3R sec. 3.4, MonST3R sec. 3.3).

    predictions ──initial_state──▶ AlignState ──optimise──▶ AlignState ──▶ cameras and depth ──clean_confidence──▶

`align` is the stage; its parts are public for those who change the method.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.align import state as state_of
from easi3r_jax.align.clean import clean_confidence
from easi3r_jax.align.flow import ego_flow, flow_loss, robust_sum
from easi3r_jax.align.flow_masks import flow_residual, static_regions
from easi3r_jax.align.graph import SpanningTree, check_edges, spanning_tree
from easi3r_jax.align.implicit import at_minimum
from easi3r_jax.align.initialise import edge_scores, frame_confidence, initial_state
from easi3r_jax.align.known import (
    check_known,
    clip_focal,
    in_known_world,
    nothing_known,
    scale_is_known,
    settle_scale,
    with_known_cameras,
)
from easi3r_jax.align.known_scale import known_scale
from easi3r_jax.align.optimise import Progress, adam_steps, init_moments, iterate, learning_rates, optimise
from easi3r_jax.align.pair import one_frame, two_frames
from easi3r_jax.align.residuals import pair_terms, points_loss
from easi3r_jax.align.state import (
    AlignProblem,
    AlignResult,
    AlignState,
    CameraPrior,
    DepthPrior,
    make_problem,
    make_state,
    with_depth_prior,
)
from easi3r_jax.align.terms import (
    DEFAULT_TERMS,
    Term,
    cameras_loss,
    depth_loss,
    loss_terms,
    smoothness_loss,
    softened,
    total_loss,
)
from easi3r_jax.align.windows import join_windows, keyframe_numbers, window_ranges
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import KnownCameras, PairPredictions

__all__ = [
    "DEFAULT_TERMS",
    "AlignProblem",
    "AlignResult",
    "AlignState",
    "CameraPrior",
    "DepthPrior",
    "Progress",
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
    "depth_loss",
    "edge_scores",
    "ego_flow",
    "flow_loss",
    "flow_residual",
    "frame_confidence",
    "init_moments",
    "initial_state",
    "iterate",
    "join_windows",
    "keyframe_numbers",
    "learning_rates",
    "loss_terms",
    "make_problem",
    "make_state",
    "nothing_known",
    "one_frame",
    "optimise",
    "pair_terms",
    "points_loss",
    "result_of",
    "robust_sum",
    "smoothness_loss",
    "softened",
    "spanning_tree",
    "static_regions",
    "total_loss",
    "two_frames",
    "window_ranges",
    "with_depth_prior",
    "with_known_cameras",
]


def align(
    predictions: PairPredictions,
    num_frames: int,
    config: AlignConfig,
    *,
    flow: jax.Array | None = None,
    flow_known: jax.Array | None = None,
    dynamic: jax.Array | None = None,
    known: KnownCameras | None = None,
    seed: int = 0,
    room: int = 0,
    release: bool = False,
    progress: Progress | None = None,
) -> AlignResult:
    """Cameras and depth of a clip from its pairs.

    Three and more frames are optimised from the spanning-tree start; two are solved in closed form from their better
    direction; one is its own world. The result is finite whatever the predictions are, as long as they are.

    Where the predictions are divided over the devices of a mesh, so is the work.

    Args:
      predictions: point maps of pairs that connect all frames; for one frame, the pair (0, 0).
      num_frames: T.
      config: options.
      flow: (E, H, W, 2) optical flow of every pair from i to j in pixels, which come in both directions; None: without.
      flow_known: (E, H, W) bool, where the flow is known; None: everywhere.
      dynamic: (T, H, W) bool, what moves by itself: flow does not count there, and depth stays closer to its start's
        where `config.depth_weight` keeps it.
      known: cameras known beforehand. They stay fixed or attract (`config.camera_weight`); with known poses the result
        is in their world and unit.
      seed: of RANSAC.
      room: frames of `dynamic` and, of three and more, of the result, at least T: those beyond the clip's mean nothing.
        0: T.
      release: nobody needs the predictions' arrays any more: they are freed, which nearly halves the peak of memory.
      progress: called at the start, after every few iterations and at the end with (done, total, loss); the loss is
        NaN where there is none (before the first step, closed forms).

    Raises:
      ConfigError: a pair graph that leaves frames unconnected; an unknown schedule; known focal lengths that differ
        where all frames are to share one.
      InputError: pairs of frames that do not exist; predictions that are not finite, or so large that their squares
        are not.
    """
    check_edges(np.asarray(predictions.edges), num_frames)
    if room and (known is not None or room < num_frames):
        raise ConfigError(f"Room for {room} frames does not do for {num_frames}, or with known cameras.")
    if not bool(_all_finite(dataclasses.replace(predictions, edges=None))):
        raise InputError(
            "The pairs' points or confidences are infinite or undefined: wrong weights, or frames of noise."
        )
    if known is not None:
        check_known(known, num_frames)
    if num_frames <= 2:
        nothing = float("nan")
        if progress:
            progress(0, 1, nothing)
        if num_frames == 1:
            result = one_frame(predictions, known=known)
        else:
            result = two_frames(predictions, config, known=known, seed=seed)
        if progress:
            progress(1, 1, nothing)
    else:
        if known is not None and np.any(known.poses_known):
            unaware = dataclasses.replace(known, poses_known=np.zeros(num_frames, bool))
            found = initial_state(predictions, num_frames, config, known=unaware, seed=seed)
            known = settle_scale(known, np.asarray(state_of.world_from_cam(found)), np.asarray(state_of.depth(found)))
            if known is not None and scale_is_known(known):
                known = dataclasses.replace(known, start_scale=known_scale(predictions, known, found))
        start = initial_state(predictions, num_frames, config, known=known, seed=seed, room=room)
        confidence = frame_confidence(predictions, room or num_frames)
        problem = make_problem(
            predictions,
            num_frames,
            config,
            flow=flow,
            flow_known=flow_known,
            dynamic=dynamic,
            room=room,
            release=release,
        )
        problem = with_depth_prior(with_known_cameras(problem, start, known, config), start, config, dynamic)
        state, losses = optimise(start, problem, config, progress=progress)
        result = result_of(state, problem, confidence, losses)
    result = in_known_world(result, known, config)
    if not bool(_all_finite(result)):
        raise InputError("The alignment overflows: the network predicts points too far away. Wrong weights?")
    return result


@jax.jit
def result_of(state: AlignState, problem: AlignProblem, confidence: jax.Array, losses: jax.Array) -> AlignResult:
    """Cameras and depth of a state."""
    return AlignResult(
        world_from_cam=state_of.world_from_cam(state),
        intrinsics=state_of.intrinsics(state, problem),
        depth=state_of.depth(state),
        confidence=confidence.astype(jnp.float32),
        losses=losses,
    )


@jax.jit
def _all_finite(tree) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]).all()
