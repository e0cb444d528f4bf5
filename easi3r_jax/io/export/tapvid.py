"""3D tracks as an .npz in the layout of TAPVid-3D (Koppula et al., 2024), which trackers and their viewers read."""

from __future__ import annotations

import io
import os
import zipfile
import zlib

import numpy as np
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Scene4D

_QUALITY = 95


def write_tapvid(
    path: str | os.PathLike,
    scene: Scene4D,
    xyz: np.ndarray,
    xy: np.ndarray,
    visible: np.ndarray,
    query: np.ndarray,
    *,
    unit: str = "arbitrary",
) -> None:
    """Writes tracks. Pixels count from the image's corner: the centre of the top left one is (0.5, 0.5).

        images_jpeg_bytes  (T,) bytes, the frames
        queries_xyt        (N, 3) float32, pixel and frame where each track starts
        tracks_XYZ         (T, N, 3) float32, in each frame's camera, world units
        visibility         (T, N) bool
        fx_fy_cx_cy        (4,) float32, the mean over frames
        extrinsics_w2c     (T, 4, 4) float32, camera from world
        intrinsics_per_frame (T, 3, 3) float32 and unit (of lengths), beside the layout

    Args:
      path: the file.
      scene: host arrays.
      xyz: (T, N, 3) in the world.
      xy: (T, N, 2) pixels of the frames, integers at pixel centres.
      visible: (T, N) bool.
      query: (N,) frames in which tracks start.
      unit: of lengths, see `Reconstruction.unit`.
    """
    cam_from_world = np.linalg.inv(np.asarray(scene.world_from_cam, np.float64))
    in_camera = xyz @ cam_from_world[:, :3, :3].swapaxes(1, 2) + cam_from_world[:, None, :3, 3]
    intrinsics = np.array(scene.intrinsics, np.float64)
    intrinsics[:, :2, 2] += 0.5
    start = xy[query, np.arange(len(query))] + 0.5
    arrays = {
        # Fixed-length bytes, not objects, which only pickle could store: a JPEG does not end with the zeros they lose.
        "images_jpeg_bytes": np.array([_jpeg(np.asarray(frame)) for frame in scene.rgb]),
        "queries_xyt": np.column_stack([start, query]).astype(np.float32),
        "tracks_XYZ": in_camera.astype(np.float32),
        "visibility": np.asarray(visible, bool),
        "fx_fy_cx_cy": intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]].mean(0).astype(np.float32),
        "extrinsics_w2c": cam_from_world.astype(np.float32),
        # Not "intrinsics": readers of the layout know that name with four numbers.
        "intrinsics_per_frame": intrinsics.astype(np.float32),
        "unit": np.array(unit),
    }
    with open(path, "wb") as file:  # a path without its ending would get one
        np.savez_compressed(file, **arrays)


def read_tapvid(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tracks of a file that `write_tapvid` has written.

    Returns:
      (T, N, 3) float64 in the world; (T, N) bool, where they are visible; and (N, 3) int, x, y and frame of the pixels
      in which they start.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            inside, visible, poses = file["tracks_XYZ"], file["visibility"], file["extrinsics_w2c"]
            start = np.rint(file["queries_xyt"] - [0.5, 0.5, 0]).astype(int)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"Cannot read the tracks {path}: {error}. Restore or remove it.") from error
    world_from_cam = np.linalg.inv(poses.astype(np.float64))
    return inside @ world_from_cam[:, :3, :3].swapaxes(1, 2) + world_from_cam[:, None, :3, 3], visible, start


def _jpeg(rgb: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()
