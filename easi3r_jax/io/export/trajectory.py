"""`trajectory.txt` and `intrinsics.txt`: cameras as text."""

from __future__ import annotations

import os
import pathlib

import numpy as np


def write_tum(path: str | os.PathLike, time: np.ndarray, world_from_cam: np.ndarray) -> None:
    """Writes a camera path as the TUM RGB-D tools (and `evo`) read it: `timestamp tx ty tz qx qy qz qw` per frame.

    The *quaternion's scalar comes last*; its sign is chosen so that qw >= 0.

    Args:
      path: text file.
      time: (T,) seconds.
      world_from_cam: (T, 4, 4) rigid, camera to world.
    """
    from scipy.spatial.transform import Rotation

    poses = np.asarray(world_from_cam, np.float64)
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat(canonical=True)
    rows = np.column_stack([poses[:, :3, 3], quaternions])
    lines = ["# timestamp tx ty tz qx qy qz qw (camera to world, OpenCV axes)"]
    lines += [
        " ".join([f"{t:.6f}", *(f"{value:.9g}" for value in row)])
        for t, row in zip(np.asarray(time, np.float64), rows, strict=True)
    ]
    pathlib.Path(path).write_text("\n".join(lines) + "\n")


def write_intrinsics(path: str | os.PathLike, intrinsics: np.ndarray) -> None:
    """Writes one line of nine numbers per frame, the 3x3 matrix row by row, in pixels of the exported frames.

    Args:
      path: text file; `numpy.loadtxt(path).reshape(-1, 3, 3)` reads it back.
      intrinsics: (T, 3, 3).
    """
    np.savetxt(
        path,
        np.asarray(intrinsics, np.float64).reshape(-1, 9),
        fmt="%.9g",
        header="fx skew cx 0 fy cy 0 0 1 (pixels; integer coordinates at pixel centres)",
    )
