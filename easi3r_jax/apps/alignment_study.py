"""Measures what flow, masks, known cameras and the initialisation contribute to the alignment, on rendered clips.

    python -m experiments.alignment_study                    # 8 clips of 12 frames
    python -m experiments.alignment_study --num=4 --noise=0.02

First table: the network contributes only the masks of the published formula. Point maps are the exact geometry of a
rendered clip with noise, half of it smooth over the image; flow is exact with noise. Confidence decreases with a
point's true error, which a network can only guess. Descriptors are functions of a point on its surface, with noise.
The point maps are metric: the last column is the scene's scale over the median of the pairs' own, which all other
metrics ignore. A row therefore isolates what the alignment makes of its inputs.
Second table: the first and last state of the alignment for each initialisation, on the same point maps and on the
network's own.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import alignment, motion
from easi3r_jax.apps import cli
from easi3r_jax.apps.environment import versions
from easi3r_jax.apps.progress import Stages, table
from easi3r_jax.apps.rendered import planned, render
from easi3r_jax.apps.study.clips import from_render
from easi3r_jax.apps.study.report import mean
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.reciprocal import Matches, reciprocal_matches
from easi3r_jax.core.types import Frames, Geometry, KnownCameras, PairPredictions, Scene4D
from easi3r_jax.evaluation import metrics
from easi3r_jax.inference import pipeline
from easi3r_jax.io import export
from easi3r_jax.models import DUSt3R
from easi3r_jax.synthetic.clips import ClipConfig, ClipPlan
from easi3r_jax.synthetic.flow import exact_flow
from easi3r_jax.weights.load import load_model

FLAGS = cli.Flags(__doc__, cached=True)
#: Name of a row -> metrics.
Rows = dict[str, dict[str, float | None]]

_CLIPS = FLAGS.group("Clips")
NUM = _CLIPS.integer("num", 8, "Clips.", at_least=1)
NUM_FRAMES = _CLIPS.integer("num_frames", 12, "Frames of a clip.", at_least=3, at_most=10_000)
SEED = _CLIPS.seed("seed", 0, "Seed of the clips and the noise.")
NOISE = _CLIPS.number("noise", 0.05, "Noise of the point maps, as a fraction of each point's distance.", at_most=10.0)
FLOW_NOISE = _CLIPS.number("flow_noise", 0.3, "Noise of the flow, in pixels.", at_most=1000.0)
MATCH_NOISE = _CLIPS.number(
    "match_noise", 0.2, "Noise of the descriptors' channels, which are in [-1, 1].", at_most=10.0
)

_METHOD = FLAGS.group("Method")
GRAPH = _METHOD.string("graph", "swinstride-5-noncyclic", "Which frames are paired.")
ITERATIONS = _METHOD.integer("iterations", 300, "Alignment steps.", at_least=1)
MATCH_WEIGHT = _METHOD.number("match_weight", 0.03, "Weight of matches of descriptors.", at_least=0.0)
CHECKPOINT = _METHOD.string("checkpoint", "embedded", "Network whose attention gives the masks.")

_OUTPUT = FLAGS.group("Output")
JSON = _OUTPUT.output_file("json", "Also write the metrics to this file.")

#: Metric -> its heading.
METRICS = {
    "ate": "ATE",
    "rpe_translation": "RPE, translation",
    "rpe_rotation_deg": "RPE, degrees",
    "abs_rel": "AbsRel",
    "focal_relative_error": "focal",
    "scale": "scale",
}
#: The same for the first state and the last.
START_METRICS = {
    "start_ate": "ATE, start",
    "ate": "ATE, end",
    "start_rpe_rotation_deg": "RPE, degrees, start",
    "rpe_rotation_deg": "RPE, degrees, end",
    "start_loss": "loss, start",
    "loss": "loss, end",
}
#: Row -> the inputs, some of "flow", "matches", "intrinsics" and "poses"; the masks: "none", "formula" or "truth".
ROWS = {
    "points only": ((), "none"),
    **{f"flow, masks: {masks}": (("flow",), masks) for masks in ("none", "formula", "truth")},
    **{f"matches, masks: {masks}": (("matches",), masks) for masks in ("none", "formula", "truth")},
    "flow and matches, masks: truth": (("flow", "matches"), "truth"),
    "known intrinsics": (("intrinsics",), "none"),
    **{
        f"known intrinsics, flow, masks: {masks}": (("intrinsics", "flow"), masks)
        for masks in ("none", "formula", "truth")
    },
    "known poses": (("poses",), "none"),
    **{f"known poses, flow, masks: {masks}": (("poses", "flow"), masks) for masks in ("none", "formula", "truth")},
    "known intrinsics and poses": (("intrinsics", "poses"), "none"),
}
_CHANNELS = 24
Start = Literal["spanning-tree", "chain"]
STARTS: tuple[Start, ...] = ("spanning-tree", "chain")


def main() -> None:
    model = load_model(CHECKPOINT.value)
    config = PipelineConfig(graph=GRAPH.value, seed=SEED.value, alignment=AlignConfig(iterations=ITERATIONS.value))
    edges = pipeline.clip_edges(NUM_FRAMES.value, GRAPH.value)
    clip_config = ClipConfig(size=model.config.image_size, num_frames=NUM_FRAMES.value)
    stages = Stages()
    given_rows: list[Rows] = []
    start_rows: list[Rows] = []
    per_clip = len(ROWS) + 2 * len(STARTS)
    total = NUM.value * per_clip
    for number in range(NUM.value):
        stages("clips", number * per_clip, total)
        clip = observed(jax.random.fold_in(jax.random.key(SEED.value), number), clip_config, edges)
        features = pipeline.encode(model, clip.frames)
        masks = masks_of(model, clip, features, config)
        given_rows.append({})
        for name, (kinds, mask) in ROWS.items():
            scene, _ = aligned(clip, kinds, masks[mask], config.alignment)
            given_rows[-1][name] = metrics_of(scene, clip)
            stages("clips", number * per_clip + len(given_rows[-1]), total)
        predicted, _ = pipeline.prediction_pass(model, features, edges, model.grid(clip.frames.rgb.shape[1:3]))
        start_rows.append({})
        for name, maps in (("exact geometry and noise", clip.predictions), ("the network's", predicted)):
            for start in STARTS:
                of_maps = dataclasses.replace(clip, predictions=maps)
                start_rows[-1][f"{start}, {name}"] = start_and_end(of_maps, start, config.alignment)
                stages("clips", number * per_clip + len(ROWS) + len(start_rows[-1]), total)
    stages.close()
    print(shown(given_rows, METRICS))
    print(shown(start_rows, START_METRICS))
    if JSON.value:
        record = {"options": FLAGS.values(), "versions": versions(), "given": given_rows, "starts": start_rows}
        export.write_json(JSON.value, record)


def shown(clips: list[Rows], columns: dict[str, str]) -> str:
    """Means over the clips, as a table."""
    lines = [(name, *(str(mean(clip[name].get(c) for clip in clips)) for c in columns)) for name in clips[0]]
    return table(lines, ("", *columns.values()))


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """Inputs of the alignment for a clip, and its ground truth.

    Attributes:
      frames: the images.
      predictions: noisy point maps of every pair.
      flow: (E, H, W, 2) noisy.
      matches: of noisy descriptors of every pair.
      scale: median over the pairs of their metre, in metres.
      truth: of the clip.
    """

    frames: Frames
    predictions: PairPredictions
    flow: Array
    matches: Matches
    scale: float
    truth: metrics.GroundTruth


def observed(key: Array, config: ClipConfig, edges: np.ndarray) -> Observed:
    """Renders a clip and simulates the outputs of a network and a flow network."""
    plan_key, render_key, noise_key, match_key = jax.random.split(key, 4)
    plan = planned(plan_key, config)
    clip = render(render_key, plan, config.size)
    predictions, flow = _predicted(noise_key, plan, clip.views, jnp.asarray(edges), NOISE.value, FLOW_NOISE.value)
    rendered = from_render(clip, np.asarray(clip.moving), config)
    matches = _matched(match_key, plan, clip.views, jnp.asarray(edges), MATCH_NOISE.value)
    own = np.asarray(predictions.points_i)[..., 2] / np.asarray(clip.views.depth)[edges[:, 0]]
    scale = float(np.median(np.median(own, axis=(1, 2))))
    return Observed(rendered.frames, predictions, flow, matches, scale, rendered.truth)


@jax.jit
def _matched(key: Array, plan: ClipPlan, views, edges: Array, noise: Array) -> Matches:
    """Reciprocal matches of descriptors: cosines of a point's coordinates on its own surface, with noise."""
    weights, phases, off = jax.random.split(key, 3)
    # From coarse to fine, about a pixel's width.
    frequencies = jnp.repeat(jnp.array([1.0, 4.0, 12.0]), _CHANNELS // 3)
    directions = frequencies[None] * jax.random.normal(weights, (3, _CHANNELS))
    phase = jax.random.uniform(phases, (_CHANNELS,), maxval=2 * jnp.pi)
    world = jax.vmap(se3.transform_points)(
        views.world_from_cam, jax.vmap(camera.unproject)(views.depth, views.intrinsics)
    )
    room = jnp.tile(jnp.eye(4)[None, None], (len(world), 1, 1, 1))
    object_from_world = jnp.concatenate([room, se3.inverse(plan.world_from_object)], axis=1)

    def describe(inputs):
        world, instance, from_world, key = inputs
        placed = from_world[instance]  # (H, W, 4, 4)
        local = jnp.einsum("hwab,hwb->hwa", placed[..., :3, :3], world) + placed[..., :3, 3]
        waves = jnp.cos(jnp.einsum("hwa,ac->hwc", local, directions) + phase[None, None])
        waves = waves + noise * jax.random.normal(key, waves.shape)
        return waves / jnp.linalg.norm(waves, axis=-1, keepdims=True)

    keys = jax.random.split(off, len(world))
    descriptors = jax.lax.map(describe, (world, views.instance, object_from_world, keys))
    return jax.lax.map(lambda edge: reciprocal_matches(*descriptors[edge], subsample=4), edges)


@jax.jit
def _predicted(key: Array, plan: ClipPlan, views, edges: Array, noise: Array, flow_noise: Array):
    """Point maps and flow of every pair, with noise.

    A point is displaced along its ray by a fraction of its distance: half of the noise's variance is smooth over the
    image (a grid of 4 x 6), half is independent per pixel. Every pair has its own scale.
    """
    height, width = views.depth.shape[1:]
    cam_from_world = se3.inverse(views.world_from_cam)

    def one(carry, inputs):
        edge, key = inputs
        i, j = edge[0], edge[1]
        at_i, at_j = (jax.tree.map(lambda x, t=t: x[t], views) for t in (i, j))
        scenes = [dataclasses.replace(plan.scene, world_from_object=plan.world_from_object[t]) for t in (i, j)]
        flow, _ = exact_flow(at_i, scenes[0], at_j, scenes[1])
        own_i, own_j = (camera.unproject(view.depth, view.intrinsics) for view in (at_i, at_j))
        in_i = se3.transform_points(se3.compose(cam_from_world[i], views.world_from_cam[j]), own_j)
        keys = jax.random.split(key, 4)
        scale = jnp.exp(jax.random.uniform(keys[0], minval=-0.3, maxval=0.3))
        points, confidence = [], []
        for own, k in ((own_i, keys[1]), (in_i, keys[2])):
            coarse, fine = jax.random.split(k)
            smooth = jax.image.resize(jax.random.normal(coarse, (4, 6)), (height, width), "cubic")
            off = noise * jnp.sqrt(0.5) * (smooth + jax.random.normal(fine, (height, width)))
            points.append(scale * own * jnp.exp(off)[..., None])
            confidence.append(1 + 4 * jnp.exp(-0.5 * (off / jnp.maximum(noise, 1e-6)) ** 2))
        flow = flow + flow_noise * jax.random.normal(keys[3], flow.shape)
        return carry, (*points, *confidence, flow)

    keys = jax.random.split(key, len(edges))
    _, (points_i, points_j, confidence_i, confidence_j, flow) = jax.lax.scan(one, 0, (edges, keys))
    return PairPredictions(edges, points_i, points_j, confidence_i, confidence_j, metric=True), flow


def masks_of(model: DUSt3R, given: Observed, features: Array, config: PipelineConfig) -> dict[str, Array]:
    """Masks of dynamic regions, (T, H, W) each: empty, from the published formula, and the ground truth."""
    size = given.frames.rgb.shape[1:3]
    edges, grid = np.asarray(given.predictions.edges), model.grid(size)
    temporal = pipeline.attention_pass(model, features, edges, grid)
    labels = motion.cluster_labels(features, grid, config.segmentation, jax.random.key(config.seed))
    truth = jnp.asarray(given.truth.masks)
    _, masks = pipeline.segment(temporal, labels, size, config.segmentation)
    return {"none": jnp.zeros_like(truth), "formula": masks.mask, "truth": truth}


def aligned(given: Observed, kinds: tuple[str, ...], masks: Array, config: AlignConfig) -> tuple[Scene4D, Array]:
    """The scene that the alignment computes from the point maps and the other inputs."""
    config = dataclasses.replace(config, match_weight=MATCH_WEIGHT.value if "matches" in kinds else 0.0)
    count = len(given.frames.rgb)
    matrices, poses = (np.asarray(x, np.float64) for x in (given.truth.intrinsics, given.truth.world_from_cam))
    everything, nothing = np.ones(count, bool), np.zeros(count, bool)
    known = KnownCameras(
        focal=matrices[:, 0, 0],
        principal_point=matrices[:, :2, 2],
        intrinsics_known=everything if "intrinsics" in kinds else nothing,
        world_from_cam=poses,
        poses_known=everything if "poses" in kinds else nothing,
    )
    geometry, losses = alignment.align(
        given.predictions,
        config,
        flow=given.flow if "flow" in kinds else None,
        dynamic_mask=masks,
        known=known,
        matches=given.matches if "matches" in kinds else None,
        seed=SEED.value,
    )
    return scene_of(geometry, given, masks), losses


def start_and_end(given: Observed, initialisation: Start, config: AlignConfig) -> dict[str, float | None]:
    """Metrics of the alignment's first state and of its last."""
    config = dataclasses.replace(config, initialisation=initialisation)
    nothing = jnp.zeros(given.frames.rgb.shape[:3], bool)
    start = alignment.initial_state(given.predictions, config, seed=SEED.value)
    problem = alignment.make_problem(given.predictions, config)
    at_start = alignment.geometry_of(start, problem, alignment.frame_confidence(given.predictions))
    scene, steps = aligned(given, (), nothing, config)
    before = metrics_of(scene_of(at_start, given, nothing), given)
    losses = {"start_loss": float(steps[0]), "loss": float(steps[-1])}
    return metrics_of(scene, given) | {f"start_{name}": value for name, value in before.items()} | losses


def scene_of(geometry: Geometry, given: Observed, masks: Array) -> Scene4D:
    """The alignment's result as a scene."""
    return Scene4D(
        **vars(geometry),
        dynamic_mask=masks,
        dynamic_score=masks.astype(jnp.float32),
        static_mask=~masks,
        rgb=given.frames.rgb,
    )


def metrics_of(scene: Scene4D, given: Observed) -> dict[str, float | None]:
    """Metrics of cameras and depth."""
    found = metrics.evaluate_scene(scene, dataclasses.replace(given.truth, masks=None))
    off = float(np.median(np.asarray(scene.depth) / np.asarray(given.truth.depth)))
    return found | {"scale": off / given.scale}
