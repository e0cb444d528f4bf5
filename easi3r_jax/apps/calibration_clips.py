"""Clips to calibrate on: rendered ones, clip folders, or sequences of a data set with masks."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from easi3r_jax.apps.study import clips as study_clips
from easi3r_jax.apps.study.clips import StudyClip
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry.grids import resample_nearest
from easi3r_jax.evaluation.datasets import TestSequence, find_test_set
from easi3r_jax.evaluation.metrics import GroundTruth
from easi3r_jax.io.video import load_frames
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.synthetic.clips import ClipConfig


class Sample(NamedTuple):
    """A clip with masks, and its motionless twin, if it has one."""

    name: str
    moving: StudyClip
    still: StudyClip | None


#: How many there are, and the samples, read or rendered one at a time.
Part = tuple[int, Iterator[Sample]]


def rendered(seed: int, counts: tuple[int, ...], config: ClipConfig) -> list[Part]:
    """Clips rendered here, with twins; as many as `counts` says for each part."""
    parts = [study_clips.rendered(seed, 10 + n, count, config) for n, count in enumerate(counts)]
    return [
        (count, (Sample(t.name, t.moving, t.still) for t in part)) for count, part in zip(counts, parts, strict=True)
    ]


def of_folder(path: pathlib.Path, counts: tuple[int, ...], network: DUSt3RConfig) -> list[Part]:
    """Clip folders in a folder, with twins or without, in the order of their names.

    Raises:
      InputError: fewer than three clips; those that cannot be read, when they are.
    """
    found = study_clips.folders(path, with_twins=False)
    return _parts([lambda p=p: _of_clip_folder(p, network) for p in found], counts, str(path))


def of_data_set(
    name: str, root: pathlib.Path, counts: tuple[int, ...], network: DUSt3RConfig, num_frames: int
) -> list[Part]:
    """Sequences of a data set that has masks, at most `num_frames` frames of each. Pixels to ignore count as static.

    Raises:
      ConfigError: no such data set.
      InputError: a folder that is missing or incomplete, or fewer than three sequences with masks.
    """
    sequences = [sequence for sequence in find_test_set(name).find(root) if sequence.truth.masks is not None]
    if not sequences:
        raise InputError(f"{name} ({root}) has no masks of dynamic regions, which calibration needs.")
    return _parts([lambda s=s: _of_sequence(s, network, num_frames) for s in sequences], counts, f"{name} ({root})")


def _parts(read: list[Callable[[], Sample]], counts: tuple[int, ...], where: str) -> list[Part]:
    """To fit, to choose and to test: as many as asked for, else three fifths and twice a fifth of what there is."""
    if len(read) < 3:
        raise InputError(f"{where} has {len(read)} clips: three are needed, to fit, to choose and to test.")
    if len(read) < sum(counts):
        fifth = max(1, len(read) // 5)
        counts = (len(read) - 2 * fifth, fifth, fifth)
    ends = list(itertools.accumulate(counts))
    parts = [read[end - count : end] for count, end in zip(counts, ends, strict=True)]
    return [(len(part), (function() for function in part)) for part in parts]


def _of_clip_folder(path: pathlib.Path, network: DUSt3RConfig) -> Sample:
    if path.with_name(path.name + study_clips.STILL).is_dir():
        twins = study_clips.read(path, network)
        return Sample(twins.name, twins.moving, twins.still)
    return Sample(path.name, study_clips.read_alone(path, network), None)


def _of_sequence(sequence: TestSequence, network: DUSt3RConfig, num_frames: int) -> Sample:
    mask_of = sequence.truth.masks
    assert mask_of is not None
    config = FrameConfig(size=max(network.image_size), patch_size=network.patch_size, first=num_frames)
    frames = load_frames(sequence.images, config)
    original = np.stack([mask_of(int(number)) for number in np.asarray(frames.source_index)])
    size = (int(frames.rgb.shape[1]), int(frames.rgb.shape[2]))
    masks = resample_nearest(original, np.asarray(frames.frame_from_source), size)
    truth = GroundTruth(masks=masks)
    return Sample(sequence.name, StudyClip(frames, truth, masks), None)
