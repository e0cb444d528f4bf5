"""Which two frames make a pair, and whether a pair is of any use.

MonST3R (arXiv 2410.03825, sec. 3.2 and 4): strides of 1 to 9 frames, with a probability that grows linearly; crops of
varying scale around the centre. Its sizes are those of the 512 networks (arXiv 2312.14132).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.training.datasets.sequence import Sequence

#: Share of the pairs that come from each data set (MonST3R, sec. 4).
MONST3R_SHARES = {"pointodyssey": 0.5, "tartanair": 0.25, "spring": 0.05, "waymo": 0.2}

# A point of one view is seen in the other where the depths agree so far, as a share: surfaces, not measurements.
_SAME_DEPTH = 0.1
_POINTS = 2048


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How pairs are drawn from sequences.

    Attributes:
      sizes: (width, height) in pixels that a batch may have; each is as likely.
      max_stride: largest distance in time of two frames. The distance s has a probability proportional to s.
      crop_scale: bounds of the crop's side over the largest one's, drawn once a pair. (No published figures.)
      min_overlap: smallest share of one view's points that the other must see.
      max_draws: how many pairs of a sequence are tried before it is given up.
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
                f"The largest stride ({self.max_stride}) and max_draws ({self.max_draws}) are at least 1."
            )
        if not 0 < low <= high <= 1:
            raise ConfigError(f"The crops' scale must lie in (0, 1], the lower bound first, got {self.crop_scale}.")
        if not 0 <= self.min_overlap < 1:
            raise ConfigError(f"min_overlap must lie in [0, 1), got {self.min_overlap}.")


def draw_frames(rng: np.random.Generator, sequence: Sequence, max_stride: int) -> tuple[int, int]:
    """Two frames of a sequence, in random order: a pair of its list, or frames that are close in time."""
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
    """Estimated share of one view's points that the other view sees; the larger of the two ways.

    A point is seen where it falls into the other image and the depth that is known there agrees: what moves and what is
    hidden count for nothing. Where depth is sparse, points that fall on unknown pixels are taken to agree as often as
    the others.

    Args:
      depth: (2, H, W), 0 where unknown.
      intrinsics: (2, 3, 3).
      world_from_cam: (2, 4, 4), rigid.
    """
    return max(_share_seen(depth, intrinsics, world_from_cam, i, 1 - i) for i in range(2))


def _share_seen(depth: np.ndarray, intrinsics: np.ndarray, world_from_cam: np.ndarray, i: int, j: int) -> float:
    """Share of view i's known points that view j sees."""
    rows, columns = np.nonzero(depth[i])
    if not len(rows):
        return 0.0
    chosen = slice(None, None, -(-len(rows) // _POINTS))
    rows, columns = rows[chosen], columns[chosen]
    rays = np.linalg.inv(intrinsics[i]) @ np.stack([columns, rows, np.ones(len(rows))])
    j_from_i = np.linalg.inv(world_from_cam[j]) @ world_from_cam[i]
    points = j_from_i[:3, :3] @ (rays * depth[i, rows, columns]) + j_from_i[:3, 3:]
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
    agrees = abs(z[inside] - there)[known] < _SAME_DEPTH * there[known]
    return float(inside.mean() * agrees.mean())
