"""Camera paths for videos. NumPy only."""

from __future__ import annotations

import numpy as np


def orbit(position: np.ndarray, look_at: np.ndarray, up: np.ndarray, count: int, degrees: float = 60.0) -> np.ndarray:
    """A closed path around a point. It starts at a given view and always looks at the point.

    Args:
      position, look_at: (3,), distinct.
      up: (3,), the axis of rotation; not parallel to the viewing direction.
      count: number of poses, evenly spaced in time; one more step after the last would return to the first.
      degrees: 360 is a full turn; less swings to both sides, and is the total angle of the swing.

    Returns:
      (count, 4, 4) float64 world_from_cam, OpenCV axes.
    """
    from scipy.spatial.transform import Rotation

    phase = 2 * np.pi * np.arange(count) / count
    angle = phase if degrees >= 360 else np.radians(degrees) / 2 * np.sin(phase)
    axis = np.asarray(up, np.float64) / np.linalg.norm(up)
    offsets = Rotation.from_rotvec(angle[:, None] * axis).apply(np.asarray(position, np.float64) - look_at)
    return np.array([look_at_pose(look_at + offset, np.asarray(look_at, np.float64), axis) for offset in offsets])


def look_at_pose(position: np.ndarray, look_at: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(4, 4) world_from_cam of an upright camera at `position` that looks at `look_at`."""
    forward = (look_at - position) / np.linalg.norm(look_at - position)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack([right, np.cross(forward, right), forward, position])
    return pose


def fitting_fov(fov: float, aspect: float, window: float) -> float:
    """Vertical field of view, radians, at which a window shows the whole of an image.

    Args:
      fov: vertical field of view of the image, radians.
      aspect: width of the image over its height.
      window: width of the window over its height.
    """
    return 2 * float(np.arctan(np.tan(fov / 2) * max(1.0, aspect / window)))


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(3, 3) rotation -> (4,) float64 quaternion, scalar first."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotation).as_quat(scalar_first=True)


def up_direction(world_from_cam: np.ndarray) -> np.ndarray:
    """(3,) unit vector that points up for a hand-held camera: the mean of the images' up axes over (T, 4, 4) poses."""
    up = -np.asarray(world_from_cam, np.float64)[:, :3, 1].mean(axis=0)
    length = np.linalg.norm(up)
    return up / length if length > 1e-6 else -np.asarray(world_from_cam[0, :3, 1], np.float64)
