"""Cameras in text files: one line per frame, `#` starts a comment."""

from __future__ import annotations

import itertools
import pathlib
import re

import absl.logging
import numpy as np

from easi3r_jax.core.arrays import Float
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.priors.files import lines_of_numbers, read_text

# The first line of a result's intrinsics, which are in pixels of the frames.
_RESULT_HEADER = "# fx skew cx 0 fy cy 0 0 1 (pixels; integer coordinates at pixel centres)"

#: Orders of a quaternion's numbers.
QUATERNIONS = ("auto", "xyzw", "wxyz")
# Lines that make a part of a file a trajectory of its own; files whose lines are shuffled have shorter runs.
_MIN_PART = 8

# Largest deviation of a quaternion's length from 1. They are written with few digits: three give an error of 0.001.
_MAX_LENGTH_ERROR = 0.01


def read_intrinsics(path: pathlib.Path) -> tuple[Float[np.ndarray, "N 3 3"], list[str], bool]:
    """Reads lines of `fx fy cx cy` or of a matrix row by row, or a single matrix on three or four lines.

    Matrices have 3x3 numbers, or 3x4 or 4x4 as ScanNet's, whose other numbers are those of the identity. A line `-` or
    `nan` is a frame with unknown intrinsics.

    Returns:
      (N, 3, 3), NaN where unknown; a name of each for messages; and whether the file is a result's `intrinsics.txt`.

    Raises:
      InputError: the file does not exist, or a line is malformed.
    """
    text = read_text(path)
    lines = list(lines_of_numbers(text, path))
    if not lines:
        raise InputError(f"{path} has no numbers: write fx fy cx cy, in pixels of the original video.")
    if (shape := [len(values) for _, values in lines]) in ([3, 3, 3], [4, 4, 4], [4, 4, 4, 4]):
        matrix = np.array([values for _, values in lines])
        if shape == [3, 3, 3] or (matrix[2] == (0, 0, 1, 0)).all():
            return _upper_left(matrix, str(path))[None], [str(path)], False
    matrices = np.full((len(lines), 3, 3), np.nan)
    for matrix, (label, values) in zip(matrices, lines, strict=True):
        if np.isnan(values).all():
            continue
        if len(values) == 4:
            matrix[:] = [[values[0], 0, values[2]], [0, values[1], values[3]], [0, 0, 1]]
        elif len(values) in (9, 12, 16):
            matrix[:] = _upper_left(np.reshape(values, (-1, 3 if len(values) == 9 else 4)), label)
        else:
            raise InputError(f"{label} has {len(values)} numbers: fx fy cx cy, or a 3x3 matrix, are needed.")
    return matrices, [label for label, _ in lines], _RESULT_HEADER in text


def _upper_left(matrix: np.ndarray, label: str) -> np.ndarray:
    """(3, 3) of a matrix of 3x3, 3x4 or 4x4."""
    expected = np.eye(4)[: len(matrix)]
    if matrix.shape[1] == 4 and not ((matrix[:, 3] == expected[:, 3]).all() and (matrix[3:] == expected[3:]).all()):
        raise InputError(f"{label}: not a camera matrix: its fourth column or row is not that of the identity.")
    return matrix[:3, :3]


def read_trajectory(
    path: pathlib.Path, quaternion: str = "auto"
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N 4 4"], list[str]]:
    """Reads a TUM trajectory, lines of `timestamp tx ty tz qx qy qz qw`: camera to world.

    Numbers after the eighth are ignored, with a warning. A pose whose seven numbers are all NaN is unknown.

    Args:
      path: the file.
      quaternion: order of the quaternions, "xyzw" or "wxyz". With "auto" it is "wxyz" in files named as the released
        programs name theirs, pred_traj.txt, with a warning, and in files whose header names w before x; else "xyzw".

    Returns:
      (N,) stamps; (N, 4, 4) poses, NaN where unknown; and a name of each for messages.

    Raises:
      InputError: the file does not exist, a line is malformed, a quaternion is not a rotation, or the file has several
        trajectories one after the other.
    """
    from scipy.spatial.transform import Rotation

    if quaternion not in QUATERNIONS:
        raise InputError(f"The order of quaternions {quaternion!r} is unknown: choose one of {', '.join(QUATERNIONS)}.")
    text = read_text(path)
    lines = list(lines_of_numbers(text, path))
    if not lines:
        raise InputError(f"{path} has no poses: write lines of 'timestamp tx ty tz qx qy qz qw'.")
    count = len(lines[0][1])
    for label, values in lines:
        if len(values) in (12, 16):
            raise InputError(f"{label} is a matrix, not a pose: give matrices as world_from_cam in an .npz file.")
        if len(values) < 8 or len(values) != count or not np.isfinite(values[0]):
            raise InputError(f"{label} is not a pose: 'timestamp tx ty tz qx qy qz qw' is needed.")
    if count > 8:
        absl.logging.warning("%s: the numbers after the eighth of each line are ignored.", path)
    table = np.array([values[:8] for _, values in lines])
    labels = [label for label, _ in lines]
    _require_one_trajectory(table[:, 0], labels)
    if _is_scalar_first(path, text, quaternion):
        table = table[:, [0, 1, 2, 3, 5, 6, 7, 4]]
    with np.errstate(over="ignore"):
        length = np.linalg.norm(table[:, 4:], axis=1)
    unknown = np.isnan(table[:, 1:]).all(axis=1)
    for entry in np.flatnonzero(~unknown & ~(abs(length - 1) <= _MAX_LENGTH_ERROR)):
        raise InputError(
            f"{labels[entry]}: not a rotation, the quaternion (qx qy qz qw) has length {length[entry]:.3g}."
        )
    poses = np.tile(np.eye(4), (len(lines), 1, 1))
    poses[~unknown, :3, :3] = Rotation.from_quat(table[~unknown, 4:]).as_matrix()
    poses[:, :3, 3] = table[:, 1:4]
    poses[unknown] = np.nan
    return table[:, 0], poses, labels


def _is_scalar_first(path: pathlib.Path, text: str, quaternion: str) -> bool:
    if quaternion != "auto":
        return quaternion == "wxyz"
    header = next((line for line in text.splitlines() if line.strip()), "").lower()
    found = [re.search(rf"\bq[a-z_]*{axis}\b", header) for axis in "wx"]
    if found[0] and found[1]:
        return found[0].start() < found[1].start()
    is_released = path.stem.lower().startswith("pred_traj")
    if is_released:
        absl.logging.warning("%s: quaternions are read as qw qx qy qz, as the released programs write them.", path)
    return is_released


def _require_one_trajectory(stamps: np.ndarray, labels: list[str]) -> None:
    """Raises InputError if stamps rise, and start again within the time before."""
    starts = np.flatnonzero(np.diff(stamps) < 0) + 1
    parts = [part for part in np.split(stamps, starts) if len(part) >= _MIN_PART]
    parts.sort(key=lambda part: part[0])
    if any(after[0] <= before[-1] for before, after in itertools.pairwise(parts)):
        raise InputError(
            f"{labels[starts[0]]}: the time goes back, as where a second trajectory begins: keep one trajectory, its "
            "lines in order of time."
        )
