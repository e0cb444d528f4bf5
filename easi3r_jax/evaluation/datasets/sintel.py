"""MPI Sintel (Butler et al., ECCV 2012; depth and cameras: Wulff et al. 2015), final pass: poses and depth.

    http://sintel.is.tue.mpg.de/depth

    ROOT/[training/]
      final/alley_2/frame_0001.png
      camdata_left/alley_2/frame_0001.cam
      depth/alley_2/frame_0001.dpt

All frames of the 23 training sequences: depth for all, poses for the 14 in which the camera moves enough (MonST3R,
sec. 4, after LEAP-VO and ParticleSfM). Both file formats are little endian and start with float32 202021.25. A .dpt
file continues with int32 width, int32 height and float32 z row by row; a .cam file with the 3x3 intrinsics and the 3x4
camera from world, as float64.
"""

from __future__ import annotations

import os
import pathlib
import struct

import numpy as np

from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Truth
from easi3r_jax.io import files

_TAG = 202021.25
_FRAME = "frame_{:04d}"

SEQUENCES = (
    *("alley_1", "alley_2", "ambush_2", "ambush_4", "ambush_5", "ambush_6", "ambush_7", "bamboo_1", "bamboo_2"),
    *("bandage_1", "bandage_2", "cave_2", "cave_4", "market_2", "market_5", "market_6", "mountain_1", "shaman_2"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
#: Sequences whose camera neither stands still nor moves on a straight line.
WITH_POSES = frozenset(SEQUENCES) - {
    *("alley_1", "ambush_2", "ambush_7", "bamboo_1", "bamboo_2", "bandage_1", "bandage_2", "mountain_1", "shaman_2"),
}


def read(root: pathlib.Path) -> list[TestSequence]:
    """The 23 sequences; 14 of them have a trajectory."""
    base = common.below(root, "final")
    return [] if base is None else [_sequence(base, f.name) for f in common.protocol_folders(base / "final", SEQUENCES)]


def _sequence(base: pathlib.Path, name: str) -> TestSequence:
    frames, cameras, depths = (base / folder / name for folder in ("final", "camdata_left", "depth"))
    num_frames = files.numbered_frames(frames, _FRAME + ".png", 1)
    for folder, suffix, what in ((cameras, ".cam", "cameras"), (depths, ".dpt", "depth maps")):
        files.require_frames(common.require_folder(folder, what), _FRAME + suffix, num_frames, 1)
    images = tuple(frames / f"{_FRAME.format(number)}.png" for number in range(1, num_frames + 1))
    camera_files = [cameras / f"{image.stem}.cam" for image in images]
    found = [_read_camera(path) for path in camera_files]
    times = np.arange(num_frames, dtype=np.float64)
    labels = [str(path) for path in camera_files]
    cam_from_world = common.make_trajectory(times, np.stack([extrinsics for _, extrinsics in found]), labels)
    trajectory = common.Trajectory(times, np.linalg.inv(cam_from_world.world_from_cam))

    def depth(frame: int) -> np.ndarray:
        path = depths / f"{images[frame].stem}.dpt"
        return common.as_depth(_read_depth(path), images[frame], path)

    return TestSequence(
        name=name,
        images=images,
        times=times,
        truth=Truth(
            depth=depth,
            intrinsics=common.make_intrinsics(np.stack([intrinsics for intrinsics, _ in found]), labels),
            trajectory=trajectory if name in WITH_POSES else None,
        ),
        num_source_frames=num_frames,
    )


def _read_camera(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) intrinsics and (4, 4) camera from world of a .cam file."""
    with files.reported(path):
        data = path.read_bytes()
        if len(data) != 4 + 8 * (9 + 12) or struct.unpack_from("<f", data)[0] != _TAG:
            raise ValueError("it is not a .cam file of Sintel")
    numbers = np.frombuffer(data, "<f8", offset=4)
    extrinsics = np.eye(4)
    extrinsics[:3] = numbers[9:].reshape(3, 4)
    return numbers[:9].reshape(3, 3).copy(), extrinsics


def _read_depth(path: pathlib.Path) -> np.ndarray:
    """(h, w) float32 of a .dpt file."""
    with files.reported(path), path.open("rb") as file:
        header = file.read(12)
        if len(header) < 12 or struct.unpack_from("<f", header)[0] != _TAG:
            raise ValueError("it is not a .dpt file of Sintel")
        width, height = struct.unpack_from("<ii", header, 4)
        length = os.fstat(file.fileno()).st_size
        if min(width, height) < 1 or length != 12 + 4 * width * height:
            raise ValueError(f"it has {length} bytes, which does not fit {width} x {height} pixels")
        return np.frombuffer(file.read(), "<f4").reshape(height, width)
