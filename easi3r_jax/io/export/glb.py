"""`scene.glb`: background, foreground per frame, cameras and their path as one binary glTF 2.0 file.

All geometry in the file is in world coordinates, under one node `scene` whose matrix converts it to glTF's axes (y up,
z backward) with the first camera at the origin. A viewer thus opens with the first frame's view; omit that matrix for
world coordinates. The glTF cameras are outside that node, with complete matrices, since some readers ignore a camera's
parents.

The file's animation shows the foreground frame by frame. Programs without animation show the foreground of all frames
at once.

Written here rather than with a library. trimesh supports no animation, at most one camera and no unlit material, and
stores sRGB colours as if they were linear, so the points look too bright. For 2 million points in 300 frames it takes
0.90 s of CPU time and 0.19 GB, this module 0.40 s and 0.14 GB (`python -m tests.io.export.libraries`). pygltflib
replaces the dictionaries here by classes, but leaves accessors, their bounds and the binary chunk, most of the lines
below, to its caller.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import SceneCloud, camera_lines, camera_size
from easi3r_jax.io.pictures.colors import time_colors

# From OpenCV camera axes (x right, y down, z forward) to glTF's (x right, y up, z backward); its own inverse.
_GLTF_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])

_FLOAT, _UNSIGNED_SHORT = 5126, 5123
_POINTS, _LINES = 0, 1
_ARRAY_BUFFER = 34962


def gltf_from_world(scene: Scene4D) -> np.ndarray:
    """(4, 4) float64, rigid: world to glTF coordinates, first camera at the origin, looking along -z, y up."""
    return _GLTF_FROM_CV @ np.linalg.inv(np.asarray(scene.world_from_cam[0], np.float64))


def write_glb(
    path: str | os.PathLike,
    cloud: SceneCloud,
    scene: Scene4D,
    time: np.ndarray,
    *,
    numbers: Sequence[int] | np.ndarray | None = None,
) -> None:
    """Writes the scene.

    Nodes under `scene`: `background`; `foreground_NNNNN` per frame; `frusta` and `path`, coloured by time. Beside it:
    `camera_NNNNN`, glTF cameras. Their principal point is the middle of the image, the only one that glTF supports;
    DUSt3R's is half a pixel off, and a known one may be anywhere.

    Args:
      path: the file.
      cloud: points of `scene`.
      scene: for the cameras.
      time: (T,) seconds at which each frame's foreground is shown in the animation.
      numbers: (T,) frame numbers for the names; None: 0, 1, ...
    """
    numbers = range(len(scene.depth)) if numbers is None else numbers
    file = _Glb()
    root = file.add("nodes", {"name": "scene", "matrix": _column_major(gltf_from_world(scene)), "children": []})
    children = file.json["nodes"][root]["children"]
    if len(cloud.background):
        children.append(file.mesh("background", _POINTS, cloud.background.xyz, cloud.background.rgb))
    foreground = {
        t: file.mesh(f"foreground_{numbers[t]:05d}", _POINTS, points.xyz, points.rgb)
        for t, points in sorted(cloud.foreground.items())
        if len(points)
    }
    children += foreground.values()
    if len(cloud.foreground) > 1 and foreground:
        _animate(file, foreground, np.asarray(time, np.float64))
    size = camera_size(scene)
    children += _camera_lines(file, scene, size)
    file.json["scenes"][0]["nodes"] = [root, *_cameras(file, scene, size, numbers)]
    pathlib.Path(path).write_bytes(file.tobytes())


def _camera_lines(file: _Glb, scene: Scene4D, size: float) -> list[int]:
    colors = time_colors(len(scene.depth))
    lines = camera_lines(scene, size)
    nodes = [file.mesh("frusta", _LINES, lines.reshape(-1, 3), np.repeat(colors, lines[0].size // 3, axis=0))]
    if len(colors) > 1:
        steps = np.stack([np.arange(len(colors) - 1), np.arange(1, len(colors))], axis=1).reshape(-1)
        nodes.append(file.mesh("path", _LINES, np.asarray(scene.world_from_cam)[steps, :3, 3], colors[steps]))
    return nodes


def _cameras(file: _Glb, scene: Scene4D, size: float, numbers: Sequence[int] | np.ndarray) -> list[int]:
    height, width = scene.depth.shape[1:]
    gltf_from_cam = gltf_from_world(scene) @ np.asarray(scene.world_from_cam, np.float64) @ _GLTF_FROM_CV
    nodes = []
    for number, intrinsics, matrix in zip(numbers, np.asarray(scene.intrinsics), gltf_from_cam, strict=True):
        perspective = {
            "aspectRatio": width * float(intrinsics[1, 1]) / (height * float(intrinsics[0, 0])),
            "yfov": 2 * math.atan(height / (2 * float(intrinsics[1, 1]))),
            "znear": size / 10,
        }
        name = f"camera_{number:05d}"
        camera = file.add("cameras", {"name": name, "type": "perspective", "perspective": perspective})
        nodes.append(file.add("nodes", {"name": name, "camera": camera, "matrix": _column_major(matrix)}))
    return nodes


def _animate(file: _Glb, foreground: dict[int, int], time: np.ndarray) -> None:
    """Shows each frame's node only at its time: scale one then, zero before and after."""
    time = time - time[0]
    if (np.diff(time) <= 0).any():  # frames without times: ten per second
        time = np.arange(len(time)) / 10
    ends = np.append(time[1:], time[-1] + np.median(np.diff(time)))
    samplers, channels = [], []
    for t, node in foreground.items():
        keys = {0.0: 0.0, float(time[t]): 1.0, float(ends[t]): 0.0}
        if t == len(time) - 1:
            keys[float(ends[t])] = 1.0  # keeps the last frame until the animation ends
        scale = np.repeat(np.array(list(keys.values()), np.float32)[:, None], 3, axis=1)
        moments = file.accessor(np.array(list(keys), np.float32), "SCALAR", bounds=True)
        channels.append({"sampler": len(samplers), "target": {"node": node, "path": "scale"}})
        samplers.append({"input": moments, "output": file.accessor(scale, "VEC3"), "interpolation": "STEP"})
    file.add("animations", {"name": "time", "channels": channels, "samplers": samplers})


def _column_major(matrix: np.ndarray) -> list[float]:
    return matrix.T.reshape(-1).tolist()


def _linear_rgba(rgb: np.ndarray) -> np.ndarray:
    """(P, 4) uint16: glTF's vertex colours are linear, images are sRGB (IEC 61966-2-1)."""
    srgb = np.arange(256) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    table = np.rint(linear * 65535).astype(np.uint16)
    return np.concatenate([table[rgb], np.full((len(rgb), 1), 65535, np.uint16)], axis=1)


class _Glb:
    """A glTF document and its binary chunk, growing together."""

    def __init__(self):
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "easi3r_jax"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{}],
            "materials": [{"name": "unlit", "extensions": {"KHR_materials_unlit": {}}}],
        }
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, kind: str, entry: dict[str, Any]) -> int:
        entries = self.json.setdefault(kind, [])
        entries.append(entry)
        return len(entries) - 1

    def accessor(
        self,
        array: np.ndarray,
        kind: str,
        *,
        bounds: bool = False,
        normalized: bool = False,
        of_vertices: bool = False,
    ) -> int:
        component = {"f": _FLOAT, "u": _UNSIGNED_SHORT}[array.dtype.kind]
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()  # a multiple of four bytes: stays aligned
        view = {"buffer": 0, "byteOffset": self._length, "byteLength": len(data)}
        if of_vertices:
            view["target"] = _ARRAY_BUFFER
        self._parts.append(data)
        self._length += len(data)
        entry = {
            "bufferView": self.add("bufferViews", view),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if normalized:
            entry["normalized"] = True
        if bounds:
            columns = array.reshape(len(array), -1)
            entry |= {"min": columns.min(0).tolist(), "max": columns.max(0).tolist()}
        return self.add("accessors", entry)

    def mesh(self, name: str, mode: int, xyz: np.ndarray, rgb: np.ndarray) -> int:
        """A node that shows `xyz` (P, 3) in colours `rgb` (P, 3) uint8, P >= 1."""
        attributes = {
            "POSITION": self.accessor(np.asarray(xyz, np.float32), "VEC3", bounds=True, of_vertices=True),
            "COLOR_0": self.accessor(_linear_rgba(rgb), "VEC4", normalized=True, of_vertices=True),
        }
        mesh = self.add(
            "meshes", {"name": name, "primitives": [{"mode": mode, "attributes": attributes, "material": 0}]}
        )
        return self.add("nodes", {"name": name, "mesh": mesh})

    def tobytes(self) -> bytes:
        self.json["buffers"] = [{"byteLength": self._length}]
        text = json.dumps(self.json, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._length
        return b"".join(
            [
                struct.pack("<4sII", b"glTF", 2, total),
                struct.pack("<I4s", len(text), b"JSON"),
                text,
                struct.pack("<I4s", self._length, b"BIN\0"),
                *self._parts,
            ]
        )
