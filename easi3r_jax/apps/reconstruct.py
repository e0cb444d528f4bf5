"""Reconstructs a video in 4D: camera path, intrinsics, depth, confidence, masks of what moves, point clouds.

    python -m experiments.reconstruct --seq=demo                      # bundled clip and network, about a minute
    python -m experiments.reconstruct --seq=my_video.mp4              # your video, the small bundled network
    python -m experiments.reconstruct --seq=my_video.mp4 --fps=8 \\
        --checkpoint=Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt \\
        --flow_checkpoint=Tartan-C-T-TSKH-spring540x960-M.pth
    python -m experiments.reconstruct --seq=frames/ --checkpoint=DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth

Defaults are the released program's. The result is a folder: scene.npz, trajectory.txt (TUM), intrinsics.txt, depth/,
masks/, scene.glb, scene.ply, summary.png, config.json, timings.json and, with ground truth, metrics.json. --videos and
--report add moving pictures and a page that shows all of it.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from easi3r_jax import align, viewer
from easi3r_jax.apps import cli
from easi3r_jax.apps.checkpoints import devices_flag, load_model, on_devices
from easi3r_jax.apps.environment import device, peak_memory_bytes, versions
from easi3r_jax.apps.exporting import write_exports
from easi3r_jax.apps.given import GivenFlags, with_flow
from easi3r_jax.apps.method_flags import MethodFlags, SizeFlags, checkpoint_flag, dtype_flag
from easi3r_jax.apps.modes import frame_by_frame, window_by_window
from easi3r_jax.apps.progress import Stages, table
from easi3r_jax.apps.reporting import METRICS, PictureFlags, timings
from easi3r_jax.apps.sequences import Sequence, file_names, find_sequence, load_ground_truth
from easi3r_jax.apps.view import serve, usual_port
from easi3r_jax.apps.window_store import WindowStore
from easi3r_jax.core import config as options
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Frames, Given, MaskRefiner
from easi3r_jax.evaluation import metrics
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export, results
from easi3r_jax.io.video import load_frames
from easi3r_jax.models import DUSt3R

FLAGS = cli.Flags(__doc__)

_INPUT = FLAGS.group("Input")
SEQ = _INPUT.string(
    "seq", "demo", "A video file, a folder of images, a clip folder (frames/ + ground_truth.npz), or demo."
)
CHECKPOINT = checkpoint_flag(_INPUT)
GROUND_TRUTH = _INPUT.string(
    "ground_truth", "", "An .npz with depth, masks, world_from_cam, intrinsics; prints metrics."
)
EVERY = _INPUT.integer("every", 1, "Take every n-th frame.", at_least=1)
FPS = _INPUT.number("fps", 0.0, "Take about so many frames per second of a video (0: all).", at_least=0.0)
FIRST = _INPUT.integer("first", 0, "Stop after so many frames (0: all).", at_least=0)
SIZE = SizeFlags(_INPUT)

_MODE = FLAGS.group("Mode")
MODE = _MODE.choice(
    "mode",
    "align",
    ["align", "feedforward"],
    "Align all pairs of the clip (or of each window) by optimisation, or place each frame as it comes in, in closed "
    "form: faster, without masks, and errors add up along the clip.",
)
WINDOW = _MODE.integer(
    "window", 0, "Reconstruct a long clip in windows of so many frames, in a window's memory (0: all at once)."
)
OVERLAP = _MODE.integer("overlap", 8, "Frames that a window shares with the one before.")
KEYFRAMES = _MODE.boolean(
    "keyframes", True, "Hold the windows together by one more, of as many frames from all over the clip."
)

METHOD = MethodFlags(FLAGS, GivenFlags)
GIVEN = METHOD.known

_OUTPUT = FLAGS.group("Output")
OUTPUT = _OUTPUT.string(
    "output", "", "Folder of the result (default: results/<sequence name>). An older one is replaced."
)
FOREGROUND = _OUTPUT.string(
    "foreground", "all", "What moves, in scene.glb and scene.ply: all, none, or a frame number."
)
CLOUD_CONFIDENCE = _OUTPUT.number(
    "cloud_confidence", export.MIN_CONFIDENCE, "Least confidence of the static points in scene.glb and scene.ply."
)
CLOUD_POINTS = _OUTPUT.integer("cloud_points", 2_000_000, "Most points in either.", at_least=1)
EXPORT = _OUTPUT.string(
    "export",
    "",
    f"Also write formats of other tools, into the folder exports of the result: {', '.join(export.FORMATS)} (commas "
    "between; `python -m experiments.export` has options of its own).",
)
PICTURES = PictureFlags(_OUTPUT)
VIEW = _OUTPUT.boolean("view", False, "When done, show the result in the browser (see `python -m experiments.view`).")
COMPARE = _OUTPUT.boolean(
    "compare_plain",
    True,
    "With ground truth: also reconstruct without masks and re-attention, and the motionless twin of a rendered clip "
    "(the folder NAME_still beside NAME); print all.",
)

_COMPUTE = FLAGS.group("Computation")
DTYPE = dtype_flag(_COMPUTE)
DEVICES = devices_flag(_COMPUTE)
SEED = _COMPUTE.integer("seed", 0, "Of k-means and RANSAC.", at_least=0)

#: From `--checkpoint`, `--dtype` and an observer to the network and what is known of its weights.
Load = Callable[[str, str, Stages], tuple[DUSt3R, dict[str, Any]]]


def main() -> None:
    run(Stages())


def run(stages: Stages, load: Load | None = None) -> pathlib.Path:
    """Reconstructs what the flags say.

    Args:
      stages: told of progress.
      load: in the place of `load_model`: of a program that keeps its networks.

    Returns:
      the result's folder.
    """
    began = time.perf_counter()
    config = METHOD.pipeline_config(SEED.value, GIVEN.camera_weight.value or math.inf)
    check_options()
    formats = export.parse_formats(EXPORT.value)
    sequence = find_sequence(SEQ.value, GROUND_TRUTH.value)
    output = pathlib.Path(OUTPUT.value or pathlib.Path("results") / sequence.name)
    export.ensure_writable(output)

    refiner = GIVEN.refiner(stages)
    refiner_weights = None if refiner is None else refiner.metadata
    flow_source, flow_weights = GIVEN.flow_source() if MODE.value == "align" else (None, {})
    model, checkpoint = (load or load_model)(CHECKPOINT.value, DTYPE.value, stages)
    if MODE.value == "align":  # frame by frame there is nothing to share
        model, flow_source = on_devices(model, DEVICES.value), on_devices(flow_source, DEVICES.value)
    frames = load_frames(sequence.frames, frame_config(model), progress=stages)
    stages.close()
    print(describe(sequence, frames, model))
    if MODE.value == "align" and GIVEN.lacks_weights():
        print("  No weights for optical flow (--flow_checkpoint): the alignment goes without it.")
    # What cannot work fails now, not after the work.
    windows = 0 < WINDOW.value < len(frames.rgb)
    edges = pipeline.clip_edges(WINDOW.value if windows else len(frames.rgb), config.graph)
    export.check_foreground(FOREGROUND.value, len(frames.rgb))
    truth = None if sequence.ground_truth is None else load_ground_truth(sequence.ground_truth, frames)

    given = GIVEN.load(frames, sequence.frames, stopped_early=FIRST.value > 0)
    if given.cameras is not None and METHOD.shared_focal.value and not np.all(given.cameras.intrinsics_known):
        align.clip_focal(given.cameras)
    figures, store, maps, threshold, losses = {}, None, None, None, None
    if MODE.value == "feedforward":
        scene = frame_by_frame(model, frames, config, stages)
        truth = None if truth is None else dataclasses.replace(truth, masks=None)  # it says nothing about motion
    elif windows:
        made_by = {
            "pipeline": config,
            "window": (WINDOW.value, OVERLAP.value, KEYFRAMES.value),
            "weights": (checkpoint, flow_weights, refiner_weights),
            "dtype": str(model.dtype),
            "versions": versions(),
        }
        store = WindowStore(output, made_by, (frames.rgb, given))
        shape = {"window": WINDOW.value, "overlap": OVERLAP.value, "keyframes": KEYFRAMES.value}
        scene = window_by_window(model, frames, config, given, flow_source, refiner, store, stages, **shape)
    else:
        given = with_flow(given, flow_source, frames, edges, stages)
        flow_source = None  # its memory
        features = pipeline.encode(model, frames, batch=config.frame_batch, observer=stages)
        result = pipeline.reconstruct(
            model, frames, config, features=features, given=given, refiner=refiner, observer=stages
        )
        scene, maps, losses = result.scene, result.motion, np.asarray(result.losses)
        threshold = None if result.masks is None else float(result.masks.threshold)
        stages.close()
        if truth is not None and COMPARE.value and config.motion != "none":
            figures = compared(truth, sequence.twin, model, frames, config, features, given, refiner, stages)
    stages.close()
    if truth is not None:
        name = "frame by frame" if MODE.value == "feedforward" else "full method"
        figures = shown({name: metrics.evaluate_scene(scene, truth)} | figures)

    record = {
        "options": FLAGS.values(),
        "changed": [flag[2:].split("=")[0] for flag in FLAGS.changed()],
        "pipeline": dataclasses.asdict(config),
        "checkpoint": checkpoint,
        "refiner": refiner_weights,
        "flow": {key: value for key, value in flow_weights.items() if key != "files"} or None,
        "network": dataclasses.asdict(model.config),
        "dtype": str(model.dtype),
        "versions": versions(),
    }
    written = export.write_result(
        output,
        scene,
        maps,
        config=record,
        flow=None if given.flow is None else (given.flow[: len(edges)], edges, given.flow_known),
        keep_flow=GIVEN.save_flow.value,
        metrics=figures or None,
        threshold=threshold,
        losses=losses,
        frames=frames,
        source_names=file_names(sequence.frames, frames),
        name=sequence.name,
        foreground=FOREGROUND.value,
        min_confidence=CLOUD_CONFIDENCE.value,
        max_points=CLOUD_POINTS.value,
        progress=lambda d, n, file: stages("write", d, n, file),
    )
    if store is not None:
        store.clear()
    lines = []
    try:
        if formats:
            lines = write_exports(
                results.load_scene(written),
                formats,
                written / "exports",
                min_confidence=CLOUD_CONFIDENCE.value,
                max_points=min(CLOUD_POINTS.value, export.Exported.max_points),
                observer=stages,
            )
            stages.close()
        export.write_json(written / "timings.json", timings(stages, time.perf_counter() - began))
        lines += PICTURES.write(results.load_scene(written), written, name=sequence.name, observer=stages)
    finally:  # the result stands, whatever becomes of what is made from it
        stages.close()
        print(closing_table(stages, time.perf_counter() - began, written))
    if lines:
        print("\n".join(lines))
    if VIEW.value:
        serve([results.load_scene(written)], port=usual_port())
    return written


def check_options() -> None:
    """Refuses what no clip and no network could make right, before either is read."""
    if WINDOW.value:
        align.window_ranges(0, WINDOW.value, OVERLAP.value)
        if GIVEN.save_flow.value:
            raise ConfigError("--save_flow keeps the flow of a clip that is done at once: leave it or --window out.")
    elif OVERLAP.present or KEYFRAMES.present:
        flag = "--overlap" if OVERLAP.present else "--nokeyframes"
        raise ConfigError(f"{flag} is of windows: add --window=FRAMES.")
    if MODE.value == "feedforward":
        kept = {holder.name for group in (_INPUT, _OUTPUT, _COMPUTE) for holder in group.holders}
        kept |= {"mode", "shared_focal", "frame_batch", "clean_tolerance"}
        unused = [flag for flag in FLAGS.changed() if flag[2:].split("=")[0] not in kept]
        unused = [flag for flag in unused if flag not in ("--flow=none", "--masks=none", "--motion=none")]
        if unused:
            raise ConfigError(f"--mode=feedforward has no use for {', '.join(unused)}: leave it out.")
    METHOD.check()
    PICTURES.check()
    if VIEW.value:
        viewer.import_viser()
    options.FrameConfig(every=EVERY.value, fps=FPS.value, first=FIRST.value)
    export.check_foreground(FOREGROUND.value, 2**31)


def frame_config(model: DUSt3R) -> options.FrameConfig:
    """How frames are read."""
    return SIZE.frame_config(model, every=EVERY.value, fps=FPS.value, first=FIRST.value)


Figures = dict[str, dict[str, float | None]]


def compared(
    truth: metrics.GroundTruth,
    twin: Sequence | None,
    model: DUSt3R,
    frames: Frames,
    config: options.PipelineConfig,
    features,
    given: Given,
    refiner: MaskRefiner | None,
    stages: Stages,
) -> Figures:
    """Metrics of plain DUSt3R, and of the method on the clip's motionless twin."""
    stages("compare", 0, 2)
    plain = dataclasses.replace(config, motion="none", masks=())
    scene = pipeline.reconstruct(model, frames, plain, features=features).scene
    geometry_only = dataclasses.replace(truth, masks=None)  # plain DUSt3R says nothing about motion
    figures = {"plain DUSt3R": metrics.evaluate_scene(scene, geometry_only)}
    stages("compare", 1, 2)
    # Flow and masks of the clip say nothing of its twin.
    if twin is not None and twin.ground_truth is not None and given.flow is None and given.masks is None:
        still = load_frames(twin.frames, frame_config(model))
        scene = pipeline.reconstruct(model, still, config, given=given, refiner=refiner).scene
        figures["full, motionless twin"] = metrics.evaluate_scene(scene, load_ground_truth(twin.ground_truth, still))
    stages("compare", 2, 2)
    return figures


def shown(columns: Figures) -> Figures:
    """Prints the figures side by side, plain DUSt3R first, and returns them in that order."""
    columns = {name: columns[name] for name in sorted(columns, key=lambda name: name != "plain DUSt3R")}
    known = {name for figures in columns.values() for name in figures}
    rows = [
        (text, *(_figure(f.get(name)) for f in columns.values())) for name, text in METRICS.items() if name in known
    ]
    print(table(rows, ("against ground truth", *columns)))
    return columns


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def describe(sequence: Sequence, frames: Frames, model: DUSt3R) -> str:
    """One line on what is about to happen."""
    count, height, width = frames.rgb.shape[:3]
    weights = "the small embedded network" if CHECKPOINT.value == "embedded" else CHECKPOINT.value
    note = ""
    if CHECKPOINT.value == "embedded" and SEQ.value != "demo":
        note = "\n  The embedded network is a small one for trials; --checkpoint takes real weights (see README)."
    return f"  {sequence.name}: {count} frames of {width}x{height}, {weights}, {model.dtype}, {device()}{note}"


def closing_table(stages: Stages, seconds: float, output: pathlib.Path) -> str:
    """Time per stage, peak memory, where the files are."""
    rows = [(stage, str(stages.units[stage]), f"{t:.1f}") for stage, t in stages.seconds.items()]
    rows.append(("in all, compilation included", "", f"{seconds:.1f}"))
    memory = ", ".join(f"{where} {size / 1e9:.2f} GB" for where, size in peak_memory_bytes().items())
    return f"{table(rows, ('stage', 'items', 'seconds'))}\n  peak memory: {memory}\n  result: {output}"
