"""TartanAir (Wang et al., IROS 2020; https://theairlab.org/tartanair-dataset).

    ROOT/SCENE/[SCENE/]{Easy,Hard}/P000/
      image_left/000000_left.png             640 x 480, focal length 320, principal point (320, 240)
      depth_left/000000_left_depth.npy       float32 metres, about 10 000 for sky
      pose_left.txt                          tx ty tz qx qy qz qw per line: world from camera, NED axes

NED axes are x forward, y right, z down. The world stays TartanAir's; only the camera's axes are converted.
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.io import files
from easi3r_jax.training.datasets.sequence import Sequence, without_sky

_IMAGE, _DEPTH = "{:06d}_left.png", "{:06d}_left_depth.npy"
_HEIGHT, _WIDTH = 480, 640
_INTRINSICS = np.array([[320.0, 0, 320], [0, 320, 240], [0, 0, 1]])
# Forward (x) is OpenCV's z, right (y) its x, down (z) its y.
_NED_FROM_CAM = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def sequences(root: pathlib.Path) -> list[Sequence]:
    """All trajectories below a folder, see `READERS`."""
    return [_sequence(folder) for folder in files.folders_with(root, "image_left", 4)]


def _sequence(folder: pathlib.Path) -> Sequence:
    num_frames = files.numbered_frames(folder / "image_left", _IMAGE)
    files.require_frames(folder / "depth_left", _DEPTH, num_frames)
    poses = files.read_table(folder / "pose_left.txt", 7)
    files.require_length(folder / "pose_left.txt", len(poses), num_frames)
    world_from_cam = _matrices(poses) @ _NED_FROM_CAM
    return Sequence(
        name=str(folder),
        num_frames=num_frames,
        image_path=lambda frame: folder / "image_left" / _IMAGE.format(frame),
        read_depth=lambda frame, shape: _depth(folder / "depth_left" / _DEPTH.format(frame), shape),
        read_camera=lambda frame: (_INTRINSICS, world_from_cam[frame]),
    )


def _matrices(poses: np.ndarray) -> np.ndarray:
    """(T, 7) tx ty tz qx qy qz qw -> (T, 4, 4); NaN where a value is not finite or the quaternion is 0."""
    from scipy.spatial.transform import Rotation

    matrices = np.full((len(poses), 4, 4), np.nan)
    matrices[:, 3] = 0, 0, 0, 1
    valid = np.isfinite(poses).all(1) & (abs(poses[:, 3:]) > 1e-6).any(1)
    matrices[valid, :3, :3] = Rotation.from_quat(poses[valid, 3:]).as_matrix()
    matrices[valid, :3, 3] = poses[valid, :3]
    return matrices


def _depth(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
    if shape != (_HEIGHT, _WIDTH):
        raise InputError(f"The image of {path} has shape {shape}; TartanAir's images have {(_HEIGHT, _WIDTH)}.")
    return without_sky(files.read_npy(path, shape))
