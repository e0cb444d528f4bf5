"""Checks poses from users and data sets: they may have few digits, be unknown or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from easi3r_jax.core.arrays import Float
from easi3r_jax.core.errors import InputError

# Largest deviation of R^T R from the identity.
_MAX_ORTHONORMALITY_ERROR = 1e-3


def rigid_poses(poses: Float[np.ndarray, "N 4 4"], labels: Sequence[str]) -> Float[np.ndarray, "N 4 4"]:
    """(N, 4, 4) poses with their rotations replaced by the nearest exact ones; NaN (unknown) is kept.

    Args:
      poses: (N, 4, 4).
      labels: a name for each pose, for messages.

    Raises:
      InputError: a pose is not finite, not rigid, or a reflection; the message names the first.
    """
    poses = poses.copy()
    known = np.logical_not(np.isnan(poses[:, :3]).all(axis=(1, 2)))
    finite = np.asarray(np.isfinite(poses).all(axis=(1, 2)))
    rotations = np.where(finite[:, None, None], poses[:, :3, :3], np.eye(3))
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.nan_to_num(np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)), nan=np.inf).max(axis=(1, 2))
        rotations = np.where((off <= _MAX_ORTHONORMALITY_ERROR)[:, None, None], rotations, np.eye(3))
    reflected = np.linalg.det(rotations) < 0
    last_row = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(axis=1) > 1e-6
    for entry in np.flatnonzero(known & (~finite | (off > _MAX_ORTHONORMALITY_ERROR) | reflected | last_row)).tolist():
        if not finite[entry]:
            reason = "a pose that is not finite"
        elif off[entry] > _MAX_ORTHONORMALITY_ERROR:
            reason = f"not a rotation, its columns are not orthonormal (off by {off[entry]:.2g})"
        elif reflected[entry]:
            reason = "not a rotation but a reflection (its determinant is -1)"
        else:
            reason = "not a rigid motion, its last row is not 0 0 0 1"
        raise InputError(f"{labels[entry]}: {reason}. A rigid camera-to-world pose is needed.")
    u, _, vt = np.linalg.svd(rotations)
    poses[known, :3, :3] = (u @ vt)[known]
    poses[~known] = np.nan
    return poses
