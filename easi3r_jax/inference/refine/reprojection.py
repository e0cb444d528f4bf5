"""Mask refinement by reprojection (VGGT4D, arXiv 2511.19971, as its program was released): static regions are dropped.

For every frame t, in units of the scene's size:

    masked points ──without outliers──▶ ──k-means──▶ clusters ──seen from other frames──▶ losses ──▶ mask ──smoothed──▶

A cluster is static if other frames show a surface outside their masks at its depth and in its colour. If they show
another one, or hardly any, the cluster is dynamic: without evidence a cluster is kept. Points far from all others are
dropped.

Letters, beside those of `core.types`: P points of a frame, k clusters.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.core.arrays import Bool, Float, Int, UInt8
from easi3r_jax.core.batches import bucket_size, padded
from easi3r_jax.core.config import check_at_least
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.types import Geometry, Progress, silent
from easi3r_jax.inference.refine.residuals import Views, cluster_losses, sample_views

# Points are padded to a power of two, at least this one, so that few shapes are compiled.
_FEWEST_POINTS = 1024


@dataclasses.dataclass(frozen=True)
class ReprojectionRefiner:
    """A refiner that keeps those masked regions whose points other frames do not see where a static scene would be.

    It needs no weights and no PyTorch. `reconstruct` aligns the clip with the unrefined masks first, and passes cameras
    and depth. Lengths are in units of the scene, so that the result does not depend on the world's scale. A frame's
    mask can only lose clusters and stray points, before it is smoothed: what the masks miss is not found.

    `ReprojectionRefiner(unit=1.0, pixel_offset=0.5)` is the released program's rule; it presupposes a scene of about
    unit size, and its points are half a pixel off. k-means has other random numbers.

    Attributes:
      num_clusters: k-means clusters of a frame's masked points; at most as many as there are points.
      num_neighbours: nearest points, a point itself included, to which its mean distance is measured.
      outlier_deviations: a point is an outlier if this distance exceeds the frame's mean by so many deviations.
      visible_margin: scene units by which a point may lie behind a view's surface and still count as seen.
      min_seen: a cluster with a smaller share of its samples (points × other frames) seen has an infinite loss.
      colour_weight: weight of the difference in colour (in [0, 1], summed over the channels) relative to that in depth.
      threshold: a cluster is dynamic if its loss exceeds this, in scene units.
      closing: side in pixels of the ellipse by which the masks are closed; 0: not at all.
      dilation: pixels by which they are dilated then, by a square; 0: not at all. Large for small frames: see
        docs/alignment.md.
      unit: length of the scene unit in world units; 0: the median depth of the clip.
      pixel_offset: pixels added to a pixel's coordinates when its point is computed.
      seed: for k-means.

    Raises:
      ConfigError: a negative option, or no clusters or neighbours.

    Source: VGGT4D's released program; tests/golden/vggt_motion/README.md lists what its paper says differently.
    """

    needs_geometry: ClassVar[bool] = True

    num_clusters: int = 30
    num_neighbours: int = 20
    outlier_deviations: float = 2.5
    visible_margin: float = 0.01
    min_seen: float = 0.05
    colour_weight: float = 1 / 3
    threshold: float = 0.1
    closing: int = 5
    dilation: int = 1
    unit: float = 0.0
    pixel_offset: float = 0.0
    seed: int = 0

    def __post_init__(self):
        check_at_least(self, 1, "num_clusters")
        check_at_least(self, 2, "num_neighbours")
        check_at_least(self, 0, "outlier_deviations", "visible_margin", "min_seen", "colour_weight", "threshold")
        check_at_least(self, 0, "closing", "dilation", "unit")

    @property
    def metadata(self) -> dict[str, Any]:
        """For records: the name and all options."""
        return {"source_name": "reprojection", **dataclasses.asdict(self)}

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "T H W 3"],
        masks: Bool[np.ndarray, "T H W"],
        /,
        *,
        geometry: Geometry,
        progress: Progress = silent,
    ) -> Bool[np.ndarray, "T H W"]:
        """Refines the masks of a clip.

        Args:
          rgb: (T, H, W, 3) uint8.
          masks: (T, H, W) bool, True where the frame is dynamic.
          geometry: cameras and depth of these frames, in one world of any scale.
          progress: called before each frame, for the stage "refine".

        Returns:
          (T, H, W) bool; a single frame's mask is unchanged, an empty one stays empty.

        Raises:
          InputError: geometry of another clip, or depth that is not positive and finite.
        """
        depth = np.asarray(geometry.depth, np.float64)
        if depth.shape != masks.shape:
            raise InputError(f"Depth of shape {depth.shape} does not fit masks of shape {masks.shape}.")
        if not (np.all(np.isfinite(depth)) and np.all(depth > 0)):
            raise InputError("The depth must be positive and finite everywhere.")
        num_frames, refined = len(masks), masks.copy()
        if num_frames < 2:
            return refined
        depth, world_from_cam = in_scene_units(depth, np.asarray(geometry.world_from_cam), self.unit)
        intrinsics, cams_from_world = np.asarray(geometry.intrinsics, np.float64), np.linalg.inv(world_from_cam)
        colours = rgb.astype(np.float32) / 255
        size = _power_of_two(int(masks.sum(axis=(1, 2)).max()))
        # Padded, so that clips of similar length share compiled code.
        views = Views(depth.astype(np.float32), masks, colours, intrinsics.astype(np.float32))
        views = jax.tree.map(lambda x: jnp.asarray(padded(x, bucket_size(num_frames))), views)
        cams_from_world = padded(cams_from_world, bucket_size(num_frames))
        numbers = np.arange(len(cams_from_world))
        for t in range(num_frames):
            progress("refine", t, num_frames, "")
            if not masks[t].any():
                continue
            points = frame_points(depth[t], intrinsics[t], self.pixel_offset).reshape(-1, 3)
            kept = masks[t].ravel() & without_outliers(points, self.num_neighbours, self.outlier_deviations)[0]
            others, views_from_cam = (numbers < num_frames) & (numbers != t), cams_from_world @ world_from_cam[t]
            dynamic = np.zeros(kept.shape, bool)
            dynamic[kept] = self._dynamic(
                points[kept], colours[t].reshape(-1, 3)[kept], size, views, views_from_cam, others
            )
            refined[t] = smoothed(dynamic.reshape(masks[t].shape), self.closing, self.dilation)
        progress("refine", num_frames, num_frames, "")
        return refined

    def _dynamic(
        self,
        points: np.ndarray,
        colours: np.ndarray,
        size: int,
        views: Views,
        views_from_cam: np.ndarray,
        others: np.ndarray,
    ) -> np.ndarray:
        """Which of a frame's masked points are dynamic, (P,) bool; they are padded to `size` for the devices."""
        count = len(points)
        if not count:
            return np.zeros(0, bool)
        labels = cluster_points(points, self.num_clusters, size, self.seed)
        samples = sample_views(
            *(padded(x.astype(np.float32), size) for x in (points, colours)),
            views,
            views_from_cam.astype(np.float32),
            others,
            jnp.float32(self.visible_margin),
        )
        samples = jax.tree.map(lambda x: np.asarray(x)[:count], samples)
        losses = cluster_losses(
            labels, samples, int(others.sum()), min_seen=self.min_seen, colour_weight=self.colour_weight
        )
        return (losses.total > self.threshold)[labels]


def in_scene_units(
    depth: Float[np.ndarray, "T H W"], world_from_cam: Float[np.ndarray, "T 4 4"], unit: float = 0.0
) -> tuple[Float[np.ndarray, "T H W"], Float[np.ndarray, "T 4 4"]]:
    """Depth and poses in units of `unit` world units, float64; 0: of the median depth, which outliers do not move."""
    depth, world_from_cam = np.asarray(depth, np.float64), np.array(world_from_cam, np.float64)
    unit = unit or float(np.median(depth))
    world_from_cam[:, :3, 3] /= unit
    return depth / unit, world_from_cam


def frame_points(
    depth: Float[np.ndarray, "H W"], cam_intrinsics: Float[np.ndarray, "3 3"], pixel_offset: float = 0.0
) -> Float[np.ndarray, "H W 3"]:
    """(H, W, 3) points in the camera; `pixel_offset` is added to both coordinates of the pixels."""
    shifted = np.array(cam_intrinsics, np.float64)
    shifted[:2, 2] -= pixel_offset
    return camera.unproject(np.asarray(depth, np.float64), shifted)


def without_outliers(
    points: Float[np.ndarray, "P 3"], num_neighbours: int = 20, deviations: float = 2.5
) -> tuple[Bool[np.ndarray, "P"], float]:
    """Statistical outliers: points whose mean distance to their neighbours is exceptionally large. On the host.

    Args:
      points: (P, 3).
      num_neighbours: nearest points that count, the point itself included, at distance 0.
      deviations: standard deviations (divisor P - 1) above the mean of these distances that are still allowed.

    Returns:
      (P,) bool, False for outliers and for points that coincide with all of their neighbours; and the threshold.

    Source: Rusu et al., Towards 3D point cloud based object maps for household environments, 2008.
    """
    from scipy.spatial import KDTree

    distances, _ = KDTree(points).query(points, k=min(num_neighbours, len(points)), workers=-1)
    mean = np.reshape(distances, (len(points), -1)).mean(axis=1)
    threshold = float(mean.mean() + deviations * mean.std(ddof=1)) if len(mean) > 1 else 0.0
    return (mean > 0) & (mean < threshold), threshold


def cluster_points(
    points: Float[np.ndarray, "P 3"], num_clusters: int, size: int = 0, seed: int = 0
) -> Int[np.ndarray, "P"]:
    """k-means labels, (P,) int32 in [0, num_clusters); of fewer points each is a cluster. Padded to `size` points."""
    on_device = jnp.asarray(padded(np.asarray(points, np.float32), max(size, len(points))))
    found = _kmeans(on_device, num_clusters, jax.random.key(seed), count=jnp.int32(len(points)))
    return np.asarray(found.labels)[: len(points)]


def smoothed(mask: Bool[np.ndarray, "H W"], closing: int = 5, dilation: int = 1) -> Bool[np.ndarray, "H W"]:
    """Closes a mask by an ellipse of side `closing`, then dilates it by a square of side 2 `dilation` + 1; pixels."""
    pixels = mask.astype(np.uint8)
    if closing:
        ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (closing, closing))
        pixels = cv2.morphologyEx(pixels, cv2.MORPH_CLOSE, ellipse)
    if dilation:
        pixels = cv2.dilate(pixels, np.ones((2 * dilation + 1, 2 * dilation + 1), np.uint8))
    return pixels > 0


_kmeans = jax.jit(motion.kmeans, static_argnames=("num_clusters",))


def _power_of_two(count: int) -> int:
    """Rounded up, at least `_FEWEST_POINTS`."""
    return max(_FEWEST_POINTS, 1 << (count - 1).bit_length())
