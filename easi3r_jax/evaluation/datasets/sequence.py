"""The interface of a data set: sequences of frames with their ground truth."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from easi3r_jax.evaluation.metrics import DepthOptions
from easi3r_jax.io.video import StoredImage


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The true path of a camera.

    Attributes:
      times: (P,) float64 seconds (frame numbers if the data set has no time stamps), increasing.
      world_from_cam: (P, 4, 4) float64 rigid, OpenCV axes, in the data set's own world and unit.
    """

    times: np.ndarray
    world_from_cam: np.ndarray


@dataclasses.dataclass(frozen=True)
class Truth:
    """Ground truth of a sequence, in pixels of the original (upright) images.

    A task is evaluated on those sequences whose truth has what it needs: of Sintel's 23, 14 have a trajectory. Images
    are read on demand; reading raises InputError if one is damaged or differs in size from its frame.

    Attributes:
      masks: function of the frame 0..T-1: (h, w) bool, True at dynamic pixels.
      void: function of the frame: (h, w) bool, pixels to ignore.
      depth: function of the frame: (h, w) float32 z in the camera, 0 where unknown.
      intrinsics: (T, 3, 3) float64, with integer coordinates at pixel centres.
      trajectory: at or near the times of `TestSequence.times` (the metrics associate them); it may have more or fewer
        poses than there are frames.
    """

    masks: Callable[[int], np.ndarray] | None = None
    void: Callable[[int], np.ndarray] | None = None
    depth: Callable[[int], np.ndarray] | None = None
    intrinsics: np.ndarray | None = None
    trajectory: Trajectory | None = None


@dataclasses.dataclass(frozen=True)
class TestSequence:
    """One sequence, with the frames that the protocol selects.

    Attributes:
      name: of the sequence, unique in its data set.
      images: T frames in order, as `load_frames` takes them: paths, or images within a file.
      times: (T,) float64, in the unit of the trajectory's times.
      truth: see `Truth`.
      num_source_frames: number of frames before the protocol's stride and limit.
    """

    __test__ = False  # for pytest

    name: str
    images: tuple[pathlib.Path | StoredImage, ...]
    times: np.ndarray
    truth: Truth
    num_source_frames: int


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
      method: as the paper names it.
      task: one of `TestSet.tasks`.
      metrics: our name of a metric -> value, in our unit (fractions, not percent).
      source: paper and table, and what differs from our protocol.
    """

    method: str
    task: str
    metrics: Mapping[str, float]
    source: str


@dataclasses.dataclass(frozen=True)
class TestSet:
    """A data set and its evaluation protocol.

    Attributes:
      name: as `--dataset` names it.
      title: its usual name.
      tasks: some of "masks", "poses", "depth", "points".
      find: function from a root folder to its sequences ordered by name, at least one. Raises InputError if the folder
        does not exist or is incomplete.
      licence, homepage: for documents and messages; the publisher's own statement is authoritative.
      depth: alignment and limits of the protocol; None if depth is not a task.
      single_frames: whether each frame is reconstructed alone.
      published: rows of the papers, for the report.
    """

    __test__ = False  # for pytest

    name: str
    title: str
    tasks: tuple[str, ...]
    find: Callable[[pathlib.Path], list[TestSequence]]
    licence: str
    homepage: str
    depth: DepthOptions | None = None
    single_frames: bool = False
    published: tuple[Published, ...] = ()
