"""Aria Digital Twin (Pan et al., ICCV 2023; https://www.projectaria.com/datasets/adt): poses.

The published images are fisheye images in VRS files. They must first be extracted and rectified (with
projectaria_tools). Then

    ROOT/SEQUENCE/
      rgb/*.png (or images/)          ordered by name
      groundtruth.txt                 timestamp tx ty tz qx qy qz qw, camera to world; one line per frame, or matched
                                      by time: then frames are named by their time in seconds
    or
      rgb/87551170910300.png          named by the device's time in nanoseconds
      aria_trajectory.csv             as published: the path of the *device*
      device_from_camera.txt          4x4, the camera's pose on the device, from its calibration

All frames of all sequences found.
"""

from __future__ import annotations

import csv
import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Trajectory, Truth
from easi3r_jax.evaluation.datasets.stamped import stamps_of
from easi3r_jax.io import files
from easi3r_jax.io.priors.files import read_text
from easi3r_jax.io.priors.rigid import rigid_poses

_IMAGES = ("rgb", "images")
_POSE = tuple(f"{axis}_world_device" for axis in ("tx", "ty", "tz", "qx", "qy", "qz", "qw"))
_TIME = "tracking_timestamp_us"


def read(root: pathlib.Path) -> list[TestSequence]:
    """All sequences in a folder, or the folder itself as the only one."""
    found = {folder: folder / name for name in reversed(_IMAGES) for folder in files.folders_with(root, name, 1)}
    return [_sequence(folder, images) for folder, images in found.items()]


def _sequence(folder: pathlib.Path, images: pathlib.Path) -> TestSequence:
    frames = common.frames_in(images)
    camera, device = folder / "groundtruth.txt", folder / "aria_trajectory.csv"
    if camera.is_file():
        path, trajectory, seconds = camera, common.read_tum(camera), 1.0
    elif device.is_file():
        path, trajectory, seconds = device, _of_camera(device, folder / "device_from_camera.txt"), 1e-9
    else:
        raise InputError(
            f"There is neither {camera.name} nor {device.name} in {folder}: add one, or remove the sequence."
        )
    stamps = stamps_of(frames)
    if path == camera and len(trajectory.times) == len(frames):
        times = np.array(trajectory.times)
    elif stamps is None:
        raise InputError(
            f"{path} has {len(trajectory.times)} poses for {len(frames)} frames in {images}, whose names are not "
            "increasing time stamps: give one pose per frame, or name the frames by their time."
        )
    else:
        times = stamps * seconds
        common.require_poses(trajectory, times, path)
    return TestSequence(folder.name, tuple(frames), times, Truth(trajectory=trajectory), len(frames))


def _of_camera(path: pathlib.Path, calibration: pathlib.Path) -> Trajectory:
    """The camera's path, from the device's; times in seconds of the device."""
    from scipy.spatial.transform import Rotation

    device_from_camera = files.read_table(calibration, 4)
    files.require_length(calibration, len(device_from_camera), 4)
    device_from_camera = rigid_poses(device_from_camera[None], [str(calibration)])[0]
    rows = csv.DictReader(read_text(path).splitlines())
    missing = [name for name in (_TIME, *_POSE) if name not in (rows.fieldnames or ())]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}: it is not an Aria Digital Twin trajectory. Restore it.")
    try:
        table = np.array([[float(row[name]) for name in (_TIME, *_POSE)] for row in rows], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Line {rows.line_num} of {path} lacks numbers: download it again.") from error
    if not len(table):
        raise InputError(f"{path} has no poses: download it again.")
    labels = [f"{path}, pose {entry} (from 0)" for entry in range(len(table))]
    world_from_device = np.full((len(table), 4, 4), np.nan)
    valid = np.isfinite(table).all(axis=1) & (np.abs(np.linalg.norm(table[:, 4:], axis=1) - 1) < 0.01)
    world_from_device[valid] = np.eye(4)
    world_from_device[valid, :3, :3] = Rotation.from_quat(table[valid, 4:]).as_matrix()
    world_from_device[valid, :3, 3] = table[valid, 1:4]
    return common.make_trajectory(table[:, 0] * 1e-6, world_from_device @ device_from_camera, labels)
