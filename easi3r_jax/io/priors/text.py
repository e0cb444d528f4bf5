"""Cameras in text files: one line for each frame, `#` for comments."""

from __future__ import annotations

import pathlib

import numpy as np
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.priors.files import lines_of_numbers, read_text

# What the project writes above the intrinsics of a result, which are in pixels of the frames.
_RESULT_HEADER = "# fx skew cx 0 fy cy 0 0 1 (pixels; integer coordinates at pixel centres)"

# Quaternions are written with few digits: three make an error of 0.001.
_UNIT_LENGTH = 0.01


def read_intrinsics(path: pathlib.Path) -> tuple[np.ndarray, list[str], bool]:
    """Reads lines of `fx fy cx cy` or of nine numbers, a matrix row by row; or one matrix as three lines of three.

    A line `-` or `nan` is a frame whose intrinsics are unknown.

    Returns:
      (N, 3, 3), NaN where unknown; a name of each in a message; and whether the file is a result's `intrinsics.txt`.

    Raises:
      InputError: no such file, or a line of another kind.
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
            raise InputError(f"{label} has {len(values)} numbers: fx fy cx cy, or 9 of a 3x3 matrix, are needed.")
    return matrices, [label for label, _ in lines], _RESULT_HEADER in text


def read_trajectory(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads a TUM trajectory, lines of `timestamp tx ty tz qx qy qz qw`: camera to world, the quaternion's scalar last.

    Where the seven numbers after the stamp are NaN the pose is unknown.

    Returns:
      (N,) stamps, (N, 4, 4) poses, NaN where unknown, and a name of each in a message.

    Raises:
      InputError: no such file, a line of another kind, or a quaternion that is no rotation.
    """
    lines = list(lines_of_numbers(read_text(path), path))
    if not lines:
        raise InputError(f"{path} has no poses: write lines of 'timestamp tx ty tz qx qy qz qw'.")
    for label, values in lines:
        if len(values) != 8 or not np.isfinite(values[0]):
            raise InputError(f"{label} is no pose: 'timestamp tx ty tz qx qy qz qw' is needed.")
    table = np.array([values for _, values in lines])
    labels = [label for label, _ in lines]
    with np.errstate(over="ignore"):
        length = np.linalg.norm(table[:, 4:], axis=1)
    unknown = np.isnan(table[:, 1:]).all(axis=1)
    for entry in np.flatnonzero(~unknown & ~(abs(length - 1) <= _UNIT_LENGTH)):
        raise InputError(
            f"{labels[entry]}: not a rotation, the quaternion (qx qy qz qw) has length {length[entry]:.3g}."
        )
    poses = np.tile(np.eye(4), (len(lines), 1, 1))
    poses[~unknown, :3, :3] = Rotation.from_quat(table[~unknown, 4:]).as_matrix()
    poses[:, :3, 3] = table[:, 1:4]
    poses[unknown] = np.nan
    return table[:, 0], poses, labels
