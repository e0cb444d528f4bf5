"""Renders clips with ground truth: depth, cameras, masks of dynamic regions, exact optical flow.

    python -m experiments.synthesize --output=clips                    # 4 clips and their twins, about a minute
    python -m experiments.synthesize --output=clips --num=100 --frames=24 --size=96x128
    python -m experiments.synthesize --output=pairs --kind=pairs --num=1000
    python -m experiments.reconstruct --seq=clips/clip_0_00000         # reconstructs one of them

Each clip is a folder: frames/00000.png ..., ground_truth.npz (arrays in docs/conventions.md) and clip.json (its
options). Clip NAME has a motionless twin NAME_still: the same scene, camera path, sensor and noise, but nothing moves.
The same seed gives the same clips; a larger --num adds to them.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import time
from functools import partial
from typing import Any

import jax
import numpy as np

from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import device, versions
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.rendered import sampled
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io import export, remote
from easi3r_jax.io.sequences import STILL
from easi3r_jax.synthetic import ClipConfig, PairSampling, RenderedClip, pair_as_clip

FLAGS = cli.Flags(__doc__, cached=True)

_CONTENT = FLAGS.group("What is rendered")
KIND = _CONTENT.choice(
    "kind",
    "clips",
    ["clips", "pairs"],
    "clips: camera and objects move. pairs: training pairs of a static-scene network, two frames with different gain "
    "in which nothing moves.",
)
NUM = _CONTENT.integer("num", 4, "Number of clips or pairs.", at_least=1)
SEED = _CONTENT.seed("seed", 0, "Seed of everything; part of the folders' names.")
SIZE = _CONTENT.string("size", "64x96", "HEIGHTxWIDTH of the frames in pixels, 16 to 4096 each.")
FRAMES = _CONTENT.integer("frames", 16, "Frames of a clip.", at_least=2, at_most=100_000)
NUM_OBJECTS = _CONTENT.integer("num_objects", 0, "Objects in a room (0: 12 in clips, 10 in pairs).", at_most=1000)
NUM_MOVING = _CONTENT.integer("num_moving", 6, "Moving objects in a clip, in view or not.", at_most=1000)
SWEEPS = _CONTENT.integer(
    "sweeps", 1, "Number of times that the camera traverses its path, for long clips.", at_least=1, at_most=10_000
)
MOTION = _CONTENT.boolean("motion", True, "Render clips with moving objects; --nomotion renders only the twins.")
TWINS = _CONTENT.boolean("twins", True, "Render each clip's twin beside it.")

_OUTPUT = FLAGS.group("Output")
FLOW = _OUTPUT.boolean("flow", True, "Write optical flow and its visibility: two thirds of a clip's size.")
OUTPUT = _OUTPUT.output_folder(
    "output",
    "clips",
    "Parent folder of the clips, or its address. Existing clips of the same seed and number are replaced.",
)

_MAX_SIZE = 4096


def main() -> None:
    began = time.perf_counter()
    config = chosen()
    with remote.writing(OUTPUT.value) as target:
        clips, size = write_clips(config, target.folder)
    seconds = time.perf_counter() - began
    print(
        f"  {clips} folders, {size / 1e6:.1f} MB in {seconds:.0f} s, compilation included\n  result: {target.address}"
    )


def write_clips(config: ClipConfig | PairSampling, output: pathlib.Path) -> tuple[int, int]:
    """Renders clips into a folder; returns their number and their bytes."""
    jobs = [
        (number, moving, output / folder_name(number, moving)) for number in range(NUM.value) for moving in variants()
    ]
    for *_, folder in jobs:
        export.ensure_clip_writable(folder)
    print(f"  {len(jobs)} folders of {KIND.value}, {config.size[1]}x{config.size[0]} pixels, {device()}")

    stages = Stages()
    made_by = versions()
    size = 0
    for done, (number, moving, folder) in enumerate(jobs):
        stages("rendering, writing", done, len(jobs), folder.name)
        clip = jax.tree.map(np.asarray, render(number, moving, config))
        record = {
            "made_by": "experiments.synthesize",
            "kind": KIND.value,
            "seed": SEED.value,
            "number": number,
            "moving": moving,
            "options": dataclasses.asdict(config),
            "versions": made_by,
        }
        written = export.write_clip(folder, clip.views.rgb, ground_truth(clip), record)
        size += sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    stages("rendering, writing", len(jobs), len(jobs))
    return len(jobs), size


def chosen() -> ClipConfig | PairSampling:
    """Rendering options from the flags."""
    size = parse_size(SIZE.value)
    if KIND.value == "pairs":
        return PairSampling(size=size, num_objects=NUM_OBJECTS.value or PairSampling.num_objects)
    return ClipConfig(
        size=size,
        num_frames=FRAMES.value,
        num_objects=NUM_OBJECTS.value or ClipConfig.num_objects,
        num_moving=NUM_MOVING.value,
        sweeps=SWEEPS.value,
    )


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) from HEIGHTxWIDTH.

    Raises:
      ConfigError: any other text, or a size that is too large. (The configuration refuses sizes that are too small.)
    """
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if not match:
        raise ConfigError(f"--size={text}: write HEIGHTxWIDTH in pixels, e.g. 64x96.")
    height, width = int(match[1]), int(match[2])
    if max(height, width) > _MAX_SIZE:
        raise ConfigError(f"--size={text}: at most {_MAX_SIZE} pixels in each direction.")
    return height, width


def variants() -> list[bool]:
    """For each folder of a clip, whether objects move."""
    if KIND.value == "pairs":
        return [False]
    return [moving for moving, wanted in ((True, MOTION.value), (False, TWINS.value or not MOTION.value)) if wanted]


def folder_name(number: int, moving: bool) -> str:
    """e.g. clip_0_00003, clip_0_00003_still, pair_0_00003: kind, seed, number."""
    name = f"{KIND.value.removesuffix('s')}_{SEED.value}_{number:05d}"
    return name if moving or KIND.value == "pairs" else name + STILL


def render(number: int, moving: bool, config: ClipConfig | PairSampling) -> RenderedClip:
    """Clip or pair `number` of the seed. One at a time, so that --num does not affect rounding."""
    key = jax.random.fold_in(jax.random.key(SEED.value), number)
    if isinstance(config, PairSampling):
        return _render_pair(key, config)
    return sampled(key, config, moving=moving)


@partial(jax.jit, static_argnames=("sampling",))
def _render_pair(key: Array, sampling: PairSampling) -> RenderedClip:
    return pair_as_clip(key, sampling)


def ground_truth(clip: RenderedClip) -> dict[str, Any]:
    """The arrays of `ground_truth.npz`."""
    arrays = {
        "depth": clip.views.depth,
        "masks": clip.moving,
        "world_from_cam": clip.views.world_from_cam,
        "intrinsics": clip.views.intrinsics,
        "instance": clip.views.instance,
    }
    if not FLOW.value:
        return arrays
    return arrays | {
        "flow_forward": clip.flow_forward,
        "flow_backward": clip.flow_backward,
        "visible_forward": clip.visible_forward,
        "visible_backward": clip.visible_backward,
    }
