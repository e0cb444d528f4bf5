"""ScanNet (Dai et al., CVPR 2017; http://www.scan-net.org): poses. Static rooms.

    ROOT/[FOLDER/]scene0707_00/
      color/0.jpg, pose/0.txt                       as its own tool exports a scan: 4x4 camera to world, -inf if lost
    or
      color_90/frame_0000.jpg, pose_90.txt          as prepared for MonST3R: 16 numbers per line, one pose per frame

Every third frame, at most 90, of all scenes found (MonST3R, sec. 4).
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Trajectory, Truth
from easi3r_jax.evaluation.datasets.tum import prepared_sequence
from easi3r_jax.io import files

STRIDE, LIMIT = 3, 90


def read(root: pathlib.Path) -> list[TestSequence]:
    """All scenes in a folder, or the folder itself as the only one."""
    prepared = files.folders_with(root, f"color_{LIMIT}", 2)
    names = {folder.name for folder in prepared}
    original = [folder for folder in files.folders_with(root, "color", 2) if folder.name not in names]
    return [_prepared(folder) for folder in prepared] + [_original(folder) for folder in original]


def _prepared(folder: pathlib.Path) -> TestSequence:
    images, poses = folder / f"color_{LIMIT}", folder / f"pose_{LIMIT}.txt"
    table = files.read_table(poses, 16, 8)
    if table.shape[1] == 8:
        return prepared_sequence(folder, images, poses)
    frames = common.frames_in(images)
    common.require_same_number(images, len(frames), poses, len(table))
    labels = [f"{poses}, pose {entry} (from 0)" for entry in range(len(table))]
    times = np.arange(len(frames), dtype=np.float64)
    trajectory = _without_lost(times, table.reshape(-1, 4, 4), labels, poses)
    return TestSequence(folder.name, tuple(frames), times, Truth(trajectory=trajectory), len(frames))


def _original(folder: pathlib.Path) -> TestSequence:
    images = common.frames_in(folder / "color")
    poses = common.named_like(images, folder / "pose", ".txt", "poses")
    numbers = common.chosen(range(len(images)), stride=STRIDE, limit=LIMIT)
    tables = [files.read_table(poses[number], 4) for number in numbers]
    for number, table in zip(numbers, tables, strict=True):
        files.require_length(poses[number], len(table), 4)
    times, labels = np.array(numbers, np.float64), [str(poses[number]) for number in numbers]
    trajectory = _without_lost(times, np.stack(tables), labels, folder / "pose")
    frames = tuple(images[number] for number in numbers)
    return TestSequence(folder.name, frames, times, Truth(trajectory=trajectory), len(images))


def _without_lost(times: np.ndarray, poses: np.ndarray, labels: list[str], path: pathlib.Path) -> Trajectory:
    """The poses without those that the data set marks as lost, by infinities."""
    known = np.flatnonzero(~np.isinf(poses).any(axis=(1, 2)))
    trajectory = common.make_trajectory(times[known], poses[known], [labels[entry] for entry in known])
    common.require_poses(trajectory, times, path)
    return trajectory
