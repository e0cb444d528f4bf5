"""The synthetic data set: clips rendered on demand, with complete ground truth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from PIL import Image

from easi3r_jax.apps.rendered import planned, render
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.types import Frames
from easi3r_jax.evaluation.datasets import TestSequence, TestSet, Trajectory, Truth
from easi3r_jax.evaluation.metrics import DepthOptions
from easi3r_jax.io.video import frame_geometry, resize_image
from easi3r_jax.synthetic.clips import ClipConfig, ClipPlan, RenderedClip

NAME = "synthetic"
#: Default number of clips.
NUM_CLIPS = 4
_FRAMES_PER_SECOND = 24.0


@dataclasses.dataclass(frozen=True)
class RenderedSequence(TestSequence):
    """A clip without files.

    Attributes:
      clip: renders it, host arrays.
    """

    clip: Callable[[], RenderedClip]


def rendered_set(count: int, seed: int, config: ClipConfig) -> tuple[TestSet, list[TestSequence]]:
    """Dynamic clips: those of `python -m experiments.synthesize` with the same seed and size, up to rounding.

    Nothing is rendered yet.

    Args:
      count: number of clips; a larger one adds clips.
      seed: of the clips.
      config: their distribution.
    """

    @functools.lru_cache(maxsize=1)  # its ground truth is requested frame by frame, clip after clip
    def rendered(number: int) -> RenderedClip:
        return jax.tree.map(np.asarray, render(keys[number][1], plans[number], config.size))

    keys = [jax.random.split(jax.random.fold_in(jax.random.key(seed), number)) for number in range(count)]
    plans = [planned(plan_key, config) for plan_key, _ in keys]
    sequences: list[TestSequence] = [
        _sequence(f"clip_{seed}_{number:05d}", plan, partial(rendered, number)) for number, plan in enumerate(plans)
    ]
    test_set = TestSet(
        name=NAME,
        title="rendered clips",
        tasks=("masks", "poses", "depth", "points"),
        find=lambda root: sequences,
        licence="Apache-2.0",
        homepage="",
        depth=DepthOptions("scale"),
    )
    return test_set, sequences


def _sequence(name: str, plan: ClipPlan, clip: Callable[[], RenderedClip]) -> RenderedSequence:
    cameras = np.asarray(plan.world_from_cam, np.float64)
    times = np.arange(len(cameras)) / _FRAMES_PER_SECOND
    truth = Truth(
        masks=lambda t: np.asarray(clip().moving[t]),
        depth=lambda t: np.asarray(clip().views.depth[t]),
        intrinsics=np.asarray(plan.intrinsics, np.float64),
        trajectory=Trajectory(times, cameras),
    )
    return RenderedSequence(name, (), times, truth, len(times), clip)


def rendered_frames(sequence: RenderedSequence, config: FrameConfig) -> Frames:
    """The clip's frames as `load_frames` would give them."""
    rgb = sequence.clip().views.rgb
    height, width = rgb.shape[1:3]
    geometry = frame_geometry(width, height, config)
    return Frames(
        rgb=np.stack([np.asarray(resize_image(Image.fromarray(image), geometry)) for image in rgb]),
        source_index=np.arange(len(rgb), dtype=np.int32),
        time=sequence.times,
        frame_from_source=geometry.frame_from_source,
        source_size=np.array([height, width], np.int32),
    )
