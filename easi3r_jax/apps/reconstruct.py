"""Reconstructs a video in 4D: camera path, intrinsics, depth, confidence, masks of dynamic regions, point clouds.

    python -m experiments.reconstruct --seq=demo                      # bundled clip and network, a minute or two
    python -m experiments.reconstruct --seq=my_video.mp4              # your video, the small bundled network
    python -m experiments.reconstruct --seq=my_video.mp4 --fps=8 \\
        --checkpoint=Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt \\
        --flow_checkpoint=Tartan-C-T-TSKH-spring540x960-M.pth
    python -m experiments.reconstruct --seq=frames/ --checkpoint=DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth
    python -m experiments.reconstruct --seq='videos/*.mp4' --output=results   # a result folder each, and batch.csv
    srun --nodes=2 --ntasks-per-node=8 python -m experiments.reconstruct --distributed --seq=...     # 16 GPUs

Defaults are the released program's, except for optical flow (--flow) and the embedded network's motion cue (--motion).
The result is a folder: scene.npz, trajectory.txt (TUM), intrinsics.txt, depth/,
masks/, scene.glb, scene.ply, summary.png, config.json, timings.json and, with ground truth, metrics.json. --videos and
--report add videos and a page that shows everything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from easi3r_jax import alignment, viewer
from easi3r_jax.apps import cli
from easi3r_jax.apps.cluster.flags import ClusterFlags
from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.distributed import DistributedFlags, check_same, devices, is_first, text_of
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.exporting import exports_of_new
from easi3r_jax.apps.given import GivenFlags, for_clip
from easi3r_jax.apps.method_flags import (
    MethodFlags,
    SizeFlags,
    checkpoint_flag,
    devices_flag,
    distortion_flag,
    lens_of,
    precision_flag,
)
from easi3r_jax.apps.modes import Comparison, Method, all_at_once, frame_by_frame, shown, whole_clip, window_by_window
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.reporting import PictureFlags, closing_table, timings
from easi3r_jax.apps.result_flags import CloudFlags
from easi3r_jax.apps.view import serve, usual_port
from easi3r_jax.core import config as options
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import Frames
from easi3r_jax.evaluation import metrics
from easi3r_jax.evaluation.ground_truth import load_ground_truth
from easi3r_jax.inference.clip import FlowSource, clip_edges
from easi3r_jax.io import export, remote, results
from easi3r_jax.io.sequences import Sequence, find_sequence
from easi3r_jax.io.video import load_frames
from easi3r_jax.io.window_store import WindowStore
from easi3r_jax.models import VGGT, DUSt3R, backbone_of
from easi3r_jax.weights.load import load_backbone_and_metadata, on_devices

FLAGS = cli.Flags(__doc__, cached=True)

_INPUT = FLAGS.group("Input")
SEQ = _INPUT.string(
    "seq",
    "demo",
    "A video file, a folder of images, a clip folder (frames/ + ground_truth.npz), or demo. Several clips: a pattern "
    "such as 'videos/*.mp4', @FILE with a clip per line, or a folder with --each. This and other inputs may be "
    "addresses: s3://, gs://, hf://, https:// (docs/storage.md).",
)
EACH = _INPUT.boolean("each", False, "Each entry of the folder --seq is a clip.")
CHECKPOINT = checkpoint_flag(_INPUT)
GROUND_TRUTH = _INPUT.string(
    "ground_truth", "", "An .npz with depth, masks, world_from_cam, intrinsics; prints metrics."
)
EVERY = _INPUT.integer("every", 1, "Take every n-th frame.", at_least=1)
FPS = _INPUT.number("fps", 0.0, "Take about this many frames per second of a video (0: all).", at_least=0.0)
FIRST = _INPUT.integer("first", 0, "Stop after this many frames (0: all).", at_least=0)
SIZE = SizeFlags(_INPUT)
DISTORTION = distortion_flag(_INPUT)

_MODE = FLAGS.group("Mode")
MODE = _MODE.choice(
    "mode",
    "align",
    ["align", "feedforward"],
    "Align all pairs of the clip (or of each window) by optimisation, or place each frame as it arrives, in closed "
    "form: faster, but without masks, and errors accumulate along the clip.",
)
WINDOW = _MODE.integer(
    "window", 0, "Reconstruct a long clip in windows of this many frames, in the memory of one (0: all at once)."
)
OVERLAP = _MODE.integer("overlap", 8, "Frames that a window shares with the one before.")
KEYFRAMES = _MODE.boolean(
    "keyframes", True, "Tie the windows together by an additional one, of frames spread over the whole clip."
)

METHOD = MethodFlags(FLAGS, GivenFlags)
GIVEN = METHOD.known

_OUTPUT = FLAGS.group("Output")
OUTPUT = _OUTPUT.output_folder(
    "output", "", "Folder of the result, or its address (default: results/<sequence name>). An older one is replaced."
)
CLOUDS = CloudFlags(_OUTPUT)
PICTURES = PictureFlags(_OUTPUT)
VIEW = _OUTPUT.boolean("view", False, "When done, show the result in the browser (see `python -m experiments.view`).")
COMPARE = _OUTPUT.boolean(
    "compare_plain",
    True,
    "With ground truth: also reconstruct without masks and re-attention, without and with optical flow, and the "
    "motionless twin of a rendered clip "
    "(the folder NAME_still beside NAME); print all.",
)

_COMPUTE = FLAGS.group("Computation")
PRECISION = precision_flag(_COMPUTE)
DEVICES = devices_flag(_COMPUTE)
SEED = _COMPUTE.seed("seed", 0, "Seed of k-means and RANSAC.")

CLUSTER = ClusterFlags(FLAGS)
HOSTS = DistributedFlags(FLAGS, "Reconstruct the clip")

_OF_ONE_HOST = ("process_id", "output", "seq", "ground_truth")  # flags that may differ: frames are compared

#: Loads a network: (`--checkpoint`, `--precision`, progress) -> the network and the metadata of its weights.
Load = Callable[[str, str, Stages], tuple[DUSt3R | VGGT, dict[str, Any]]]


def run(stages: Stages, load: Load | None = None) -> pathlib.Path:
    """Runs the reconstruction that the flags describe.

    Args:
      stages: called with progress.
      load: replaces `load_backbone_and_metadata`, for a program that keeps its networks.

    Returns:
      the result's folder; the former one if it was uploaded.
    """
    began = time.perf_counter()
    config = METHOD.pipeline_config(SEED.value, GIVEN.camera_weight.value or math.inf)
    check_options()
    sequence = find_sequence(SEQ.value, GROUND_TRUTH.value, stages)
    stages.close()
    named = OUTPUT.value or pathlib.Path("results") / sequence.name
    with written_by_first(named, stages) as output:
        written = reconstruct(sequence, config, output, stages, load or load_named, began)
        saved = CLOUDS.keep.shown(results.load_result(written)) if VIEW.value and is_first() else None
    stages.close()
    if saved is not None:
        serve([saved], port=usual_port())
    return written


@contextlib.contextmanager
def written_by_first(named: str | pathlib.Path, stages: Stages) -> Iterator[remote.Output]:
    """The result's folder, to be written by process 0; the others need not be able to."""
    if not is_first():
        yield remote.Output(pathlib.Path(named), str(named))
        return
    with remote.writing(named, replaces="scene.npz", progress=stages) as output:
        results.ensure_writable(output.folder)
        yield output


def reconstruct(
    sequence: Sequence, config: options.PipelineConfig, target: remote.Output, stages: Stages, load: Load, began: float
) -> pathlib.Path:
    """Reconstructs a clip and writes the result; returns its folder on this machine. `began`: by `perf_counter`."""
    compilations, output, formats = Compilations(), target.folder, CLOUDS.formats()
    method, flow = load_method(config, stages, load)
    frames = load_frames(sequence.frames, method.frames, progress=stages)
    stages.close()
    method = dataclasses.replace(method, flow=for_clip(flow, frames))
    print(describe(sequence, frames, method.model))
    for line in (METHOD.cue_line(method.model), GIVEN.chosen_flow(method.weights["flow"])):
        if line and MODE.value == "align":
            print(line)
    check_same("frames", frames.rgb)
    # Fail early: these checks would otherwise fail after the reconstruction.
    length = WINDOW.value if 0 < WINDOW.value < len(frames.rgb) else len(frames.rgb)
    clip_edges(length, config.graph)
    CLOUDS.options().check(len(frames.rgb))
    CLOUDS.check_tracks(frames)
    masks, depth = CLOUDS.keep.masks(frames), CLOUDS.scale.depth(frames)
    truth = None if sequence.ground_truth is None else load_ground_truth(sequence.ground_truth, frames)
    aligned = MODE.value == "align" and not isinstance(method.model, VGGT)
    given = GIVEN.load(frames, sequence.frames, stopped_early=FIRST.value > 0, aligned=aligned)
    if given.cameras is not None and METHOD.shared_focal.value and not np.all(given.cameras.intrinsics_known):
        alignment.clip_focal(given.cameras)
    own = {name: value for name, value in FLAGS.values().items() if name not in _OF_ONE_HOST}
    described = text_of((own, method.weights, truth is None, sequence.twin is None))
    check_same("flags, weights, ground truth or priors", (described, given.cameras, given.masks, given.flow))
    comparison: Comparison = {}
    store = None
    if isinstance(method.model, VGGT):
        result = all_at_once(method, frames, given, stages)
    elif MODE.value == "feedforward":
        result = frame_by_frame(method, frames, stages)
        truth = None if truth is None else dataclasses.replace(truth, masks=None)  # motion is not detected
    elif length < len(frames.rgb):
        shape = {"window": WINDOW.value, "overlap": OVERLAP.value, "keyframes": KEYFRAMES.value}
        if not HOSTS.requested:  # the hosts need not share a disk
            store = WindowStore(output, method.made_by() | shape, (frames.rgb, given))
        result = window_by_window(method, frames, given, store, stages, **shape)
    else:
        wanted = truth if COMPARE.value else None
        result, comparison = whole_clip(method, frames, given, wanted, sequence.twin, stages)
    stages.close()
    if truth is not None:
        name = "frame by frame" if MODE.value == "feedforward" else "full method"
        comparison = shown({name: metrics.evaluate_scene(result.scene, truth)} | comparison)

    if not is_first():
        return output
    kept, lines = CLOUDS.keep.new_pixels(result.scene, masks)
    result, scaled = CLOUDS.scale.of_new(result, depth)
    lines = scaled + lines
    written = results.save_result(
        output,
        result,
        record=record_of(method, result.unit),
        metrics=comparison or None,
        name=sequence.name,
        clouds=CLOUDS.options(),
        keep=kept,
        # A clip of one frame has no pairs, hence no flow.
        keep_flow=GIVEN.save_flow.value and result.given is not None and result.given.flow is not None,
        progress=stages,
    )
    if store is not None:
        store.clear()
    try:
        # A network's flow needs all hosts, of which only the first one is still here.
        lines += CLOUDS.add_tracks(written, result, None if HOSTS.requested else method.flow)
        lines += exports_of_new(
            written,
            formats,
            source=str(sequence.frames) if remote.is_address(SEQ.value) else "auto",
            min_confidence=CLOUDS.options().min_confidence,
            max_points=min(CLOUDS.options().max_points, export.Exported.max_points),
            keep=kept,
            progress=stages,
        )
        stages.close()
        export.write_json(written / "timings.json", timings(stages, time.perf_counter() - began, compilations))
        truth_file = str(sequence.ground_truth or "") if remote.is_address(SEQ.value) else ""
        lines += PICTURES.write(
            results.load_result(written), written, name=sequence.name, ground_truth=truth_file, progress=stages
        )
    finally:  # the result is complete even if exports or pictures fail
        stages.close()
        where = target.address if remote.is_address(target.address) else written
        print(closing_table(stages, time.perf_counter() - began, compilations, where))
    if lines:
        print("\n".join(lines))
    return written


def load_named(checkpoint: str, precision: str, stages: Stages) -> tuple[DUSt3R | VGGT, dict[str, Any]]:
    return load_backbone_and_metadata(checkpoint, precision, progress=stages)


def load_method(
    config: options.PipelineConfig, stages: Stages, load: Load
) -> tuple[Method, FlowSource | pathlib.Path | None]:
    """Loads the networks that the flags name. The method lacks its flow, which may need the clip: see `for_clip`."""
    refiner = GIVEN.refiner(stages)
    place = partial(on_devices, count=DEVICES.value, all_hosts=HOSTS.requested)
    flow, flow_weights = None, {}
    if MODE.value == "align":
        flow, flow_weights = GIVEN.flow_source(PRECISION.value, place)
    model, checkpoint = load(CHECKPOINT.value, PRECISION.value, stages)
    if isinstance(model, VGGT):
        METHOD.check_used("A checkpoint of VGGT", FLAGS.changed(_INPUT, _OUTPUT, _COMPUTE), METHOD.ALL_AT_ONCE)
        flow, flow_weights = None, {}
    if MODE.value == "align":  # frame by frame there is nothing to shard, and motion is not detected
        model = place(METHOD.with_readout(model))
    weights = {"checkpoint": checkpoint, "flow": flow_weights, "refiner": refiner and refiner.metadata}
    return Method(model, config, frame_config(model), refiner, None, weights), flow


def record_of(method: Method, unit: str) -> dict[str, Any]:
    """`config.json`."""
    flow = {key: value for key, value in method.weights["flow"].items() if key != "files"}
    return {
        "options": FLAGS.values(),
        "folder": str(pathlib.Path.cwd()),  # within which relative paths of the options are
        "changed": [flag[2:].split("=")[0] for flag in FLAGS.changed()],
        "pipeline": dataclasses.asdict(method.config),
        "backbone": "VGGT" if isinstance(method.model, VGGT) else backbone_of(method.model.config.head).name,
        "unit": unit,
        "checkpoint": method.weights["checkpoint"],
        "refiner": method.weights["refiner"],
        "flow": flow or None,
        "network": dataclasses.asdict(method.model.config),
        "readout": method.model.readout and method.model.readout.origin,
        "precision": method.model.precision.name,
        "versions": versions(),
    }


def check_options() -> None:
    """Refuses options that are wrong for every clip and network, before either is read."""
    if WINDOW.value:
        alignment.window_ranges(0, WINDOW.value, OVERLAP.value)
        if GIVEN.save_flow.value:
            raise ConfigError("--save_flow is not available with --window: omit one of them.")
    elif OVERLAP.present or KEYFRAMES.present:
        flag = "--overlap" if OVERLAP.present else "--nokeyframes"
        raise ConfigError(f"{flag} applies to windows only: add --window=FRAMES.")
    if MODE.value == "feedforward":
        METHOD.check_used("--mode=feedforward", FLAGS.changed(_INPUT, _OUTPUT, _COMPUTE), METHOD.FRAME_BY_FRAME)
    if CLOUDS.scale.value and GIVEN.poses.value:
        raise ConfigError("--scale_from and --poses both give the scale: omit one of them.")
    METHOD.check()
    CLOUDS.check()
    PICTURES.check()
    if VIEW.value:
        viewer.import_viser()
    lens_of(DISTORTION)
    options.FrameConfig(every=EVERY.value, fps=FPS.value, first=FIRST.value)


def check_hosts() -> None:
    """Refuses what several hosts cannot do, before they are joined."""
    if HOSTS.requested and VIEW.value:
        raise ConfigError("--view is not available with several hosts: view the result with `easi3r view` afterwards.")
    if HOSTS.requested and MODE.value == "feedforward":
        raise ConfigError("--mode=feedforward runs on one device: omit --distributed and --coordinator.")


def frame_config(model: DUSt3R | VGGT) -> options.FrameConfig:
    """How frames are read."""
    return SIZE.frame_config(model, every=EVERY.value, fps=FPS.value, first=FIRST.value, lens=lens_of(DISTORTION))


def describe(sequence: Sequence, frames: Frames, model: DUSt3R | VGGT) -> str:
    """One line about the clip and the network."""
    count, height, width = frames.rgb.shape[:3]
    small = CHECKPOINT.value == "embedded"
    weights = ("the small embedded network" if small else CHECKPOINT.value) + ", metric" * model.config.metric
    line = f"  {sequence.name}: {count} frames of {width}x{height}, {weights}, {model.precision.name}, {devices()}"
    note = "\n  The embedded network is a small one for trials; --checkpoint takes real weights (see README)."
    return line + note * (small and SEQ.value != "demo")
