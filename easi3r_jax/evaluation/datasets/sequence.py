"""What every data set is to an evaluation: sequences of frames and what is known of them."""

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
      times: (P,) float64 seconds (or frame numbers, where the data set has no time stamps), increasing.
      world_from_cam: (P, 4, 4) float64 rigid, OpenCV axes, in the data set's own world and unit.
    """

    times: np.ndarray
    world_from_cam: np.ndarray


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of a sequence's frames, in pixels of the original (upright) images.

    A task is judged on those sequences whose truth has what it needs: of Sintel's 23, 14 have a trajectory. Images are
    read when they are asked for; then what is damaged or of another size than the frame is an InputError.

    Attributes:
      masks: frame 0..T-1 -> (h, w) bool, what moves.
      void: frame -> (h, w) bool, pixels that do not count.
      depth: frame -> (h, w) float32 z in the camera, 0 where unknown.
      intrinsics: (T, 3, 3) float64, integers at pixel centres.
      trajectory: at the times of `TestSequence.times` or near them (association is the metrics' business); it may have
        more poses than there are frames, or fewer.
    """

    masks: Callable[[int], np.ndarray] | None = None
    void: Callable[[int], np.ndarray] | None = None
    depth: Callable[[int], np.ndarray] | None = None
    intrinsics: np.ndarray | None = None
    trajectory: Trajectory | None = None


@dataclasses.dataclass(frozen=True)
class TestSequence:
    """One sequence after the protocol's choice of frames.

    Attributes:
      name: of the sequence, unlike any other's in its data set.
      images: T frames in order, as `load_frames` takes them: paths, or images within a file.
      times: (T,) float64, of the trajectory's kind.
      truth: see `Truth`.
      num_source_frames: frames before the protocol's stride and limit.
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
      task: of `TestSet.tasks`.
      figures: name of ours -> value, in our unit (shares, not percent).
      source: paper and table, and what differs from our protocol.
    """

    method: str
    task: str
    figures: Mapping[str, float]
    source: str


@dataclasses.dataclass(frozen=True)
class TestSet:
    """A data set and the protocol it is evaluated by.

    Attributes:
      name: as `--dataset` names it.
      title: as people name it.
      tasks: of "masks", "poses", "depth", "points".
      find: root folder -> its sequences in the order of their names, at least one. InputError where the folder is not
        there or not whole.
      licence, homepage: for documents and messages; the publisher's word is the one that counts.
      depth: alignment and limits of the protocol, or None where depth is no task.
      single_frames: every frame is reconstructed alone.
      published: rows of the papers for the report.
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
