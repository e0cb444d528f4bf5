"""Metrics of masks, depth, points and camera paths, as the released evaluation computes them."""

from __future__ import annotations

import csv
import json
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from easi3r_jax.apps.parity.report import Golden, Row, at_most, compare, equal
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.geometry.camera import world_points
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.evaluation import metrics
from easi3r_jax.io.video.resize import frame_geometry

_METRIC = 1e-5  # relative, of every metric
_EXACT = 1e-12  # double precision on both sides
_THREE_DIGITS = 5.1e-4  # rounding of the printed tables

_DEPTH_NAMES = {
    "abs_rel": "Abs Rel",
    "sq_rel": "Sq Rel",
    "depth_rmse": "RMSE",
    "log_rmse": "Log RMSE",
    "delta_1_25": "δ < 1.25",
    "delta_1_25_2": "δ < 1.25^2",
    "delta_1_25_3": "δ < 1.25^3",
}
_POINT_NAMES = {
    "accuracy": "Accuracy",
    "accuracy_median": "Acc_med",
    "completeness": "Completion",
    "completeness_median": "Comp_med",
    "distance": "Distance",
    "distance_median": "Dist_med",
}


def is_folder(folder: pathlib.Path) -> bool:
    """Whether the folder contains golden metrics."""
    return all((folder / name).is_file() for name in ("results.json", "masks_JF.npz", "depth.npz", "pose.npz"))


def check_folder(folder: pathlib.Path) -> Iterator[Row]:
    """Every metric of every file."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    yield from _check_masks(f"{folder.name}/masks_JF", Golden(folder / "masks_JF.npz"), results)
    yield from _check_depth(f"{folder.name}/depth", Golden(folder / "depth.npz"), results["depth"])
    yield from _check_pose(f"{folder.name}/pose", Golden(folder / "pose.npz"))
    if (folder / "points.npz").is_file():
        yield from _check_points(f"{folder.name}/points", Golden(folder / "points.npz"), results["points"])


def depth_options(call: dict) -> metrics.DepthOptions:
    """Options of a golden call of the depth evaluation, with its arithmetic."""
    aligned = [name.removeprefix("align_with_") for name in call if name.startswith("align_with_")]
    return metrics.DepthOptions(
        alignment=aligned[0] if aligned else "median",
        max_depth=call.get("max_depth", metrics.MAX_DEPTH),
        disparity=call.get("disp_input", False),
        pre_clip=(call.get("pre_clip_min"), call.get("pre_clip_max")),
        post_clip=(call.get("post_clip_min"), call.get("post_clip_max")),
        learning_rate=call.get("lr", 1e-4),
        steps=call.get("max_iters", 1000),
        arithmetic="released",
    )


def tum_poses(table: np.ndarray) -> np.ndarray:
    """(T, 7) rows x y z qw qx qy qz, as the released programs write them -> (T, 4, 4) float64."""
    from scipy.spatial.transform import Rotation

    poses = np.tile(np.eye(4), (len(table), 1, 1))
    poses[:, :3, 3] = table[:, :3]
    poses[:, :3, :3] = Rotation.from_quat(table[:, [4, 5, 6, 3]]).as_matrix()
    return poses


def _check_masks(stage: str, golden: Golden, results: dict) -> Iterator[Row]:
    masks, truth, void = (golden[name] > 0 for name in ("pred", "gt", "void"))
    boundary = golden["boundary_gt0"]
    yield equal(stage, "boundary_gt0", metrics.mask_boundary(truth[0]), boundary)
    yield equal(
        stage, "boundary_bound_pix", [metrics.boundary_tolerance(*boundary.shape)], golden["boundary_bound_pix"]
    )
    for suffix, ignored in (("", None), ("_void", void)):
        scores = metrics.score_masks(masks, truth, void=ignored)
        for letter, values in (("J", scores.region), ("F", scores.boundary)):
            name = f"{letter}_per_frame{suffix}_f64"
            yield compare(stage, name, values, golden[name], _EXACT)
            name = f"{letter}_mean_recall_decay{suffix}_f64"
            yield compare(stage, name, metrics.mean_recall_decay(values), golden[name], _EXACT)
    scaled = metrics.score_masks(255 * golden["pred"], 255 * golden["gt"])
    yield compare(stage, "F_255_scaled_f64", scaled.boundary, golden["F_255_scaled_f64"], _EXACT)
    for name in sorted(n for n in golden if n.startswith("stat_in_")):
        mean, recall, decay = metrics.mean_recall_decay(golden[name], eight_bits=True)
        name = name.replace("_in_", "_out_")
        expected = golden[name]
        yield compare(stage, f"{name}, mean and recall", (mean, recall), expected[:2], _EXACT)
        if decay is None or math.isnan(expected[2]):
            yield equal(stage, f"{name}, no decay", decay is None, math.isnan(expected[2]))
        else:
            yield compare(stage, f"{name}, decay", decay, expected[2], _EXACT)
    yield from _check_mask_files(stage, golden, results)
    yield from golden.unread(stage, "")


def _check_mask_files(stage: str, golden: Golden, results: dict) -> Iterator[Row]:
    """Masks of another size than the ground truth, and two sequences: with the ground truth in order and reversed."""
    truth, masks = golden["eval_gt480x640_u8"], golden["eval_pred384x512_u8"]
    (height, width), size = truth.shape[1:], masks.shape[1:]
    geometry = frame_geometry(width, height, FrameConfig(size=max(size)))
    truth = resample_nearest(truth, geometry.frame_from_source, size)
    sequences = [metrics.score_masks(masks, t) for t in (truth, truth[::-1])]
    per_frame = []
    for letter, values in (("j", sequences[0].region), ("f", sequences[0].boundary)):
        matrix = golden[f"eval_{letter}_matrix_f64"]  # a frame's metric, repeated along its row
        yield compare(stage, f"eval_{letter}_matrix_f64", np.tile(values[:, None], matrix.shape[1]), matrix, _EXACT)
        name = f"eval_{letter.upper()}_MRD_f64"
        ours = [metrics.mean_recall_decay(np.full(matrix.shape[1], value)) for value in values]
        yield compare(stage, name, ours, golden[name], _EXACT)
        per_frame.append([v for s in sequences for v in (s.region if letter == "j" else s.boundary)])
    table = list(csv.DictReader(results["mask_metric_per_sequence_csv"].splitlines()))
    printed = [[float(row[column]) for row in table] for column in ("J-Mean", "F-Mean")]
    yield at_most(stage, "table of frames", np.abs(np.subtract(per_frame, printed)).max(), _THREE_DIGITS)
    (row,) = csv.DictReader(results["mask_metric_global_csv"].splitlines())
    ours = metrics.summarise_masks(sequences, "pooled")
    ours = [ours[name.lower().replace("&", "").replace("-", "_")] for name in row]
    worst = np.abs(np.array(ours, np.float64) - [float(value) for value in row.values()]).max()
    yield at_most(stage, "table of all frames, pooled", worst, _THREE_DIGITS)


def _check_depth(stage: str, golden: Golden, results: dict) -> Iterator[Row]:
    predicted, truth = golden["pred"], golden["gt"]
    for variant, call in results["calls"].items():
        options = depth_options(call)
        judged = golden[call["custom_mask"]] if "custom_mask" in call else None
        yield from _check_variant(stage, variant, predicted, truth, options, judged, results["results"][variant])
        aligned = metrics.align_depth(predicted, truth, options)
        counted = metrics.evaluated_pixels(truth, options, judged)
        maps = {"aligned_pred": aligned, "error_map": metrics.relative_error(aligned, truth, counted)}
        for name, ours in maps.items():
            if f"{variant}_{name}" in golden:
                theirs = golden[f"{variant}_{name}"]  # frames stacked vertically
                yield compare(stage, f"{variant}_{name}", ours.reshape(theirs.shape), theirs, _METRIC)
    if "scale_frame0_only" in results["results"]:
        options = depth_options({"align_with_scale": True})
        expected = results["results"]["scale_frame0_only"]
        yield from _check_variant(stage, "scale_frame0_only", predicted[:1], truth[:1], options, None, expected)
    yield from golden.unread(stage, "")


def _check_variant(stage, variant, predicted, truth, options, judged, expected: dict) -> Iterator[Row]:
    ours = metrics.depth_metrics(predicted, truth, options, evaluated=judged)
    yield _relative(stage, f"{variant}, metrics", ours, expected, _DEPTH_NAMES)
    pixels = int(metrics.evaluated_pixels(truth, options, judged).sum())
    yield equal(stage, f"{variant}, pixels", pixels, int(expected["valid_pixels"]))


def _check_pose(stage: str, golden: Golden) -> Iterator[Row]:
    estimate, truth = (tum_poses(golden[f"{name}_tum_xyz_qwxyz_f64"]) for name in ("pred", "gt"))
    expected, times = golden["result_ate_rpet_rper_f64"], golden["timestamps_f64"]
    by_order = list(metrics.pose_metrics(estimate, truth).values())
    yield compare(stage, "ATE, RPE translation and rotation", by_order, expected, _METRIC)
    by_time = metrics.pose_metrics(estimate, truth, times=times, true_times=times)
    yield compare(stage, "the same, by time stamps", list(by_time.values()), expected, _METRIC)
    yield from golden.unread(stage, "")


def _check_points(stage: str, golden: Golden, results: dict) -> Iterator[Row]:
    ours = metrics.point_metrics(golden["pred_xyz"], golden["gt_xyz"])
    yield _relative(stage, "metrics", ours, results, _POINT_NAMES)
    estimate, truth = golden["traj_pred_f64"], golden["traj_gt_f64"]
    scale, _, _ = register_similarity(estimate[:, :3, 3], truth[:, :3, 3])
    yield compare(stage, "traj_scale_f64", scale, golden["traj_scale_f64"], _EXACT)
    aligned = metrics.align_path(estimate, truth)
    yield compare(stage, "traj_pred_aligned_f64", aligned, golden["traj_pred_aligned_f64"], _EXACT)
    points = world_points(golden["depth_f64"], golden["K_f64"], truth)
    points = points.reshape(len(points), -1, 3)
    yield compare(stage, "depth_to_3d_world_f64", points, golden["depth_to_3d_world_f64"], _EXACT)
    yield from golden.unread(stage, "")


def _relative(stage: str, name: str, ours: dict, expected: dict, names: dict[str, str]) -> Row:
    """The largest relative error of a set of metrics, none of which is 0."""
    pairs = [(ours[key], expected[there]) for key, there in names.items()]
    return at_most(stage, name, max(abs(mine / theirs - 1) for mine, theirs in pairs), _METRIC)
