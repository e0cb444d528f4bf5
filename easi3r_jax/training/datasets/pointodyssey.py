"""PointOdyssey (Zheng et al., ICCV 2023; https://pointodyssey.com).

    ROOT/train/SEQUENCE/
      rgbs/rgb_00000.jpg
      depths/depth_00000.png    16 bit, depth = value / 65535 * 1000 m
      anno.npz (or annot.npz)   intrinsics (T, 3, 3), extrinsics (T, 4, 4): camera from world, OpenCV axes

If ROOT has several splits, only `train` is read; pass ROOT/val to read another.
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.io import files
from easi3r_jax.training.datasets.sequence import Sequence, rigid_inverse, without_sky

_IMAGE, _DEPTH = "rgb_{:05d}.jpg", "depth_{:05d}.png"


def sequences(root: pathlib.Path) -> list[Sequence]:
    """All sequences below a folder, see `READERS`."""
    train = root / "train"
    return [_sequence(folder) for folder in files.folders_with(train if train.is_dir() else root, "rgbs", 2)]


def _sequence(folder: pathlib.Path) -> Sequence:
    num_frames = files.numbered_frames(folder / "rgbs", _IMAGE)
    files.require_frames(folder / "depths", _DEPTH, num_frames)
    annotations = folder / "annot.npz" if (folder / "annot.npz").is_file() else folder / "anno.npz"
    intrinsics = files.read_npz(annotations, "intrinsics", (num_frames, 3, 3)).astype(np.float64)
    cam_from_world = files.read_npz(annotations, "extrinsics", (num_frames, 4, 4)).astype(np.float64)
    world_from_cam = rigid_inverse(cam_from_world)
    return Sequence(
        name=str(folder),
        num_frames=num_frames,
        image_path=lambda frame: folder / "rgbs" / _IMAGE.format(frame),
        read_depth=lambda frame, shape: _depth(folder / "depths" / _DEPTH.format(frame)),
        read_camera=lambda frame: (intrinsics[frame], world_from_cam[frame]),
    )


def _depth(path: pathlib.Path) -> np.ndarray:
    """(H, W) float64 metres; unknown where the value is 0 or the maximum of the range."""
    return without_sky(files.read_gray16(path) / 65535 * 1000)
