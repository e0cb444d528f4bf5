"""Errors of a camera path after similarity alignment, computed as `evo` does with align + scale.

Everything is float64 on the host. Poses are (T, 4, 4) `world_from_cam`; the two worlds differ by an unknown
similarity, which the alignment removes.
"""

from __future__ import annotations

import numpy as np

# A path counts as motionless when its spread is rounding noise of float32 positions.
_MOTIONLESS = 1e-6


def umeyama(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Similarity that maps points onto points in the least-squares sense.

    Args:
      source, target: (T, 3) corresponding points, `source` not all at one place.

    Returns:
      scale, rotation (3, 3) and translation (3,) with target ≈ scale * rotation @ source + translation. On a straight
      path the roll about it is undetermined and some rotation is returned: no residual depends on it.

    Source: Umeyama, Least-squares estimation of transformation parameters, PAMI 1991, eq. 40-43.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, singular, vt = np.linalg.svd(covariance)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])  # a rotation, never a reflection
    rotation = (u * sign) @ vt
    scale = float(singular @ sign / np.square(source - source_mean).sum(1).mean())
    return scale, rotation, target_mean - scale * rotation @ source_mean


def align_path(world_from_cam: np.ndarray, true_world_from_cam: np.ndarray) -> np.ndarray:
    """The estimated path brought to the true one by the similarity that fits the camera centres best.

    Returns:
      (T, 4, 4) rigid poses in the true world: the scale acts on positions only.
    """
    estimate = np.asarray(world_from_cam, np.float64)
    scale, rotation, translation = umeyama(estimate[:, :3, 3], np.asarray(true_world_from_cam)[:, :3, 3])
    aligned = np.tile(np.eye(4), (len(estimate), 1, 1))
    aligned[:, :3, :3] = rotation @ estimate[:, :3, :3]
    aligned[:, :3, 3] = scale * estimate[:, :3, 3] @ rotation.T + translation
    return aligned


def pose_metrics(world_from_cam: np.ndarray, true_world_from_cam: np.ndarray) -> dict[str, float | None]:
    """Absolute and relative errors of a camera path.

    Args:
      world_from_cam: (T, 4, 4) estimated poses, rigid.
      true_world_from_cam: (T, 4, 4) true poses, rigid.

    Returns:
      `ate`: root mean square distance of aligned camera centres, in units of the true world. None below three frames
        (two centres always fit) and where one of the paths has no translation.
      `rpe_translation`: root mean square translation of the relative pose error between consecutive frames, in units
        of the true world. None for one frame and where one of the paths has no translation (no scale).
      `rpe_rotation_deg`: the same for the angle of its rotation, in degrees. None for one frame.
    """
    estimate, truth = np.asarray(world_from_cam, np.float64), np.asarray(true_world_from_cam, np.float64)
    result: dict[str, float | None] = {"ate": None, "rpe_translation": None, "rpe_rotation_deg": None}
    if len(estimate) < 2:
        return result
    moving = _moves(estimate[:, :3, 3]) and _moves(truth[:, :3, 3])
    # Relative rotations do not see the alignment: without translation they are judged as they are.
    aligned = align_path(estimate, truth) if moving else estimate
    error = np.linalg.inv(_steps(truth)) @ _steps(aligned)
    result["rpe_rotation_deg"] = _rms(np.degrees(rotation_angle(error[:, :3, :3])))
    if moving:
        result["rpe_translation"] = _rms(np.linalg.norm(error[:, :3, 3], axis=1))
        if len(estimate) > 2:
            result["ate"] = _rms(np.linalg.norm(aligned[:, :3, 3] - truth[:, :3, 3], axis=1))
    return result


def rotation_angle(rotation: np.ndarray) -> np.ndarray:
    """Angle in radians, in [0, pi], of rotations (..., 3, 3); exact near zero, where the arc cosine is not."""
    axis = np.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        axis=-1,
    )
    return np.arctan2(np.linalg.norm(axis, axis=-1), np.trace(rotation, axis1=-2, axis2=-1) - 1.0)


def _steps(world_from_cam: np.ndarray) -> np.ndarray:
    """Relative poses of consecutive frames: cam t from cam t+1, (T-1, 4, 4)."""
    return np.linalg.inv(world_from_cam[:-1]) @ world_from_cam[1:]


def _moves(centres: np.ndarray) -> bool:
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    return bool(spread > _MOTIONLESS * np.linalg.norm(centres, axis=1).max())


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))
