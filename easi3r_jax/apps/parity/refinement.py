"""Refinement of masks by reprojection (VGGT4D), with the clusters of the released program's k-means."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.apps.parity.report import ROUNDING, Golden, Row, compare, equal
from easi3r_jax.core.geometry import se3
from easi3r_jax.inference.refine.reprojection import ReprojectionRefiner, frame_points, smoothed, without_outliers
from easi3r_jax.inference.refine.residuals import Views, cluster_losses, sample_views

#: Files of the format.
PATTERN = "refine_*.npz"
# The scene has about unit size, and points are half a pixel off: as released.
_RELEASED = ReprojectionRefiner(unit=1.0, pixel_offset=0.5)
# The released program's loss of a cluster that is hardly seen; ours is infinite.
_UNSEEN = 1e10
# Losses are sums of float32 in another order.
_LOSSES = 1e-5


def is_folder(folder: pathlib.Path) -> bool:
    """Whether a folder has arrays of this kind."""
    return any(folder.glob(PATTERN))


def check_folder(folder: pathlib.Path) -> Iterator[Row]:
    """Points, outliers, losses of the golden clusters, and masks before and after smoothing."""
    for path in sorted(folder.glob(PATTERN)):
        yield from _check_file(f"{folder.name}/{path.stem}", Golden(path))


def _check_file(stage: str, golden: Golden) -> Iterator[Row]:
    labels, poses, depth = golden["labels"], golden["cam2world"].astype(np.float64), golden["depths"]
    num_frames = len(labels)
    views = jax.tree.map(jnp.asarray, Views(depth, golden["coarse_masks"], golden["images"], golden["intrinsics"]))
    points = np.stack([frame_points(*x, _RELEASED.pixel_offset) for x in zip(depth, golden["intrinsics"], strict=True)])
    world = se3.transform_points(jnp.asarray(poses, jnp.float32), jnp.asarray(points, jnp.float32))
    yield compare(stage, "points_world_every2", world[:, ::2, ::2], golden["points_world_every2"], ROUNDING)

    kept, thresholds = zip(*(without_outliers(x.reshape(-1, 3)) for x in points), strict=True)
    yield compare(stage, "outlier_threshold", thresholds, golden["outlier_threshold_f64"], ROUNDING)
    yield equal(stage, "outliers", ~np.reshape(kept, labels.shape), labels == -2)

    moving, losses = np.zeros(labels.shape, bool), []
    for t in range(num_frames):
        own = labels[t] >= 0
        samples = sample_views(
            points[t][own].astype(np.float32),
            golden["images"][t][own],
            views,
            (np.linalg.inv(poses) @ poses[t]).astype(np.float32),
            np.arange(num_frames) != t,
            jnp.float32(_RELEASED.visible_margin),
        )
        losses.append(cluster_losses(labels[t][own], samples, num_frames - 1))
        moving[t][own] = (losses[-1].total > _RELEASED.threshold)[labels[t][own]]
    expected = golden["cluster_losses_f64"]
    seen = expected[..., 3] < _UNSEEN
    yield equal(stage, "clusters that are hardly seen", np.isinf([x.total for x in losses]), ~seen)
    for column, name in enumerate(("depth", "colour", "total"), start=1):
        ours = np.stack([getattr(x, name) for x in losses])
        yield compare(stage, f"cluster_losses {name}", ours[seen], expected[..., column][seen], _LOSSES)
    yield equal(stage, "mask_before_morphology", moving, golden["mask_before_morphology"])
    yield equal(stage, "refined_masks", np.stack([smoothed(mask) for mask in moving]), golden["refined_masks"])
    yield from golden.unread(stage, "true_depth|true_dynamic")
