"""Exports a scene to the files of other tools: one folder per format, written atomically.

Contents and conventions: docs/conventions.md. A format is a function that writes an `Exported` into an empty folder;
`FORMATS` lists them by name.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from easi3r_jax.core import atomic
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.colmap import write_colmap
from easi3r_jax.io.export.exr import require_openexr, write_exr
from easi3r_jax.io.export.full import write_full
from easi3r_jax.io.export.gaussians import write_gaussian_export
from easi3r_jax.io.export.glb import write_glb
from easi3r_jax.io.export.images import depth_scale, encode_depth, scale_text
from easi3r_jax.io.export.jsonfile import write_json
from easi3r_jax.io.export.nerfstudio import write_nerfstudio
from easi3r_jax.io.export.ply import write_ply, write_points
from easi3r_jax.io.export.pointcloud import MIN_CONFIDENCE, Points, SceneCloud, frame_points, point_cloud
from easi3r_jax.io.export.released import write_released
from easi3r_jax.io.export.rrd import require_rerun, write_rrd
from easi3r_jax.io.export.views import Views, frame_views

# Every export contains it: a folder without it is the user's own and is never replaced.
_MARKER = "export.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """What is exported.

    Attributes:
      scene: the reconstruction, or some of its frames; host arrays.
      time: (T,) seconds.
      numbers: (T,) int, the frames' numbers in the result, used in file names.
      views: the images of the cameras, for formats with images.
      min_confidence: of static points.
      max_points: maximum number of points in each cloud.
      unit: of lengths, see `Reconstruction.unit`.
      tracks: (T, N, 3) world positions of the result's tracks, and (T, N) where they are visible; None: it has none.
    """

    scene: Scene4D
    time: np.ndarray
    numbers: np.ndarray
    views: Views
    min_confidence: float = MIN_CONFIDENCE
    max_points: int = 200_000
    unit: str = "arbitrary"
    tracks: tuple[np.ndarray, np.ndarray] | None = None


def frames_of(scene: Scene4D, time: np.ndarray, every: int = 1, **options: Any) -> Exported:
    """Every n-th frame of a scene, with the network's frames as images.

    Args:
      scene: host arrays.
      time: (T,) seconds.
      every: take frames 0, n, 2 n, ...
      options: further fields of `Exported`.
    """
    numbers = np.arange(0, len(scene.depth), every)
    chosen = Scene4D(**{name: array[::every] for name, array in vars(scene).items()})
    return Exported(chosen, np.asarray(time)[::every], numbers, frame_views(chosen, numbers), **options)


def _colmap(folder: pathlib.Path, exported: Exported) -> None:
    write_colmap(folder, exported.scene, exported.views, **_points_of(exported))


def _nerfstudio(folder: pathlib.Path, exported: Exported) -> None:
    write_nerfstudio(folder, exported.scene, exported.views, exported.time, **_points_of(exported))


def _released(folder: pathlib.Path, exported: Exported) -> None:
    write_released(folder, exported.scene, exported.time, **_points_of(exported))


def _ply(folder: pathlib.Path, exported: Exported) -> None:
    cloud = point_cloud(exported.scene, **_points_of(exported))
    write_ply(folder / "scene.ply", cloud, exported.scene, numbers=exported.numbers)
    write_points(folder / "background.ply", cloud.background)
    for path, points in _frames(folder, exported, "ply"):
        write_points(path, points)


def _glb(folder: pathlib.Path, exported: Exported) -> None:
    cloud = point_cloud(exported.scene, **_points_of(exported))
    write = functools.partial(write_glb, scene=exported.scene, time=exported.time, numbers=exported.numbers)
    write(folder / "animated.glb", cloud)
    write(folder / "background.glb", SceneCloud(cloud.background, {}))
    for path, points in _frames(folder, exported, "glb"):
        write(path, SceneCloud(points, {}))


def _exr(folder: pathlib.Path, exported: Exported) -> None:
    for number, depth in zip(exported.numbers, exported.scene.depth, strict=True):
        write_exr(folder / f"{number:05d}.exr", depth)


def _png(folder: pathlib.Path, exported: Exported) -> None:
    scale = depth_scale(np.asarray(exported.scene.depth))
    (folder / "scale.txt").write_text(scale_text(scale, exported.unit))
    for number, depth in zip(exported.numbers, exported.scene.depth, strict=True):
        Image.fromarray(encode_depth(depth, scale)).save(folder / f"{number:05d}.png", compress_level=3)


def _npz(folder: pathlib.Path, exported: Exported) -> None:
    views = exported.views
    arrays: dict[str, Any] = {
        **vars(exported.scene),
        "time": exported.time,
        "frame_number": exported.numbers,
        "image_intrinsics": views.intrinsics(exported.scene),
        "image_from_frame": views.image_from_frame,
        "image_size": np.array(views.size),
        "image_names": np.array(views.names),
    }
    arrays["images"] = arrays.pop("rgb")
    np.savez_compressed(folder / "arrays.npz", **arrays)


def _gaussians(folder: pathlib.Path, exported: Exported) -> None:
    write_gaussian_export(folder, exported.scene, exported.numbers, **_points_of(exported))


def _rerun(folder: pathlib.Path, exported: Exported) -> None:
    write_rrd(
        folder / "scene.rrd",
        exported.scene,
        exported.time,
        exported.numbers,
        tracks=exported.tracks,
        unit=exported.unit,
        **_points_of(exported),
    )


def _full(folder: pathlib.Path, exported: Exported) -> None:
    write_full(folder, exported.scene, exported.views, exported.numbers, exported.unit)


def _points_of(exported: Exported) -> dict[str, Any]:
    return {"min_confidence": exported.min_confidence, "max_points": exported.max_points}


def _frames(folder: pathlib.Path, exported: Exported, suffix: str) -> Iterator[tuple[pathlib.Path, Points]]:
    """The file of each frame, in `frames`, and the frame's points."""
    (folder / "frames").mkdir()
    for t, number in enumerate(exported.numbers):
        points = frame_points(exported.scene, t, exported.min_confidence)
        if len(points) > exported.max_points:
            chosen = np.random.default_rng(t).choice(len(points), exported.max_points, replace=False)
            points = points[np.sort(chosen)]
        yield folder / "frames" / f"{number:05d}.{suffix}", points


FORMATS: dict[str, Callable[[pathlib.Path, Exported], None]] = {
    "colmap": _colmap,
    "nerfstudio": _nerfstudio,
    "easi3r": _released,
    "ply": _ply,
    "glb": _glb,
    "exr": _exr,
    "png": _png,
    "npz": _npz,
    "full": _full,
    "gaussians": _gaussians,
    "rerun": _rerun,
}
#: Formats with cameras of images, which may be the originals.
WITH_IMAGES = ("colmap", "nerfstudio", "npz", "full")
#: Formats with points.
WITH_POINTS = ("colmap", "nerfstudio", "easi3r", "ply", "glb", "gaussians", "rerun")


def parse_formats(text: str) -> tuple[str, ...]:
    """Formats from their names, separated by commas; none for an empty text.

    Raises:
      ConfigError: an unknown name, or a format whose library is not installed.
    """
    names = tuple(dict.fromkeys(word.strip() for word in text.split(","))) if text.strip() else ()
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"Export format {name!r}: it must be one of {', '.join(FORMATS)} (separated by commas).")
    if "exr" in names:
        require_openexr()  # now, not after hours of work
    if "rerun" in names:
        require_rerun()
    return names


def ensure_export_writable(folder: str | os.PathLike) -> None:
    """Fails now where `write_export` would fail at the end.

    Raises:
      OutputError: as `write_export`.
    """
    atomic.ensure_writable(folder, marker=_MARKER)


def write_export(
    folder: str | os.PathLike, name: str, exported: Exported, record: dict[str, Any] | None = None
) -> tuple[pathlib.Path, int]:
    """Writes one format's folder atomically; an earlier one is replaced.

    Args:
      folder: missing parents are created.
      name: one of `FORMATS`.
      exported: the content.
      record: content of `export.json`.

    Returns:
      the folder's absolute path, and the size of its files in bytes.

    Raises:
      OutputError: the folder cannot be written, or holds something other than an export.
    """
    target = pathlib.Path(folder).expanduser().resolve()
    with atomic.atomic_folder(target, marker=_MARKER) as new:
        FORMATS[name](new, exported)
        write_json(new / _MARKER, {"format": name, "frames": exported.numbers, "unit": exported.unit, **(record or {})})
        size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    return target, size
