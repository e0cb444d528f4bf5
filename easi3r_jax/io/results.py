"""A result folder read back: what exports, viewers and scripts begin with.

    saved = results.load_scene("results/my_video")
    saved.scene.depth[7]                      # z of frame 7, a memory map of scene.npz
    saved.source.intrinsics(saved.scene)      # in pixels of the original video

Nothing in the folder is trusted or executed: shapes, types, checksums, cameras and text are checked before they are
used. Pixels are not judged: where depth is not finite or not positive, there is none. A result is replaced by renaming,
so one that is open stays as it was when a newer takes its place.

It stands beside `export`, which writes what is read here, and not in it: writers take pytrees and need no folder.

Versions: `format_version` in scene.npz. Results of before there were numbers are brought to today's form as far as
their files go: times come from trajectory.txt, and what is not masked stands still where the first of them say no more.
But what frame of the source a frame was, and where its pixels were, is nowhere said. Then `source` is None, and cameras
can be had in pixels of the network's frames only.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import MotionMaps, Scene4D, TemporalMaps
from easi3r_jax.io.export import npz
from easi3r_jax.io.export.jsonfile import read_object
from easi3r_jax.io.export.trajectory import read_tum

# Poses are float32, and composed in it.
_ORTHONORMAL = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Where the frames of a result come from. As in `types.Frames`.

    Attributes:
      index: (T,) int32, the number of each frame in the source.
      frame_from_source: (3, 3) float64, pixels of the original images (integers at pixel centres) to the frames'.
      size: (height, width) of the original images.
      names: file name of each frame's original, of a source that is a folder of images; else None.
    """

    index: np.ndarray
    frame_from_source: np.ndarray
    size: tuple[int, int]
    names: tuple[str, ...] | None

    def intrinsics(self, scene: Scene4D) -> np.ndarray:
        """(T, 3, 3) float64, in pixels of the original images, integers at pixel centres."""
        return np.linalg.inv(self.frame_from_source) @ np.asarray(scene.intrinsics, np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class SavedScene:
    """A result in memory. Arrays are host arrays, not to be written to; those of `scene` memory maps.

    Attributes:
      folder: where it lies, absolute.
      scene: the reconstruction.
      time: (T,) float64 seconds since the first frame of the source.
      source: where the frames come from; None in results of an older version, which do not say.
      motion: what the masks were made of; None where that was not kept (no motion cue, windows, an older version).
      config: `config.json`: every option, versions, hashes; empty where there is none.
      threshold: of `scene.dynamic_score`, above which a pixel moves; None where there is not one for the clip, or it
        was not kept.
      losses: (iterations,) float32 loss of every step of the alignment; likewise.
    """

    folder: pathlib.Path
    scene: Scene4D
    time: np.ndarray
    source: Source | None
    motion: MotionMaps | None
    config: Mapping[str, Any]
    threshold: float | None = None
    losses: np.ndarray | None = None


def load_scene(folder: str | os.PathLike) -> SavedScene:
    """Reads a result folder.

    Args:
      folder: as `export.write_result` writes it; the path of its scene.npz does too.

    Raises:
      InputError: not a result, damaged or incomplete; cameras that are none; of a newer version, or of an older one
        that cannot be brought to today's form. In one line, with what to do.
    """
    folder = pathlib.Path(folder).expanduser()
    if folder.name == "scene.npz" and not folder.is_dir():
        folder = folder.parent
    folder = folder.absolute()
    if not folder.is_dir():
        raise InputError(f"No scene at {folder}: there is no such folder. Give a result's, or its scene.npz.")
    path = folder / "scene.npz"
    version = int(npz.read_arrays(path, {}, npz.VERSION).get("format_version", 0))
    if not 0 <= version <= npz.FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, this version reads up to {npz.FORMAT_VERSION}: update easi3r_jax."
        )
    if version:
        needed = {**npz.SCENE, **npz.SOURCE}
    else:
        needed = {key: layout for key, layout in npz.SCENE.items() if key not in npz.STATIC}
    arrays = npz.read_arrays(path, needed, npz.STATIC, npz.NAMES, npz.MOTION, npz.THRESHOLD, npz.LOSSES)
    if "static_mask" not in arrays:
        arrays["static_mask"] = ~arrays["dynamic_mask"]  # before flow had a say in it, there was nothing else
        arrays["static_mask"].flags.writeable = False
    scene = npz.scene_of(arrays)
    _check_cameras(path, scene)
    if version:
        time, source = arrays["time"], _source(path, arrays)
    else:
        time, source = _time_of_older(folder, len(scene.depth)), None
    if not np.isfinite(time).all():
        raise InputError(f"{path}: times that are not finite. Restore the result, or reconstruct it again.")
    motion = None
    if "motion_labels" in arrays:
        temporal = TemporalMaps(*(arrays[f"motion_{field.name}"] for field in dataclasses.fields(TemporalMaps)))
        motion = MotionMaps(temporal, *(arrays[f"motion_{name}"] for name in ("raw_score", "labels", "score")))
    threshold = float(arrays["dynamic_threshold"]) if "dynamic_threshold" in arrays else None
    return SavedScene(
        folder, scene, time, source, motion, read_object(folder / "config.json"), threshold, arrays.get("losses")
    )


def _check_cameras(path: pathlib.Path, scene: Scene4D) -> None:
    """Raises InputError for the first frame whose camera is none."""
    poses, intrinsics = np.asarray(scene.world_from_cam, np.float64), np.asarray(scene.intrinsics, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        rotations = poses[:, :3, :3]
        off = np.abs(rotations.swapaxes(1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
        rigid = np.isfinite(poses).all(axis=(1, 2)) & (off <= _ORTHONORMAL) & (poses[:, 3] == [0, 0, 0, 1]).all(axis=1)
    rigid[rigid] = np.linalg.det(rotations[rigid]) > 0
    pinhole = np.isfinite(intrinsics).all(axis=(1, 2)) & (intrinsics[:, [0, 1], [0, 1]] > 0).all(axis=1)
    pinhole &= (intrinsics[:, [0, 1, 2, 2, 2], [1, 0, 0, 1, 2]] == [0, 0, 0, 0, 1]).all(axis=1)
    for name, good, needed in (
        ("world_from_cam", rigid, "a rotation and a translation"),
        ("intrinsics", pinhole, "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"),
    ):
        for t in np.flatnonzero(~good):
            raise InputError(f"{path}: {name} of frame {t} is not {needed}. Restore it, or reconstruct it again.")


def _source(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> Source:
    matrix, size, index = arrays["frame_from_source"], arrays["source_size"], arrays["source_index"]
    (sx, _, x), (_, sy, y), _ = matrix
    is_crop = np.isfinite(matrix).all() and sx > 0 and sy > 0 and (matrix == [[sx, 0, x], [0, sy, y], [0, 0, 1]]).all()
    if not is_crop or (size < 1).any() or index[0] < 0 or (np.diff(index) <= 0).any():
        raise InputError(f"{path}: the frames' place in their source is damaged. Restore it, or reconstruct it again.")
    names = tuple(arrays["source_names"].tolist()) if "source_names" in arrays else None
    for name in names or ():
        # Exports call files by them.
        if name in ("", ".", "..") or not name.isprintable() or {"/", "\\"} & set(name):
            raise InputError(f"{path}: {name!r} is no name of a file. Restore it, or reconstruct it again.")
    return Source(index, matrix, (int(size[0]), int(size[1])), names)


def _time_of_older(folder: pathlib.Path, num_frames: int) -> np.ndarray:
    """Times of a result that has them in its trajectory only, to a microsecond."""
    path = folder / "trajectory.txt"
    advice = "restore it, or reconstruct the clip again"
    if not path.is_file():
        raise InputError(
            f"{folder} is of an older version, and trajectory.txt, which has its times, is gone: {advice}."
        )
    time, _ = read_tum(path)
    if len(time) != num_frames:
        raise InputError(f"{path} has {len(time)} poses for the {num_frames} frames of the scene beside it: {advice}.")
    return time
