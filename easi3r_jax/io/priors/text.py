"""Cameras in text files: one line per frame, `#` starts a comment."""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.core.arrays import Float
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.priors.files import lines_of_numbers, read_text

# The first line of a result's intrinsics, which are in pixels of the frames.
_RESULT_HEADER = "# fx skew cx 0 fy cy 0 0 1 (pixels; integer coordinates at pixel centres)"

# Largest deviation of a quaternion's length from 1. They are written with few digits: three give an error of 0.001.
_MAX_LENGTH_ERROR = 0.01


def read_intrinsics(path: pathlib.Path) -> tuple[Float[np.ndarray, "N 3 3"], list[str], bool]:
    """Reads lines of `fx fy cx cy` or of nine numbers (a matrix row by row), or a single matrix on three lines.

    A line `-` or `nan` is a frame with unknown intrinsics.

    Returns:
      (N, 3, 3), NaN where unknown; a name of each for messages; and whether the file is a result's `intrinsics.txt`.

    Raises:
      InputError: the file does not exist, or a line is malformed.
    """
    text = read_text(path)
    lines = list(lines_of_numbers(text, path))
    if not lines:
        raise InputError(f"{path} has no numbers: write fx fy cx cy, in pixels of the original video.")
    if [len(values) for _, values in lines] == [3, 3, 3]:
        return np.array([[values for _, values in lines]]), [str(path)], False
    matrices = np.full((len(lines), 3, 3), np.nan)
    for matrix, (label, values) in zip(matrices, lines, strict=True):
        if np.isnan(values).all():
            continue
        if len(values) == 4:
            matrix[:] = [[values[0], 0, values[2]], [0, values[1], values[3]], [0, 0, 1]]
        elif len(values) == 9:
            matrix[:] = np.reshape(values, (3, 3))
        else:
            raise InputError(f"{label} has {len(values)} numbers: fx fy cx cy, or a 3x3 matrix, are needed.")
    return matrices, [label for label, _ in lines], _RESULT_HEADER in text


def read_trajectory(path: pathlib.Path) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N 4 4"], list[str]]:
    """Reads a TUM trajectory, lines of `timestamp tx ty tz qx qy qz qw`: camera to world, quaternions scalar last.

    A pose whose seven numbers are all NaN is unknown.

    Returns:
      (N,) stamps; (N, 4, 4) poses, NaN where unknown; and a name of each for messages.

    Raises:
      InputError: the file does not exist, a line is malformed, or a quaternion is not a rotation.
    """
    from scipy.spatial.transform import Rotation

    lines = list(lines_of_numbers(read_text(path), path))
    if not lines:
        raise InputError(f"{path} has no poses: write lines of 'timestamp tx ty tz qx qy qz qw'.")
    for label, values in lines:
        if len(values) != 8 or not np.isfinite(values[0]):
            raise InputError(f"{label} is not a pose: 'timestamp tx ty tz qx qy qz qw' is needed.")
    table = np.array([values for _, values in lines])
    labels = [label for label, _ in lines]
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
