"""Known cameras: intrinsics and poses of some or all frames.

Files give intrinsics in pixels of the *original* images; here they are converted to pixels of the frames. Text files
use this project's pixel coordinates, integers at pixel centres (docs/conventions.md). `transforms.json` counts from the
image's corner, half a pixel more, and is converted (`transforms.py`). Poses are camera to world with OpenCV axes.

Lists have one entry per frame of the clip or of its source; `matching.py` assigns entries to frames.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from easi3r_jax.core.arrays import Bool, Float
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames, KnownCameras
from easi3r_jax.io.priors import text
from easi3r_jax.io.priors.files import read_npz
from easi3r_jax.io.priors.matching import NONE, SourceFrames, by_count, by_name, by_stamp
from easi3r_jax.io.priors.rigid import rigid_poses
from easi3r_jax.io.priors.transforms import intrinsics_of, poses_of, read_transforms

_Path = str | os.PathLike

# Relative to the image's longer side. The smallest is a field of view of 169 degrees: such numbers are not in pixels.
_MIN_FOCAL, _MAX_FOCAL = 1 / 20, 1e4
# Relative to the focal length: what a calibration finds for a camera without skew.
_MAX_SKEW = 1e-3
# A result's principal point is near the frame's centre. Relative to the side.
_MAX_PRINCIPAL_POINT_OFFSET = 1 / 8
# Relative difference of fx and fy: resizing rounds to whole pixels. A stretch to multiples of the patch exceeds it.
_MAX_FOCAL_DIFFERENCE = 0.02


def load_cameras(
    frames: Frames,
    intrinsics: _Path | None = None,
    poses: _Path | None = None,
    stopped_early: bool = False,
    source_names: Sequence[str] = (),
    quaternion: str = "auto",
) -> KnownCameras:
    """Reads a clip's known cameras, with one focal length per frame.

    Args:
      frames: the clip.
      intrinsics: file for `load_intrinsics`; None: unknown, or the lens's if its distortion was removed.
      poses: file for `load_poses`; None: unknown.
      stopped_early, source_names, quaternion: see there.

    Raises:
      InputError: as `load_intrinsics`, `load_poses` and `single_focal`.
    """
    length = len(frames.rgb)
    matrices, intrinsics_known = np.tile(np.eye(3), (length, 1, 1)), np.zeros(length, bool)
    world_from_cam, poses_known = np.tile(np.eye(4), (length, 1, 1)), np.zeros(length, bool)
    if frames.lens is not None:
        height, width = frames.original_size
        own = np.asarray(frames.frame_from_source) @ frames.lens.undistorted_camera((width, height))
        matrices, intrinsics_known = np.tile(own, (length, 1, 1)), np.ones(length, bool)
    if intrinsics is not None:
        matrices, intrinsics_known = load_intrinsics(intrinsics, frames, stopped_early, source_names)
    if poses is not None:
        world_from_cam, poses_known = load_poses(poses, frames, stopped_early, source_names, quaternion)
    return KnownCameras(
        focal=single_focal(matrices),
        principal_point=np.where(intrinsics_known[:, None], matrices[:, :2, 2], 0),
        intrinsics_known=intrinsics_known,
        world_from_cam=world_from_cam,
        poses_known=poses_known,
    )


def load_intrinsics(
    path: _Path, frames: Frames, stopped_early: bool = False, source_names: Sequence[str] = ()
) -> tuple[Float[np.ndarray, "T 3 3"], Bool[np.ndarray, "T"]]:
    """Reads intrinsics in pixels of the original images and converts them to pixels of the frames.

    - Text: `fx fy cx cy`, nine numbers (a matrix row by row) or a matrix on three lines, for all frames; or one line
      per frame, `-` where unknown. Integers are at pixel centres.
    - `transforms.json`: for all images or per image, see `transforms.intrinsics_of`. Integers are at pixel corners.
    - A result's own `intrinsics.txt`, recognised by its first line, which is in pixels of the *frames* already.

    Args:
      path: a text or .json file.
      frames: the clip.
      stopped_early: reading the source stopped before its end (`FrameConfig.first`): it may have any number of frames.
      source_names: file names of all images of the source in order, if it is a folder. They give the number of frames
        of the source, and a `transforms.json` is matched by name.

    Returns:
      (T, 3, 3) float64 in pixels of the frames, the identity where unknown; and (T,) bool, where they are known.

    Raises:
      InputError: the file cannot be read or is of another kind; its intrinsics are for another number of frames,
        another image size, or none of the frames; they are not finite, have skew or a focal length that is not
        positive, or a principal point outside the image.
    """
    path = pathlib.Path(path).expanduser()
    source = SourceFrames.of(frames, stopped_early, source_names)
    height, width = frames.original_size
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
    path: _Path,
    frames: Frames,
    stopped_early: bool = False,
    source_names: Sequence[str] = (),
    quaternion: str = "auto",
) -> tuple[Float[np.ndarray, "T 4 4"], Bool[np.ndarray, "T"]]:
    """Reads camera-to-world poses of all frames or of some.

    - TUM trajectory: `timestamp tx ty tz qx qy qz qw`. If it has as many lines as the clip or its source has frames,
      they are matched in order. Otherwise stamps that are all integers below the number of the source's frames are
      frame numbers of the source. Otherwise stamps are seconds since the source's first frame, and each frame takes the
      nearest one within half a frame of the source (for details see `matching.by_stamp`).
    - `transforms.json`: `transform_matrix` has OpenGL axes, which are converted to OpenCV's. Images are matched by name
      (`matching.by_name`).
    - .npz with `world_from_cam` (N, 4, 4), NaN where unknown, for the N frames of the clip or of its source.

    Rotations may be inaccurate by 0.001 (the lengths of quaternions by 0.01); the nearest rotation is used.

    Args:
      path: a .npz, .json or text file.
      frames: the clip.
      stopped_early: reading the source stopped before its end (`FrameConfig.first`): it may have any number of frames.
      source_names: file names of all images of the source in order, if it is a folder. They give the number of frames
        of the source, and a `transforms.json` is matched by name.
      quaternion: order of the quaternions of a TUM trajectory, see `text.read_trajectory`.

    Returns:
      (T, 4, 4) float64 `world_from_cam`, the identity where unknown; and (T,) bool, where they are known.

    Raises:
      InputError: the file cannot be read or is of another kind; its poses are for another number of frames, for none of
        the frames, not finite or not rigid.
    """
    path = pathlib.Path(path).expanduser()
    source = SourceFrames.of(frames, stopped_early, source_names)
    what = f"{path}: poses"
    if path.suffix.lower() == ".npz":
        poses = read_npz(path, "world_from_cam")
        if poses.ndim != 3 or poses.shape[1:] != (4, 4):
            raise InputError(f"{path}: world_from_cam has shape {poses.shape}, but (frames, 4, 4) is needed.")
        labels = [f"{path}, pose {entry} (from 0)" for entry in range(len(poses))]
        entries = by_count(len(poses), source, what)
    elif path.suffix.lower() == ".json":
        transforms = read_transforms(path)
        poses, labels = poses_of(transforms), transforms.labels
        entries = by_name(transforms.names, source, what)
    else:
        stamps, poses, labels = text.read_trajectory(path, quaternion)
        entries = by_stamp(stamps, source, what)
    return _of_frames(rigid_poses(poses, labels), entries, np.full((4, 4), np.nan), path)


def single_focal(intrinsics: Float[np.ndarray, "T 3 3"]) -> Float[np.ndarray, "T"]:
    """One focal length per frame, as the alignment needs: the geometric mean of fx and fy.

    Args:
      intrinsics: (T, 3, 3), in pixels of the frames.

    Returns:
      (T,) float64, pixels.

    Raises:
      InputError: fx and fy differ by more than 2 %, for example because a resize has stretched the pixels.
    """
    focals = np.diagonal(np.asarray(intrinsics, np.float64), axis1=1, axis2=2)[:, :2]
    for frame in np.flatnonzero(focals.max(1) > (1 + _MAX_FOCAL_DIFFERENCE) * focals.min(1)):
        raise InputError(
            f"The focal lengths of frame {frame}, {focals[frame, 0]:.6g} and {focals[frame, 1]:.6g} pixels, differ by "
            f"more than {_MAX_FOCAL_DIFFERENCE:.0%}: pixels must be square; crop the frames (do not stretch them), or "
            "correct the intrinsics."
        )
    return np.sqrt(focals.prod(axis=1))


def _of_frames(
    values: np.ndarray, entries: np.ndarray, others: np.ndarray, path: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Values per frame, (T, n, n), and where they are known, (T,).

    A frame without an entry gets `others`; where that is NaN, the value is unknown and the identity.
    """
    found = np.concatenate([values, others[None]])[np.where(entries == NONE, len(values), entries)]
    known = np.logical_not(np.isnan(found).all(axis=(1, 2)))
    if not known.any():
        raise InputError(f"{path} has nothing for any of the clip's {len(entries)} frames: omit it, or correct it.")
    found[~known] = np.eye(len(others))
    return found, known


def _check_intrinsics(matrices: np.ndarray, labels: Sequence[str], size: tuple[int, int]) -> None:
    """Raises InputError for the first of (N, 3, 3) that is not a pinhole of an image of this size; NaN is valid."""
    height, width = size
    for matrix, label in zip(matrices, labels, strict=True):
        if np.isnan(matrix).all():
            continue
        (fx, skew, cx), (sheared, fy, cy), last = matrix.tolist()
        if not np.isfinite(matrix).all():
            raise InputError(f"{label}: the intrinsics are not finite.")
        if last != [0, 0, 1] or sheared or abs(skew) > _MAX_SKEW * abs(fx):
            raise InputError(f"{label}: not a camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].")
        if not _MIN_FOCAL * max(size) <= min(fx, fy) <= max(fx, fy) <= _MAX_FOCAL * max(size):
            raise InputError(
                f"{label}: focal lengths {fx:g} and {fy:g} for an image of {width}x{height} pixels: "
                "plausible focal lengths in pixels are needed."
            )
        if not (0 <= cx <= width - 1 and 0 <= cy <= height - 1):
            raise InputError(
                f"{label}: the principal point ({cx:g}, {cy:g}) is outside the image of {width}x{height} pixels: "
                "give the intrinsics of the original video, at its size."
            )


def _check_size_of_result(matrices: np.ndarray, path: pathlib.Path, size: tuple[int, int]) -> None:
    height, width = size
    offset = np.abs(matrices[:, :2, 2] - np.array([width, height]) / 2)
    if (offset > _MAX_PRINCIPAL_POINT_OFFSET * np.array([width, height])).any():
        raise InputError(
            f"{path} belongs to a result and is in pixels of its frames, which did not have {width}x{height} pixels: "
            "reconstruct with the same size, or scale it to the original video and remove its first line."
        )
