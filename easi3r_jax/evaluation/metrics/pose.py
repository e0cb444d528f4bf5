"""Errors of a camera path after alignment, computed as in `evo`, and the association of poses by time.

Everything is float64 on the host. Poses are (T, 4, 4) `world_from_cam`. The two worlds differ by an unknown
similarity, which the alignment removes.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from easi3r_jax.core.arrays import Float, Int, Real
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.evaluation.metrics.checks import check_finite

PathAlignment = Literal["similarity", "rigid", "none"]

#: Largest difference between two time stamps of the same frame, in seconds (as in TUM RGB-D's tools and evo).
MAX_TIME_DIFFERENCE = 0.01

# A path whose spread, relative to its distance from the origin, is below this has no translation: it is rounding noise
# of float32 positions.
_MIN_RELATIVE_SPREAD = 1e-6


def associate(
    times: Real[np.ndarray, "P"], true_times: Real[np.ndarray, "Q"], max_difference: float = MAX_TIME_DIFFERENCE
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Associates the poses of two paths by their time stamps.

    Two stamps match if each is the other's nearest and they differ by at most `max_difference`. So no pose is used
    twice. Of two equally near stamps the earlier one is taken.

    Args:
      times, true_times: (P,) and (Q,) seconds, increasing.
      max_difference: seconds.

    Returns:
      (M,) indices into `times` and (M,) indices into `true_times`, both increasing.

    Raises:
      InputError: stamps are not finite or do not increase, or none match.
    """
    times, true_times = _stamps("time stamps", times), _stamps("true time stamps", true_times)
    nearest, back = _nearest(times, true_times), _nearest(true_times, times)
    index = np.flatnonzero(back[nearest] == np.arange(len(times)))
    index = index[np.abs(times[index] - true_times[nearest[index]]) <= max_difference]
    if not len(index):
        raise InputError(
            f"No time stamps of the two paths are within {max_difference:g} s: they run from {times[0]:g} to "
            f"{times[-1]:g} and from {true_times[0]:g} to {true_times[-1]:g}. Allow a larger difference, or give no "
            "time stamps to compare equally many poses in order."
        )
    return index, nearest[index]


def align_path(
    world_from_cam: Real[np.ndarray, "T 4 4"],
    true_world_from_cam: Real[np.ndarray, "T 4 4"],
    *,
    with_scale: bool = True,
) -> Float[np.ndarray, "T 4 4"]:
    """Aligns the estimated path with the true one by the similarity that fits the camera centres best.

    Args:
      world_from_cam, true_world_from_cam: (T, 4, 4) rigid.
      with_scale: False for a rigid motion.

    Returns:
      (T, 4, 4) rigid poses in the true world: the scale acts on positions only.
    """
    estimate = np.asarray(world_from_cam, np.float64)
    scale, rotation, translation = path_similarity(estimate, true_world_from_cam, with_scale=with_scale)
    aligned = np.tile(np.eye(4), (len(estimate), 1, 1))
    aligned[:, :3, :3] = rotation @ estimate[:, :3, :3]
    aligned[:, :3, 3] = scale * estimate[:, :3, 3] @ rotation.T + translation
    return aligned


def path_similarity(
    world_from_cam: Real[np.ndarray, "T 4 4"],
    true_world_from_cam: Real[np.ndarray, "T 4 4"],
    *,
    with_scale: bool = True,
) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """The similarity of `align_path`: scale, rotation, translation.

    An estimate without translation, or one that has nothing in common with the truth, is fitted best by the scale 0:
    every centre is then the mean of the true ones. So a frozen camera has the error of the truth's spread.
    """
    centres, true_centres = (np.asarray(path, np.float64)[:, :3, 3] for path in (world_from_cam, true_world_from_cam))
    scale, rotation, translation = register_similarity(centres, true_centres, with_scale=with_scale)
    if with_scale:
        middle = true_centres.mean(axis=0)
        fitted = scale * centres @ rotation.T + translation
        if not _has_translation(centres) or _rms_distance(fitted, true_centres) > _rms_distance(middle, true_centres):
            return 0.0, np.eye(3), middle
    return float(scale), rotation, translation


def pose_metrics(
    world_from_cam: Real[np.ndarray, "P 4 4"],
    true_world_from_cam: Real[np.ndarray, "Q 4 4"],
    *,
    times: Real[np.ndarray, "P"] | None = None,
    true_times: Real[np.ndarray, "Q"] | None = None,
    max_difference: float = MAX_TIME_DIFFERENCE,
    alignment: PathAlignment = "similarity",
    delta: int = 1,
) -> dict[str, float | None]:
    """Absolute and relative errors of a camera path.

    Args:
      world_from_cam: (P, 4, 4) estimated poses, rigid.
      true_world_from_cam: (Q, 4, 4) true poses, rigid.
      times, true_times: (P,) and (Q,) seconds; the poses that `associate` matches are compared. None for both: poses
        are compared in order, and P = Q. (The released evaluation compares in order whenever the numbers of poses are
        equal, and ignores the stamps.)
      max_difference: see `associate`.
      alignment: "similarity"; "rigid", for paths whose scale is known; "none", for poses in the same world.
      delta: relative errors are over all pairs of frames t, t + delta.

    Returns:
      `ate`: root mean square distance of camera centres, in units of the true world. With an alignment, None for fewer
        than three frames (two centres always fit) or if the true path has no translation. An estimate without
        translation has an error: that of `path_similarity`.
      `rpe_translation`: root mean square translation of the relative pose error, in units of the true world. None
        without a pair and, for a similarity, if the true path has no translation (no scale).
      `rpe_rotation_deg`: the same for the angle of its rotation, in degrees. None without a pair.

    Raises:
      InputError: arrays that are not poses, numbers that are not finite, paths of different lengths without time
        stamps, or as `associate`.

    Source: Sturm et al., A benchmark for the evaluation of RGB-D SLAM systems, IROS 2012.
    """
    if alignment not in get_args(PathAlignment):
        raise ConfigError(f"Unknown path alignment {alignment!r}: choose one of {', '.join(get_args(PathAlignment))}.")
    if delta < 1:
        raise ConfigError(f"Relative pose errors need a delta of at least one frame, not {delta}.")
    estimate, truth = _poses("poses", world_from_cam), _poses("true poses", true_world_from_cam)
    estimate, truth = _matched_poses(estimate, truth, times, true_times, max_difference)

    # Of the truth alone: an estimate that stands still where the camera moves is wrong, not undefined.
    moving = _has_translation(truth[:, :3, 3])
    # Relative errors are invariant to a rigid motion of the world, so a path without translation needs no alignment.
    aligned = estimate
    if alignment != "none" and moving:
        aligned = align_path(estimate, truth, with_scale=alignment == "similarity")
    result: dict[str, float | None] = {"ate": None, "rpe_translation": None, "rpe_rotation_deg": None}
    if alignment == "none" or (moving and len(estimate) > 2):
        result["ate"] = _rms(np.linalg.norm(aligned[:, :3, 3] - truth[:, :3, 3], axis=1))
    if len(estimate) > delta:
        error = np.linalg.inv(_steps(truth, delta)) @ _steps(aligned, delta)
        result["rpe_rotation_deg"] = _rms(np.degrees(rotation_angle(error[:, :3, :3])))
        if alignment != "similarity" or moving:
            result["rpe_translation"] = _rms(np.linalg.norm(error[:, :3, 3], axis=1))
    return result


def rotation_angle(rotation: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch"]:
    """Angle in radians, in [0, pi], of rotations (..., 3, 3); accurate near zero, where the arc cosine is not."""
    axis = np.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        axis=-1,
    )
    return np.arctan2(np.linalg.norm(axis, axis=-1), np.trace(rotation, axis1=-2, axis2=-1) - 1.0)


def _matched_poses(estimate, truth, times, true_times, max_difference: float) -> tuple[np.ndarray, np.ndarray]:
    """The poses to compare, equally many of both paths."""
    if (times is None) != (true_times is None):
        raise InputError("Poses can be matched by time only if both paths have time stamps.")
    if times is None:
        if len(estimate) != len(truth):
            raise InputError(
                f"The path has {len(estimate)} poses and the true one {len(truth)}: give the time stamps of both."
            )
        return estimate, truth
    for name, path, stamps in (("path", estimate, times), ("true path", truth, true_times)):
        if len(path) != len(stamps):
            raise InputError(f"The {name} has {len(path)} poses and {len(stamps)} time stamps.")
    index, true_index = associate(times, true_times, max_difference)
    return estimate[index], truth[true_index]


def _poses(name: str, world_from_cam: np.ndarray) -> np.ndarray:
    world_from_cam = np.asarray(world_from_cam, np.float64)
    if world_from_cam.shape[1:] != (4, 4) or len(world_from_cam) == 0:
        raise InputError(f"The {name} have shape {world_from_cam.shape}: they must be (T, 4, 4), at least one.")
    check_finite(name, world_from_cam)
    return world_from_cam


def _stamps(name: str, times: np.ndarray) -> np.ndarray:
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) == 0:
        raise InputError(f"The {name} have shape {times.shape}: they must be (T,), at least one.")
    check_finite(name, times)
    if np.any(np.diff(times) <= 0):
        raise InputError(f"The {name} do not increase: sort the poses by time and keep one per time stamp.")
    return times


def _nearest(times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Index of the nearest of `others` for each time, both increasing; the earlier of two that are equally near."""
    after = np.clip(np.searchsorted(others, times), 1, max(len(others) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(others) - 1)
    return np.where(times - others[before] <= others[after] - times, before, after)


def _steps(world_from_cam: np.ndarray, delta: int) -> np.ndarray:
    """Relative poses of frames delta apart, camera t from camera t+delta: (T-delta, 4, 4)."""
    return np.linalg.inv(world_from_cam[:-delta]) @ world_from_cam[delta:]


def _has_translation(centres: np.ndarray) -> bool:
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    return bool(spread > _MIN_RELATIVE_SPREAD * np.linalg.norm(centres, axis=1).max())


def _rms_distance(points: np.ndarray, others: np.ndarray) -> float:
    return _rms(np.linalg.norm(points - others, axis=1))


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))
