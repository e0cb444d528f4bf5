"""Waymo Open Dataset (Sun et al., CVPR 2020; https://waymo.com/open), unpacked into one file per camera and time.

    ROOT/SEGMENT.tfrecord/
      00000_1.jpg      time, camera (1 to 5)
      00000_1.exr      depth of the lidar's points in metres, 0 elsewhere; one channel
      00000_1.npz      intrinsics (3, 3), cam2world (4, 4): world from camera, OpenCV axes

One camera of one segment is a sequence; its frames are sorted by time.
"""

from __future__ import annotations

import collections
import pathlib
import re

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.io import files
from easi3r_jax.training.datasets.exr import read_exr
from easi3r_jax.training.datasets.sequence import Sequence

_IMAGE = re.compile(r"(\d+_([1-5]))\.jpg", re.ASCII)


def sequences(root: pathlib.Path) -> list[Sequence]:
    """Every camera of every segment in a folder, or of the folder itself if it is a segment; see `READERS`."""
    found = _segment(root)
    for name in files.names_in(root):
        if (root / name).is_dir():
            found += _segment(root / name)
    return found


def _segment(folder: pathlib.Path) -> list[Sequence]:
    names = files.names_in(folder)
    there = set(names)
    stems_by_camera: dict[str, list[str]] = collections.defaultdict(list)
    for match in filter(None, map(_IMAGE.fullmatch, names)):
        stems_by_camera[match[2]].append(match[1])
        for suffix in (".exr", ".npz"):
            if match[1] + suffix not in there:
                raise InputError(f"{folder / match[1]}{suffix} is missing: restore it, or remove the segment.")
    return [_camera(folder, camera, tuple(stems)) for camera, stems in sorted(stems_by_camera.items())]


def _camera(folder: pathlib.Path, camera: str, stems: tuple[str, ...]) -> Sequence:
    def cameras(frame: int) -> tuple[np.ndarray, np.ndarray]:
        path = folder / f"{stems[frame]}.npz"
        intrinsics = files.read_npz(path, "intrinsics", (3, 3)).astype(np.float64)
        return intrinsics, files.read_npz(path, "cam2world", (4, 4)).astype(np.float64)

    return Sequence(
        name=f"{folder} (camera {camera})",
        num_frames=len(stems),
        image_path=lambda frame: folder / f"{stems[frame]}.jpg",
        read_depth=lambda frame, shape: read_exr(folder / f"{stems[frame]}.exr", shape),
        read_camera=cameras,
        together=str(folder),
    )
