"""Bonn RGB-D Dynamic (Palazzolo et al., IROS 2019; https://www.ipb.uni-bonn.de/data/rgbd-dynamic-dataset): depth.

    ROOT/[FOLDER/]rgbd_bonn_balloon2/
      rgb/1548266486.08.png, rgb.txt, depth/, depth.txt       as published
    or
      rgb_110/, depth_110/                                    as prepared for MonST3R: frames and depth in order

Depth is 16 bit, 5000 units per metre, 0 unknown. Frames 30 to 139 of five sequences (DepthCrafter, arXiv 2409.02095,
and MonST3R, sec. 4). The root may also be the folder of one of them.
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Truth
from easi3r_jax.evaluation.datasets.stamped import stamped_images, stamps_of
from easi3r_jax.io import files

START, LIMIT = 30, 110
SEQUENCES = tuple(f"rgbd_bonn_{name}" for name in ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous"))
_UNITS_PER_METRE = 5000
# Largest time in seconds between a frame and its depth map: one frame.
_MAX_TIME_DIFFERENCE = 1 / 30


def read(root: pathlib.Path) -> list[TestSequence]:
    """The five sequences, or the one whose folder is given."""
    return [_sequence(folder) for folder in common.recordings(root, SEQUENCES)]


def _sequence(folder: pathlib.Path) -> TestSequence:
    if (folder / f"rgb_{LIMIT}").is_dir():
        images, depths = (common.frames_in(folder / f"{kind}_{LIMIT}") for kind in ("rgb", "depth"))
        common.require_same_number(folder / f"rgb_{LIMIT}", len(images), folder / f"depth_{LIMIT}", len(depths))
        stamps, num_source_frames = stamps_of(images), len(images)
        times = np.arange(len(images), dtype=np.float64) if stamps is None else stamps
    else:
        stamps, source = stamped_images(folder, "rgb")
        times, images = stamps[START:][:LIMIT], common.chosen(source, start=START, limit=LIMIT)
        num_source_frames = len(source)
        if not images:
            raise InputError(f"{folder} has {len(source)} frames, but more than {START} are needed: download it again.")
        depths = _nearest(folder, times, images)

    def depth(frame: int) -> np.ndarray:
        return common.as_depth(files.read_gray16(depths[frame]) / _UNITS_PER_METRE, images[frame], depths[frame])

    return TestSequence(folder.name, tuple(images), times, Truth(depth=depth), num_source_frames)


def _nearest(folder: pathlib.Path, times: np.ndarray, images: list[pathlib.Path]) -> list[pathlib.Path]:
    """The depth map nearest in time to each frame."""
    stamps, paths = stamped_images(folder, "depth")
    nearest = np.abs(times[:, None] - stamps).argmin(axis=1)
    for frame in np.flatnonzero(np.abs(times - stamps[nearest]) > _MAX_TIME_DIFFERENCE):
        raise InputError(
            f"{folder / 'depth'} has no depth map at the time of {images[frame].name}: download the sequence again."
        )
    return [paths[entry] for entry in nearest]
