"""Confidence clean-up: points that float in front of surfaces seen by other frames lose their confidence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core import target
from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import Geometry


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
    num_frames, height, width = depth.shape
    cams_from_world = se3.inverse(poses)
    points = camera.world_coordinates(depth, intrinsics, poses)
    depth = depth.reshape(num_frames, -1)

    # On a CPU one camera at a time: a batch of them would write and read their masks. 12 frames of 512x288 on 2 cores,
    # on a busy machine: .21 s, in batches of 8 .36 s. Accelerators, not measured, get fewer and larger steps.
    batch = 1 if target.platform() == "cpu" else 8
    batches = jnp.arange(-(-num_frames // batch) * batch).reshape(-1, batch)

    def clean_frame(confidence: Array, frame: Array) -> tuple[Array, None]:
        own = confidence[frame]

        def floats_in(other: Array) -> Array:
            in_camera = _in_camera(cams_from_world[other], points[frame])
            seen, pixel = _visible_pixel(in_camera, intrinsics[other], height, width)
            in_front = in_camera[2] < (1 - tolerance) * depth[other][pixel]
            return seen & in_front & (own < confidence[other][pixel]) & (other != frame) & (other < num_frames)

        def also(bad: Array, others: Array) -> tuple[Array, None]:
            return bad | (floats_in(others[0]) if batch == 1 else jnp.any(jax.vmap(floats_in)(others), axis=0)), None

        bad, _ = jax.lax.scan(also, jnp.zeros(height * width, bool), batches)
        return confidence.at[frame].set(jnp.where(bad, 0, own)), None

    confidence = confidence.reshape(num_frames, -1)
    return jax.lax.scan(clean_frame, confidence, jnp.arange(num_frames))[0].reshape(num_frames, height, width)


def _in_camera(cam_from_world: Array, points: Array) -> tuple[Array, Array, Array]:
    """The coordinates x, y, z of the world's points (3, P) in a camera, (P,) each."""
    x, y, z = points
    rows = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in cam_from_world[:3])
    return next(rows), next(rows), next(rows)


def _visible_pixel(
    in_camera: tuple[Array, Array, Array], cam_intrinsics: Array, height: int, width: int
) -> tuple[Array, Array]:
    """(P,) bool, whether a point falls into the image, and the index of its nearest pixel there."""
    x, y, z = in_camera
    inverse = 1 / jnp.where(z > 0, z, 1)
    column = jnp.round(x * inverse * cam_intrinsics[0, 0] + cam_intrinsics[0, 2])
    row = jnp.round(y * inverse * cam_intrinsics[1, 1] + cam_intrinsics[1, 2])
    seen = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    row, column = (jnp.where(seen, index, 0).astype(jnp.int32) for index in (row, column))
    return seen, row * width + column
