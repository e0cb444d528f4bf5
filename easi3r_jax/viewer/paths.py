"""Camera paths of videos. NumPy only."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def orbit(position: np.ndarray, look_at: np.ndarray, up: np.ndarray, count: int, degrees: float = 60.0) -> np.ndarray:
    """A path around a point that begins and ends at a view and always looks at the point.

    Args:
      position, look_at: (3,), not the same.
      up: (3,), the axis; not the direction of view.
      count: number of poses, evenly spaced in time; the last is one step before the first is reached again.
      degrees: 360 goes once around; less swings to both sides, so far in all.

    Returns:
      (count, 4, 4) float64 world_from_cam, OpenCV axes.
    """
    phase = 2 * np.pi * np.arange(count) / count
    angle = phase if degrees >= 360 else np.radians(degrees) / 2 * np.sin(phase)
    axis = np.asarray(up, np.float64) / np.linalg.norm(up)
    offsets = Rotation.from_rotvec(angle[:, None] * axis).apply(np.asarray(position, np.float64) - look_at)
    return np.array([looking(look_at + offset, np.asarray(look_at, np.float64), axis) for offset in offsets])


def looking(position: np.ndarray, look_at: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(4, 4) world_from_cam of a camera at a point that looks at another, its image upright."""
    forward = (look_at - position) / np.linalg.norm(look_at - position)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack([right, np.cross(forward, right), forward, position])
    return pose


def fitting_fov(fov: float, aspect: float, window: float) -> float:
    """Vertical field of view, radians, at which a window holds all of an image, its width too.

    Args:
      fov: vertical, of the image, radians.
      aspect: width of the image over its height.
      window: the same of the window.
    """
    return 2 * float(np.arctan(np.tan(fov / 2) * max(1.0, aspect / window)))


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(3, 3) -> (4,) float64, the scalar first."""
    return Rotation.from_matrix(rotation).as_quat(scalar_first=True)


def upwards(world_from_cam: np.ndarray) -> np.ndarray:
    """(3,) unit vector: what is up for a hand-held camera, the mean over (T, 4, 4) poses."""
    up = -np.asarray(world_from_cam, np.float64)[:, :3, 1].mean(axis=0)
    length = np.linalg.norm(up)
    return up / length if length > 1e-6 else -np.asarray(world_from_cam[0, :3, 1], np.float64)
