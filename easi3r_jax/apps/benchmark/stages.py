"""The stages, each with the output of the previous one, or with noise of the same shape."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import alignment, motion
from easi3r_jax.apps import flops
from easi3r_jax.apps.benchmark.timing import StageTimer, total
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import PipelineConfig
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.types import Frames, PairPredictions
from easi3r_jax.inference import pipeline
from easi3r_jax.inference.dense_flow import dense_flow
from easi3r_jax.inference.flow import estimate_flow, network_size
from easi3r_jax.models import FlowNetwork, Precision, flow_network
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.flow_layers import ITERATIONS as FLOW_ITERATIONS

#: The row of the network's whole work on a clip.
TWO_PASSES = "encoding and two passes"


def noise_frames(count: int, height: int, width: int) -> Frames:
    """A clip of random pixels."""
    rgb = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return Frames(
        rgb=jnp.asarray(rgb),
        source_index=np.arange(count),
        time=np.arange(count) / 24.0,
        frame_from_source=np.eye(3),
        source_size=np.array([height, width]),
    )


def network_stages(stage: StageTimer, model, frames: Frames, edges: np.ndarray, options: PipelineConfig) -> None:
    """From frames to point maps and masks, their sum, and the first pass with Gram statistics."""
    earlier = set(stage.rows)
    config: DUSt3RConfig = model.config
    num_frames, height, width = frames.rgb.shape[:3]
    grid = model.grid((height, width))
    decoder = flops.decoder_flops(config, grid)
    per_pair = decoder + flops.statistics_flops(config, grid)
    with_heads = per_pair + flops.heads_flops(config, grid)
    features = stage(
        "encode",
        num_frames,
        lambda: pipeline.encode(model, frames),
        flops=num_frames * flops.encoder_flops(config, grid),
    )
    temporal = stage(
        "first pass",
        len(edges),
        lambda: pipeline.attention_pass(model, features, edges, grid),
        flops=len(edges) * per_pair,
    )
    cluster = jax.jit(motion.cluster_labels, static_argnames=("grid", "config"))
    labels = stage("k-means", num_frames, lambda: cluster(features, grid, options.segmentation, jax.random.key(0)))
    _, masks = stage(
        "masks", num_frames, lambda: pipeline.segment(temporal, labels, (height, width), options.segmentation)
    )
    dynamic = motion.token_masks(masks.mask, config.patch_size)
    stage(
        "second pass",
        len(edges),
        lambda: pipeline.prediction_pass(model, features, edges, grid, dynamic_tokens=dynamic),
        flops=len(edges) * with_heads,
    )
    stage.rows[TWO_PASSES] = total([row for name, row in stage.rows.items() if name not in earlier])
    stage(
        "first pass, Gram statistics",
        len(edges),
        lambda: pipeline.attention_pass(model, features, edges, grid, gram=True),
        flops=len(edges) * (decoder + flops.statistics_flops(config, grid, gram=True)),
    )


def flow_stage(stage: StageTimer, name: str, precision: Precision, frames: Frames, edges: np.ndarray) -> None:
    """Optical flow of every pair, by a network with random weights or without one ("dis")."""
    if name == "dis":
        stage("flow, dis", len(edges), lambda: dense_flow(frames, edges))
        return
    network = flow_network(FlowConfig(name), precision=precision)  # pyright: ignore[reportArgumentType]
    height, width = network_size(*frames.rgb.shape[1:3])
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)

    def one_pair(network: FlowNetwork, rgb_i: Array, rgb_j: Array) -> Array:
        return network(rgb_i, rgb_j, FLOW_ITERATIONS)[0]

    per_pair = flops.traced_flops(one_pair, network, image, image)
    stage(
        f"flow, {name}",
        len(edges),
        lambda: estimate_flow(network, frames.rgb, edges),
        flops=len(edges) * per_pair,
    )


def alignment_stages(stage: StageTimer, frames: Frames, edges: np.ndarray, options: PipelineConfig) -> None:
    """The initialisation, the iterations without flow and with flow that counts in every iteration, the clean-up."""
    num_frames, height, width = frames.rgb.shape[:3]
    config = dataclasses.replace(options.alignment, flow_start=0.0)
    start = None
    for with_flow in (False, True):
        predictions = slanted_wall(jnp.asarray(edges), (height, width), options.point_dtype)
        number = predictions.points_i.dtype.itemsize
        if start is None:
            start = stage("initialisation", num_frames, partial(alignment.initial_state, predictions, config))
        flow = jnp.zeros((len(edges), height, width, 2), jnp.float32) if with_flow else None
        problem = alignment.make_problem(predictions, config, flow=flow, release=True)
        stage(
            "alignment, flow" if with_flow else "alignment",
            config.iterations,
            partial(alignment.optimise, start, problem, config),
            flops=flops.alignment_flops(len(edges), height * width, config.iterations, with_flow=with_flow),
            moved=flops.alignment_bytes(
                num_frames, len(edges), height * width, config.iterations, with_flow=with_flow, number=number
            ),
        )
        confidence = jax.random.uniform(jax.random.key(0), (num_frames, height, width))
        geometry = alignment.geometry_of(start, problem, confidence)
        del problem  # otherwise two problems would be in memory
    stage("clean-up of confidence", num_frames, lambda: alignment.clean_confidence(geometry))


@partial(jax.jit, static_argnames=("size", "dtype"))
def slanted_wall(edges: Array, size: tuple[int, int], dtype: str) -> PairPredictions:
    """Noisy point maps of pairs whose two cameras are at the same place in front of a wall."""
    height, width = size
    matrix = camera.intrinsics(jnp.float32(width), camera.default_principal_point(height, width))
    depth = jnp.broadcast_to(jnp.linspace(1.0, 3.0, width), size)
    wall = camera.unproject(depth, matrix)

    def one(key: Array) -> Array:
        return ((1 + 0.01 * jax.random.normal(key, (height, width, 1))) * wall).astype(dtype)

    # One map at a time needs no memory beyond the result, which would otherwise hide the alignment's peak.
    points_i, points_j = (jax.lax.map(one, jax.random.split(jax.random.key(side), len(edges))) for side in (0, 1))
    confidence = jnp.full((2, len(edges), height, width), 5, dtype)
    return PairPredictions(edges, points_i, points_j, confidence[0], confidence[1])
