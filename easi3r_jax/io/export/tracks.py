"""Static points and the frames that see them: the tracks of structure from motion.

Nothing is matched. A static pixel defines a world point. Another frame sees it if it projects onto a static pixel with
the point's depth. That pixel then needs no point of its own: each frame adds only points that no earlier frame sees.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from easi3r_jax.core.geometry import camera
from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export.pointcloud import static_pixels

#: Depths that differ relatively by less than this belong to one surface.
DEPTH_TOLERANCE = 0.02
# Maximum number of candidates per point that is kept (in one frame, and in all of them). A uniform random sample of
# them is kept, in bounded memory.
_SURPLUS_IN_FRAME, _SURPLUS = 0.25, 40


@dataclasses.dataclass(frozen=True, eq=False)
class TrackedPoints:
    """Static points.

    Attributes:
      xyz: (P, 3) float64, world units.
      rgb: (P, 3) uint8.
      frame: (P,) int, the frame whose pixel each point is.
      seen: (P, T) bool, the frames that see it, including `frame`.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    frame: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)


def tracked_points(
    scene: Scene4D,
    *,
    min_confidence: float,
    max_points: int,
    tolerance: float = DEPTH_TOLERANCE,
    seed: int = 0,
) -> TrackedPoints:
    """Static points of all frames, each once.

    Args:
      scene: host arrays.
      min_confidence: pixels below it are omitted.
      max_points: maximum number of points; above it a seeded random sample is kept.
      tolerance: relative difference allowed between a point's depth and that of a frame that sees it.
      seed: for sampling.
    """
    num_frames, height, width = scene.depth.shape
    static = np.stack([static_pixels(scene, t, min_confidence) for t in range(num_frames)])
    # Points are the centre pixels of square cells. A cell in which a point is already visible adds none.
    cell = max(
        1,
        math.floor(math.sqrt(height * width * _SURPLUS_IN_FRAME / max_points)),
        math.ceil(math.sqrt(num_frames * height * width / (_SURPLUS * max_points))),
    )
    rows, columns = np.arange(cell // 2, height, cell), np.arange(cell // 2, width, cell)
    covered = np.zeros((num_frames, -(-height // cell), -(-width // cell)), bool)

    xyz, rgb, frame, seen = [], [], [], []
    for t in range(num_frames):
        made = np.zeros((height, width), bool)
        made[np.ix_(rows, columns)] = ~covered[t, : len(rows), : len(columns)]
        made &= static[t]
        points = camera.world_points(scene.depth[t], scene.intrinsics[t], scene.world_from_cam[t])[made]
        views = np.zeros((len(points), num_frames), bool)
        views[:, t] = True
        for other in range(num_frames):
            if other == t or not len(points):
                continue
            index, inside = _nearest_pixels(scene, other, points, tolerance)
            inside[inside] = static[other][tuple(index[inside].T)]
            views[:, other] = inside
            covered[other][tuple(index[inside].T // cell)] = True
        xyz.append(points)
        rgb.append(np.asarray(scene.rgb[t])[made])
        frame.append(np.full(len(points), t))
        seen.append(np.packbits(views, axis=1))
    found = [np.concatenate(parts) for parts in (xyz, rgb, frame, seen)]
    if len(found[0]) > max_points:
        chosen = np.sort(np.random.default_rng(seed).choice(len(found[0]), max_points, replace=False))
        found = [array[chosen] for array in found]
    views = np.unpackbits(found[3], axis=1, count=num_frames).astype(bool)
    return TrackedPoints(found[0], found[1], found[2], views)


def project(scene: Scene4D, t: int, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects world points into frame t: (P, 3) -> (P, 2) float64 pixels (x, y), and (P,) z."""
    pose = np.asarray(scene.world_from_cam[t], np.float64)
    return camera.project((xyz - pose[:3, 3]) @ pose[:3, :3], np.asarray(scene.intrinsics[t], np.float64))


def _nearest_pixels(scene: Scene4D, t: int, xyz: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) int (row, column), and (P,) bool: it is a pixel of frame t, and has the point's depth."""
    height, width = scene.depth.shape[1:]
    xy, z = project(scene, t, xyz)
    # Also of pixels far out, whose numbers no integer holds.
    inside = (z > 0) & (xy > -0.5).all(axis=1) & (xy < [width - 0.5, height - 0.5]).all(axis=1)
    index = np.zeros(xy.shape, int)
    index[inside] = np.rint(xy[inside])[:, ::-1]
    depth = np.asarray(scene.depth[t])[tuple(index[inside].T)]
    inside[inside] = np.abs(depth - z[inside]) <= tolerance * z[inside]
    return index, inside
