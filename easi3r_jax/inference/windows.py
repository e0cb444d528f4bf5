"""Long clips: the pipeline runs window by window, in the memory of one window.

frames ──window_ranges──▶ windows ──reconstruct, one by one──▶ scenes ──join_windows──▶ Scene4D
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, overload

import jax
import numpy as np

from easi3r_jax import alignment, motion
from easi3r_jax.core.config import PipelineConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import (
    Frames,
    Given,
    KnownCameras,
    Progress,
    Reconstruction,
    Scene4D,
    frames_at,
    silent,
)
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.clip import FlowSource, Refiner, unit_of
from easi3r_jax.models import PairNetwork


class SceneStore(Protocol):
    """Keeps the scenes of windows by their numbers; that of the keyframes is -1."""

    def recall(self, number: int) -> Scene4D | None:
        """The scene of a window; None if it is not stored."""
        ...

    def keep(self, number: int, scene: Scene4D) -> None:
        """Stores the scene of a window."""
        ...


class _Stored(Sequence[Scene4D]):
    """The scenes of windows in a store, read when they are needed: memory holds two of them."""

    def __init__(self, store: SceneStore, count: int):
        self._store, self._count = store, count
        self._recent: dict[int, Scene4D] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Scene4D: ...
    @overload
    def __getitem__(self, number: slice) -> list[Scene4D]: ...
    def __getitem__(self, number: int | slice) -> Scene4D | list[Scene4D]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        scene = self._recent.pop(number, None)
        if scene is None:
            while len(self._recent) > 1:
                del self._recent[next(iter(self._recent))]
            scene = self._store.recall(number)
            if scene is None:
                raise InputError(f"Window {number + 1} of {self._count} is no longer stored: start again.")
        self._recent[number] = scene  # in the order of use
        return scene


def reconstruct_windows(
    model: PairNetwork,
    frames: Frames,
    config: PipelineConfig = PipelineConfig(),
    *,
    window: int,
    overlap: int,
    keyframes: bool = True,
    given: Given | None = None,
    cue: motion.Cue | None = None,
    flow: FlowSource | None = None,
    refiner: Refiner | None = None,
    store: SceneStore | None = None,
    progress: Progress = silent,
) -> Reconstruction:
    """Reconstructs a long clip window by window, in the memory of one window, and joins the windows.

    Runs on the host. Three or more windows are tied together by an additional window of keyframes: as many frames,
    spread over the clip. It is skipped if keyframes would be more than half a window apart, and the smoothness term
    does not apply to it. With `config.alignment.shared_focal`, windows share one focal length: the known one, or
    the first window's. Frames in two windows are encoded in both.

    Args:
      model, frames, config: as in `pipeline.reconstruct`.
      window: frames in a window.
      overlap: minimum number of frames that a window shares with the one before.
      keyframes: whether to use a window of keyframes.
      given: masks and known cameras of the whole clip; the result is in the cameras' world.
      cue: as in `pipeline.reconstruct`.
      flow: provides each window's optical flow; not used for keyframes, which are far apart.
      refiner: as in `pipeline.reconstruct`, for each window's masks; not used for keyframes.
      store: keeps finished windows, so that an interrupted call can be resumed, and memory need not hold them.
      progress: called during each stage of each window.

    Returns:
      the scene of all frames. There are no score maps, threshold or losses: each window has its own.

    Raises:
      ConfigError: windows that do not overlap; see `alignment.window_ranges`.
      InputError: as `pipeline.reconstruct`; flow in `given`.
    """
    given = given or Given()
    if given.flow is not None:
        raise InputError("Flow of a whole clip does not fit its windows: pass a source, flow=...")
    num_frames, cameras = len(frames.rgb), given.cameras
    if given.masks is not None and given.masks.shape != frames.rgb.shape[:3]:
        raise InputError(f"Masks of shape {given.masks.shape} do not fit a clip of shape {frames.rgb.shape[:3]}.")
    if cameras is not None:
        alignment.check_known(cameras, num_frames)
    ranges = alignment.window_ranges(num_frames, window, overlap)
    # On the host: the device need not hold the whole clip, and every slice of its arrays would be another program.
    frames, masks_of_clip, cameras = jax.tree.map(np.asarray, (frames, given.masks, cameras))
    shared = config.alignment.shared_focal and not (cameras is not None and np.all(cameras.intrinsics_known))
    focal = alignment.clip_focal(cameras) if shared and cameras is not None else None

    def scene_of(number: int, numbers: np.ndarray | slice, title: str) -> Scene4D:
        scene = None if store is None else store.recall(number)
        if scene is not None:
            return scene
        masks = None if masks_of_clip is None else masks_of_clip[numbers]
        options = config
        if number < 0:
            sources = tuple(name for name in config.masks if name != "flow")
            unsmoothed = dataclasses.replace(config.alignment, smoothing_weight=0.0)
            options = dataclasses.replace(config, masks=sources, alignment=unsmoothed)
        result = pipeline.reconstruct(
            model,
            frames_at(frames, numbers),
            options,
            given=Given(masks=masks, cameras=_cameras_of(cameras, numbers, focal)),
            cue=cue,
            flow=flow if number >= 0 else None,
            refiner=refiner if number >= 0 else None,
            progress=lambda stage, done, total, note: progress(stage, done, total, f"{title} {note}".rstrip()),
        )
        if store is not None:
            store.keep(number, result.scene)
        return result.scene

    kept: list[Scene4D] = []
    for number, range_ in enumerate(ranges):
        scene = scene_of(number, slice(*range_), f"window {number + 1} of {len(ranges)}")
        focal = float(scene.intrinsics[0, 0, 0]) if shared and focal is None else focal
        if store is None:
            kept.append(scene)
        del scene
    scenes = kept if store is None else _Stored(store, len(ranges))
    apart = None
    if keyframes and len(ranges) > 2 and 2 * num_frames <= window**2:
        numbers = alignment.keyframe_numbers(num_frames, window)
        apart = scene_of(-1, numbers, "keyframes"), numbers
    progress("join", 0, 1, "")
    fixed = math.isinf(config.alignment.camera_weight)
    unit = unit_of(model, config.alignment, cameras)
    joined = alignment.join_windows(
        scenes,
        ranges,
        keyframes=apart,
        cameras=cameras,
        fixed=fixed,
        keep_scale=unit == "metres",
        seed=config.seed,
    )
    progress("join", 1, 1, "")
    return Reconstruction(scene=joined, frames=frames, record={"pipeline": dataclasses.asdict(config), "unit": unit})


def _cameras_of(cameras: KnownCameras | None, numbers: np.ndarray | slice, focal: float | None) -> KnownCameras | None:
    """Known cameras of a window, with the shared focal length if known."""
    if cameras is None and focal is None:
        return None
    part = alignment.nothing_known(numbers.stop - numbers.start if isinstance(numbers, slice) else len(numbers))
    if cameras is not None:
        part = KnownCameras(
            focal=cameras.focal[numbers],
            principal_point=cameras.principal_point[numbers],
            intrinsics_known=cameras.intrinsics_known[numbers],
            world_from_cam=cameras.world_from_cam[numbers],
            poses_known=cameras.poses_known[numbers],
        )
    return part if focal is None else dataclasses.replace(part, shared_focal=np.float64(focal))
