"""nerfstudio: `transforms.json` with images, masks and initial points.

Format: https://docs.nerf.studio/quickstart/data_conventions.html. Cameras have OpenGL's axes (x right, y up, z
backward); pixel coordinates start at the image's corner, with pixel centres at halves; the world is ours.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.jsonfile import write_json
from easi3r_jax.io.export.ply import write_points
from easi3r_jax.io.export.pointcloud import point_cloud
from easi3r_jax.io.export.views import Views

# From OpenCV's camera axes to OpenGL's.
_CV_FROM_GL = np.diag([1.0, -1.0, -1.0, 1.0])
_POINTS = "points.ply"


def write_nerfstudio(
    folder: pathlib.Path, scene: Scene4D, views: Views, time: np.ndarray, *, min_confidence: float, max_points: int
) -> None:
    """Writes `transforms.json`, `images`, `masks` and `points.ply`.

    Args:
      folder: an existing, empty folder.
      scene: host arrays.
      views: the images of the cameras.
      time: (T,) seconds.
      min_confidence: of the points.
      max_points: maximum number of points.
    """
    views.write_images(folder / "images")
    views.write_static_masks(folder / "masks", scene, lambda name: f"{name}.png")
    cloud = point_cloud(scene, foreground="none", min_confidence=min_confidence, max_points=max_points)
    write_points(folder / _POINTS, cloud.background)
    cameras = [_intrinsics(matrix) for matrix in views.intrinsics(scene)]
    is_shared = all(camera == cameras[0] for camera in cameras)
    poses = np.asarray(scene.world_from_cam, np.float64) @ _CV_FROM_GL
    span = max(float(time[-1] - time[0]), 1e-12)
    frames = [
        {
            "file_path": f"images/{name}",
            "mask_path": f"masks/{name}.png",
            "transform_matrix": pose.tolist(),
            "time": float(moment - time[0]) / span,
            **({} if is_shared else camera),
        }
        for name, pose, moment, camera in zip(views.names, poses, time, cameras, strict=True)
    ]
    size = {"w": views.size[1], "h": views.size[0]}
    shared = cameras[0] if is_shared else {}
    write_json(
        folder / "transforms.json",
        {"camera_model": "OPENCV", **size, **shared, "ply_file_path": _POINTS, "frames": frames},
    )


def _intrinsics(matrix: np.ndarray) -> dict[str, Any]:
    (fx, _, cx), (_, fy, cy), _ = matrix.tolist()
    return {"fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5}
