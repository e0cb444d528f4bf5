"""Clips to study: rendered ones, or folders. Each comes with its motionless twin."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from easi3r_jax.apps.rendered import planned, render
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames
from easi3r_jax.evaluation.ground_truth import load_ground_truth
from easi3r_jax.evaluation.metrics import GroundTruth
from easi3r_jax.io.sequences import STILL, Sequence, find_sequence, load_arrays
from easi3r_jax.io.video import load_frames
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.synthetic.clips import ClipConfig, RenderedClip


@dataclasses.dataclass(frozen=True, eq=False)
class StudyClip:
    """A clip and its ground truth.

    Attributes:
      frames: at the network's size.
      truth: cameras, depth, masks of dynamic regions (all False in a twin).
      movers: (T, H, W) bool, pixels of the objects that move in the clip; in a twin, of those that would move. In a
        twin, a score that responds to motion alone is no higher there than elsewhere. None if unknown.
    """

    frames: Frames
    truth: GroundTruth
    movers: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Twins:
    """A clip, and the same scene, camera path and noise without motion."""

    name: str
    moving: StudyClip
    still: StudyClip


def rendered(seed: int, split: int, count: int, config: ClipConfig) -> Iterator[Twins]:
    """`count` new clips. Different splits of a seed have different clips."""
    for n in range(count):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), split), n)
        plan_key, noise_key = jax.random.split(key)
        plans = [planned(plan_key, config, moving=moving) for moving in (True, False)]
        clips = [jax.tree.map(np.asarray, render(noise_key, plan, config.size)) for plan in plans]
        # In the twin too: the pixels of what would move.
        moves = np.concatenate([[False], plans[0].moves])
        moving, still = (from_render(clip, moves[clip.views.instance], config) for clip in clips)
        yield Twins(f"seed {seed}.{split}.{n}", moving, still)


def folders(path: pathlib.Path, *, with_twins: bool = True) -> list[pathlib.Path]:
    """RenderedClip folders under `path` that have a twin, sorted by name; or all that are not one themselves.

    Raises:
      InputError: there are none.
    """
    try:
        names = {p.name for p in path.iterdir() if (p / "frames").is_dir() and (p / "ground_truth.npz").is_file()}
    except OSError as error:
        raise InputError(f"Cannot read the folder of clips {path}: {error.strerror}.") from error
    if with_twins:
        found = [path / name for name in sorted(names) if name + STILL in names]
    else:
        found = [path / name for name in sorted(names) if not name.endswith(STILL)]
        if not found:
            raise InputError(f"There is no clip in {path}: a clip is a folder with frames/ and ground_truth.npz.")
    if not found:
        raise InputError(
            f"There is no clip in {path}: a clip is a folder NAME with frames/ and ground_truth.npz beside its twin "
            f"NAME{STILL}."
        )
    return found


def read(path: pathlib.Path, network: DUSt3RConfig) -> Twins:
    """A clip folder and its twin, at the network's size.

    The objects that would move in the twin are found by their instance numbers: the array `instance` (T, H, W) of both
    ground truths.

    Raises:
      InputError: unreadable files, ground truth without masks, or a twin of another length.
    """
    config = FrameConfig(size=max(network.image_size), patch_size=network.patch_size)
    sequences = [find_sequence(str(p)) for p in (path, path.with_name(path.name + STILL))]
    frames = [load_frames(s.frames, config) for s in sequences]
    truths = [load_ground_truth(_file(s), f) for s, f in zip(sequences, frames, strict=True)]
    masks = truths[0].masks
    if masks is None or truths[1].masks is None:
        raise InputError(f"The ground truth of {path} or of its twin has no masks of dynamic regions.")
    if frames[0].rgb.shape != frames[1].rgb.shape:
        raise InputError(f"{path} and its twin differ in length or size.")
    instance, twins_instance = (
        load_arrays(_file(s), f, ("instance",)).get("instance") for s, f in zip(sequences, frames, strict=True)
    )
    would_move = None
    if instance is not None and twins_instance is not None:
        would_move = np.isin(twins_instance, np.unique(instance[masks]))
    moving, still = (StudyClip(f, t, movers) for f, t, movers in zip(frames, truths, (masks, would_move), strict=True))
    return Twins(path.name, moving, still)


def read_alone(path: pathlib.Path, network: DUSt3RConfig) -> StudyClip:
    """A clip folder without a twin, at the network's size.

    Raises:
      InputError: unreadable files, or ground truth without masks.
    """
    config = FrameConfig(size=max(network.image_size), patch_size=network.patch_size)
    sequence = find_sequence(str(path))
    frames = load_frames(sequence.frames, config)
    truth = load_ground_truth(_file(sequence), frames)
    if truth.masks is None:
        raise InputError(f"The ground truth of {path} has no masks of dynamic regions.")
    return StudyClip(frames, truth, truth.masks)


def _file(sequence: Sequence) -> pathlib.Path:
    if sequence.ground_truth is None:
        raise InputError(f"{sequence.frames.parent} has no ground_truth.npz.")
    return sequence.ground_truth


def from_render(clip: RenderedClip, movers: np.ndarray, config: ClipConfig) -> StudyClip:
    """A rendered clip as frames and ground truth."""
    index = np.arange(config.num_frames)
    frames = Frames(
        rgb=clip.views.rgb,
        source_index=index.astype(np.int32),
        time=index / 24.0,
        frame_from_source=np.eye(3),
        source_size=np.array(config.size, np.int32),
    )
    truth = GroundTruth(
        depth=np.asarray(clip.views.depth),
        masks=np.asarray(clip.moving),
        world_from_cam=np.asarray(clip.views.world_from_cam),
        intrinsics=np.asarray(clip.views.intrinsics),
    )
    return StudyClip(frames, truth, movers)
