"""Measures what each precision costs in accuracy, against exact float32, on any machine.

    python -m experiments.precision                       # the bundled clip and 4 rendered ones
    python -m experiments.precision --num=0               # the bundled clip alone
    python -m experiments.precision --checkpoint=model.pth --num=8 --json=precision.json

On a CPU, a GPU's TF32 products are emulated: factors are rounded to 10 bits of mantissa. bfloat16 layers run as they
do anywhere. A TPU's three-pass products, which the same policies mean there, are more accurate than TF32. The last row
is exact again, with another seed of k-means: what chance alone changes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.method_flags import checkpoint_flag
from easi3r_jax.apps.precision.emulate import emulated
from easi3r_jax.apps.progress import Stages, table
from easi3r_jax.apps.study.clips import StudyClip, read, rendered
from easi3r_jax.apps.study.report import mean
from easi3r_jax.core.arrays import Array, Bool
from easi3r_jax.core.config import AlignConfig, PipelineConfig, SegmentationConfig
from easi3r_jax.core.types import MotionMaps, PairPredictions, Reconstruction
from easi3r_jax.evaluation import metrics
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.models import POLICIES, DUSt3R
from easi3r_jax.synthetic.clips import ClipConfig
from easi3r_jax.weights.load import load_model

FLAGS = cli.Flags(__doc__, cached=True)
_CLIPS = FLAGS.group("Clips")
NUM = _CLIPS.integer("num", 4, "Rendered clips, beside the bundled one.", at_least=0)
NUM_FRAMES = _CLIPS.integer("num_frames", 16, "Frames of a rendered clip.", at_least=3, at_most=10_000)
SEED = _CLIPS.seed("seed", 0, "Seed of the clips and of k-means.")

_METHOD = FLAGS.group("Method")
CHECKPOINT = checkpoint_flag(_METHOD)
GRAPH = _METHOD.string("graph", "swinstride-5-noncyclic", "Which frames are paired.")
ITERATIONS = _METHOD.integer("iterations", 300, "Alignment steps.", at_least=1)

_OUTPUT = FLAGS.group("Output")
JSON = _OUTPUT.output_file("json", "Also write the metrics to this file.")

#: Metric -> its heading.
METRICS = {
    "points": "points, %",
    "score": "score, %",
    "clusters": "clusters",
    "mask_iou": "mask IoU",
    "mask_iou_same_clusters": "same clusters",
    "mask_iou_truth": "IoU, truth",
    "ate": "ATE",
    "abs_rel": "AbsRel",
}
CHANCE = "exact, other seed"


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What the network and the method make of a clip."""

    predictions: PairPredictions
    result: Reconstruction
    at_least: float | None


def main() -> None:
    exact = load_model(CHECKPOINT.value, "exact")
    config = PipelineConfig(graph=GRAPH.value, seed=SEED.value, alignment=AlignConfig(iterations=ITERATIONS.value))
    clips = [read(CLIPS / "demo", exact.config)]
    clips += rendered(SEED.value, 0, NUM.value, ClipConfig(size=exact.config.image_size, num_frames=NUM_FRAMES.value))
    runs = {name: (exact.with_precision(name), config) for name in POLICIES}
    if jax.default_backend() == "cpu":
        runs = {name: (emulated(model), c) for name, (model, c) in runs.items()}
    runs[CHANCE] = (runs["exact"][0], dataclasses.replace(config, seed=config.seed + 1))
    stages, rows = Stages(), {}
    for n, twins in enumerate(clips):
        reference = None
        for m, (name, (model, options)) in enumerate(runs.items()):
            stages("clips", n * len(runs) + m, len(clips) * len(runs))
            found = run(model, twins.moving, options)
            reference = reference or found
            rows.setdefault(twins.name, {})[name] = compared(found, reference, twins.moving)
    stages.close()
    print(shown(rows))
    if JSON.value:
        export.write_json(JSON.value, {"clips": rows, "options": FLAGS.values(), "versions": versions()})


def run(model: DUSt3R, clip: StudyClip, config: PipelineConfig) -> Found:
    """The point maps of all pairs under plain attention, and a reconstruction."""
    features = pipeline.encode(model, clip.frames)
    edges = pipeline.clip_edges(len(clip.frames.rgb), config.graph)
    predictions, _ = pipeline.prediction_pass(model, features, edges, model.grid(clip.frames.rgb.shape[1:3]))
    result = pipeline.reconstruct(model, clip.frames, config, features=features)
    return Found(predictions, result, None if model.readout is None else model.readout.at_least)


def compared(found: Found, reference: Found, clip: StudyClip) -> dict[str, float | None]:
    """Differences from the reference, and metrics against ground truth.

    `points`: median distance of a point from the reference's, relative to its distance from the camera. `score`: mean
    difference of the motion score of tokens, before clustering, relative to the reference's standard deviation.
    `clusters`: of the pairs of tokens that share a cluster in either, the fraction that do in both. The IoU with the
    same clusters is that of masks from the run's own scores and the reference's clusters.
    """
    ours, theirs = found.result, reference.result
    truth = metrics.evaluate_scene(ours.scene, clip.truth)
    values: dict[str, float | None] = {
        "points": 100 * float(_points_error(found.predictions, reference.predictions)),
        "mask_iou": iou(ours.scene.dynamic_mask, theirs.scene.dynamic_mask),
        "mask_iou_truth": None if clip.movers is None else iou(ours.scene.dynamic_mask, clip.movers),
        "ate": truth.get("ate"),
        "abs_rel": truth.get("abs_rel"),
    }
    if ours.motion is not None and theirs.motion is not None:
        score, other = (np.asarray(maps.raw_score) for maps in (ours.motion, theirs.motion))
        masks = [
            mask_of(theirs.motion.labels, maps, found.at_least, clip.frames.rgb.shape[1:3])
            for maps in (ours.motion, theirs.motion)
        ]
        values["mask_iou_same_clusters"] = iou(*masks)
        values["clusters"] = shared_clusters(np.asarray(ours.motion.labels), np.asarray(theirs.motion.labels))
        values["score"] = 100 * float(np.mean(np.abs(score - other)) / np.std(other))
    return values


@jax.jit
def _points_error(found: PairPredictions, reference: PairPredictions) -> Array:
    def relative(a: Array, b: Array) -> Array:
        return jnp.linalg.norm(a - b, axis=-1) / jnp.linalg.norm(b, axis=-1)

    pairs = ((found.points_i, reference.points_i), (found.points_j, reference.points_j))
    return jnp.median(jnp.concatenate([relative(a, b).ravel() for a, b in pairs]))


def mask_of(
    labels: np.ndarray, maps: MotionMaps, at_least: float | None, size: tuple[int, int]
) -> Bool[Array, "T H W"]:
    """Mask of a clip's scores with these clusters."""
    config = SegmentationConfig()
    score = (motion.cluster_score if at_least is None else motion.cluster_mean)(
        jnp.asarray(maps.raw_score), jnp.asarray(labels), config.num_clusters
    )
    least = None if at_least is None else jnp.float32(at_least)
    return motion.masks_from_maps(dataclasses.replace(maps, score=score), size, config, at_least=least).mask


def shared_clusters(a: np.ndarray, b: np.ndarray) -> float:
    """Pairs of tokens in a common cluster of both labellings over those in a common cluster of either."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a.ravel(), b.ravel()), 1)
    both, of_a, of_b = (np.sum(counts**2) for counts in (table, table.sum(1), table.sum(0)))
    return float(both / (of_a + of_b - both))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union; 1 of two empty masks."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.sum(a & b) / np.sum(a | b)) if np.any(a | b) else 1.0


def shown(rows: dict[str, dict[str, dict[str, float | None]]]) -> str:
    """A table of every clip's metrics, and their means."""
    lines = []
    for name, policies in rows.items():
        for policy, values in policies.items():
            lines.append((f"{name}, {policy}", *(_number(values.get(m)) for m in METRICS)))
    if len(rows) > 1:
        for policy in next(iter(rows.values())):
            of_all = [policies[policy] for policies in rows.values()]
            lines.append((f"mean, {policy}", *(str(mean(v.get(m) for v in of_all)) for m in METRICS)))
    return table(lines, ("", *METRICS.values()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
