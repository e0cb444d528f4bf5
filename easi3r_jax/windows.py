"""Long clips: window after window through the pipeline, in the memory that one window needs.

frames ──window_ranges──▶ windows ──reconstruct, one by one──▶ scenes ──join_windows──▶ Scene4D
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from easi3r_jax import align, pipeline
from easi3r_jax.config import PipelineConfig
from easi3r_jax.models import DUSt3R
from easi3r_jax.types import Frames, Given, KnownCameras, Observer, Scene4D, silent


def reconstruct_windows(
    model: DUSt3R,
    frames: Frames,
    config: PipelineConfig = PipelineConfig(),
    *,
    window: int,
    overlap: int,
    given: Callable[[int, int], Given] | None = None,
    cameras: KnownCameras | None = None,
    recall: Callable[[int], Scene4D | None] = lambda number: None,
    keep: Callable[[int, Scene4D], None] = lambda number, scene: None,
    observer: Observer = silent,
) -> Scene4D:
    """Reconstructs a long clip window by window, in memory that a window needs, and joins the windows.

    Windows share one focal length if `config.alignment.shared_focal` says so: the known one, or that of the first.
    Frames in two windows are encoded in both.

    Args:
      model, frames, config: as in `pipeline.reconstruct`.
      window: frames in a window.
      overlap: frames that a window shares with the one before, at least.
      given: from (first frame, last frame + 1) to flow and masks of the window.
      cameras: known cameras of the whole clip; the result is in their world.
      recall, keep: a window's scene by its number, to go on where an earlier call stopped.
      observer: told of progress.

    Returns:
      the scene of all frames, host arrays.

    Raises:
      ConfigError: windows that do not overlap; see `align.window_ranges`.
      InputError: as `pipeline.reconstruct`.
    """
    ranges = align.window_ranges(len(frames.rgb), window, overlap)
    shared = config.alignment.shared_focal and not (cameras is not None and np.all(cameras.intrinsics_known))
    focal = align.clip_focal(cameras) if shared and cameras is not None else None
    scenes: list[Scene4D] = []
    for number, (first, last) in enumerate(ranges):
        scene = recall(number)
        if scene is None:
            known = _cameras_between(cameras, first, last, focal)
            part = Given() if given is None else given(first, last)
            result = pipeline.reconstruct(
                model,
                dataclasses.replace(
                    frames,
                    rgb=frames.rgb[first:last],
                    source_index=frames.source_index[first:last],
                    time=frames.time[first:last],
                ),
                config,
                given=dataclasses.replace(part, cameras=known),
                observer=lambda stage, done, total, note, k=number: observer(
                    stage, done, total, f"window {k + 1} of {len(ranges)} {note}".rstrip()
                ),
            )
            scene = jax.tree.map(np.asarray, result.scene)
            keep(number, scene)
        scenes.append(scene)
        if shared and focal is None:
            focal = float(scene.intrinsics[0, 0, 0])
    observer("join", 0, 1, "")
    fixed = math.isinf(config.alignment.camera_weight)
    joined = align.join_windows(scenes, ranges, cameras=cameras, fixed=fixed, seed=config.seed)
    observer("join", 1, 1, "")
    return joined


def _cameras_between(cameras: KnownCameras | None, first: int, last: int, focal: float | None) -> KnownCameras | None:
    """What is known of a window's cameras, and the focal length of all windows where it is."""
    if cameras is None and focal is None:
        return None
    part = align.nothing_known(last - first)
    if cameras is not None:
        part = KnownCameras(
            focal=cameras.focal[first:last],
            principal_point=cameras.principal_point[first:last],
            intrinsics_known=cameras.intrinsics_known[first:last],
            world_from_cam=cameras.world_from_cam[first:last],
            poses_known=cameras.poses_known[first:last],
        )
    return part if focal is None else dataclasses.replace(part, shared_focal=np.float64(focal))
