"""An exactly known, ray-cast scene: a slanted wall, a panel in front of it, and a moving square.

Also checks for exports: a world point must project to the pixel that it came from, in the network's frames or in the
originals.
"""

import json
import pathlib

import numpy as np
import PIL.Image
from scipy.spatial.transform import Rotation

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io import export

T, H, W = 6, 32, 48
#: Of frames whose first is not the source's.
TIME = 0.5 + np.arange(T) / 8
FOCAL = 40.0
# The originals are three times as large, and their upper and left border is cut off.
FRAME_FROM_SOURCE = np.array([[1 / 3, 0, -1 / 3 - 4], [0, 1 / 3, -1 / 3 - 2], [0, 0, 1]])
SOURCE_SIZE = (108, 168)
#: Pixels (x, y) of a frame, on the wall, on the panel, and at the corners.
PIXELS = np.array([[0, 0], [47, 0], [0, 31], [47, 31], [24, 16], [20, 14], [7, 29], [41, 3]])


def cast(world_from_cam, intrinsics, t):
    """(H, W) depth, and whether it is the square that moves."""
    y, x = np.mgrid[:H, :W]
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T
    origin, rays = world_from_cam[:3, 3], rays @ world_from_cam[:3, :3].T
    depth = (6 + 0.3 * origin[0] - origin[2]) / (rays[..., 2] - 0.3 * rays[..., 0])
    moving = np.zeros((H, W), bool)
    for z, left, right, moves in ((3.5, -0.8, 0.8, False), (3.0, -2 + 0.3 * t, -1.2 + 0.3 * t, True)):
        distance = (z - origin[2]) / rays[..., 2]
        points = origin + distance[..., None] * rays
        hit = (points[..., 0] > left) & (points[..., 0] < right) & (np.abs(points[..., 1]) < 0.6) & (distance < depth)
        depth = np.where(hit, distance, depth)
        moving = np.where(hit, moves, moving)
    return depth, moving


def made(focals) -> Scene4D:
    """The scene, seen with these focal lengths, (T,)."""
    rng = np.random.default_rng(0)
    world_from_cam = np.tile(np.eye(4), (T, 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_rotvec([[0.02 * t, 0.03 * t, -0.04 * t] for t in range(T)]).as_matrix()
    world_from_cam[:, :3, 3] = [[-0.1 * t, 0.05 * t, 0.1 * t] for t in range(T)]
    world_from_cam = world_from_cam.astype(np.float32).astype(np.float64)
    intrinsics = np.stack([[[f, 0, W / 2], [0, f * 1.02, H / 2 + 1], [0, 0, 1]] for f in focals])
    depth, moving = zip(
        *(cast(pose, k, t) for t, (pose, k) in enumerate(zip(world_from_cam, intrinsics, strict=True))), strict=True
    )
    return Scene4D(
        world_from_cam=world_from_cam.astype(np.float32),
        intrinsics=intrinsics.astype(np.float32),
        depth=np.array(depth, np.float32),
        confidence=np.full((T, H, W), 3.0, np.float32),
        dynamic_mask=np.array(moving),
        dynamic_score=np.array(moving).astype(np.float32),
        static_mask=~np.array(moving),
        rgb=rng.integers(0, 256, (T, H, W, 3), np.uint8),
    )


def originals() -> export.Views:
    """As if the clip's images were at hand."""

    def write(t, path):
        PIL.Image.new("RGB", SOURCE_SIZE[::-1], (t, 0, 0)).save(path)

    names = [f"IMG_{number:03d}.jpg" for number in range(T)]
    return export.Views(names, SOURCE_SIZE, np.linalg.inv(FRAME_FROM_SOURCE), write)


def write(folder: pathlib.Path, name: str, exported: export.Exported) -> pathlib.Path:
    """Writes an export into a folder of its name."""
    written, size = export.write_export(folder / name, name, exported, {"made": "here"})
    assert size == sum(p.stat().st_size for p in written.rglob("*") if p.is_file())
    assert json.loads((written / "export.json").read_text())["format"] == name
    return written


def world_points(scene: Scene4D, t: int, pixels: np.ndarray = PIXELS) -> np.ndarray:
    """(P, 3) points of a frame's pixels."""
    pose, intrinsics = (np.asarray(a[t], np.float64) for a in (scene.world_from_cam, scene.intrinsics))
    rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(intrinsics).T
    depth = scene.depth[t][pixels[:, 1], pixels[:, 0]].astype(np.float64)
    return rays * depth[:, None] @ pose[:3, :3].T + pose[:3, 3]


def in_images(exported: export.Exported, pixels: np.ndarray = PIXELS) -> np.ndarray:
    """The same pixels, counted from the corner of the images that cameras are for."""
    if exported.views.size == SOURCE_SIZE:
        pixels = (pixels + np.array([4, 2])) * 3 + 1  # a frame's pixel is the middle one of three
    return pixels + 0.5
