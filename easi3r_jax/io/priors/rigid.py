"""Poses as users and data sets write them: with few digits, some unknown, some wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from easi3r_jax.core.errors import InputError

_ORTHONORMAL = 1e-3


def rigid_poses(poses: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """(N, 4, 4) with rotations brought to the nearest ones; NaN, unknown, stays.

    Raises:
      InputError: the first that is not finite, not rigid or a reflection.
    """
    poses = poses.copy()
    known = np.logical_not(np.isnan(poses[:, :3]).all(axis=(1, 2)))
    finite = np.asarray(np.isfinite(poses).all(axis=(1, 2)))
    rotations = np.where(finite[:, None, None], poses[:, :3, :3], np.eye(3))
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.nan_to_num(np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)), nan=np.inf).max(axis=(1, 2))
        rotations = np.where((off <= _ORTHONORMAL)[:, None, None], rotations, np.eye(3))
    turned = np.linalg.det(rotations) < 0
    last_row = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(axis=1) > 1e-6
    for entry in np.flatnonzero(known & (~finite | (off > _ORTHONORMAL) | turned | last_row)).tolist():
        if not finite[entry]:
            reason = "a pose that is not finite"
        elif off[entry] > _ORTHONORMAL:
            reason = f"not a rotation, its columns are not orthonormal (off by {off[entry]:.2g})"
        elif turned[entry]:
            reason = "not a rotation but a reflection (its determinant is -1)"
        else:
            reason = "not a rigid motion, its last row is not 0 0 0 1"
        raise InputError(f"{labels[entry]}: {reason}. Camera to world, as a rotation and a translation, is needed.")
    u, _, vt = np.linalg.svd(rotations)
    poses[known, :3, :3] = (u @ vt)[known]
    poses[~known] = np.nan
    return poses
