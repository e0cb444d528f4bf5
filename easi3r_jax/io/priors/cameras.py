"""Cameras that a user knows: intrinsics and poses of all frames or of some.

Files state intrinsics in pixels of the *original* images; here they become pixels of the frames. Text files have this
project's pixel coordinates, integers at pixel centres (docs/conventions.md); `transforms.json` counts from the image's
corner, half a pixel more, and is converted (`transforms.py`). Poses are camera to world with OpenCV axes.

Lists have an entry for each frame of the clip or of its source; `matching.py` tells which entry belongs to which frame.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames, KnownCameras
from easi3r_jax.io.priors import text
from easi3r_jax.io.priors.files import read_npz
from easi3r_jax.io.priors.matching import NONE, Source, by_count, by_name, by_stamp
from easi3r_jax.io.priors.rigid import rigid_poses
from easi3r_jax.io.priors.transforms import intrinsics_of, poses_of, read_transforms

_Path = str | os.PathLike

# In sides of the image. A pinhole with the first sees 169 degrees: such numbers were not meant in pixels.
_LEAST_FOCAL, _LARGEST_FOCAL = 1 / 20, 1e4
# As a share of the focal length: what a calibration finds where there is none.
_SKEW = 1e-3
# A result's principal point is about the frame's centre. As a share of the side.
_OFF_CENTRE = 1 / 8
# Resizing rounds to whole pixels, a stretch to multiples of the patch can do more.
_SQUARE = 0.02


def load_cameras(
    frames: Frames,
    intrinsics: _Path | None = None,
    poses: _Path | None = None,
    stopped_early: bool = False,
    source_names: Sequence[str] = (),
) -> KnownCameras:
    """Reads what is known of a clip's cameras, one focal length for each frame.

    Args:
      frames: the clip.
      intrinsics: what `load_intrinsics` reads; None: nothing is known.
      poses: what `load_poses` reads; None: nothing is known.
      stopped_early, source_names: as there.

    Raises:
      InputError: as `load_intrinsics`, `load_poses` and `single_focal`.
    """
    length = len(frames.source_index)
    matrices, intrinsics_known = np.tile(np.eye(3), (length, 1, 1)), np.zeros(length, bool)
    world_from_cam, poses_known = np.tile(np.eye(4), (length, 1, 1)), np.zeros(length, bool)
    if intrinsics is not None:
        matrices, intrinsics_known = load_intrinsics(intrinsics, frames, stopped_early, source_names)
    if poses is not None:
        world_from_cam, poses_known = load_poses(poses, frames, stopped_early, source_names)
    return KnownCameras(
        focal=single_focal(matrices),
        principal_point=np.where(intrinsics_known[:, None], matrices[:, :2, 2], 0),
        intrinsics_known=intrinsics_known,
        world_from_cam=world_from_cam,
        poses_known=poses_known,
    )


def load_intrinsics(
    path: _Path, frames: Frames, stopped_early: bool = False, source_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Reads intrinsics in pixels of the original images and brings them to the frames.

    - Text: `fx fy cx cy` or nine numbers (a matrix row by row) on one line, or a matrix of three lines, for all frames;
      or a line for each frame, `-` where they are unknown. Integers at pixel centres.
    - `transforms.json`: of all images, or by image; see `transforms.intrinsics_of`. Pixel corners at integers.
    - A result's own `intrinsics.txt`, known by its first line, is in pixels of the *frames* already.

    Args:
      path: a text or .json file.
      frames: the clip.
      stopped_early: reading the source stopped before its end (`FrameConfig.first`): it may have any number of frames.
      source_names: file names of all the source's images in their order, if it is a folder: so many frames the source
        has, and a `transforms.json` is matched by name.

    Returns:
      (T, 3, 3) float64 in pixels of the frames, the identity where unknown, and (T,) bool: known.

    Raises:
      InputError: a file that cannot be read or is of another kind, intrinsics for another number of frames or another
        size, for none of the frames, that are not finite, have no positive focal length or have skew, a principal point
        outside the image.
    """
    path = pathlib.Path(path).expanduser()
    source = Source.of(frames, stopped_early, source_names)
    height, width = (int(side) for side in frames.source_size)
    mapping = np.asarray(frames.frame_from_source, np.float64)
    others, entries = np.full((3, 3), np.nan), np.full(len(source.index), NONE)
    if path.suffix.lower() == ".json":
        transforms = read_transforms(path)
        matrices, others = intrinsics_of(transforms, (height, width))
        labels = transforms.labels[: len(matrices)]
        if len(matrices):
            entries = by_name(transforms.names, source, f"{path}: intrinsics")
    else:
        matrices, labels, of_a_result = text.read_intrinsics(path)
        if of_a_result:
            (height, width), mapping = frames.rgb.shape[1:3], np.eye(3)
            _check_size_of_result(matrices, path, (height, width))
        if len(matrices) == 1 and not of_a_result:
            others = matrices[0]
        else:
            entries = by_count(len(matrices), source, f"{path}: intrinsics")
    _check_intrinsics(np.concatenate([matrices, others[None]]), [*labels, str(path)], (height, width))
    found, known = _of_frames(matrices, entries, others, path)
    found[:, 0, 1] = 0
    found[known] = mapping @ found[known]
    return found, known


def load_poses(
    path: _Path, frames: Frames, stopped_early: bool = False, source_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Reads camera-to-world poses, of all frames or of some.

    - TUM trajectory: `timestamp tx ty tz qx qy qz qw`. As many lines as the clip or its source has frames go by order;
      else stamps that are all whole and below the number of the source's frames are frame numbers of the source; else
      stamps are seconds since the source's first frame, and each frame takes the nearest within half a frame of the
      source (exactly: `matching.by_stamp`).
    - `transforms.json`: `transform_matrix` has OpenGL axes, which become OpenCV's. Images are matched by their names
      (`matching.by_name`).
    - .npz with `world_from_cam` (N, 4, 4), NaN where unknown: as many as the clip or its source has frames.

    Rotations may be off by 0.001 (quaternions, in length, by 0.01) and are brought to the nearest rotation.

    Args:
      path: a .npz, .json or text file.
      frames: the clip.
      stopped_early: reading the source stopped before its end (`FrameConfig.first`): it may have any number of frames.
      source_names: file names of all the source's images in their order, if it is a folder: so many frames the source
        has, and a `transforms.json` is matched by name.

    Returns:
      (T, 4, 4) float64 `world_from_cam`, the identity where unknown, and (T,) bool: known.

    Raises:
      InputError: a file that cannot be read or is of another kind, poses for another number of frames or for none of
        the frames, that are not finite or not rigid.
    """
    path = pathlib.Path(path).expanduser()
    source = Source.of(frames, stopped_early, source_names)
    what = f"{path}: poses"
    if path.suffix.lower() == ".npz":
        poses = read_npz(path, "world_from_cam")
        if poses.ndim != 3 or poses.shape[1:] != (4, 4):
            raise InputError(f"{path}: world_from_cam has shape {poses.shape}, (frames, 4, 4) is needed.")
        labels = [f"{path}, pose {entry} (from 0)" for entry in range(len(poses))]
        entries = by_count(len(poses), source, what)
    elif path.suffix.lower() == ".json":
        transforms = read_transforms(path)
        poses, labels = poses_of(transforms), transforms.labels
        entries = by_name(transforms.names, source, what)
    else:
        stamps, poses, labels = text.read_trajectory(path)
        entries = by_stamp(stamps, source, what)
    return _of_frames(rigid_poses(poses, labels), entries, np.full((4, 4), np.nan), path)


def single_focal(intrinsics: np.ndarray) -> np.ndarray:
    """One focal length for each frame, which is what the alignment has: the geometric mean of fx and fy.

    Args:
      intrinsics: (T, 3, 3), in pixels of the frames.

    Returns:
      (T,) float64, pixels.

    Raises:
      InputError: fx and fy differ by more than 2 %, as where a resize has stretched the pixels.
    """
    focals = np.diagonal(np.asarray(intrinsics, np.float64), axis1=1, axis2=2)[:, :2]
    for frame in np.flatnonzero(focals.max(1) > (1 + _SQUARE) * focals.min(1)):
        raise InputError(
            f"The focal lengths of frame {frame}, {focals[frame, 0]:.6g} and {focals[frame, 1]:.6g} pixels, differ by "
            f"more than {_SQUARE:.0%}: pixels must be square; crop the frames (do not stretch them), or mend the "
            "intrinsics."
        )
    return np.sqrt(focals.prod(axis=1))


def _of_frames(
    values: np.ndarray, entries: np.ndarray, others: np.ndarray, path: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """(T, n, n), `others` where a frame has no entry and the identity where that is NaN; and (T,) which are known."""
    found = np.concatenate([values, others[None]])[np.where(entries == NONE, len(values), entries)]
    known = np.logical_not(np.isnan(found).all(axis=(1, 2)))
    if not known.any():
        raise InputError(f"{path} tells nothing of any of the clip's {len(entries)} frames: leave it out, or mend it.")
    found[~known] = np.eye(len(others))
    return found, known


def _check_intrinsics(matrices: np.ndarray, labels: Sequence[str], size: tuple[int, int]) -> None:
    """Raises InputError for the first of (N, 3, 3) that is no pinhole of an image of (height, width); not for NaN."""
    height, width = size
    for matrix, label in zip(matrices, labels, strict=True):
        if np.isnan(matrix).all():
            continue
        (fx, skew, cx), (sheared, fy, cy), last = matrix.tolist()
        if not np.isfinite(matrix).all():
            raise InputError(f"{label}: intrinsics that are not finite.")
        if last != [0, 0, 1] or sheared or abs(skew) > _SKEW * abs(fx):
            raise InputError(f"{label}: not a camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].")
        if not _LEAST_FOCAL * max(size) <= min(fx, fy) <= max(fx, fy) <= _LARGEST_FOCAL * max(size):
            raise InputError(
                f"{label}: focal lengths {fx:g} and {fy:g} for an image of {width}x{height} pixels: "
                "positive numbers of pixels are needed."
            )
        if not (0 <= cx <= width - 1 and 0 <= cy <= height - 1):
            raise InputError(
                f"{label}: the principal point ({cx:g}, {cy:g}) is not in the image of {width}x{height} pixels: "
                "give the intrinsics of the original video, at its size."
            )


def _check_size_of_result(matrices: np.ndarray, path: pathlib.Path, size: tuple[int, int]) -> None:
    height, width = size
    offset = np.abs(matrices[:, :2, 2] - np.array([width, height]) / 2)
    if (offset > _OFF_CENTRE * np.array([width, height])).any():
        raise InputError(
            f"{path} is a result's, in pixels of its frames, which were not of {width}x{height} pixels: "
            "reconstruct with the same size, or scale it to the original video and remove its first line."
        )
