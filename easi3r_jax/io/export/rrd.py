"""A recording for the Rerun viewer: `scene.rrd`. Needs rerun-sdk (extra `rerun`).

    world                   OpenCV axes: x right, y down, z forward
    world/camera            pose and pinhole of each frame
    world/camera/image      the network's frames, as JPEG
    world/camera/depth      z in world units; 0: none
    world/camera/dynamic    1 in dynamic regions
    world/path              the camera path
    world/static            static points
    world/dynamic           dynamic points of each frame
    world/tracks            tracks of the result, where they are visible

Timelines: `frame`, the number in the result, and `video`, seconds.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import point_cloud
from easi3r_jax.io.pictures.colors import time_colors

_QUALITY = 90


def require_rerun() -> Any:
    """The module `rerun`.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise ConfigError("The format rerun needs rerun-sdk: pip install 'easi3r_jax[rerun]'.") from error
    return rerun


def write_rrd(
    path: pathlib.Path,
    scene: Scene4D,
    time: np.ndarray,
    numbers: np.ndarray,
    *,
    tracks: tuple[np.ndarray, np.ndarray] | None = None,
    unit: str = "arbitrary",
    min_confidence: float,
    max_points: int,
) -> None:
    """Writes the recording.

    Args:
      path: the file.
      scene: host arrays.
      time: (T,) seconds.
      numbers: (T,) of the frames in the result.
      tracks: (T, N, 3) in the world, and (T, N) where they are visible; None: there are none.
      unit: of lengths; written as text beside the world.
      min_confidence: of static points.
      max_points: maximum number of points.

    Raises:
      ConfigError: rerun-sdk is not installed.
    """
    rr = require_rerun()
    stream = rr.RecordingStream("easi3r_jax", send_properties=False, default_enabled=True)
    rr.set_log_time_enabled(False, recording=stream)
    rr.set_log_tick_enabled(False, recording=stream)
    stream.save(path)
    height, width = scene.depth.shape[1:]
    cloud = point_cloud(scene, min_confidence=min_confidence, max_points=max_points)
    poses = np.asarray(scene.world_from_cam, np.float64)
    stream.log("world", rr.ViewCoordinates.RIGHT_HAND_Y_DOWN, static=True)
    stream.log("world/unit", rr.TextDocument(f"Lengths: {unit}"), static=True)
    stream.log("world/camera/dynamic", rr.AnnotationContext([(1, "dynamic", (255, 80, 80))]), static=True)
    stream.log("world/static", rr.Points3D(cloud.background.xyz, colors=cloud.background.rgb), static=True)
    stream.log("world/path", rr.LineStrips3D([poses[:, :3, 3].astype(np.float32)]), static=True)
    for t, number in enumerate(numbers):
        stream.set_time("frame", sequence=int(number))
        stream.set_time("video", duration=float(time[t]))
        stream.log("world/camera", rr.Transform3D(translation=poses[t, :3, 3], mat3x3=poses[t, :3, :3]))
        matrix = np.array(scene.intrinsics[t], np.float64)
        matrix[:2, 2] += 0.5  # Rerun's pixels start at the image's corner
        stream.log("world/camera", rr.Pinhole(image_from_camera=matrix, width=width, height=height))
        stream.log("world/camera/image", rr.Image(np.asarray(scene.rgb[t])).compress(jpeg_quality=_QUALITY))
        depth = np.asarray(scene.depth[t])
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
        stream.log("world/camera/depth", rr.DepthImage(depth, meter=1.0))
        stream.log("world/camera/dynamic", rr.SegmentationImage(np.asarray(scene.dynamic_mask[t]).astype(np.uint8)))
        moving = cloud.foreground[t]
        stream.log("world/dynamic", rr.Points3D(moving.xyz, colors=moving.rgb))
        if tracks is not None:
            xyz, visible = tracks[0][t], tracks[1][t]
            colors = time_colors(len(xyz))[visible]
            stream.log("world/tracks", rr.Points3D(xyz[visible], colors=colors))
    stream.flush()
    stream.disconnect()
