"""Metrics of one sequence: the prediction against the ground truth.

Masks are compared at two resolutions, one for each protocol (docs/metrics.md). Depth is compared at the ground truth's
resolution: a true pixel is compared with the nearest pixel of the network's frame, and true pixels outside its crop are
ignored. Points are those of the network's pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.camera import world_points
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.core.types import Frames, Scene4D
from easi3r_jax.evaluation import metrics
from easi3r_jax.evaluation.datasets import TestSequence, TestSet, Truth
from easi3r_jax.evaluation.metrics import DepthOptions, MaskScores
from easi3r_jax.evaluation.metrics.masks import Protocol

#: Ground truth that each task needs.
NEEDS = {
    "masks": ("masks",),
    "poses": ("trajectory",),
    "depth": ("depth",),
    "points": ("depth", "intrinsics", "trajectory"),
}
#: Entries that count what was evaluated; they are not results.
COUNTS = ("pooled_frames", "davis_frames", "poses", "pixels", "points")
#: Points of a cloud that are evaluated: with more, nearest points get nearer and the search gets slow.
MAX_POINTS = 500_000

Metrics = dict[str, float | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The method's output for a sequence, on the host.

    Attributes:
      depth: (T, H, W) float32.
      masks: (T, H, W) bool.
      world_from_cam: (T, 4, 4).
      intrinsics: (T, 3, 3), pixels of the network's frames.
      frame_from_source: (3, 3), see `Frames`.
      source_size: (height, width) of the original images.
    """

    depth: np.ndarray
    masks: np.ndarray
    world_from_cam: np.ndarray
    intrinsics: np.ndarray
    frame_from_source: np.ndarray
    source_size: tuple[int, int]

    @classmethod
    def of(cls, scenes: Iterable[Scene4D], frames: Frames) -> Prediction:
        """From the scene of a clip, or from the scenes of its frames one by one."""
        names = ("depth", "dynamic_mask", "world_from_cam", "intrinsics")
        parts = [[np.asarray(getattr(scene, name)) for name in names] for scene in scenes]
        depth, masks, world_from_cam, intrinsics = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return cls(
            depth=depth,
            masks=masks,
            world_from_cam=world_from_cam,
            intrinsics=intrinsics,
            frame_from_source=np.asarray(frames.frame_from_source),
            source_size=frames.original_size,
        )


def tasks_of(test_set: TestSet, truth: Truth) -> tuple[str, ...]:
    """The data set's tasks for which a sequence has the ground truth."""
    return tuple(task for task in test_set.tasks if all(getattr(truth, name) is not None for name in NEEDS[task]))


def evaluate_sequence(test_set: TestSet, sequence: TestSequence, prediction: Prediction) -> dict[str, Metrics]:
    """Metrics of every task, by name.

    Raises:
      InputError: ground truth that cannot be read or does not match the frames; a prediction that is not finite.
    """
    truth = sequence.truth
    compute: dict[str, Callable[[], Metrics]] = {
        "masks": lambda: mask_metrics(prediction, truth),
        "poses": lambda: pose_metrics(prediction, sequence),
        "depth": lambda: depth_metrics(prediction, truth, test_set.depth or DepthOptions()),
        "points": lambda: point_metrics(prediction, sequence, test_set.depth or DepthOptions()),
    }
    return {task: compute[task]() for task in tasks_of(test_set, truth)}


def mask_metrics(prediction: Prediction, truth: Truth) -> Metrics:
    """`pooled_j_mean` ..., `davis_j_mean` ...: J and F by both protocols, and the number of frames in each."""
    crop, size = prediction.frame_from_source, prediction.source_size
    scores: dict[Protocol, list[MaskScores]] = {"pooled": [], "davis": []}
    for t, mask in enumerate(prediction.masks):
        true = _map_of("mask", truth.masks, t, size)
        void = None if truth.void is None else _map_of("void", truth.void, t, size)

        def at_crop(full: np.ndarray, shape: tuple[int, int] = mask.shape) -> np.ndarray:
            return resample_nearest(full, crop, shape)

        full = resample_nearest(mask[None], np.linalg.inv(crop), size, outside=False)
        scores["davis"].append(metrics.score_masks(full, true, void=void))
        scores["pooled"].append(
            metrics.score_masks(mask[None], at_crop(true), void=None if void is None else at_crop(void))
        )
    found: Metrics = {}
    for protocol, frames in scores.items():
        clip = MaskScores(*(np.concatenate([getattr(s, name) for s in frames]) for name in ("region", "boundary")))
        summary = metrics.summarise_masks([clip], protocol)
        found |= {f"{protocol}_{name}": value for name, value in summary.items() if name != "sequences"}
    return found


def pose_metrics(prediction: Prediction, sequence: TestSequence) -> Metrics:
    """As `metrics.pose_metrics`, with frames and true poses matched by time; `poses`: their number."""
    trajectory = sequence.truth.trajectory
    assert trajectory is not None
    found = metrics.pose_metrics(
        prediction.world_from_cam, trajectory.world_from_cam, times=sequence.times, true_times=trajectory.times
    )
    found["poses"] = len(metrics.associate(sequence.times, trajectory.times)[0])
    if sequence.truth.intrinsics is not None:
        known = prediction.frame_from_source @ sequence.truth.intrinsics
        found["focal_relative_error"] = metrics.focal_relative_error(prediction.intrinsics, known)
    return found


def depth_metrics(prediction: Prediction, truth: Truth, options: DepthOptions) -> Metrics:
    """As `metrics.depth_metrics`; `pixels`: the number of evaluated pixels.

    Only pixels with known ground truth are kept, so that a clip with sparse ground truth takes little memory.
    """
    size, source_from_frame = prediction.source_size, np.linalg.inv(prediction.frame_from_source)
    inside = np.ones((1, *prediction.depth.shape[1:]), bool)
    covered = resample_nearest(inside, source_from_frame, size, outside=False)
    pairs = []
    for t in range(len(prediction.depth)):
        true = _map_of("depth", truth.depth, t, size)
        known = metrics.valid_depth(true, options.max_depth) & covered
        predicted = resample_nearest(prediction.depth[t : t + 1], source_from_frame, size)
        pairs.append((predicted[known], true[known]))
    if not options.per_frame:
        pairs = [tuple(np.concatenate(arrays) for arrays in zip(*pairs, strict=True))]
    parts = [metrics.depth_metrics(p[None, None], d[None, None], options) for p, d in pairs]
    weights = np.array([d.size for _, d in pairs], np.float64)
    return {**_of_all_pixels(parts, weights), "pixels": int(weights.sum())}


def _of_all_pixels(parts: list[Metrics], weights: np.ndarray) -> Metrics:
    """Metrics over the pixels of all parts together, from those of each part and their numbers of pixels."""
    found: Metrics = {}
    for name in parts[0]:
        values = np.array([0.0 if part[name] is None else part[name] for part in parts])
        if not weights.any():
            found[name] = None
        elif name.endswith("rmse"):
            found[name] = float(np.sqrt(np.average(values**2, weights=weights)))
        else:
            found[name] = float(np.average(values, weights=weights))
    return found


def point_metrics(prediction: Prediction, sequence: TestSequence, options: DepthOptions) -> Metrics:
    """As `metrics.point_metrics`, after the similarity that aligns the camera path with the true one.

    The points are those of the network's pixels with known ground truth, in frames with known pose; `points` is their
    number: all of them, or a subset of `MAX_POINTS` that is the same in every run. All metrics are None if the true
    path does not move, since then there is no similarity.
    """
    truth, trajectory = sequence.truth, sequence.truth.trajectory
    assert trajectory is not None and truth.intrinsics is not None
    crop, shape = prediction.frame_from_source, prediction.depth.shape[1:]
    frames, poses = metrics.associate(sequence.times, trajectory.times)
    true_poses, own_poses = trajectory.world_from_cam[poses], prediction.world_from_cam[frames]
    names = ("accuracy", "completeness", "distance")
    undefined: Metrics = dict.fromkeys([name + end for name in names for end in ("", "_median")])
    if metrics.pose_metrics(own_poses, true_poses)["ate"] is None:
        return {**undefined, "points": 0}
    scale, rotation, translation = metrics.path_similarity(own_poses, true_poses)

    clouds, true_clouds = [], []
    for t, own_pose, true_pose in zip(frames, own_poses, true_poses, strict=True):
        depth = resample_nearest(_map_of("depth", truth.depth, t, prediction.source_size), crop, shape)
        known = metrics.valid_depth(depth, options.max_depth).ravel()
        true = world_points(depth[0], crop @ truth.intrinsics[t], true_pose).reshape(-1, 3)[known]
        own = world_points(prediction.depth[t], prediction.intrinsics[t], own_pose).reshape(-1, 3)[known]
        clouds.append((scale * own @ rotation.T + translation).astype(np.float32))
        true_clouds.append(true.astype(np.float32))
    cloud, true_cloud = np.concatenate(clouds), np.concatenate(true_clouds)
    if not len(cloud):
        return {**undefined, "points": 0}
    if len(cloud) > MAX_POINTS:
        chosen = np.random.default_rng(0).choice(len(cloud), MAX_POINTS, replace=False)
        cloud, true_cloud = cloud[chosen], true_cloud[chosen]
    return {**metrics.point_metrics(cloud, true_cloud), "points": len(cloud)}


def _map_of(name: str, read: Callable[[int], np.ndarray] | None, t: int, size: tuple[int, int]) -> np.ndarray:
    """(1, height, width): a frame's ground truth, at the size of its image.

    Raises:
      InputError: it has a different size.
    """
    assert read is not None
    array = np.asarray(read(t))
    if array.shape != size:
        raise InputError(f"The true {name} of frame {t} has shape {array.shape}, its image {size}: restore the files.")
    return array[None]
