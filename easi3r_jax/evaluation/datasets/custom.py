"""Custom sequences: clip folders, or plain folders of frames.

    ROOT/NAME/
      frames/             one image per frame, ordered by name
      ground_truth.npz    any of masks (T, h, w), depth (T, h, w), world_from_cam (T, 4, 4),
                          intrinsics (T, 3, 3) or (3, 3)
    or
    ROOT/NAME/*.png       frames without ground truth

ROOT may itself be one of them. A rendered clip's motionless twin, NAME_still, is skipped if NAME exists: means would
mix dynamic and static clips.
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Truth
from easi3r_jax.io import files
from easi3r_jax.io.video.images import SUFFIXES, image_shape

_TWIN_SUFFIX = "_still"
_ARRAYS = ("masks", "depth", "world_from_cam", "intrinsics")


def read(root: pathlib.Path) -> list[TestSequence]:
    """All sequences in a folder, or the folder itself as the only one."""
    below = [folder for folder in common.subfolders(root) if _is_clip(folder) or _has_images(folder)]
    # An image beside clip folders, for example a preview, does not make their folder a sequence.
    is_one = _is_clip(root) or (_has_images(root) and not any(map(_is_clip, below)))
    folders = [root] if is_one else below
    names = {folder.name for folder in folders}
    twins = {folder for folder in folders if folder.name.removesuffix(_TWIN_SUFFIX) in names - {folder.name}}
    return [_sequence(folder) for folder in folders if folder not in twins]


def _is_clip(folder: pathlib.Path) -> bool:
    return (folder / "frames").is_dir()


def _has_images(folder: pathlib.Path) -> bool:
    return any(pathlib.PurePath(name).suffix.lower() in SUFFIXES for name in files.names_in(folder))


def _sequence(folder: pathlib.Path) -> TestSequence:
    is_clip = _is_clip(folder)
    images = tuple(common.frames_in(folder / "frames" if is_clip else folder))
    path = folder / "ground_truth.npz"
    times = np.arange(len(images), dtype=np.float64)
    truth = _truth(path, images, times) if is_clip and path.is_file() else Truth()
    return TestSequence(folder.name, images, times, truth, len(images))


def _truth(path: pathlib.Path, images: tuple[pathlib.Path, ...], times: np.ndarray) -> Truth:
    present = [name for name in _ARRAYS if name in files.npz_names(path)]
    if not present:
        raise InputError(f"{path} holds none of {', '.join(_ARRAYS)}: add one, or remove the file.")
    T = len(images)
    for name in present:
        shape = files.npz_shape(path, name)
        if shape != (3, 3) and shape[:1] != (T,):
            raise InputError(f"{name} in {path} has shape {shape} for {T} frames: correct the array, or remove it.")

    def map_of(name: str, frame: int) -> np.ndarray:
        return files.read_npz_frame(path, name, frame, (T, *image_shape(images[frame])))

    intrinsics, trajectory = None, None
    if "intrinsics" in present:
        read = np.broadcast_to(files.read_npz(path, "intrinsics", (T, 3, 3), (3, 3)), (T, 3, 3))
        intrinsics = common.make_intrinsics(read, [f"{path}, camera {entry} (from 0)" for entry in range(T)])
    if "world_from_cam" in present:
        labels = [f"{path}, pose {entry} (from 0)" for entry in range(T)]
        trajectory = common.make_trajectory(times, files.read_npz(path, "world_from_cam", (T, 4, 4)), labels)
    return Truth(
        masks=(lambda frame: map_of("masks", frame) != 0) if "masks" in present else None,
        depth=(lambda frame: common.as_depth(map_of("depth", frame), images[frame], path))
        if "depth" in present
        else None,
        intrinsics=intrinsics,
        trajectory=trajectory,
    )
