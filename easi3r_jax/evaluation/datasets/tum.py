"""TUM RGB-D (Sturm et al., IROS 2012), the eight sequences with moving people, "TUM-dynamics": poses.

    https://cvg.cit.tum.de/data/datasets/rgbd-dataset

    ROOT/rgbd_dataset_freiburg3_walking_xyz/
      rgb/1341846313.553992.png, rgb.txt            as published
      groundtruth.txt                               timestamp tx ty tz qx qy qz qw, camera to world
    or
      rgb_90/*.png, groundtruth_90.txt              as prepared for MonST3R: one pose per frame

Every third frame, at most 90 (MonST3R, sec. 4). The root may also be the folder of one of the sequences.
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Truth
from easi3r_jax.evaluation.datasets.stamped import stamped_images

STRIDE, LIMIT = 3, 90
SEQUENCES = tuple(
    f"rgbd_dataset_freiburg3_{what}_{how}"
    for what in ("sitting", "walking")
    for how in ("halfsphere", "rpy", "static", "xyz")
)


def read(root: pathlib.Path) -> list[TestSequence]:
    """The eight sequences, or the one whose folder is given."""
    return [_sequence(folder) for folder in common.recordings(root, SEQUENCES)]


def _sequence(folder: pathlib.Path) -> TestSequence:
    if (folder / f"rgb_{LIMIT}").is_dir():
        return prepared_sequence(folder, folder / f"rgb_{LIMIT}", folder / f"groundtruth_{LIMIT}.txt")
    stamps, images = stamped_images(folder, "rgb")
    path = folder / "groundtruth.txt"
    trajectory = common.read_tum(path)
    times = stamps[::STRIDE][:LIMIT]
    common.require_poses(trajectory, times, path)
    return TestSequence(
        name=folder.name,
        images=tuple(common.chosen(images, stride=STRIDE, limit=LIMIT)),
        times=times,
        truth=Truth(trajectory=trajectory),
        num_source_frames=len(images),
    )


def prepared_sequence(folder: pathlib.Path, images: pathlib.Path, poses: pathlib.Path) -> TestSequence:
    """A sequence whose frames were selected beforehand, with one pose per frame, in order.

    Args:
      folder: of the sequence.
      images: folder of the frames.
      poses: trajectory in TUM's format.
    """
    frames, trajectory = common.frames_in(images), common.read_tum(poses)
    common.require_same_number(images, len(frames), poses, len(trajectory.times))
    return TestSequence(
        name=folder.name,
        images=tuple(frames),
        times=np.array(trajectory.times),
        truth=Truth(trajectory=trajectory),
        num_source_frames=len(frames),
    )
