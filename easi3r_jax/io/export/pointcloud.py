"""The reconstruction as coloured points: the static background once, dynamic points per frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry.camera import rays, world_points
from easi3r_jax.core.types import Scene4D

#: Static points below this are omitted: the network's confidence starts at 1, the clean-up sets floating points to 0.
MIN_CONFIDENCE = 1.1

#: Points farther than this many times the clip's median depth are omitted: single pixels with depths such as 1e30 would
#: leave nothing else to see, and their squares are infinite.
MAX_DEPTH_RATIO = 1000.0

# Neighbouring pixels whose depths differ relatively by more than this belong to two surfaces; the network places pixels
# between them in the air.
_DEPTH_STEP = 0.1

# Odd constants of a linear hash of voxel coordinates and size (fractional parts of the square roots of 2, 3, 5, 7): the
# extent of a scene is unbounded, and collisions of different voxels are practically impossible.
_HASH = np.array([0x6A09E667F3BCC909, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1], np.uint64)


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Coloured points in world coordinates.

    Attributes:
      xyz: (P, 3) float32, world units.
      rgb: (P, 3) uint8.
    """

    xyz: np.ndarray
    rgb: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, index: np.ndarray | slice) -> Points:
        return Points(self.xyz[index], self.rgb[index])


@dataclasses.dataclass(frozen=True, eq=False)
class SceneCloud:
    """A scene's points.

    Attributes:
      background: static points, gathered over the clip, one per voxel.
      foreground: frame number -> dynamic points of that frame.
    """

    background: Points
    foreground: dict[int, Points]


@dataclasses.dataclass(frozen=True)
class CloudOptions:
    """Selection of points for `scene.glb` and `scene.ply`.

    Attributes:
      foreground: dynamic points of "all" frames, "none", or the number of one frame.
      min_confidence: of the static points.
      max_points: maximum number in each file.
    """

    foreground: str | int = "all"
    min_confidence: float = MIN_CONFIDENCE
    max_points: int = 2_000_000

    def check(self, num_frames: int) -> None:
        """Refuses an invalid foreground.

        Raises:
          ConfigError: it is neither "all" nor "none" nor the number of a frame.
        """
        if self.foreground in ("all", "none"):
            return
        word = str(self.foreground)
        if not (word.isascii() and word.isdecimal()) or int(word) >= num_frames:
            raise ConfigError(
                f"Foreground {self.foreground!r}: it must be 'all', 'none', or a frame number from 0 to "
                f"{num_frames - 1}."
            )


def point_cloud(
    scene: Scene4D,
    *,
    foreground: str | int = "all",
    min_confidence: float = MIN_CONFIDENCE,
    max_points: int = 2_000_000,
    voxel: float = 1.0,
    seed: int = 0,
) -> SceneCloud:
    """Gathers the static background of all frames once, and dynamic points frame by frame.

    Args:
      scene: host arrays.
      foreground: "all" frames, "none", or the number of one frame.
      min_confidence: static pixels below it are omitted. Dynamic pixels are kept whatever their confidence: the
        clean-up treats all frames as static, and zeroes them wherever another frame sees past them. Pixels in the air
        between two surfaces are omitted from both, and so are those beyond `MAX_DEPTH_RATIO` median depths.
      max_points: maximum number of points in total; above it a seeded random sample is kept, with the same fraction
        everywhere.
      voxel: side of the background's voxels in pixel widths at the point's own depth, rounded down to a power of two in
        world units: fine where the camera was near. Each voxel becomes one point, the mean of its points.
      seed: for sampling.

    Returns:
      the points, in world coordinates.
    """
    num_frames = len(scene.depth)
    frames = range(num_frames) if foreground == "all" else [] if foreground == "none" else [int(foreground)]
    rng = np.random.default_rng(seed)
    total = sum(int(_usable(scene, t, min_confidence).sum()) for t in range(num_frames))
    # Static points overlap across frames: sampling twice as many candidates as are kept bounds memory and time.
    share = min(1.0, 2.0 * max_points / max(total, 1))

    static, keys, moving = [], [], {}
    for t in range(num_frames):
        usable = _usable(scene, t, min_confidence)
        mask = np.asarray(scene.dynamic_mask[t])
        chosen = usable & np.asarray(scene.static_mask[t])
        if share < 1.0:
            chosen &= rng.random(chosen.shape, np.float32) < share
        static.append(pixel_points(scene, t, chosen))
        keys.append(voxel_keys(scene, t, chosen, static[-1].xyz, voxel))
        if t in frames:
            moving[t] = pixel_points(scene, t, usable & mask)
    gathered = _concatenate(static)
    background, _ = one_per_voxel(gathered, np.concatenate(keys), np.zeros(len(gathered), np.float32))
    return _bounded(SceneCloud(background, moving), max_points, rng)


def voxel_keys(scene: Scene4D, t: int, chosen: np.ndarray, xyz: np.ndarray, voxel: float = 1.0) -> np.ndarray:
    """Keys that are equal for points in the same voxel.

    Args:
      scene: host arrays.
      t: number of a frame.
      chosen: (H, W) bool, selected pixels, with positive depth.
      xyz: (P, 3) float32, their points in world coordinates.
      voxel: side of the voxels, see `point_cloud`.

    Returns:
      (P,) uint64.
    """
    sides = np.log2(voxel * np.asarray(scene.depth[t])[chosen] / np.asarray(scene.intrinsics)[t, 0, 0])
    log2_side = np.floor(sides).astype(np.int64)[:, None]
    cells = np.floor(np.ldexp(xyz.astype(np.float64), -log2_side)).astype(np.int64)
    cells = np.concatenate([cells, log2_side], axis=1).view(np.uint64)
    return (cells * _HASH).sum(1, dtype=np.uint64)  # overflow is intended


def static_pixels(scene: Scene4D, t: int, min_confidence: float) -> np.ndarray:
    """(H, W) bool: static pixels of frame t that may be shown as points."""
    return _usable(scene, t, min_confidence) & np.asarray(scene.static_mask[t])


def moving_pixels(scene: Scene4D, t: int) -> np.ndarray:
    """(H, W) bool: dynamic pixels of frame t that may be shown as points, whatever their confidence."""
    return _usable(scene, t, np.inf) & np.asarray(scene.dynamic_mask[t])


def frame_points(scene: Scene4D, t: int, min_confidence: float) -> Points:
    """All points of frame t, static and dynamic."""
    shown = _usable(scene, t, min_confidence) & (np.asarray(scene.static_mask[t]) | np.asarray(scene.dynamic_mask[t]))
    return pixel_points(scene, t, shown)


def _usable(scene: Scene4D, t: int, min_confidence: float) -> np.ndarray:
    depth = np.asarray(scene.depth[t])
    trusted = (np.asarray(scene.confidence[t]) >= min_confidence) | np.asarray(scene.dynamic_mask[t])
    farthest = MAX_DEPTH_RATIO * median_depth(scene)
    return trusted & (depth > 0) & (depth <= farthest) & ~_between_surfaces(depth)


def _between_surfaces(depth: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that lie between a nearer neighbour on one side and a farther one on the other."""
    between = np.zeros(depth.shape, bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_depth = np.log(depth)
        for axis in (0, 1):
            step = np.diff(log_depth, axis=axis)
            steep = np.abs(step) > _DEPTH_STEP
            inner = [slice(None)] * 2
            inner[axis] = slice(1, -1)
            first, second = (np.delete(steep, edge, axis) for edge in (-1, 0))
            rising = np.delete(step, -1, axis) * np.delete(step, 0, axis) > 0
            between[tuple(inner)] |= first & second & rising
    return between


def pixel_points(scene: Scene4D, t: int, chosen: np.ndarray) -> Points:
    """The points of frame t's pixels that are chosen, (H, W) bool."""
    depth = np.where(chosen, np.asarray(scene.depth[t]), 0)  # others may be infinite
    xyz = world_points(depth, np.asarray(scene.intrinsics[t]), np.asarray(scene.world_from_cam[t]))
    return Points(xyz[chosen].astype(np.float32), np.asarray(scene.rgb[t])[chosen])


def _concatenate(parts: list[Points]) -> Points:
    return Points(np.concatenate([p.xyz for p in parts]), np.concatenate([p.rgb for p in parts]))


def one_per_voxel(points: Points, keys: np.ndarray, values: np.ndarray) -> tuple[Points, np.ndarray]:
    """Mean position, colour and value of the points in each voxel, i.e. of those with equal `keys` (P,)."""
    if not len(points):
        return points, values
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(starts, len(keys)))[:, None]
    xyz = np.add.reduceat(points.xyz[order].astype(np.float64), starts) / counts
    rgb = np.add.reduceat(points.rgb[order].astype(np.float32), starts) / counts
    means = np.add.reduceat(values[order].astype(np.float64), starts) / counts[:, 0]
    return Points(xyz.astype(np.float32), np.rint(rgb).astype(np.uint8)), means.astype(np.float32)


def _bounded(cloud: SceneCloud, max_points: int, rng: np.random.Generator) -> SceneCloud:
    total = len(cloud.background) + sum(map(len, cloud.foreground.values()))
    if total <= max_points:
        return cloud

    def thin(points: Points) -> Points:
        keep = len(points) * max_points // total
        return points[np.sort(rng.choice(len(points), keep, replace=False))]

    return SceneCloud(thin(cloud.background), {t: thin(p) for t, p in cloud.foreground.items()})


def median_depth(scene: Scene4D, t: int | None = None) -> float:
    """Median depth of a frame, or of the clip (from a sample), in the scene's own units; 1 if no depth is known."""
    step = max(1, len(scene.depth) // 16)
    sample = np.asarray(scene.depth[::step, ::4, ::4] if t is None else scene.depth[t])
    sample = sample[np.isfinite(sample) & (sample > 0)]
    return float(np.median(sample)) if sample.size else 1.0


def empty_because(scene: Scene4D, min_confidence: float) -> str:
    """Why a scene has no point to show; nothing if it has one."""
    numbers = range(len(scene.depth))
    if any(static_pixels(scene, t, min_confidence).any() or moving_pixels(scene, t).any() for t in numbers):
        return ""
    depths = (np.asarray(scene.depth[t]) for t in numbers)
    if not any((np.isfinite(depth) & (depth > 0)).any() for depth in depths):
        return "no pixel has a depth"
    return f"no pixel has a confidence of {min_confidence:g} or more outside the edges of surfaces, and none is dynamic"


def camera_lines(scene: Scene4D, size: float) -> np.ndarray:
    """The edges of every camera's viewing pyramid.

    Args:
      scene: host arrays.
      size: depth of the pyramids in world units.

    Returns:
      (T, 8, 2, 3) float32: eight segments per camera, both ends in world coordinates. The pyramid's corners are the
      outer corners of the image's corner pixels.
    """
    height, width = scene.depth.shape[1:]
    corners = np.array([[x, y] for y in (-0.5, height - 0.5) for x in (-0.5, width - 0.5)])
    lines = []
    for intrinsics, world_from_cam in zip(np.asarray(scene.intrinsics), np.asarray(scene.world_from_cam), strict=True):
        in_camera = np.concatenate([np.zeros((1, 3)), size * rays(corners, intrinsics.astype(np.float64))])
        world = in_camera @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
        lines.append(world[[[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 4], [4, 3], [3, 1]]])
    return np.array(lines, np.float32)


def camera_size(scene: Scene4D) -> float:
    """A suitable depth of the camera pyramids: a twelfth of the scene's median depth."""
    sample = np.asarray(scene.depth)[:, ::4, ::4]
    sample = sample[np.isfinite(sample) & (sample > 0)]
    return float(np.median(sample)) / 12 if sample.size else 1.0


def iterate_groups(cloud: SceneCloud) -> Iterator[tuple[int, Points]]:
    """Background as frame -1, then the foreground of each frame."""
    yield -1, cloud.background
    yield from sorted(cloud.foreground.items())
