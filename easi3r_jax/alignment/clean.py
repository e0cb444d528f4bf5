"""Confidence clean-up: points that float in front of surfaces seen by other frames lose their confidence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import Geometry

# Number of cameras into which a frame's points are projected at a time.
_CAMERAS_AT_ONCE = 8


def clean_confidence(
    geometry: Geometry, config: AlignConfig = AlignConfig(), valid: Bool[Array, "T"] | None = None
) -> Float[Array, "T H W"]:
    """(T, H, W) confidence, 0 where a point lies in front of a more confident depth of another frame.

    A point of frame a is rejected if it projects (rounded) to a pixel of some other camera b, lies closer than that
    pixel's depth by more than the relative `config.clean_tolerance`, and is less confident. Frames are cleaned in
    order, each seeing the confidences already lowered, as in DUSt3R's released program. Frames that are not `valid`
    (T,), i.e. padding, are not compared against.
    """
    depth = geometry.depth
    return _clean(
        geometry.world_from_cam,
        geometry.intrinsics,
        depth if valid is None else jnp.where(valid[:, None, None], depth, 0),  # nothing is in front of depth 0
        geometry.confidence,
        jnp.float32(config.clean_tolerance),
    )


@jax.jit
def _clean(poses: Array, intrinsics: Array, depth: Array, confidence: Array, tolerance: Array) -> Array:
    num_frames = len(depth)
    cams_from_world = se3.inverse(poses)
    points = se3.transform_points(poses, camera.unproject(depth, intrinsics))

    def clean_frame(confidence: Array, frame: Array) -> tuple[Array, None]:
        own = confidence[frame]

        def floats_in(other: Array) -> Array:
            in_camera = se3.transform_points(cams_from_world[other], points[frame])
            seen, pixel = _visible_pixel(in_camera, intrinsics[other])
            in_front = in_camera[..., 2] < (1 - tolerance) * depth[other][pixel]
            return seen & in_front & (own < confidence[other][pixel]) & (other != frame)

        bad = jax.lax.map(floats_in, jnp.arange(num_frames), batch_size=_CAMERAS_AT_ONCE)
        return confidence.at[frame].set(jnp.where(jnp.any(bad, axis=0), 0, own)), None

    return jax.lax.scan(clean_frame, confidence, jnp.arange(num_frames))[0]


def _visible_pixel(in_camera: Array, cam_intrinsics: Array) -> tuple[Array, tuple[Array, Array]]:
    """(H, W) bool, whether a point falls into the image, and its nearest pixel (row, column) there."""
    height, width = in_camera.shape[:2]
    pixels, z = camera.project(in_camera, cam_intrinsics)
    column, row = jnp.round(pixels[..., 0]), jnp.round(pixels[..., 1])
    seen = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return seen, (jnp.where(seen, row, 0).astype(jnp.int32), jnp.where(seen, column, 0).astype(jnp.int32))
