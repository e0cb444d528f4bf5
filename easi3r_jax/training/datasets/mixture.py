"""Batches of pairs from several data sets, each a pure function of the seed and the step."""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
from collections.abc import Sequence as ListLike
from typing import NamedTuple

import numpy as np

from easi3r_jax.core.arrays import Int
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.training.datasets.crop import centred_crop
from easi3r_jax.training.datasets.sampling import SamplingConfig, draw_frames, overlap
from easi3r_jax.training.datasets.sequence import Dataset, Sequence, is_rigid


class PairBatch(NamedTuple):
    """B pairs of two views on the host: the fields of `training.batch.ViewPairs`, in its order.

    Attributes:
      rgb: (B, 2, H, W, 3) uint8.
      depth: (B, 2, H, W) float32 z; 0 where unknown.
      intrinsics: (B, 2, 3, 3) float32, pixels; principal point (W / 2, H / 2).
      world_from_cam: (B, 2, 4, 4) float32. Each pair's world is its first view's camera: a data set's origin may be
        kilometres away, where float32 does not resolve millimetres.
    """

    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    world_from_cam: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
    """One pair of a batch, and its origin.

    Attributes:
      dataset: name of the data set.
      sequence: name of the sequence.
      frames: numbers of its two frames, in the order of the views.
      arrays: as in `PairBatch`, without the leading axis.
    """

    dataset: str
    sequence: str
    frames: tuple[int, int]
    arrays: PairBatch


class Mixture:
    """An endless stream of pairs from several data sets, in given proportions.

    `batch` depends only on its arguments and the files, so a resumed run gets the same batches. It is thread-safe.
    """

    def __init__(self, datasets: ListLike[tuple[Dataset, float]], config: SamplingConfig):
        """Mixes data sets.

        Args:
          datasets: each with its weight. The probability of a data set is its weight over the sum of all weights.
          config: how pairs are sampled.

        Raises:
          ConfigError: no data sets, or a weight that is not positive.
        """
        if not datasets:
            raise ConfigError("No data set to train on: name at least one.")
        for dataset, weight in datasets:
            if not (weight > 0 and math.isfinite(weight)):
                raise ConfigError(f"The weight of the data set {dataset.name!r} must be positive, got {weight}.")
        self.datasets = tuple(dataset for dataset, _ in datasets)
        self.config = config
        self._dataset_ends = _ends([weight for _, weight in datasets])
        self._sequence_ends = [_ends([s.num_pairs for s in dataset.sequences]) for dataset in self.datasets]
        self._redrawn: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    @property
    def redrawn(self) -> dict[str, int]:
        """Number of pairs that were unusable so far and were drawn again, by reason."""
        with self._lock:
            return dict(self._redrawn)

    def size(self, seed: int, step: int) -> tuple[int, int]:
        """(width, height) of the views of a step."""
        rng = _generator(seed, step)
        return self.config.sizes[rng.integers(len(self.config.sizes))]

    def batch(self, seed: int, step: int, batch_size: int, indices: Int[np.ndarray, "own"] | None = None) -> PairBatch:
        """The pairs of a step: `pair` 0 to batch_size - 1, or those with the given indices.

        Raises:
          InputError: a missing or damaged file, or a sequence without usable pairs.
        """
        if batch_size < 1:
            raise ConfigError(f"A batch has at least one pair, got {batch_size}.")
        pairs = [
            self.pair(seed, step, index).arrays
            for index in (range(batch_size) if indices is None else indices.tolist())
        ]
        return PairBatch(*map(np.stack, zip(*pairs, strict=True)))

    def pair(self, seed: int, step: int, index: int) -> Pair:
        """One pair of a step; see `batch`. It does not depend on the batch size."""
        size = self.size(seed, step)
        rng = _generator(seed, step, index)
        dataset, sequence = self.draw_sequence(rng)
        failures: collections.Counter[str] = collections.Counter()
        for _ in range(self.config.max_draws):
            frames = draw_frames(rng, sequence, self.config.max_stride)
            arrays = _views(sequence, frames, size, rng.uniform(*self.config.crop_scale))
            problem = _problem(arrays, self.config.min_overlap)
            if problem is None:
                return Pair(dataset.name, sequence.name, frames, _in_first_camera(arrays))
            failures[problem] += 1
            with self._lock:
                self._redrawn[problem] += 1
        reasons = ", ".join(f"{count} times {problem}" for problem, count in failures.most_common())
        raise InputError(
            f"{sequence.name}: none of {self.config.max_draws} pairs of frames is usable ({reasons}): "
            "fix its depth and cameras, or remove it."
        )

    def draw_sequence(self, rng: np.random.Generator) -> tuple[Dataset, Sequence]:
        """Draws a data set by weight, and one of its sequences by number of pairs."""
        dataset = int(np.searchsorted(self._dataset_ends, rng.random(), "right"))
        sequence = int(np.searchsorted(self._sequence_ends[dataset], rng.random(), "right"))
        return self.datasets[dataset], self.datasets[dataset].sequences[sequence]


def _ends(weights: ListLike[float]) -> np.ndarray:
    """Upper ends of the weights' intervals in [0, 1]. `random` is always below the last."""
    ends = np.cumsum(np.asarray(weights, np.float64))
    return ends / ends[-1]


def _generator(seed: int, step: int, *index: int) -> np.random.Generator:
    """An independent random stream for every seed, step and index."""
    if min(seed, step, *index) < 0:
        raise ConfigError(f"Seed and step must not be negative, got seed {seed} and step {step}.")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, *index)))


def _views(sequence: Sequence, frames: tuple[int, int], size: tuple[int, int], scale: float) -> PairBatch:
    """Two cropped views in float64, in the data set's world."""
    views = []
    for frame in frames:
        view = sequence.read(frame)
        try:
            crop = centred_crop(view.image.size, view.intrinsics[:2, 2], size, scale)
        except InputError as error:
            raise InputError(f"{sequence.image_path(frame)}: {error}") from error
        intrinsics = crop.frame_from_source @ view.intrinsics
        views.append(PairBatch(crop.image(view.image), crop.depth(view.depth), intrinsics, view.world_from_cam))
    return PairBatch(*map(np.stack, zip(*views, strict=True)))


def _problem(views: PairBatch, min_overlap: float) -> str | None:
    """Why two views are unusable; None if they are usable."""
    if not all(is_rigid(pose) for pose in views.world_from_cam):
        return "a pose that is not finite or not rigid"
    if not views.depth.any((1, 2)).all():
        return "no known depth"
    if not overlap(views.depth, views.intrinsics, views.world_from_cam) > min_overlap:
        return "no overlap of the two views"
    return None


def _in_first_camera(views: PairBatch) -> PairBatch:
    first_from_world = np.linalg.inv(views.world_from_cam[0])
    first_from_cam = first_from_world @ views.world_from_cam
    return views._replace(
        intrinsics=views.intrinsics.astype(np.float32), world_from_cam=first_from_cam.astype(np.float32)
    )
