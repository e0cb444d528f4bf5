"""What is shown, as points that remember what they can be coloured and chosen by. NumPy only."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import moving_pixels, static_pixels, unproject, voxel_keys

#: The network's confidence starts here; the clean-up sets that of floating points to 0.
LEAST_CONFIDENCE = 1.0
# Static pixels drawn for each point that may be kept: they overlap over the clip, and of those in a voxel one stays.
_CANDIDATES = 3
# The preview of a background: so many frames, and points.
_PREVIEW_FRAMES, _PREVIEW_POINTS = 8, 40_000


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """Where a scene's world is put among the others: shown = scale * rotation @ world + translation.

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
        """(..., 4, 4) -> (..., 4, 4) float64, rigid: the scale moves cameras and does not stretch them."""
        poses = np.array(world_from_cam, np.float64)
        poses[..., :3, 3] = self.points(poses[..., :3, 3])
        poses[..., :3, :3] = self.rotation @ poses[..., :3, :3]
        return poses


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
    """Pixels as points.

    Attributes:
      xyz: (P, 3) float32, where they are shown.
      rgb: (P, 3) uint8.
      depth: (P,) float32, z in the camera, in units of what is shown.
      confidence, score: (P,) float32.
      moving: (P,) bool.
      frame: (P,) int32, the frame that shows them.
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
    def joined(cls, clouds: Sequence[Cloud]) -> Cloud:
        """All points of one or more clouds."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*(c._arrays() for c in clouds), strict=True)))


def frame_cloud(scene: Scene4D, t: int, chosen: np.ndarray, placement: Placement) -> tuple[Cloud, np.ndarray]:
    """Some pixels of a frame.

    Args:
      scene: host arrays.
      t: number of the frame.
      chosen: (H, W) bool.
      placement: of the scene.

    Returns:
      the points, and where they are in the scene's own world: (P, 3) float32.
    """
    depth = np.asarray(scene.depth[t])
    world = unproject(depth, np.asarray(scene.intrinsics[t]), np.asarray(scene.world_from_cam[t]))[chosen]
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
    """What moves in frame t, in random order: any beginning of it is a fair choice. At most `max_points`."""
    cloud, _ = frame_cloud(scene, t, moving_pixels(scene, t), placement)
    return shuffled(cloud, seed=t)[:max_points]


def static_cloud(
    scene: Scene4D, placement: Placement, max_points: int, *, frames: Sequence[int] | None = None, seed: int = 0
) -> Cloud:
    """What stands still, gathered over the clip, in random order: any beginning of it is a fair choice.

    Of the points in a voxel (as wide as a pixel, see `export.point_cloud`) the most confident is kept, as it is. So the
    points above some confidence are those of the voxels in which any pixel is above it.

    Args:
      scene: host arrays.
      placement: of the scene.
      max_points: beyond it a seeded random choice is kept.
      frames: those to gather from; None: all.
      seed: of choice and order.
    """
    numbers = range(len(scene.depth)) if frames is None else frames
    height, width = scene.depth.shape[1:]
    rng = np.random.default_rng(seed)
    share = _CANDIDATES * max_points / (len(numbers) * height * width)
    clouds, keys = [], []
    for t in numbers:
        chosen = static_pixels(scene, t, LEAST_CONFIDENCE)
        if share < 1.0:
            chosen &= rng.random(chosen.shape, np.float32) < share
        cloud, world = frame_cloud(scene, t, chosen, placement)
        clouds.append(cloud)
        keys.append(voxel_keys(scene, t, chosen, world))
    cloud = Cloud.joined(clouds)
    surest_first = np.argsort(-cloud.confidence, kind="stable")
    _, first = np.unique(np.concatenate(keys)[surest_first], return_index=True)
    return shuffled(cloud[surest_first[first]], seed)[:max_points]


def preview_cloud(scene: Scene4D, placement: Placement) -> Cloud:
    """A background at once, from a few frames and pixels."""
    count = len(scene.depth)
    frames = np.unique(np.linspace(0, count - 1, min(count, _PREVIEW_FRAMES)).astype(int)).tolist()
    return static_cloud(scene, placement, _PREVIEW_POINTS, frames=frames)


def shuffled(cloud: Cloud, seed: int) -> Cloud:
    """The same points in random order."""
    return cloud[np.random.default_rng(seed).permutation(len(cloud))]


def parts(cloud: Cloud, count: int) -> list[Cloud]:
    """A cloud in `count` parts of almost equal size; where there are fewer points, some are empty."""
    edges = np.linspace(0, len(cloud), count + 1).astype(int)
    return [cloud[begin:end] for begin, end in itertools.pairwise(edges)]


def middle_depth(scene: Scene4D, t: int | None = None) -> float:
    """Median depth of a frame, or of the clip (a sample of it), in the scene's own units; 1 where there is none."""
    step = max(1, len(scene.depth) // 16)
    sample = np.asarray(scene.depth[::step, ::4, ::4] if t is None else scene.depth[t])
    sample = sample[np.isfinite(sample) & (sample > 0)]
    return float(np.median(sample)) if sample.size else 1.0


def of_one_size(scene: Scene4D) -> Placement:
    """Makes the median depth 1: a browser draws pictures from 0.01 to 1000 units, and a world may have any."""
    return Placement(scale=1 / middle_depth(scene))


def side_by_side(left: Scene4D, right: Scene4D, placement: Placement = Placement()) -> Placement:
    """Puts a second scene to the right of a first.

    Results of one clip have worlds of their own. Here both look the same way through their first cameras, with the
    same median depth, and the second is moved to the right by the width of both as the first frames see it.

    Args:
      left, right: host arrays.
      placement: of the first.
    """
    first, second = (np.asarray(s.world_from_cam[0], np.float64) for s in (left, right))
    scale = middle_depth(left, 0) / middle_depth(right, 0)
    rotation = first[:3, :3] @ second[:3, :3].T
    shift = _half_width(left) + scale * _half_width(right)
    translation = first[:3, 3] + shift * first[:3, 0] - scale * rotation @ second[:3, 3]
    return Placement(placement.rotation @ rotation, placement.points(translation), placement.scale * scale)


def _half_width(scene: Scene4D) -> float:
    """How far to either side of its first camera a scene reaches: most of it, in its own units."""
    cloud = preview_cloud(scene, Placement())
    first = np.asarray(scene.world_from_cam[0], np.float64)
    aside = np.abs((cloud.xyz - first[:3, 3]) @ first[:3, 0])
    return 1.1 * float(np.percentile(aside, 95)) if aside.size else middle_depth(scene, 0)
