"""What a reconstruction leaves behind: one folder, written whole or not at all; and clip folders with ground truth.

See docs/conventions.md.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from easi3r_jax.core import atomic
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Frames, MotionMaps, Scene4D
from easi3r_jax.io.export.clip import ensure_clip_writable, write_clip
from easi3r_jax.io.export.flow import flow_image, write_flow
from easi3r_jax.io.export.formats import (
    FORMATS,
    WITH_IMAGES,
    WITH_POINTS,
    Exported,
    ensure_export_writable,
    frames_of,
    parse_formats,
    write_export,
)
from easi3r_jax.io.export.glb import gltf_from_world, write_glb
from easi3r_jax.io.export.images import write_depth, write_masks
from easi3r_jax.io.export.jsonfile import to_json, write_json
from easi3r_jax.io.export.npz import load_scene, write_scene
from easi3r_jax.io.export.ply import write_ply
from easi3r_jax.io.export.pointcloud import MIN_CONFIDENCE, Points, SceneCloud, point_cloud
from easi3r_jax.io.export.trajectory import read_tum, write_intrinsics, write_tum
from easi3r_jax.io.export.views import Views
from easi3r_jax.io.pictures.gallery import Gallery
from easi3r_jax.io.pictures.movies import frame_rate, write_gif, write_mp4
from easi3r_jax.io.pictures.panels import Film
from easi3r_jax.io.pictures.summary import summary_figure, write_summary

__all__ = [
    "FORMATS",
    "MIN_CONFIDENCE",
    "WITH_IMAGES",
    "WITH_POINTS",
    "Exported",
    "Film",
    "Gallery",
    "Points",
    "SceneCloud",
    "Views",
    "check_foreground",
    "ensure_clip_writable",
    "ensure_export_writable",
    "ensure_writable",
    "flow_image",
    "frame_rate",
    "frames_of",
    "gltf_from_world",
    "load_scene",
    "parse_formats",
    "point_cloud",
    "read_tum",
    "summary_figure",
    "to_json",
    "write_clip",
    "write_depth",
    "write_export",
    "write_flow",
    "write_gif",
    "write_glb",
    "write_intrinsics",
    "write_json",
    "write_masks",
    "write_mp4",
    "write_ply",
    "write_result",
    "write_scene",
    "write_summary",
    "write_tum",
]

# Every result holds it: a folder without it is somebody else's and is never replaced.
_MARKER = "scene.npz"


def ensure_writable(folder: str | os.PathLike) -> None:
    """Fails now, before hours of work, where `write_result` would fail at the end.

    Raises:
      OutputError: no permission, a read-only or full disk, a file in the way, or a folder that holds something other
        than an earlier result.
    """
    atomic.ensure_writable(folder, marker=_MARKER)


def write_result(
    folder: str | os.PathLike,
    scene: Scene4D,
    motion: MotionMaps | None = None,
    *,
    frames: Frames,
    config: Mapping[str, Any],
    source_names: Sequence[str] | None = None,
    metrics: Mapping[str, Any] | None = None,
    threshold: float | None = None,
    losses: np.ndarray | None = None,
    flow: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None,
    keep_flow: bool = False,
    name: str | None = None,
    foreground: str | int = "all",
    min_confidence: float = MIN_CONFIDENCE,
    max_points: int = 2_000_000,
    progress: Callable[[int, int, str], None] | None = None,
) -> pathlib.Path:
    """Writes a result folder: everything, or nothing where anything fails; an earlier result is replaced as a whole.

    Args:
      folder: missing parents are created.
      scene: the reconstruction.
      motion: for the rows of `summary.png` that show why something moves; None leaves them out. Kept in `scene.npz`.
      frames: the clip it was made of.
      config: every option, version, hash and seed that made it: `config.json`.
      source_names: file names of the frames' originals, (T,), of a clip that is a folder of images.
      metrics: `metrics.json` where there is ground truth.
      threshold: of the score, above which a pixel moves; None where there is not one for the clip.
      losses: (iterations,) of the alignment; None where there is not one alignment of the clip.
      flow: (E, H, W, 2) optical flow, its pairs (E, 2), and where it is known, (E, H, W) bool or None: a row of
        `summary.png`.
      keep_flow: keep it in the folder `flow`, too.
      name: heads `summary.png`; the folder's name by default.
      foreground: of the point clouds: "all" frames, "none", or the number of one frame.
      min_confidence: of the static points in the clouds.
      max_points: in each cloud.
      progress: called with files done, files in all, and the name of the next one.

    Returns:
      the absolute path of the folder.

    Raises:
      ConfigError: a `foreground` that is not a frame of the clip.
      OutputError: the folder cannot be written.
    """
    scene = Scene4D(**{field: np.asarray(value) for field, value in vars(scene).items()})  # from the device, once
    time = np.asarray(frames.time, np.float64)
    check_foreground(foreground, len(scene.depth))
    target = pathlib.Path(folder).expanduser().resolve()
    report = progress or _silent

    def write_clouds(path: pathlib.Path) -> None:  # scene.glb and scene.ply
        cloud = point_cloud(scene, foreground=foreground, min_confidence=min_confidence, max_points=max_points)
        write_glb(path.with_suffix(".glb"), cloud, scene, time)
        write_ply(path.with_suffix(".ply"), cloud, scene)

    with atomic.atomic_folder(target, marker=_MARKER) as new:
        steps: dict[str, Callable[[pathlib.Path], object]] = {
            "trajectory.txt": lambda path: write_tum(path, time, scene.world_from_cam),
            "intrinsics.txt": lambda path: write_intrinsics(path, scene.intrinsics),
            "config.json": lambda path: write_json(path, config),
            "depth": lambda path: write_depth(path, scene.depth),
            "masks": lambda path: write_masks(path, scene.dynamic_mask),
            "scene.glb": write_clouds,
            "summary.png": lambda path: write_summary(
                path, scene, motion, title=name or target.name, time=time, flow=None if flow is None else flow[:2]
            ),
            "scene.npz": lambda path: write_scene(
                path, scene, frames, names=source_names, motion=motion, threshold=threshold, losses=losses
            ),
        }
        if metrics is not None:
            steps["metrics.json"] = lambda path: write_json(path, metrics)
        if flow is not None and keep_flow:
            steps["flow"] = lambda path: write_flow(path, np.asarray(flow[0]), flow[1], known=flow[2])
        for done, (file, write) in enumerate(steps.items()):
            report(done, len(steps), file)
            write(new / file)
    report(len(steps), len(steps), "")
    return target


def _silent(done: int, total: int, note: str) -> None:
    del done, total, note


def check_foreground(foreground: str | int, num_frames: int) -> None:
    """Refuses a `foreground` that `write_result` would refuse.

    Raises:
      ConfigError: it is neither "all" nor "none" nor the number of a frame.
    """
    if foreground in ("all", "none"):
        return
    word = str(foreground)
    if not (word.isascii() and word.isdecimal()) or int(word) >= num_frames:
        raise ConfigError(f"Foreground {foreground!r}: 'all', 'none', or a frame number from 0 to {num_frames - 1}.")
