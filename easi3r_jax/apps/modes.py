"""Ways to reconstruct a clip: all pairs at once, window by window, and frame by frame."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import numpy as np

from easi3r_jax import alignment
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.given import estimator, with_flow_files
from easi3r_jax.apps.progress import Stages
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import FrameConfig, PipelineConfig
from easi3r_jax.core.types import Frames, Given, Reconstruction
from easi3r_jax.evaluation import metrics
from easi3r_jax.evaluation.ground_truth import load_ground_truth
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.clip import clip_edges
from easi3r_jax.inference.feedforward import reconstruct_stream
from easi3r_jax.inference.windows import reconstruct_windows
from easi3r_jax.io.priors.flow import check_flow
from easi3r_jax.io.sequences import Sequence
from easi3r_jax.io.video import load_frames
from easi3r_jax.io.window_store import WindowStore
from easi3r_jax.models import DUSt3R, FlowNetwork

Comparison = dict[str, dict[str, float | None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """The method with its networks and options.

    Attributes:
      model: the network, on the devices.
      config: options of all stages.
      frames: how frames are read.
      refiner: of masks, or None.
      flow: network, or folder of files, that provides optical flow, or None.
      weights: metadata of the weights of "checkpoint", "flow" and "refiner".
    """

    model: DUSt3R
    config: PipelineConfig
    frames: FrameConfig
    refiner: Any
    flow: FlowNetwork | pathlib.Path | None
    weights: dict[str, Any]

    def made_by(self) -> dict[str, Any]:
        """Everything except arrays that a window's scene depends on."""
        return {
            "pipeline": self.config,
            "weights": tuple(self.weights.values()),
            "dtype": str(self.model.dtype),
            "versions": versions(),
        }


def whole_clip(
    method: Method,
    frames: Frames,
    given: Given,
    truth: metrics.GroundTruth | None,
    twin: Sequence | None,
    stages: Stages,
) -> tuple[Reconstruction, Comparison]:
    """All pairs of the clip at once; with ground truth also metrics of plain DUSt3R and of the motionless twin.

    Args:
      method: the method.
      frames: the clip.
      given: priors.
      truth: ground truth; None: no comparison.
      twin: the clip's motionless twin, if there is one.
      stages: called with progress.
    """
    model, config = method.model, method.config
    edges = clip_edges(len(frames.rgb), config.graph)
    given = with_flow_files(given, method.flow, frames, edges)
    features = pipeline.encode(model, frames, batch=config.frame_batch, progress=stages)
    result = pipeline.reconstruct(
        model,
        frames,
        config,
        given=given,
        flow=estimator(method.flow),
        refiner=method.refiner,
        features=features,
        progress=stages,
    )
    stages.close()
    comparison: Comparison = {}
    if truth is not None and config.cue != "none":
        comparison = compared(truth, twin, method, frames, features, result.given or given, stages)
    return result, comparison


def window_by_window(
    method: Method,
    frames: Frames,
    given: Given,
    store: WindowStore,
    stages: Stages,
    *,
    window: int,
    overlap: int,
    keyframes: bool,
) -> Reconstruction:
    """A long clip in the memory of one window; windows finished by an earlier call are not repeated."""
    graph = method.config.graph

    def of_window(numbers: np.ndarray) -> Given:
        part = dataclasses.replace(given, masks=None if given.masks is None else given.masks[numbers])
        if len(numbers) < 1 + numbers[-1] - numbers[0]:  # keyframes: too far apart for optical flow
            return part
        return with_flow_files(part, method.flow, frames, numbers[0] + clip_edges(len(numbers), graph))

    if isinstance(method.flow, pathlib.Path):
        ranges = alignment.window_ranges(len(frames.rgb), window, overlap)
        within = clip_edges(window, graph)
        check_flow(method.flow, frames, np.concatenate([first + within for first, _ in ranges]))
    print(f"  Finished windows are kept in {store.folder}: after an interruption, the same command resumes.")
    return reconstruct_windows(
        method.model,
        frames,
        method.config,
        window=window,
        overlap=overlap,
        keyframes=keyframes,
        given=of_window,
        cameras=given.cameras,
        flow=estimator(method.flow),
        refiner=method.refiner,
        recall=store.load,
        keep=store.save,
        progress=stages,
    )


def frame_by_frame(method: Method, frames: Frames, stages: Stages) -> Reconstruction:
    """Every frame as it arrives, without optimisation; prints the rate."""
    began, total = time.perf_counter(), len(frames.rgb)

    def timed(stage: str, done: int, count: int, note: str) -> None:
        nonlocal began
        if done == 2:  # both steps are compiled
            began = time.perf_counter()
        stages(stage, done, count, note)

    result = reconstruct_stream(method.model, frames, method.config.alignment, progress=timed)
    if total > 2:
        print(f"  {(total - 2) / (time.perf_counter() - began):.1f} frames per second after compilation")
    return result


def compared(
    truth: metrics.GroundTruth,
    twin: Sequence | None,
    method: Method,
    frames: Frames,
    features: Array,
    given: Given,
    stages: Stages,
) -> Comparison:
    """Metrics of plain DUSt3R, and of the method on the clip's motionless twin."""
    stages("compare", 0, 2)
    plain = dataclasses.replace(method.config, cue="none", masks=())
    scene = pipeline.reconstruct(method.model, frames, plain, features=features).scene
    geometry_only = dataclasses.replace(truth, masks=None)  # plain DUSt3R does not detect motion
    comparison = {"plain DUSt3R": metrics.evaluate_scene(scene, geometry_only)}
    stages("compare", 1, 2)
    # Flow and masks of the clip do not apply to its twin.
    if twin is not None and twin.ground_truth is not None and given.flow is None and given.masks is None:
        still = load_frames(twin.frames, method.frames)
        scene = pipeline.reconstruct(method.model, still, method.config, given=given, refiner=method.refiner).scene
        comparison["full, motionless twin"] = metrics.evaluate_scene(scene, load_ground_truth(twin.ground_truth, still))
    stages("compare", 2, 2)
    return comparison
