"""Samples pairs of frames, and measures their overlap.

MonST3R (arXiv 2410.03825, sec. 3.2 and 4): strides of 1 to 9 frames, with linearly increasing probability; centre crops
of varying scale. Sizes are those of the 512 networks (arXiv 2312.14132).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry.camera import rays
from easi3r_jax.training.datasets.sequence import Sequence

#: Proportions of the data sets (MonST3R, sec. 4).
MONST3R_SHARES = {"pointodyssey": 0.5, "tartanair": 0.25, "spring": 0.05, "waymo": 0.2}

# Largest relative difference of depths at which a point counts as visible in the other view. It tells surfaces apart;
# it is not a bound on measurement errors.
_DEPTH_TOLERANCE = 0.1
_MAX_POINTS = 2048


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How pairs are sampled from sequences.

    Attributes:
      sizes: possible sizes (width, height) of a batch, in pixels; equally likely.
      max_stride: largest distance in time of two frames. The probability of a distance s is proportional to s.
      crop_scale: range of the crop's side relative to the largest crop, drawn once per pair. (No published values.)
      min_overlap: smallest fraction of one view's points that must be visible in the other.
      max_draws: number of pairs of a sequence that are tried before an error.
    """

    sizes: tuple[tuple[int, int], ...] = ((512, 384), (512, 336), (512, 288), (512, 256), (512, 160))
    max_stride: int = 9
    crop_scale: tuple[float, float] = (0.6, 1.0)
    min_overlap: float = 0.02
    max_draws: int = 32

    def __post_init__(self):
        low, high = self.crop_scale
        if not self.sizes or min(min(size) for size in self.sizes) < 2:
            raise ConfigError(f"Sizes of training views must be at least 2x2 pixels, got {self.sizes}.")
        if self.max_stride < 1 or self.max_draws < 1:
            raise ConfigError(
                f"max_stride and max_draws must be at least 1, got {self.max_stride} and {self.max_draws}."
            )
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale must be a range in (0, 1], lower bound first, got {self.crop_scale}.")
        if not 0 <= self.min_overlap < 1:
            raise ConfigError(f"min_overlap must lie in [0, 1), got {self.min_overlap}.")


def draw_frames(rng: np.random.Generator, sequence: Sequence, max_stride: int) -> tuple[int, int]:
    """Two frames of a sequence, in random order: a pair from its list, or two frames that are close in time."""
    if sequence.pairs is not None:
        first, second = sequence.pairs[rng.integers(len(sequence.pairs))]
    else:
        strides = np.arange(1, min(max_stride, sequence.num_frames - 1) + 1)
        stride = rng.choice(strides, p=strides / strides.sum())
        first = rng.integers(sequence.num_frames - stride)
        second = first + stride
    if rng.random() < 0.5:
        first, second = second, first
    return int(first), int(second)


def overlap(depth: np.ndarray, intrinsics: np.ndarray, world_from_cam: np.ndarray) -> float:
    """Estimated fraction of one view's points that are visible in the other; the larger of both directions.

    A point is visible if it projects into the other image and agrees with the depth there. Dynamic and occluded points
    do not count. Where depth is sparse, points on pixels of unknown depth are assumed to agree as often as the others.

    Args:
      depth: (2, H, W), 0 where unknown.
      intrinsics: (2, 3, 3).
      world_from_cam: (2, 4, 4), rigid.
    """
    return max(_visible_fraction(depth, intrinsics, world_from_cam, i, 1 - i) for i in range(2))


def _visible_fraction(depth: np.ndarray, intrinsics: np.ndarray, world_from_cam: np.ndarray, i: int, j: int) -> float:
    """Fraction of view i's known points that are visible in view j."""
    rows, columns = np.nonzero(depth[i])
    if not len(rows):
        return 0.0
    chosen = slice(None, None, -(-len(rows) // _MAX_POINTS))
    rows, columns = rows[chosen], columns[chosen]
    points = rays(np.stack([columns, rows], axis=-1), intrinsics[i]) * depth[i, rows, columns][:, None]
    j_from_i = np.linalg.inv(world_from_cam[j]) @ world_from_cam[i]
    points = j_from_i[:3, :3] @ points.T + j_from_i[:3, 3:]
    x, y, z = intrinsics[j] @ points
    front = z > 1e-6
    z = np.where(front, z, 1)
    height, width = depth.shape[1:]
    x, y = np.rint(x / z), np.rint(y / z)
    inside = front & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    there = depth[j, y[inside].astype(int), x[inside].astype(int)]
    known = there > 0
    if not known.any():
        return 0.0
    agrees = abs(z[inside] - there)[known] < _DEPTH_TOLERANCE * there[known]
    return float(inside.mean() * agrees.mean())
