"""Shared by the readers: finding sequences, and checking frames against their ground truth."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import absl.logging
import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets.sequence import TestSequence, Trajectory
from easi3r_jax.evaluation.metrics import associate
from easi3r_jax.io import files, remote
from easi3r_jax.io.files.names import canonical
from easi3r_jax.io.priors.rigid import rigid_poses
from easi3r_jax.io.priors.text import read_trajectory
from easi3r_jax.io.video import StoredImage
from easi3r_jax.io.video.folders import list_images
from easi3r_jax.io.video.images import image_shape

_T = TypeVar("_T")

# Fraction of the frames for which a trajectory must have a pose. Motion capture loses track of a camera at times.
_MIN_POSES_PER_FRAME = 0.5

# A camera gets farther in two steps than in one, or as far if it only shakes. A path whose single steps are longer by
# this factor is none; of fewer poses, that may be chance.
_ALTERNATION, _MIN_ALTERNATING = 5.0, 8

# Part of the stamps that may be early by less than a step. Poses at one stamp may be farther apart than neighbours by
# this factor.
_MAX_EARLY, _MAX_APART = 0.05, 3.0


def finder(
    name: str, read: Callable[[pathlib.Path], list[TestSequence]]
) -> Callable[[str | os.PathLike[str]], list[TestSequence]]:
    """Turns a reader into a `TestSet.find`.

    Args:
      name: of the data set.
      read: function from a folder, which exists and has a name, to its sequences in any order; empty if nothing in the
        folder has a layout that it knows.
    """

    def find(root: str | os.PathLike[str]) -> list[TestSequence]:
        path = pathlib.Path(
            os.path.abspath(pathlib.Path(remote.local(root)).expanduser())
        )  # "." gets a name, a link keeps its own
        if not path.is_dir():
            raise InputError(f"There is no folder {path} for the data set {name!r}: correct the path.")
        sequences = read(path)
        if not sequences:
            raise InputError(
                f"{path} has nothing in a layout of the data set {name!r}: see docs/datasets.md, or correct the path."
            )
        sequences = sorted(sequences, key=lambda sequence: sequence.name)
        for one, other in itertools.pairwise(sequences):
            if one.name == other.name:
                raise InputError(f"{path} has two sequences named {one.name!r}: rename one, or move it elsewhere.")
        return sequences

    return find


def below(root: pathlib.Path, marker: str, levels: int = 2) -> pathlib.Path | None:
    """The first folder that holds an entry called `marker`: `root`, or a folder at most `levels` below it."""
    return next(iter(files.folders_with(root, marker, levels)), None)


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in a folder, sorted by name, without hidden ones."""
    return [folder / name for name in files.names_in(folder) if (folder / name).is_dir()]


def require_folder(folder: pathlib.Path, what: str) -> pathlib.Path:
    """Raises InputError unless a folder exists; `what`, which it should hold, is for the message."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}, which holds the {what}: download it, or correct the path.")
    return folder


def protocol_folders(parent: pathlib.Path, names: Sequence[str]) -> list[pathlib.Path]:
    """The folders of the protocol's sequences. All must exist: a mean over some of them is a different metric.

    Raises:
      InputError: some are missing.
    """
    existing = set(files.names_in(parent))
    missing = [name for name in names if name not in existing]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(f"{parent} lacks {len(missing)} of the protocol's {len(names)} sequences: {shown}. Add them.")
    return [parent / name for name in names]


def recordings(root: pathlib.Path, names: Sequence[str]) -> list[pathlib.Path]:
    """The folders of the protocol's sequences: in `root` or in a folder in it; or `root` itself, if it is one of them.

    Empty if none of them is found.

    Raises:
      InputError: some are found, and others are missing.
    """
    if root.name in names:
        return [root]
    parents = (below(root, name, 1) for name in names)
    parent = next((folder for folder in parents if folder is not None), None)
    return [] if parent is None else protocol_folders(parent, names)


def frames_in(folder: pathlib.Path, what: str = "frames") -> list[pathlib.Path]:
    """The images of a folder, in natural order.

    Raises:
      InputError: the folder does not exist or is empty.
    """
    if not any((folder / name).is_file() for name in files.names_in(require_folder(folder, what))):
        raise InputError(f"{folder} has no {what}: restore them, or remove the sequence.")
    return list_images(folder, name_others=True)


def chosen(items: Sequence[_T], *, stride: int = 1, limit: int | None = None, start: int = 0) -> list[_T]:
    """Every `stride`-th item from `start` on, at most `limit` items."""
    return list(items[start::stride][:limit])


def require_same_number(frames: pathlib.Path, num_frames: int, truth: pathlib.Path, num_truth: int) -> None:
    """Raises InputError unless there are as many entries of ground truth as frames."""
    if num_frames != num_truth:
        raise InputError(
            f"{frames} has {num_frames} frames, {truth} has {num_truth}: download both again, or remove the sequence."
        )


def named_like(images: Sequence[pathlib.Path], folder: pathlib.Path, suffix: str, what: str) -> list[pathlib.Path]:
    """The file in another folder for each image: same name, other suffix. There must be no other files of that suffix.

    Raises:
      InputError: the folder does not exist, an image has no file, or a file has no image.
    """
    existing = {canonical(name): name for name in files.names_in(require_folder(folder, what)) if name.endswith(suffix)}
    if not existing:
        raise InputError(f"{folder} has no {what}: restore them, or remove the sequence.")
    wanted = [image.stem + suffix for image in images]
    paths = [folder / existing.get(canonical(name), name) for name in wanted]
    missing = [path for path in paths if path.name not in existing.values()]
    if missing or len(existing) != len(images):
        example = f" (the first missing one: {missing[0].name})" if missing else ""
        raise InputError(
            f"{images[0].parent} has {len(images)} frames, {folder} has {len(existing)} {what}{example}: "
            "download both again, or remove the sequence."
        )
    return paths


def make_trajectory(times: np.ndarray, world_from_cam: np.ndarray, labels: Sequence[str]) -> Trajectory:
    """Checks poses, which are in order of time. Of poses at the same time the first is kept.

    Only single stamps that are early by less than a step are sorted, and stamps that rounding made equal lose a pose;
    one line says so. Nothing else is: poses in another order are of two trajectories, or not those of the frames that
    they stand beside, and would silently become a path that no camera took.

    Args:
      times: (P,).
      world_from_cam: (P, 4, 4).
      labels: a name for each pose, for messages.

    Raises:
      InputError: a time or pose is not finite, a pose is not a rigid motion, a time is before the one above it or has
        two poses, or every other pose is of another path.
    """
    times, poses = np.asarray(times, np.float64), rigid_poses(np.asarray(world_from_cam, np.float64), labels)
    finite = np.isfinite(times) & np.isfinite(poses).all(axis=(1, 2))
    for entry in np.flatnonzero(~finite).tolist():
        raise InputError(f"{labels[entry]}: a pose that is not finite. Restore the file, or remove the sequence.")
    times, poses = _in_order(times, poses, labels)
    if _alternates(poses[:, :3, 3]):
        raise InputError(
            f"{labels[0]} and those after it alternate between two paths: two trajectories in one file. Keep one."
        )
    return Trajectory(times, poses)


def _in_order(times: np.ndarray, poses: np.ndarray, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Times that rise, and their poses.

    Raises:
      InputError: a time is before the one above it by a step or more, many are, or two poses at one time are farther
        apart than those of neighbours.
    """
    step = np.diff(times)
    early = np.flatnonzero(step < 0)
    usual = float(np.median(step[step > 0])) if (step > 0).any() else 0.0
    few = len(early) <= max(_MAX_EARLY * len(times), 1) and len(times) >= _MIN_ALTERNATING
    if len(early) and not (few and (step[early] > -usual).all()):
        entry = int(early[0]) + 1
        raise InputError(
            f"{labels[entry]}: its time {times[entry]:.15g} is before {times[entry - 1]:.15g}, that of the pose above "
            "it. Two trajectories in one file, or another order: keep one trajectory, in order of time."
        )
    order = np.argsort(times, kind="stable")
    times, poses, step = times[order], poses[order], np.diff(times[order])
    apart = np.abs(np.diff(poses, axis=0)).max(axis=(1, 2), initial=0)
    usual = float(np.median(apart[step > 0])) if (step > 0).any() else 0.0
    same = (step == 0) & (apart > 1e-9)
    for entry in (1 + np.flatnonzero(same & (apart > _MAX_APART * usual))).tolist():
        raise InputError(
            f"{labels[int(order[entry])]}: another pose at the time {times[entry]:.15g} of the one above. Remove one."
        )
    if len(early):
        absl.logging.warning(
            "%s: %d poses are earlier than those above them, by less than a step: sorted by time.",
            *(labels[int(early[0]) + 1], len(early)),
        )
    if same.any():
        absl.logging.warning(
            "%s: %d poses have the time of those above them, as if it were rounded: left out.",
            *(labels[int(order[np.flatnonzero(same)[0] + 1])], int(same.sum())),
        )
    kept = np.concatenate([np.ones(len(times[:1]), bool), step > 0])
    return times[kept], poses[kept]


def _alternates(centres: np.ndarray) -> bool:
    """Whether a path jumps to and fro with every pose, as two trajectories do that were merged by their times."""
    if len(centres) < _MIN_ALTERNATING:
        return False
    one, two = (np.median(np.linalg.norm(centres[k:] - centres[:-k], axis=1)) for k in (1, 2))
    return bool(one > _ALTERNATION * two and one > 0)


def read_tum(path: pathlib.Path) -> Trajectory:
    """Reads lines of `timestamp tx ty tz qx qy qz qw`, camera to world, scalar last (TUM RGB-D's format)."""
    return make_trajectory(*read_trajectory(path))


def require_poses(trajectory: Trajectory, times: np.ndarray, path: pathlib.Path) -> None:
    """Raises InputError unless half of the frames, and at least three (or all, of fewer), have a pose at their time."""
    try:
        known = len(associate(times, trajectory.times)[0])
    except InputError:  # none
        known = 0
    if known < max(min(3, len(times)), _MIN_POSES_PER_FRAME * len(times)):
        raise InputError(
            f"{path} has a pose for {known} of the {len(times)} frames only (its {len(trajectory.times)} poses are "
            f"from {trajectory.times[0]:.15g} to {trajectory.times[-1]:.15g}, the frames from {times[0]:.15g} to "
            f"{times[-1]:.15g}): restore it, or remove the sequence."
        )


def make_intrinsics(intrinsics: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Checks (T, 3, 3) intrinsics and converts them to float64; `labels` has a name for each, for messages.

    Raises:
      InputError: numbers are not finite, or a focal length is not positive.
    """
    intrinsics = np.asarray(intrinsics, np.float64)
    usable = np.isfinite(intrinsics).all(axis=(1, 2)) & (intrinsics[:, 0, 0] > 0) & (intrinsics[:, 1, 1] > 0)
    for entry in np.flatnonzero(~usable).tolist():
        raise InputError(
            f"{labels[entry]}: intrinsics that are not finite, or a focal length that is not positive. Restore the "
            "file, or remove the sequence."
        )
    return intrinsics


def shape_of(image: pathlib.Path | StoredImage) -> tuple[int, int]:
    """(height, width) of a frame."""
    return image.shape if isinstance(image, StoredImage) else image_shape(image)


def as_depth(values: np.ndarray, image: pathlib.Path | StoredImage, label: pathlib.Path | str) -> np.ndarray:
    """(h, w) float32 depth, 0 where values are not finite or not positive.

    Raises:
      InputError: the size is not the frame's.
    """
    require_shape(values, image, label)
    with np.errstate(over="ignore", invalid="ignore"):  # a value that overflows float32 is unknown, like infinity
        depth = values.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def require_shape(values: np.ndarray, image: pathlib.Path | StoredImage, label: pathlib.Path | str) -> None:
    """Raises InputError unless a map has the size of its frame."""
    shape = shape_of(image)
    if values.shape != shape:
        raise InputError(f"{label} has shape {values.shape}, its frame {image} {shape}: download both again.")
