"""Run on eight devices by tests/core/test_sharding.py: compares the same clip on one device and on all of them.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.eight_devices
"""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from easi3r_jax import alignment
from easi3r_jax.core import sharding
from easi3r_jax.core.batches import padded
from easi3r_jax.core.config import AlignConfig, FrameConfig, PipelineConfig, SegmentationConfig
from easi3r_jax.core.types import Frames, Given
from easi3r_jax.inference import flow, passes, pipeline
from easi3r_jax.io.video import load_frames
from easi3r_jax.weights.load import EMBEDDED, load_model
from tests.starts import CommonStart

CONFIG = PipelineConfig(
    graph="complete",
    segmentation=SegmentationConfig(restarts=1),
    alignment=AlignConfig(iterations=20, flow_start=0.2, depth_weight=0.1),
)
FRAMES = 4
CLIP = EMBEDDED.parent / "clips" / "demo" / "frames"


def relative(one, many) -> float:
    """The largest difference as a share of the largest value. Rows beyond one's do not count."""
    one, many = np.asarray(one, np.float64), np.asarray(many, np.float64)[: len(one)]
    return float(np.abs(one - many).max() / np.abs(one).max())


def stages(model, on_all, frames: Frames, edges: np.ndarray) -> dict:
    grid, rows = model.grid(frames.rgb.shape[1:3]), []
    dynamic = jnp.asarray(np.random.default_rng(0).random((FRAMES, grid[0] * grid[1])) < 0.3)
    for network in (model, on_all):
        features = passes.encode(network, frames)
        predictions, temporal = passes.prediction_pass(
            network, features, edges, grid, dynamic_tokens=dynamic, gram=True
        )
        first = passes.attention_pass(network, features, edges, grid, gram=True)
        rows.append((features, predictions, temporal, first))
    (features, one, temporal, first), (many_features, many, many_temporal, many_first) = rows
    flops = [
        passes._network_batch.lower(network, *inputs, grid, mesh, gram=False, heads=True)
        .compile()
        .cost_analysis()["flops"]
        for network, inputs, mesh in (
            (model, _inputs(features, None), None),
            (on_all, _inputs(many_features, sharding.mesh_of(on_all)), sharding.mesh_of(on_all)),
        )
    ]
    return {
        "features": relative(features, many_features),
        "points": max(relative(one.points_i, many.points_i), relative(one.points_j, many.points_j)),
        "statistics": max(
            relative(a, b)
            for a, b in zip(
                jax.tree.leaves((temporal, first)), jax.tree.leaves((many_temporal, many_first)), strict=True
            )
        ),
        "rows": len(many.points_i),
        "shares": sorted({shard.data.shape[0] for shard in many.points_i.addressable_shards}),
        "flops": flops,
    }


def _inputs(features, mesh):
    pairs = np.stack([np.arange(16) % FRAMES, (np.arange(16) + 1) % FRAMES], axis=1)
    return (*sharding.shard_rows((features[pairs[:, 0]], features[pairs[:, 1]]), mesh), None)


def whole_method(model, on_all, frames: Frames, edges: np.ndarray) -> dict:
    """As experiments.evaluate has it, on all devices with shapes that clips share, but for where the alignment starts.

    Masks from flow are omitted: RANSAC on each pair of frames also affects them.
    """
    random = np.random.default_rng(1).normal(0, 2, (len(edges), *frames.rgb.shape[1:3], 2)).astype(np.float32)
    known = np.random.default_rng(2).random(random.shape[:3]) < 0.5  # 12 rows, which eight devices do not divide
    given = Given(flow=jnp.asarray(random), flow_known=jnp.asarray(known))
    on_each = ((model, CONFIG), (on_all, dataclasses.replace(CONFIG, shared_shapes=True)))
    with CommonStart() as start:
        results = [pipeline.reconstruct(network, frames, config, given=given) for network, config in on_each]
    assert start.count == 2
    one, many = (result.scene for result in results)
    off = np.abs(np.asarray(one.depth) - np.asarray(many.depth)) / np.asarray(one.depth)
    return {
        "cameras": max(relative(one.world_from_cam, many.world_from_cam), relative(one.intrinsics, many.intrinsics)),
        "depth": float(np.quantile(off, 0.999)),
        "losses": relative(results[0].losses, results[1].losses),
        "score": relative(one.dynamic_score, many.dynamic_score),
        "masks": float(np.mean(np.asarray(one.dynamic_mask) != np.asarray(many.dynamic_mask))),
        "static": float(np.mean(np.asarray(one.static_mask) != np.asarray(many.static_mask))),
    }


def alignment_in_double(model, frames: Frames, edges: np.ndarray) -> dict:
    """All iterations in float64, in which rounding does not grow into differences that a person could see.

    On all devices there are padded frames and pairs.
    """
    grid = model.grid(frames.rgb.shape[1:3])
    one, _ = passes.prediction_pass(model, passes.encode(model, frames), edges, grid)
    start = alignment.initial_state(one, CONFIG.alignment)
    moved = np.random.default_rng(2).normal(0, 1, (len(edges), *frames.rgb.shape[1:3], 2))
    config = CONFIG.alignment
    mesh, rows, total = sharding.data_mesh(), -(-len(edges) // 8) * 8, FRAMES + 2

    def longer(x, count: int):
        return padded(np.asarray(x, np.float64), count)

    with jax.enable_x64():
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), one)
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
        problem = alignment.make_problem(dataclasses.replace(wide, edges=edges), config, flow=jnp.asarray(moved))
        end, losses = alignment.optimise(state, problem, config)

        divided = sharding.shard_rows(jax.tree.map(lambda x: longer(x, rows), wide), mesh)
        divided = dataclasses.replace(
            divided, edges=padded(edges, rows), valid=np.arange(rows) < len(edges), num_frames=total
        )
        more = dataclasses.replace(
            state,
            pair_poses=jnp.asarray(longer(state.pair_poses, rows)),
            frame_poses=jnp.asarray(longer(state.frame_poses, total)),
            log_depth=jnp.asarray(longer(state.log_depth, total)),
        )
        flow_rows = sharding.shard_rows(longer(moved, rows), mesh)
        problem = alignment.make_problem(divided, config, flow=flow_rows)
        assert problem.flow is not None
        laid_out = (*problem.points_i, problem.weights_j, problem.edges, problem.flow.flow)
        by_rows = all(x.sharding.spec == sharding.ROWS for x in laid_out)
        many_end, many_losses = alignment.optimise(more, problem, config)
    pairs = ((end.frame_poses, many_end.frame_poses), (end.log_depth, many_end.log_depth), (losses, many_losses))
    return {"double": max(relative(*pair) for pair in pairs), "by_rows": by_rows}


def reds_and_greens(scale, rgb_i, rgb_j, iterations):
    """Stands for a network of optical flow: `scale` is its only parameter."""
    return scale * jnp.stack([rgb_i[..., 0], rgb_j[..., 1]], axis=-1), {}


def flow_of_pairs(frames: Frames, edges: np.ndarray) -> dict:
    network = Partial(reds_and_greens, jnp.float32(0.1))
    one = flow.estimate_flow(network, frames.rgb, edges)
    many = flow.estimate_flow(sharding.replicate(network, sharding.data_mesh()), frames.rgb, edges)
    return {"flow": relative(one, many), "flow_rows": len(many)}


def main() -> None:
    assert jax.local_device_count() == 8
    model = load_model("embedded")
    on_all, in_parts = (f(model, sharding.data_mesh()) for f in (sharding.replicate, sharding.shard_parameters))
    frames = load_frames(CLIP, FrameConfig(size=48, patch_size=model.config.patch_size, first=FRAMES))
    edges = pipeline.clip_edges(FRAMES, CONFIG.graph)
    found = stages(model, on_all, frames, edges) | whole_method(model, on_all, frames, edges)
    found |= alignment_in_double(model, frames, edges) | flow_of_pairs(frames, edges)
    features = passes.encode(model, frames)
    whole, scattered = (
        passes.prediction_pass(network, features, edges, model.grid(frames.rgb.shape[1:3]))[0].points_j
        for network in (model, in_parts)
    )
    found["scattered"] = max(relative(features, passes.encode(in_parts, frames)), relative(whole, scattered))
    kept = [(leaf.addressable_shards[0].data.nbytes, leaf.nbytes) for leaf in jax.tree.leaves(in_parts)]
    found["kept"] = sum(part for part, _ in kept) / sum(nbytes for _, nbytes in kept)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
