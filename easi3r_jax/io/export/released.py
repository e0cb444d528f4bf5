"""The output files of the released MonST3R and Easi3R, so that viewers and scripts made for them keep working.

    pred_traj.txt           a line per frame: number, tx ty tz, qw qx qy qz: camera to world, the scalar FIRST
    pred_intrinsics.txt     a line per frame: 3x3, row by row
    pred_focal.txt          a line per frame
    frame_0000.png          the network's frames
    frame_0000.npy          (H, W) float32, z
    conf_0.npy              (H, W) float32
    dynamic_mask_0.png      255 in dynamic regions
    scene.glb               background, foreground, cameras

Numbers in the names count from 0 without gaps, as those programs' readers expect.
"""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.glb import write_glb
from easi3r_jax.io.export.pointcloud import point_cloud


def write_released(
    folder: pathlib.Path, scene: Scene4D, time: np.ndarray, *, min_confidence: float, max_points: int
) -> None:
    """Writes these files.

    Args:
      folder: an existing, empty folder.
      scene: host arrays.
      time: (T,) seconds, for the animation in scene.glb.
      min_confidence: of the points in scene.glb.
      max_points: maximum number of points.
    """
    from scipy.spatial.transform import Rotation

    poses, intrinsics = np.asarray(scene.world_from_cam, np.float64), np.asarray(scene.intrinsics, np.float64)
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat(canonical=True, scalar_first=True)
    rows = np.column_stack([np.arange(len(poses)), poses[:, :3, 3], quaternions])
    np.savetxt(folder / "pred_traj.txt", rows, fmt="%.9g")
    np.savetxt(folder / "pred_intrinsics.txt", intrinsics.reshape(-1, 9), fmt="%.9g")
    np.savetxt(folder / "pred_focal.txt", np.sqrt(intrinsics[:, 0, 0] * intrinsics[:, 1, 1]), fmt="%.9g")
    for t in range(len(poses)):
        Image.fromarray(np.asarray(scene.rgb[t])).save(folder / f"frame_{t:04d}.png", compress_level=3)
        np.save(folder / f"frame_{t:04d}.npy", np.asarray(scene.depth[t]))
        np.save(folder / f"conf_{t}.npy", np.asarray(scene.confidence[t]))
        mask = np.where(scene.dynamic_mask[t], 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(folder / f"dynamic_mask_{t}.png")
    cloud = point_cloud(scene, min_confidence=min_confidence, max_points=max_points)
    write_glb(folder / "scene.glb", cloud, scene, time)
