"""Result folders: written atomically, and validated when read back.

    save_result("results/my_video", result)
    result = load_result("results/my_video")
    result.scene.depth[7]                                          # z of frame 7, a memory map of scene.npz
    result.frames.original_intrinsics(result.scene.intrinsics)     # in pixels of the original video

Nothing in the folder is trusted or executed: shapes, types, checksums, cameras and text are checked before use. Pixels
are not: where depth is not finite or not positive, it is unknown. Results are replaced by renaming, so an open result
stays unchanged when a newer one replaces it.

Versions: `format_version` in scene.npz. Results without it are read as far as possible: times come from trajectory.txt,
and in the oldest, which lack static masks, all pixels that are not dynamic are static. They do not record the source of
their frames, so cameras are known in pixels of the network's frames only.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from easi3r_jax.core import atomic
from easi3r_jax.core.arrays import Bool
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.lens import parse_lens
from easi3r_jax.core.types import Frames, Given, MotionMaps, Progress, Reconstruction, Scene4D, TemporalMaps, silent
from easi3r_jax.io import remote
from easi3r_jax.io.export import npz
from easi3r_jax.io.export.flow import write_flow
from easi3r_jax.io.export.glb import write_glb
from easi3r_jax.io.export.images import write_depth, write_masks
from easi3r_jax.io.export.jsonfile import read_object, write_json
from easi3r_jax.io.export.ply import write_ply
from easi3r_jax.io.export.pointcloud import CloudOptions, point_cloud
from easi3r_jax.io.export.selection import only
from easi3r_jax.io.export.tapvid import write_tapvid
from easi3r_jax.io.export.trajectory import write_intrinsics, write_tum
from easi3r_jax.io.pictures.summary import write_summary
from easi3r_jax.io.priors.text import read_trajectory

# Tolerance for poses that are stored and composed in float32.
_RIGID_TOLERANCE = 1e-3


# Every result contains it: a folder without it is not a result and is never replaced.
_MARKER = "scene.npz"


def save_result(
    folder: str | os.PathLike,
    result: Reconstruction,
    *,
    record: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    name: str | None = None,
    clouds: CloudOptions = CloudOptions(),
    keep: Bool[np.ndarray, "T H W"] | None = None,
    keep_flow: bool = False,
    tracks: Any = None,
    progress: Progress = silent,
) -> pathlib.Path:
    """Writes a result folder atomically. An earlier result is replaced.

    Args:
      folder: missing parents are created.
      result: host arrays, as `reconstruct` returns them.
      record: all options, versions, hashes and seeds, for `config.json`. None: `result.record`.
      metrics: content of `metrics.json`, if there is ground truth.
      name: title of `summary.png`; by default the folder's name.
      clouds: selection of points for `scene.glb` and `scene.ply`.
      keep: pixels that become points of `scene.glb` and `scene.ply`; None: all. Everything else is complete.
      keep_flow: also write the optical flow that was used (`result.given.flow`), to the folder `flow`.
      tracks: of `track_points`, for `tracks.npz` in the layout of TAPVid-3D; None: no such file.
      progress: called before each file, for the stage "write".

    Returns:
      the absolute path of the folder.

    Raises:
      ConfigError: a foreground of `clouds` that is not a frame of the clip; `keep_flow` without flow.
      InputError: a result of an older version, which lacks the source of its frames.
      OutputError: the folder cannot be written.
    """
    scene, frames = jax.tree.map(np.asarray, result.scene), result.frames  # from the device, once
    time = np.asarray(frames.time, np.float64)
    clouds.check(len(scene.depth))
    _ = frames.original_size  # raises an error now if it is not recorded, not when half is written
    target = pathlib.Path(folder).expanduser().resolve()
    given = result.given or Given()
    flow = None if given.flow is None else np.asarray(given.flow)
    if keep_flow and flow is None:
        raise ConfigError(
            "There is no optical flow to keep: pass flow to `reconstruct`, or omit `keep_flow`. Windows and results "
            "that were read back have none."
        )
    edges = np.zeros((0, 2), np.int32) if result.edges is None else np.asarray(result.edges)
    shown = result if record is None else dataclasses.replace(result, record=record)

    def write_clouds(path: pathlib.Path) -> None:  # scene.glb and scene.ply
        cloud = point_cloud(only(scene, keep), **dataclasses.asdict(clouds))
        write_glb(path.with_suffix(".glb"), cloud, scene, time)
        write_ply(path.with_suffix(".ply"), cloud, scene)

    steps: dict[str, Callable[[pathlib.Path], object]] = {
        "trajectory.txt": lambda path: write_tum(path, time, scene.world_from_cam),
        "intrinsics.txt": lambda path: write_intrinsics(path, scene.intrinsics),
        "config.json": lambda path: write_json(path, shown.record),
        "depth": lambda path: write_depth(path, scene.depth, unit=shown.unit),
        "masks": lambda path: write_masks(path, scene.dynamic_mask),
        "scene.glb": write_clouds,
        "summary.png": lambda path: write_summary(
            path,
            scene,
            result.motion,
            title=name or target.name,
            time=time,
            flow=None if flow is None else (flow, edges),
            unit=shown.unit,
        ),
        "scene.npz": lambda path: npz.write_scene(
            path,
            scene,
            frames,
            names=frames.names,
            motion=result.motion,
            threshold=None if result.threshold is None else float(result.threshold),
            losses=result.losses,
        ),
    }
    if metrics is not None:
        steps["metrics.json"] = lambda path: write_json(path, metrics)
    if tracks is not None:
        steps["tracks.npz"] = lambda path: _write_tracks(path, shown, scene, tracks)
    if keep_flow and flow is not None:
        steps["flow"] = lambda path: write_flow(path, flow, edges, known=given.flow_known)
    with atomic.atomic_folder(target, marker=_MARKER) as new:
        for done, (file, write) in enumerate(steps.items()):
            progress("write", done, len(steps), file)
            write(new / file)
    progress("write", len(steps), len(steps), "")
    return target


def save_tracks(folder: str | os.PathLike, result: Reconstruction, tracks: Any) -> pathlib.Path:
    """Writes `tracks.npz` into the folder of a result that is already saved, atomically.

    Args:
      folder: of the result.
      result: host arrays.
      tracks: of `track_points`.

    Returns:
      the file's path.

    Raises:
      OutputError: it cannot be written.
    """
    target = pathlib.Path(folder) / "tracks.npz"
    with atomic.atomic_file(target) as path:
        _write_tracks(path, result, result.scene, tracks)
    return target


def _write_tracks(path: pathlib.Path, result: Reconstruction, scene: Scene4D, tracks: Any) -> None:
    write_tapvid(path, scene, tracks.xyz, tracks.xy, tracks.visible, tracks.query, unit=result.unit)


def ensure_writable(folder: str | os.PathLike) -> None:
    """Fails now, before hours of work, where `save_result` would fail at the end.

    Raises:
      OutputError: no permission, a read-only or full disk, a file in the way, or a folder that holds something other
        than an earlier result.
    """
    atomic.ensure_writable(folder, marker=_MARKER)


def load_result(folder: str | os.PathLike) -> Reconstruction:
    """Reads a result folder. Arrays are read-only host arrays; those of the scene are memory maps of `scene.npz`.

    Args:
      folder: written by `save_result`; the path of its scene.npz is also accepted, and the address of a result that a
        program has uploaded.

    Raises:
      InputError: not a result, damaged or incomplete; invalid cameras; a newer version, or an older one that cannot be
        converted.
    """
    if remote.is_address(os.fspath(folder)):
        folder = remote.local(os.fspath(folder).removesuffix("/scene.npz"), result=True)
    folder = pathlib.Path(folder).expanduser()
    if folder.name == "scene.npz" and not folder.is_dir():
        folder = folder.parent
    folder = folder.absolute()
    if not folder.is_dir():
        raise InputError(f"No scene at {folder}: there is no such folder. Give a result folder, or its scene.npz.")
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
    arrays = npz.read_arrays(path, needed, npz.STATIC, npz.NAMES, npz.LENS, npz.MOTION, npz.THRESHOLD, npz.LOSSES)
    if "static_mask" not in arrays:
        arrays["static_mask"] = ~arrays["dynamic_mask"]  # these versions did not use flow for it
        arrays["static_mask"].flags.writeable = False
    scene = npz.scene_of(arrays)
    _check_cameras(path, scene)
    time = arrays["time"] if version else _time_of_older(folder, len(scene.depth))
    if not np.isfinite(time).all():
        raise InputError(f"{path}: times that are not finite. Restore the result, or reconstruct it again.")
    motion = None
    if "motion_labels" in arrays:
        temporal = TemporalMaps(*(arrays[f"motion_{field.name}"] for field in dataclasses.fields(TemporalMaps)))
        motion = MotionMaps(temporal, *(arrays[f"motion_{name}"] for name in ("raw_score", "labels", "score")))
    return Reconstruction(
        scene=scene,
        frames=_frames(path, arrays, time) if version else Frames(scene.rgb, None, time, None, None),
        motion=motion,
        threshold=arrays.get("dynamic_threshold"),
        losses=arrays.get("losses"),
        record=read_object(folder / "config.json"),
        folder=folder,
    )


def _check_cameras(path: pathlib.Path, scene: Scene4D) -> None:
    """Raises InputError for the first frame with an invalid camera."""
    poses, intrinsics = np.asarray(scene.world_from_cam, np.float64), np.asarray(scene.intrinsics, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        rotations = poses[:, :3, :3]
        off = np.abs(rotations.swapaxes(1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
        rigid = (
            np.isfinite(poses).all(axis=(1, 2)) & (off <= _RIGID_TOLERANCE) & (poses[:, 3] == [0, 0, 0, 1]).all(axis=1)
        )
    rigid[rigid] = np.linalg.det(rotations[rigid]) > 0
    pinhole = np.isfinite(intrinsics).all(axis=(1, 2)) & (intrinsics[:, [0, 1], [0, 1]] > 0).all(axis=1)
    pinhole &= (intrinsics[:, [0, 1, 2, 2, 2], [1, 0, 0, 1, 2]] == [0, 0, 0, 0, 1]).all(axis=1)
    for name, good, needed in (
        ("world_from_cam", rigid, "a rotation and a translation"),
        ("intrinsics", pinhole, "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"),
    ):
        for t in np.flatnonzero(~good):
            raise InputError(f"{path}: {name} of frame {t} is not {needed}. Restore it, or reconstruct it again.")


def _frames(path: pathlib.Path, arrays: Mapping[str, np.ndarray], time: np.ndarray) -> Frames:
    matrix, size, index = arrays["frame_from_source"], arrays["source_size"], arrays["source_index"]
    (sx, _, x), (_, sy, y), _ = matrix
    is_crop = np.isfinite(matrix).all() and sx > 0 and sy > 0 and (matrix == [[sx, 0, x], [0, sy, y], [0, 0, 1]]).all()
    if not is_crop or (size < 1).any() or index[0] < 0 or (np.diff(index) <= 0).any():
        raise InputError(f"{path}: the frames' source is damaged. Restore it, or reconstruct it again.")
    names = tuple(arrays["source_names"].tolist()) if "source_names" in arrays else None
    for name in names or ():
        # Exports use them as file names.
        if name in ("", ".", "..") or not name.isprintable() or {"/", "\\"} & set(name):
            raise InputError(f"{path}: {name!r} is not a file name. Restore it, or reconstruct it again.")
    try:
        lens = parse_lens(str(arrays["lens"])) if "lens" in arrays else None
    except InputError as error:
        raise InputError(f"{path}: {error} Restore the result, or reconstruct it again.") from error
    return Frames(arrays["images"], index, time, matrix, size, names=names, lens=lens)


def _time_of_older(folder: pathlib.Path, num_frames: int) -> np.ndarray:
    """Times of a result that stores them only in its trajectory, to a microsecond."""
    path = folder / "trajectory.txt"
    advice = "restore it, or reconstruct the clip again"
    if not path.is_file():
        raise InputError(
            f"{folder} is from an older version, and trajectory.txt, which has its times, is missing: {advice}."
        )
    time, _, _ = read_trajectory(path)
    if len(time) != num_frames:
        raise InputError(f"{path} has {len(time)} poses for the {num_frames} frames of the scene beside it: {advice}.")
    return time
