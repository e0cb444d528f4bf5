"""The project's own layout, for the user's data: a folder of clip folders, or one clip folder.

    ROOT/SCENE/
      frames/             one image per frame, sorted by name
      ground_truth.npz    depth (T, H, W) z; unknown where 0 or not finite
                          world_from_cam (T, 4, 4), OpenCV axes
                          intrinsics (T, 3, 3), or (3, 3) for all frames; in pixels of the images
      pairs.txt           optional, lines `i j`: two frames, counted from 0, that form a pair

`experiments.synthesize` writes this layout and `experiments.reconstruct` reads it. Without pairs.txt, pairs are frames
that are close in time.
"""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.io import files
from easi3r_jax.io.video.folders import list_images
from easi3r_jax.training.datasets.sequence import Sequence

#: Suffix of a motionless twin (`experiments.synthesize`): NAME_still shows the same scene as NAME.
STILL = "_still"


def sequences(root: pathlib.Path) -> list[Sequence]:
    """All scenes in a folder, or the folder itself if it is a scene; see `READERS`."""
    return [_sequence(folder) for folder in files.folders_with(root, "frames", 1)]


def _sequence(folder: pathlib.Path) -> Sequence:
    images = tuple(list_images(folder / "frames"))
    num_frames = len(images)
    truth = folder / "ground_truth.npz"
    depth_shape = files.npz_shape(truth, "depth")
    if len(depth_shape) != 3 or depth_shape[0] != num_frames:
        raise InputError(
            f"depth in {truth} has shape {depth_shape}; {num_frames} frames need ({num_frames}, H, W): "
            "add the missing frames, or remove the scene."
        )
    intrinsics = files.read_npz(truth, "intrinsics", (num_frames, 3, 3), (3, 3)).astype(np.float64)
    intrinsics = np.broadcast_to(intrinsics, (num_frames, 3, 3))
    world_from_cam = files.read_npz(truth, "world_from_cam", (num_frames, 4, 4)).astype(np.float64)
    return Sequence(
        name=str(folder),
        num_frames=num_frames,
        image_path=images.__getitem__,
        read_depth=lambda frame, shape: files.read_npz_frame(truth, "depth", frame, (num_frames, *shape)),
        read_camera=lambda frame: (intrinsics[frame], world_from_cam[frame]),
        together=str(folder).removesuffix(STILL),
        pairs=_pairs(folder / "pairs.txt", num_frames) if (folder / "pairs.txt").exists() else None,
    )


def _pairs(path: pathlib.Path, num_frames: int) -> np.ndarray:
    """(P, 2) int."""
    table = files.read_table(path, 2)
    if not len(table):
        raise InputError(f"{path} has no pairs: add lines of two frame numbers, or remove it.")
    for i, j in table:
        if not (i.is_integer() and j.is_integer() and 0 <= i < num_frames and 0 <= j < num_frames and i != j):
            raise InputError(f"{path}: {i:g} {j:g} are not two of the frames 0 to {num_frames - 1}: correct the line.")
    return table.astype(np.int64)
