"""`trajectory.txt` and `intrinsics.txt`: cameras as text."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import InputError


def write_tum(path: str | os.PathLike, time: np.ndarray, world_from_cam: np.ndarray) -> None:
    """Writes a camera path as the TUM RGB-D tools (and `evo`) read it: `timestamp tx ty tz qx qy qz qw` per frame.

    The *quaternion's scalar comes last*; its sign is chosen so that qw >= 0.

    Args:
      path: text file.
      time: (T,) seconds.
      world_from_cam: (T, 4, 4) rigid, camera to world.
    """
    poses = np.asarray(world_from_cam, np.float64)
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat(canonical=True)
    rows = np.column_stack([poses[:, :3, 3], quaternions])
    lines = ["# timestamp tx ty tz qx qy qz qw (camera to world, OpenCV axes)"]
    lines += [
        " ".join([f"{t:.6f}", *(f"{value:.9g}" for value in row)])
        for t, row in zip(np.asarray(time, np.float64), rows, strict=True)
    ]
    pathlib.Path(path).write_text("\n".join(lines) + "\n")


def read_tum(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads a TUM trajectory.

    Returns:
      (T,) seconds and (T, 4, 4) float64 `world_from_cam`.

    Raises:
      InputError: no such file, or a line that is not eight numbers with a valid quaternion.
    """
    try:
        lines = pathlib.Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the trajectory {os.fspath(path)}: {error}.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) != 8 or not np.isfinite(row).all() or not np.any(row[4:]):
            raise InputError(f"{os.fspath(path)}, line {number}: expected 'timestamp tx ty tz qx qy qz qw'.")
        rows.append(row)
    table = np.array(rows, np.float64).reshape(-1, 8)
    world_from_cam = np.tile(np.eye(4), (len(table), 1, 1))
    if len(table):
        world_from_cam[:, :3, :3] = Rotation.from_quat(table[:, 4:]).as_matrix()
        world_from_cam[:, :3, 3] = table[:, 1:4]
    return table[:, 0], world_from_cam


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
