"""Ways to reconstruct a clip beside all at once: window by window, and frame by frame."""

from __future__ import annotations

import dataclasses
import pathlib
import time

import jax
import numpy as np

from easi3r_jax import align
from easi3r_jax.apps.given import with_flow
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.window_store import WindowStore
from easi3r_jax.core.config import PipelineConfig
from easi3r_jax.core.types import Frames, Given, MaskRefiner, Scene4D
from easi3r_jax.inference import feedforward, pipeline
from easi3r_jax.inference.windows import reconstruct_windows
from easi3r_jax.io.priors.flow import check_flow
from easi3r_jax.models import DUSt3R, FlowNetwork


def window_by_window(
    model: DUSt3R,
    frames: Frames,
    config: PipelineConfig,
    given: Given,
    flow_source: FlowNetwork | pathlib.Path | None,
    refiner: MaskRefiner | None,
    store: WindowStore,
    stages: Stages,
    *,
    window: int,
    overlap: int,
    keyframes: bool,
) -> Scene4D:
    """A long clip; windows that an earlier call has done are not done again."""

    def of_window(numbers: np.ndarray) -> Given:
        part = dataclasses.replace(given, masks=None if given.masks is None else given.masks[numbers])
        if len(numbers) < 1 + numbers[-1] - numbers[0]:  # keyframes: too far apart for optical flow
            return part
        edges = numbers[0] + pipeline.clip_edges(len(numbers), config.graph)
        return with_flow(part, flow_source, frames, edges, stages)

    if isinstance(flow_source, pathlib.Path):
        ranges = align.window_ranges(len(frames.rgb), window, overlap)
        within = pipeline.clip_edges(window, config.graph)
        check_flow(flow_source, frames, np.concatenate([first + within for first, _ in ranges]))
    print(f"  Windows that are done are kept in {store.folder}: after an interruption, the same command goes on.")
    return reconstruct_windows(
        model,
        frames,
        config,
        window=window,
        overlap=overlap,
        keyframes=keyframes,
        given=of_window,
        cameras=given.cameras,
        refiner=refiner,
        recall=store.load,
        keep=store.save,
        observer=stages,
    )


def frame_by_frame(model: DUSt3R, frames: Frames, config: PipelineConfig, stages: Stages) -> Scene4D:
    """Every frame as it comes in, without optimisation; prints the rate."""
    tracked, total = [], len(frames.rgb)
    stages("track", 0, total)
    began = time.perf_counter()
    for frame in feedforward.track(model, frames.rgb, shared_focal=config.alignment.shared_focal):
        tracked.append(jax.block_until_ready(frame))
        if len(tracked) == 2:  # both steps are compiled
            began = time.perf_counter()
        stages("track", len(tracked), total)
    if total > 2:
        print(f"  {(total - 2) / (time.perf_counter() - began):.1f} frames a second after compilation")
    scene = feedforward.scene_of(tracked, frames)
    cameras = align.AlignResult(
        world_from_cam=scene.world_from_cam,
        intrinsics=scene.intrinsics,
        depth=scene.depth,
        confidence=scene.confidence,
        losses=jax.numpy.zeros(0),
    )
    return dataclasses.replace(scene, confidence=align.clean_confidence(cameras, config.alignment))
