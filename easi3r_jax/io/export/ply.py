"""`scene.ply`: all points and cameras in one vertex list; and files of points only.

Written here rather than with a library: the format is a header and one packed array. plyfile writes the same bytes, but
is GPL, so only the tests use it. trimesh adds an alpha channel and drops the comment; for 2 million points it takes
0.26 s of CPU time and 0.19 GB, this module 0.13 s and 0.04 GB (`python -m tests.io.export.libraries`).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import Points, SceneCloud, camera_lines, camera_size, iterate_groups
from easi3r_jax.io.pictures.colors import time_colors

#: Values of the vertex property `kind`.
BACKGROUND, FOREGROUND, CAMERA = 0, 1, 2

_VERTEX = np.dtype(
    [("xyz", "<f4", 3), ("rgb", "u1", 3), ("kind", "u1"), ("frame", "<i4")]  # packed: no padding
)
_HEADER = """ply
format binary_little_endian 1.0
comment easi3r_jax: world coordinates, OpenCV axes (x right, y down, z forward){comment}
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue{properties}
end_header
"""
_COMMENT = "\ncomment kind: 0 background, 1 foreground, 2 camera; frame: -1 for the background"
_PROPERTIES = "\nproperty uchar kind\nproperty int frame"
_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])

# A camera's edges are drawn as dots, since few programs show a PLY's edges.
_DOTS_PER_EDGE = 24


def write_ply(
    path: str | os.PathLike,
    cloud: SceneCloud,
    scene: Scene4D,
    *,
    numbers: Sequence[int] | np.ndarray | None = None,
) -> None:
    """Writes background, foreground and cameras as a binary PLY of coloured points.

    Two extra properties, `kind` and `frame`, identify the points; programs that do not know them skip them.

    Args:
      path: the file.
      cloud: points of `scene`.
      scene: for the cameras.
      numbers: (T,) of the frames, for `frame`; None: 0, 1, ...
    """
    numbers = range(len(scene.depth)) if numbers is None else numbers
    groups = [
        (points.xyz, points.rgb, *((BACKGROUND, -1) if t < 0 else (FOREGROUND, numbers[t])))
        for t, points in iterate_groups(cloud)
    ]
    along = np.linspace(0, 1, _DOTS_PER_EDGE, dtype=np.float32)[:, None]
    colors = time_colors(len(scene.depth))
    for t, lines in enumerate(camera_lines(scene, camera_size(scene))):
        dots = (lines[:, None, 0] * (1 - along) + lines[:, None, 1] * along).reshape(-1, 3)
        groups.append((dots, colors[t], CAMERA, numbers[t]))
    count = sum(len(xyz) for xyz, *_ in groups)
    with pathlib.Path(path).open("wb") as file:
        file.write(_HEADER.format(comment=_COMMENT, count=count, properties=_PROPERTIES).encode("ascii"))
        for group in groups:
            file.write(_vertices(*group).data)


def write_points(path: pathlib.Path, points: Points) -> None:
    """Writes points as a binary PLY with position and colour only, which every reader supports."""
    vertices = np.empty(len(points), _POINT)
    vertices["xyz"], vertices["rgb"] = points.xyz, points.rgb
    header = _HEADER.format(comment="", count=len(points), properties="")
    path.write_bytes(header.encode("ascii") + vertices.tobytes())


def _vertices(xyz: np.ndarray, rgb: np.ndarray, kind: int, frame: int) -> np.ndarray:
    vertices = np.empty(len(xyz), _VERTEX)
    vertices["xyz"], vertices["rgb"], vertices["kind"], vertices["frame"] = xyz, rgb, kind, frame
    return vertices
