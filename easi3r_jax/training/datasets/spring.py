"""Spring (Mehl et al., CVPR 2023; https://spring-benchmark.org). Only its training split has ground truth.

    ROOT/train/0001/
      frame_left/frame_left_0001.png
      disp1_left/disp1_left_0001.dsp5        HDF5, "disparity" (2H, 2W), in pixels of the image
      cam_data/intrinsics.txt                fx fy cx cy per line
      cam_data/extrinsics.txt                16 numbers per line: camera from world, row by row, OpenCV axes

depth = fx * 0.065 m / disparity. Every second row and column of the disparities is used, as in the data set's own
tools: they lie a quarter of a pixel left of and above the pixels' centres.
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.io import files
from easi3r_jax.training.datasets.sequence import Sequence, rigid_inverse, without_sky

_IMAGE, _DISPARITY = "frame_left_{:04d}.png", "disp1_left_{:04d}.dsp5"
_BASELINE_METRES = 0.065


def sequences(root: pathlib.Path) -> list[Sequence]:
    """All training sequences below a folder, see `READERS`."""
    train = root / "train"
    return [_sequence(folder) for folder in files.folders_with(train if train.is_dir() else root, "frame_left", 1)]


def _sequence(folder: pathlib.Path) -> Sequence:
    num_frames = files.numbered_frames(folder / "frame_left", _IMAGE, 1)
    files.require_frames(folder / "disp1_left", _DISPARITY, num_frames, 1)
    cameras = folder / "cam_data"
    focal_and_centre = files.read_table(cameras / "intrinsics.txt", 4)
    files.require_length(cameras / "intrinsics.txt", len(focal_and_centre), num_frames)
    cam_from_world = files.read_table(cameras / "extrinsics.txt", 16).reshape(-1, 4, 4)
    files.require_length(cameras / "extrinsics.txt", len(cam_from_world), num_frames)
    world_from_cam = rigid_inverse(cam_from_world)

    def intrinsics(frame: int) -> np.ndarray:
        fx, fy, cx, cy = focal_and_centre[frame]
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    def depth(frame: int, shape: tuple[int, int]) -> np.ndarray:
        disparity = _disparity(folder / "disp1_left" / _DISPARITY.format(frame + 1), shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            return without_sky(focal_and_centre[frame, 0] * _BASELINE_METRES / disparity)

    return Sequence(
        name=str(folder),
        num_frames=num_frames,
        image_path=lambda frame: folder / "frame_left" / _IMAGE.format(frame + 1),
        read_depth=depth,
        read_camera=lambda frame: (intrinsics(frame), world_from_cam[frame]),
    )


def _disparity(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float64."""
    with files.open_hdf5(path, "disparity") as data:
        if data.shape != (2 * shape[0], 2 * shape[1]) or data.dtype.kind != "f":
            raise ValueError(
                f"disparities have shape {data.shape}; floating-point numbers of twice the image's {shape} are needed"
            )
        # HDF5 would read every second element one by one. NumPy does not.
        return data[()][::2, ::2].astype(np.float64)
