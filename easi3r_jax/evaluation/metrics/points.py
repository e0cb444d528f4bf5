"""Errors of point clouds: distances of predicted points to true ones, and of true points to predicted ones."""

from __future__ import annotations

import numpy as np

from easi3r_jax.core.arrays import Real
from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.metrics.checks import check_finite
from easi3r_jax.evaluation.metrics.depth_fit import lower_median


def point_metrics(
    points: Real[np.ndarray, "P 3"], truth: Real[np.ndarray, "Q 3"], *, corresponding: bool = True
) -> dict[str, float | None]:
    """Distances between two clouds in the same frame of reference.

    Args:
      points: (P, 3) predicted points, aligned to the true world (`path_similarity`).
      truth: (Q, 3) true points.
      corresponding: whether point n of one cloud corresponds to point n of the other.

    Returns:
      in units of the points: `accuracy`, the mean distance of a predicted point to the nearest true point, and
      `accuracy_median`; `completeness`, the mean distance of a true point to the nearest predicted point, and
      `completeness_median`; `distance`, the mean distance of corresponding points, and `distance_median` (of an even
      number the lower middle one, as published). The last two are None unless `corresponding`. A cloud that has
      collapsed to one point, as that of a frozen camera does, has the accuracy of its completeness.

    Raises:
      InputError: no points, points that are not 3-D, numbers that are not finite, or corresponding clouds of different
        sizes.

    Source: Aanæs et al., Large-scale data for multiple-view stereopsis, IJCV 2016 (accuracy, completeness).
    """
    from scipy.spatial import KDTree

    points, truth = _cloud("predicted", points), _cloud("true", truth)
    # Equal points, of which a collapsed cloud consists, would all be in one leaf of the tree.
    distinct, true_distinct = (np.unique(cloud, axis=0) for cloud in (points, truth))
    accuracy, completeness = KDTree(true_distinct).query(points)[0], KDTree(distinct).query(truth)[0]
    if len(distinct) == 1:  # a point on a surface would be perfectly accurate
        accuracy = completeness
    result: dict[str, float | None] = {
        "accuracy": float(accuracy.mean()),
        "accuracy_median": float(np.median(accuracy)),
        "completeness": float(completeness.mean()),
        "completeness_median": float(np.median(completeness)),
        "distance": None,
        "distance_median": None,
    }
    if corresponding:
        if points.shape != truth.shape:
            raise InputError(
                f"{len(points)} predicted and {len(truth)} true points cannot correspond: "
                "give equal numbers of both, or set corresponding=False."
            )
        distance = np.linalg.norm(points - truth, axis=1)
        result |= {"distance": float(distance.mean()), "distance_median": lower_median(distance)}
    return result


def _cloud(name: str, points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise InputError(f"The {name} points have shape {points.shape}: they must be (P, 3), at least one.")
    check_finite(f"{name} points", points)
    return points
