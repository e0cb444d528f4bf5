"""A scene as point clouds whose points keep every attribute they can be coloured or filtered by. NumPy only."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from easi3r_jax.core.geometry.camera import world_points
from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import median_depth, moving_pixels, static_pixels, voxel_keys

#: Lower bound of the network's confidence; the clean-up sets that of floating points to 0.
MIN_NETWORK_CONFIDENCE = 1.0
# Static pixels sampled per point of the limit: frames overlap, and only one pixel per voxel is kept.
_CANDIDATES_PER_POINT = 3
# Frames and points of the first, quick background.
_PREVIEW_FRAMES, _PREVIEW_POINTS = 8, 40_000


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """Where a scene is placed in the viewer: shown = scale * rotation @ world + translation.

    Attributes:
      rotation: (3, 3) float64.
      translation: (3,) float64.
      scale: > 0.
    """

    rotation: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
    translation: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
    scale: float = 1.0

    def points(self, xyz: np.ndarray) -> np.ndarray:
        """(..., 3) -> (..., 3) float64."""
        return self.scale * xyz @ self.rotation.T + self.translation

    def poses(self, world_from_cam: np.ndarray) -> np.ndarray:
        """(..., 4, 4) -> (..., 4, 4) float64, rigid: the scale applies to the cameras' positions only."""
        poses = np.array(world_from_cam, np.float64)
        poses[..., :3, 3] = self.points(poses[..., :3, 3])
        poses[..., :3, :3] = self.rotation @ poses[..., :3, :3]
        return poses


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
    """Pixels as points.

    Attributes:
      xyz: (P, 3) float32, in the placed scene's coordinates.
      rgb: (P, 3) uint8.
      depth: (P,) float32, z in the camera, in the placed scene's units.
      confidence: (P,) float32.
      score: (P,) float32, dynamic score.
      moving: (P,) bool, dynamic mask.
      frame: (P,) int32, the frame that the pixel is in.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray
    score: np.ndarray
    moving: np.ndarray
    frame: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, index: np.ndarray | slice) -> Cloud:
        return Cloud(*(array[index] for array in self._arrays()))

    def _arrays(self) -> Iterator[np.ndarray]:
        return (getattr(self, field.name) for field in dataclasses.fields(self))

    @classmethod
    def concatenated(cls, clouds: Sequence[Cloud]) -> Cloud:
        """The points of one or more clouds."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*(c._arrays() for c in clouds), strict=True)))


def frame_cloud(scene: Scene4D, t: int, chosen: np.ndarray, placement: Placement) -> tuple[Cloud, np.ndarray]:
    """Selected pixels of a frame as points.

    Args:
      scene: host arrays.
      t: frame number.
      chosen: (H, W) bool.
      placement: of the scene.

    Returns:
      the points, and their coordinates in the scene's own world, (P, 3) float32.
    """
    depth = np.where(chosen, np.asarray(scene.depth[t]), 0)  # others may be infinite
    world = world_points(depth, np.asarray(scene.intrinsics[t]), np.asarray(scene.world_from_cam[t]))[chosen]
    cloud = Cloud(
        xyz=placement.points(world).astype(np.float32),
        rgb=np.asarray(scene.rgb[t])[chosen],
        depth=(placement.scale * depth[chosen]).astype(np.float32),
        confidence=np.asarray(scene.confidence[t])[chosen].astype(np.float32),
        score=np.asarray(scene.dynamic_score[t])[chosen].astype(np.float32),
        moving=np.asarray(scene.dynamic_mask[t])[chosen],
        frame=np.full(int(chosen.sum()), t, np.int32),
    )
    return cloud, world.astype(np.float32)


def moving_cloud(scene: Scene4D, t: int, placement: Placement, max_points: int) -> Cloud:
    """The dynamic points of frame t, at most `max_points`, in random order: any prefix is a uniform sample."""
    cloud, _ = frame_cloud(scene, t, moving_pixels(scene, t), placement)
    return shuffled(cloud, seed=t)[:max_points]


def static_cloud(
    scene: Scene4D, placement: Placement, max_points: int, *, frames: Sequence[int] | None = None, seed: int = 0
) -> Cloud:
    """The static points of the clip, in random order: any prefix is a uniform sample.

    Of the points in a voxel (as wide as a pixel, see `export.point_cloud`) the most confident is kept, unchanged. So
    the points above a confidence are those of the voxels in which any pixel is above it.

    Args:
      scene: host arrays.
      placement: of the scene.
      max_points: above it, a seeded random sample is kept.
      frames: frame numbers to gather from; None: all.
      seed: of the sample and the order.
    """
    numbers = range(len(scene.depth)) if frames is None else frames
    height, width = scene.depth.shape[1:]
    rng = np.random.default_rng(seed)
    sampled = _CANDIDATES_PER_POINT * max_points / (len(numbers) * height * width)  # fraction of the pixels
    clouds, keys = [], []
    for t in numbers:
        chosen = static_pixels(scene, t, MIN_NETWORK_CONFIDENCE)
        if sampled < 1.0:
            chosen &= rng.random(chosen.shape, np.float32) < sampled
        cloud, world = frame_cloud(scene, t, chosen, placement)
        clouds.append(cloud)
        keys.append(voxel_keys(scene, t, chosen, world))
    cloud = Cloud.concatenated(clouds)
    most_confident_first = np.argsort(-cloud.confidence, kind="stable")
    _, first = np.unique(np.concatenate(keys)[most_confident_first], return_index=True)
    return shuffled(cloud[most_confident_first[first]], seed)[:max_points]


def preview_cloud(scene: Scene4D, placement: Placement) -> Cloud:
    """A quick background from a few frames and pixels."""
    count = len(scene.depth)
    frames = np.unique(np.linspace(0, count - 1, min(count, _PREVIEW_FRAMES)).astype(int)).tolist()
    return static_cloud(scene, placement, _PREVIEW_POINTS, frames=frames)


def shuffled(cloud: Cloud, seed: int) -> Cloud:
    """The same points in random order."""
    return cloud[np.random.default_rng(seed).permutation(len(cloud))]


def parts(cloud: Cloud, count: int) -> list[Cloud]:
    """A cloud in `count` parts of almost equal size; some are empty if there are fewer points than parts."""
    edges = np.linspace(0, len(cloud), count + 1).astype(int)
    return [cloud[begin:end] for begin, end in itertools.pairwise(edges)]


def unit_depth_placement(scene: Scene4D) -> Placement:
    """Scales the median depth to 1: browsers render depths from 0.01 to 1000 units, and a world has any scale."""
    return Placement(scale=1 / median_depth(scene))


def side_by_side(left: Scene4D, right: Scene4D, placement: Placement = Placement()) -> Placement:
    """Places a second scene to the right of a first.

    Each result of a clip has its own world. Their first cameras are given the same orientation and their first frames
    the same median depth; then the second scene is moved to the right by the half-widths of both.

    Args:
      left, right: host arrays.
      placement: of the left one.

    Returns:
      the placement of the right one.
    """
    first, second = (np.asarray(s.world_from_cam[0], np.float64) for s in (left, right))
    scale = median_depth(left, 0) / median_depth(right, 0)
    rotation = first[:3, :3] @ second[:3, :3].T
    shift = _half_width(left) + scale * _half_width(right)
    translation = first[:3, 3] + shift * first[:3, 0] - scale * rotation @ second[:3, 3]
    return Placement(placement.rotation @ rotation, placement.points(translation), placement.scale * scale)


def _half_width(scene: Scene4D) -> float:
    """How far most of a scene extends to either side of its first camera, in its own units."""
    cloud = preview_cloud(scene, Placement())
    first = np.asarray(scene.world_from_cam[0], np.float64)
    aside = np.abs((cloud.xyz - first[:3, 3]) @ first[:3, 0])
    return 1.1 * float(np.percentile(aside, 95)) if aside.size else median_depth(scene, 0)
