"""Metrics of a reconstruction against ground truth: on the host, in float64, without randomness.

docs/metrics.md defines each of them, with the published protocols and their quirks.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from easi3r_jax.core.arrays import Bool, Real
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Scene4D
from easi3r_jax.evaluation.metrics.depth import (
    MAX_DEPTH,
    MAX_DEPTHS,
    DepthOptions,
    align_depth,
    apply_fit,
    depth_metrics,
    evaluated_pixels,
    fit_clip,
    relative_error,
    valid_depth,
)
from easi3r_jax.evaluation.metrics.depth_fit import fit_depth
from easi3r_jax.evaluation.metrics.intrinsics import focal_relative_error
from easi3r_jax.evaluation.metrics.masks import (
    MaskScores,
    boundary_similarity,
    boundary_tolerance,
    davis_metrics,
    mask_boundary,
    mean_recall_decay,
    pooled_iou,
    pooled_metrics,
    region_similarity,
    roc_auc,
    score_masks,
    summarise_masks,
)
from easi3r_jax.evaluation.metrics.points import point_metrics
from easi3r_jax.evaluation.metrics.pose import (
    MAX_TIME_DIFFERENCE,
    align_path,
    associate,
    path_similarity,
    pose_metrics,
    rotation_angle,
)

__all__ = [
    "MAX_DEPTH",
    "MAX_DEPTHS",
    "MAX_TIME_DIFFERENCE",
    "DepthOptions",
    "GroundTruth",
    "MaskScores",
    "align_depth",
    "align_path",
    "apply_fit",
    "associate",
    "boundary_similarity",
    "boundary_tolerance",
    "davis_metrics",
    "depth_metrics",
    "evaluate_scene",
    "evaluated_pixels",
    "fit_clip",
    "fit_depth",
    "focal_relative_error",
    "mask_boundary",
    "mean_recall_decay",
    "path_similarity",
    "point_metrics",
    "pooled_iou",
    "pooled_metrics",
    "pose_metrics",
    "region_similarity",
    "relative_error",
    "roc_auc",
    "rotation_angle",
    "score_masks",
    "summarise_masks",
    "valid_depth",
]


@dataclasses.dataclass(frozen=True, eq=False)
class GroundTruth:
    """Ground truth of a clip, at the resolution of the network's frames; None where unknown.

    Attributes:
      depth: (T, H, W) float, z in the camera; zero, negative or non-finite where unknown.
      masks: (T, H, W) bool, True at dynamic pixels.
      world_from_cam: (T, 4, 4) float, rigid, OpenCV axes, any world.
      intrinsics: (T, 3, 3) float, in pixels of the frames.
    """

    depth: Real[np.ndarray, "T H W"] | None = None
    masks: Bool[np.ndarray, "T H W"] | None = None
    world_from_cam: Real[np.ndarray, "T 4 4"] | None = None
    intrinsics: Real[np.ndarray, "T 3 3"] | None = None


def evaluate_scene(
    scene: Scene4D, ground_truth: GroundTruth, *, max_depth: float | None = MAX_DEPTH
) -> dict[str, float | None]:
    """All metrics that the ground truth allows.

    Args:
      scene: the reconstruction.
      ground_truth: of the same shapes; fields that are None are not evaluated.
      max_depth: true depths at or beyond it are ignored; None: no limit.

    Returns:
      a flat dictionary. Metrics of a field that is None are absent; a metric that is undefined for this clip is None
      (never NaN):

      - `ate`, `rpe_translation` (units of the true world), `rpe_rotation_deg`: see `pose_metrics`.
      - `focal_relative_error`.
      - `abs_rel`, `sq_rel`, `depth_rmse`, `log_rmse`, `delta_1_25`, `delta_1_25_2`, `delta_1_25_3`: one robust
        scale for the clip. `abs_rel_scale_shift`, `delta_1_25_scale_shift`: one scale and shift by least squares.
      - `mask_iou` (all pixels pooled), `mask_j_mean`, `mask_j_recall`, `mask_j_decay`, `mask_f_mean`,
        `mask_f_recall`, `mask_f_decay` (DAVIS): None for a static clip, where every mask would score 0.
        `mask_share`, the fraction of pixels marked as dynamic: the metric for such clips. `score_auc`, over pixels:
        None if no pixel or every pixel is dynamic.

    Raises:
      InputError: the shapes of the ground truth and the scene differ, or numbers that count are not finite.
    """
    _check_shapes(scene, ground_truth)
    result: dict[str, float | None] = {}
    if ground_truth.world_from_cam is not None:
        result |= pose_metrics(np.asarray(scene.world_from_cam), ground_truth.world_from_cam)
    if ground_truth.intrinsics is not None:
        result["focal_relative_error"] = focal_relative_error(np.asarray(scene.intrinsics), ground_truth.intrinsics)
    if ground_truth.depth is not None:
        depth = np.asarray(scene.depth)
        result |= depth_metrics(depth, ground_truth.depth, DepthOptions("scale", max_depth=max_depth))
        shifted = depth_metrics(depth, ground_truth.depth, DepthOptions("lstsq", max_depth=max_depth))
        result |= {f"{name}_scale_shift": shifted[name] for name in ("abs_rel", "delta_1_25")}
    if ground_truth.masks is not None:
        result |= _mask_metrics(scene, np.asarray(ground_truth.masks, bool))
    return result


def _mask_metrics(scene: Scene4D, truth: np.ndarray) -> dict[str, float | None]:
    masks = np.asarray(scene.dynamic_mask, bool)
    is_dynamic = bool(truth.any())
    result: dict[str, float | None] = {
        "mask_iou": pooled_iou(masks, truth) if is_dynamic else None,
        "mask_share": float(masks.mean()),
    }
    for letter, similarity in (("j", region_similarity), ("f", boundary_similarity)):
        for name, value in zip(("mean", "recall", "decay"), mean_recall_decay(similarity(masks, truth)), strict=True):
            result[f"mask_{letter}_{name}"] = value if is_dynamic else None
    result["score_auc"] = roc_auc(np.asarray(scene.dynamic_score), truth)
    return result


def _check_shapes(scene: Scene4D, ground_truth: GroundTruth) -> None:
    pairs = {
        "depth": scene.depth,
        "masks": scene.dynamic_mask,
        "world_from_cam": scene.world_from_cam,
        "intrinsics": scene.intrinsics,
    }
    for name, array in pairs.items():
        truth = getattr(ground_truth, name)
        if truth is not None and truth.shape != array.shape:
            raise InputError(f"The true {name} has shape {truth.shape}, the reconstruction {tuple(array.shape)}.")
