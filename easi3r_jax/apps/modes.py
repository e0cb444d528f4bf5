"""Ways to reconstruct a clip: all pairs at once, window by window, and frame by frame."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from easi3r_jax import alignment
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.progress import Stages, table
from easi3r_jax.apps.report_page import METRICS
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import FrameConfig, PipelineConfig
from easi3r_jax.core.types import Frames, Given, Reconstruction
from easi3r_jax.evaluation import metrics
from easi3r_jax.evaluation.ground_truth import load_ground_truth
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.clip import FlowSource, clip_edges
from easi3r_jax.inference.feedforward import reconstruct_stream
from easi3r_jax.inference.multiview import reconstruct_multiview
from easi3r_jax.inference.windows import reconstruct_windows
from easi3r_jax.io.priors.flow import FlowFolder, check_flow
from easi3r_jax.io.sequences import Sequence
from easi3r_jax.io.video import load_frames
from easi3r_jax.io.window_store import WindowStore

Comparison = dict[str, dict[str, float | None]]
#: What the method is compared with, simplest first.
SIMPLER = ("plain DUSt3R", "plain, with flow")


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """The method with its networks and options.

    Attributes:
      model: the network, on the devices: DUSt3R, or VGGT, which only `all_at_once` takes.
      config: options of all stages.
      frames: how frames are read.
      refiner: of masks, or None.
      flow: source of optical flow, or None.
      weights: metadata of the weights of "checkpoint", "flow" and "refiner".
    """

    model: Any
    config: PipelineConfig
    frames: FrameConfig
    refiner: Any
    flow: FlowSource | None
    weights: dict[str, Any]

    def made_by(self) -> dict[str, Any]:
        """Everything except arrays that a window's scene depends on."""
        return {
            "pipeline": self.config,
            "weights": tuple(self.weights.values()),
            "readout": self.model.readout,
            "precision": self.model.precision.name,
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
    """All pairs of the clip at once; with ground truth also metrics of simpler methods and of the motionless twin.

    Args:
      method: the method.
      frames: the clip.
      given: priors.
      truth: ground truth; None: no comparison.
      twin: the clip's motionless twin, if there is one.
      stages: called with progress.
    """
    model, config = method.model, method.config
    features = pipeline.encode(model, frames, batch=config.frame_batch, progress=stages)
    result = pipeline.reconstruct(
        model,
        frames,
        config,
        given=given,
        flow=method.flow,
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
    store: WindowStore | None,
    stages: Stages,
    *,
    window: int,
    overlap: int,
    keyframes: bool,
) -> Reconstruction:
    """A long clip in the memory of one window; windows in the store, finished by an earlier call, are not repeated."""
    if isinstance(method.flow, FlowFolder):  # a missing file should not be found after an hour
        ranges = alignment.window_ranges(len(frames.rgb), window, overlap)
        within = clip_edges(window, method.config.graph)
        check_flow(method.flow.folder, frames, np.concatenate([first + within for first, _ in ranges]))
    if store is not None:
        print(f"  Finished windows are kept in {store.folder}: after an interruption, the same command resumes.")
    return reconstruct_windows(
        method.model,
        frames,
        method.config,
        window=window,
        overlap=overlap,
        keyframes=keyframes,
        given=given,
        flow=method.flow,
        refiner=method.refiner,
        store=store,
        progress=stages,
    )


def all_at_once(method: Method, frames: Frames, given: Given, stages: Stages) -> Reconstruction:
    """The whole clip by a network that sees all frames together, without optimisation or a lens's focal length."""
    _say_whose_focal_length(frames)
    return reconstruct_multiview(
        method.model, frames, method.config, given=given, refiner=method.refiner, progress=stages
    )


def frame_by_frame(method: Method, frames: Frames, stages: Stages) -> Reconstruction:
    """Every frame as it arrives, without optimisation; prints the rate. The lens's focal length is not used."""
    _say_whose_focal_length(frames)
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


def _say_whose_focal_length(frames: Frames) -> None:
    if frames.lens is not None:
        print("  --distortion: the frames are undistorted; their focal length is the network's, as nothing is aligned")


def compared(
    truth: metrics.GroundTruth,
    twin: Sequence | None,
    method: Method,
    frames: Frames,
    features: Array,
    given: Given,
    stages: Stages,
) -> Comparison:
    """Metrics of plain DUSt3R, without and with optical flow, and of the method on the clip's motionless twin."""
    stages("compare", 0, 3)
    plain = dataclasses.replace(method.config, cue="none", masks=())
    geometry_only = dataclasses.replace(truth, masks=None)  # plain DUSt3R does not detect motion
    comparison: Comparison = {}
    simpler = dict(zip(SIMPLER, (Given(), Given(flow=given.flow, flow_known=given.flow_known)), strict=True))
    for done, (name, priors) in enumerate(simpler.items()):
        if name == SIMPLER[0] or priors.flow is not None:
            scene = pipeline.reconstruct(method.model, frames, plain, given=priors, features=features).scene
            comparison[name] = metrics.evaluate_scene(scene, geometry_only)
        stages("compare", done + 1, 3)
    # Masks and files of the clip do not apply to its twin.
    own = given.masks is not None or isinstance(method.flow, FlowFolder)
    if twin is not None and twin.ground_truth is not None and not own:
        still = load_frames(twin.frames, method.frames)
        scene = pipeline.reconstruct(
            method.model,
            still,
            method.config,
            given=Given(cameras=given.cameras),
            flow=method.flow,
            refiner=method.refiner,
        ).scene
        comparison["full, motionless twin"] = metrics.evaluate_scene(scene, load_ground_truth(twin.ground_truth, still))
    stages("compare", 3, 3)
    return comparison


def shown(columns: Comparison) -> Comparison:
    """Prints the metrics side by side, simpler methods first, and returns them in that order."""
    columns = {name: columns[name] for name in sorted(columns, key=lambda name: name not in SIMPLER)}
    known = {name for found in columns.values() for name in found}
    rows = [
        (text, *(_number(f.get(name)) for f in columns.values())) for name, text in METRICS.items() if name in known
    ]
    print(table(rows, ("against ground truth", *columns)))
    return columns


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
