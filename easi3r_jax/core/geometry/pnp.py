"""Camera pose from world points and their pixels. Host code, using OpenCV."""

from __future__ import annotations

import cv2
import numpy as np

from easi3r_jax.core.arrays import Float, Real

# SQPNP needs three points; with fewer than six, too few remain as RANSAC votes.
_MIN_POINTS = 6


def solve_pnp(
    points: Float[np.ndarray, "P 3"],
    pixels: Float[np.ndarray, "P 2"],
    intrinsics: Real[np.ndarray, "3 3"],
    *,
    iterations: int,
    max_error: float = 5.0,
    seed: int = 0,
) -> Float[np.ndarray, "4 4"] | None:
    """World-from-camera pose by RANSAC over SQPNP (Terzakis & Lourakis, ECCV 2020), refitted to the inliers.

    Args:
      points: (P, 3) float, in the world.
      pixels: (P, 2) float, pixel coordinates with integers at pixel centres (see `camera`).
      intrinsics: (3, 3).
      iterations: RANSAC iterations.
      max_error: largest reprojection error of an inlier, in pixels.
      seed: for OpenCV's random generator.

    Returns:
      (4, 4) float64 rigid `world_from_cam`, or None if no pose is found (too few points, coincident points, ...).
    """
    if len(points) < _MIN_POINTS:
        return None
    cv2.setRNGSeed(seed)
    try:
        found, rotation_vector, translation, _ = cv2.solvePnPRansac(
            np.ascontiguousarray(points, np.float32),
            np.ascontiguousarray(pixels, np.float32),
            np.asarray(intrinsics, np.float32),
            None,
            iterationsCount=iterations,
            reprojectionError=max_error,
            flags=cv2.SOLVEPNP_SQPNP,
        )
    except cv2.error:  # degenerate points make some OpenCV versions raise instead of reporting failure
        return None
    if not found or not (np.isfinite(rotation_vector).all() and np.isfinite(translation).all()):
        return None
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = cv2.Rodrigues(rotation_vector)[0].T
    world_from_cam[:3, 3] = -world_from_cam[:3, :3] @ translation[:, 0]
    return world_from_cam
