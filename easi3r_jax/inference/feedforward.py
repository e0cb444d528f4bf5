"""Streaming reconstruction: the geometry of each new frame from two pairs, in closed form, without optimisation.

    frame t ──encode──▶ pairs of t with the reference and with the frame before, in both directions
        own point map ──Weiszfeld──▶ focal length
        anchor's points of the pair ──registered to its world points──▶ frame t's points in the world
        own point map ──registered to them──▶ pose and scale ──▶ depth

The anchor is the reference frame or the previous frame, whichever has the more confident pair. When the reference's
pairs become much less confident, the previous frame becomes the reference. No frame is revisited: errors accumulate
along the clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.alignment import clean_confidence
from easi3r_jax.alignment.initialise import positive_depth
from easi3r_jax.core.arrays import Array, Float, UInt8, all_finite, pytree_dataclass
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.geometry.focal import weiszfeld_focal
from easi3r_jax.core.geometry.procrustes import robust_similarity
from easi3r_jax.core.types import Frames, Geometry, Progress, Reconstruction, Scene4D, silent
from easi3r_jax.inference.clip import check_size, unit_of
from easi3r_jax.models import PairNetwork, check_pairwise

# Below this share of the previous frame's confidence, the reference frame is replaced.
_MIN_RELATIVE_CONFIDENCE = 0.5


@pytree_dataclass
class Anchor:
    """A placed frame to which new frames are registered.

    Attributes:
      features: (N, C) encoder features.
      points: (H, W, 3) in the world.
      confidence: (H, W).
    """

    features: Float[Array, "N C"]
    points: Float[Array, "H W 3"]
    confidence: Float[Array, "H W"]


@pytree_dataclass
class TrackedFrame:
    """The estimate for a new frame.

    Attributes:
      world_from_cam: (4, 4) rigid; the world is the first frame's camera.
      focal: () pixels; if shared, the mean of the frames so far.
      depth: (H, W) z, in units of the first pair.
      confidence: (H, W) of the frame's own point map.
    """

    world_from_cam: Float[Array, "4 4"]
    focal: Float[Array, ""]
    depth: Float[Array, "H W"]
    confidence: Float[Array, "H W"]


def track(
    model: PairNetwork, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, shared_focal: bool = True
) -> Iterator[TrackedFrame]:
    """Yields every frame's camera and depth as it arrives. Runs on the host, a compiled step per frame.

    Args:
      model: the network.
      frames: (H, W, 3) uint8 each, of one size.
      shared_focal: use the mean focal length of the frames so far.

    Raises:
      InputError: weights or frames whose predictions are not finite.
    """
    reference = previous = None
    focals = []
    for rgb in frames:
        if reference is None or previous is None:
            frame, reference = _first(model, rgb)
            previous = reference
        else:
            frame, anchor, lost = _next(model, rgb, reference, previous)
            if bool(lost):
                reference = previous
            previous = anchor
        if not bool(all_finite(frame)):
            raise InputError(
                f"Frame {len(focals)} gets no finite camera or depth: wrong weights, or frames of pure noise."
            )
        focals.append(float(frame.focal))
        focal = np.float32(np.mean(focals)) if shared_focal else np.float32(focals[-1])
        yield TrackedFrame(frame.world_from_cam, jnp.asarray(focal), frame.depth, frame.confidence)


def reconstruct_stream(
    model: PairNetwork, frames: Frames, config: AlignConfig = AlignConfig(), *, progress: Progress = silent
) -> Reconstruction:
    """Reconstructs a clip frame by frame, without optimisation: `track`, then the confidence clean-up.

    Runs on the host, a compiled step per frame. Motion is not detected: masks are empty, and every pixel is static.

    Args:
      model: the network.
      frames: the clip.
      config: `shared_focal`, `clean_tolerance`.
      progress: called after each frame, for the stage "track".

    Raises:
      ConfigError: a network that takes all frames at once.
      InputError: as `track`.
    """
    check_pairwise(model)
    check_size(model, frames.rgb.shape[1:3])
    tracked, total = [], len(frames.rgb)
    progress("track", 0, total, "")
    for frame in track(model, frames.rgb, shared_focal=config.shared_focal):
        tracked.append(jax.block_until_ready(frame))
        progress("track", len(tracked), total, "")
    shape, geometry = frames.rgb.shape[:3], _geometry(tracked)
    geometry = dataclasses.replace(geometry, confidence=clean_confidence(geometry, config))
    scene = Scene4D(
        **vars(geometry),
        dynamic_mask=np.zeros(shape, bool),
        dynamic_score=np.zeros(shape, np.float32),
        static_mask=np.ones(shape, bool),
        rgb=frames.rgb,
    )
    record = {"alignment": dataclasses.asdict(config), "unit": unit_of(model, config, None)}
    return Reconstruction(jax.tree.map(np.asarray, scene), frames, losses=np.zeros(0, np.float32), record=record)


@jax.jit
def _geometry(tracked: list[TrackedFrame]) -> Geometry:
    frames = jax.tree.map(lambda *each: jnp.stack(each), *tracked)
    total, *size = frames.depth.shape
    centres = jnp.tile(camera.default_principal_point(*size)[None], (total, 1))
    return Geometry(frames.world_from_cam, camera.intrinsics(frames.focal, centres), frames.depth, frames.confidence)


@jax.jit
def _first(model: PairNetwork, rgb: Array) -> tuple[TrackedFrame, Anchor]:
    """The first frame, paired with itself: its camera is the world."""
    features = model.encode(rgb[None])
    points, confidence, _, _ = _pairs(model, features, features, rgb.shape[:2])
    points, confidence = points[0], confidence[0]
    frame = TrackedFrame(jnp.eye(4, dtype=points.dtype), _focal(points), positive_depth(points[..., 2]), confidence)
    return frame, Anchor(features[0], points, confidence)


@jax.jit
def _next(model: PairNetwork, rgb: Array, reference: Anchor, previous: Anchor) -> tuple[TrackedFrame, Anchor, Array]:
    """The new frame, its anchor for later frames, and whether the reference is lost."""
    features = model.encode(rgb[None])
    anchors = jax.tree.map(lambda a, b: jnp.stack([a, b]), reference, previous)
    both = jnp.concatenate([features, features])
    points_i, confidence_i, points_j, confidence_j = _pairs(
        model,
        jnp.concatenate([both, anchors.features]),
        jnp.concatenate([anchors.features, both]),
        rgb.shape[:2],
    )
    # Confidence of the pairs whose camera i is an anchor's.
    trust = jnp.mean(confidence_i[2:] - 1, axis=(1, 2)) * jnp.mean(confidence_j[2:] - 1, axis=(1, 2))
    k = jnp.where(trust[0] >= trust[1], 0, 1)
    anchor = jax.tree.map(lambda x: x[k], anchors)
    weights = jnp.log(confidence_i[2 + k]) * jnp.log(jnp.maximum(anchor.confidence, 1))
    world_from_pair = robust_similarity(
        points_i[2 + k].reshape(-1, 3), anchor.points.reshape(-1, 3), weights.reshape(-1)
    )
    there, seen = se3.transform_points(world_from_pair, points_j[2 + k]), confidence_j[2 + k]
    own, own_confidence = points_i[k], confidence_i[k]
    weights = jnp.log(seen) * jnp.log(own_confidence)
    world_from_own = robust_similarity(own.reshape(-1, 3), there.reshape(-1, 3), weights.reshape(-1))
    scale = jnp.cbrt(jnp.linalg.det(world_from_own[:3, :3]))
    pose = se3.from_parts(world_from_own[:3, :3] / scale, world_from_own[:3, 3])
    frame = TrackedFrame(pose, _focal(own), positive_depth(scale * own[..., 2]), own_confidence)
    placed = Anchor(features[0], se3.transform_points(world_from_own, own), own_confidence)
    return frame, placed, trust[0] < _MIN_RELATIVE_CONFIDENCE * trust[1]


def _pairs(model: PairNetwork, features_i: Array, features_j: Array, size: tuple[int, int]) -> tuple[Array, ...]:
    """Points and confidence of frames i, and of frames j in camera i."""
    grid = model.grid(size)
    decoded = model.decode(features_i, features_j, grid)
    points_i, confidence_i, points_j, confidence_j = model.predict(features_i, features_j, decoded, grid)
    return points_i, confidence_i, points_j, confidence_j


def _focal(points: Array) -> Array:
    return weiszfeld_focal(points, camera.default_principal_point(*points.shape[:2]))
