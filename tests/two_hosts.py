"""Run by tests/core/test_two_hosts.py: a clip on a mesh of eight CPU devices, of one process or of two.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.two_hosts one.npz
XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.two_hosts two.npz PORT NUMBER    # 0 and 1

Process 0 writes the arrays.
"""

from __future__ import annotations

import dataclasses
import sys

import cv2
import jax
import numpy as np

from easi3r_jax import alignment
from easi3r_jax.core import sharding
from easi3r_jax.core.types import Given, KnownCameras
from easi3r_jax.inference import passes, pipeline
from easi3r_jax.inference.dense_flow import dense_flow
from easi3r_jax.weights.load import on_devices
from tests.inference.small import NETWORK, OPTIONS, clip
from tests.networks import network

FRAMES = 4
EVERYTHING = dataclasses.replace(
    OPTIONS,
    masks=("motion", "flow"),
    shared_shapes=True,
    alignment=dataclasses.replace(OPTIONS.alignment, flow_start=0.2, depth_weight=0.1),
)


class Arrays(dict[str, np.ndarray]):
    """What is found, by name."""

    def add(self, name: str, tree) -> None:
        for number, leaf in enumerate(jax.tree.leaves(sharding.on_host(tree))):
            self[f"{name}/{number}"] = leaf


def stages(model, arrays: Arrays) -> None:
    """The network's stages, and the alignment in float64, with and without flow."""
    frames, edges, grid = clip(FRAMES), pipeline.clip_edges(FRAMES, OPTIONS.graph), model.grid((32, 48))
    dynamic = np.random.default_rng(0).random((FRAMES, grid[0] * grid[1])) < 0.3
    features = passes.encode(model, frames)
    predictions, temporal = passes.prediction_pass(model, features, edges, grid, dynamic_tokens=dynamic, gram=True)
    arrays.add("network: features", features)
    arrays.add("network: points", (predictions.points_i, predictions.points_j, predictions.confidence_j))
    arrays.add("network: statistics", (temporal, passes.attention_pass(model, features, edges, grid, gram=True)))

    mesh, rows = sharding.mesh_of(model), len(predictions.edges)
    random = np.random.default_rng(1)
    points = random.normal([0, 0, 3], 0.3, (2, rows, 16, 24, 3))
    confidence = random.uniform(1, 9, (2, rows, 16, 24))
    moved = random.normal(0, 1, (rows, 16, 24, 2))
    with jax.enable_x64(), jax.numpy_dtype_promotion("standard"):  # JAX's ranges are then of 64 bits, ours of 32
        places = sharding.shard_rows((points[0], points[1], confidence[0], confidence[1]), mesh)
        wide = dataclasses.replace(predictions, **dict(zip(PREDICTED, places, strict=True)))
        state = alignment.AlignState(
            pair_poses=random.normal(0, 1, (rows, 8)),
            frame_poses=np.array([0.0, 0, 0, 1, 0, 0, 0]) + 0.05 * random.standard_normal((FRAMES, 7)),
            log_depth=random.uniform(0.5, 1.5, (FRAMES, 16, 24)),
            log_focal=20 * np.log(random.uniform(15, 17, FRAMES)),
        )
        for name, flow in (("flow", sharding.shard_rows(moved, mesh)), ("no flow", None)):
            problem = alignment.make_problem(wide, EVERYTHING.alignment, flow=flow)
            arrays.add(f"alignment: {name}", alignment.optimise(state, problem, EVERYTHING.alignment))


PREDICTED = ("points_i", "points_j", "confidence_i", "confidence_j")


def whole_method(model, arrays: Arrays) -> None:
    """Everything: cues that compute on the host, optical flow, masks from it, padding, known cameras."""
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, 0, 3] = np.arange(FRAMES)
    known = KnownCameras(
        world_from_cam=poses,
        poses_known=np.array([True, True, True, False]),
        focal=np.full(FRAMES, 40.0),
        principal_point=np.tile([24.0, 16.0], (FRAMES, 1)),
        intrinsics_known=np.ones(FRAMES, bool),
    )
    rows = len(pipeline.clip_edges(FRAMES, OPTIONS.graph))
    flow = np.random.default_rng(2).normal(0, 2, (rows, 32, 48, 2)).astype(np.float32)
    for name, count, config, options in (
        ("flow and padding", FRAMES - 1, EVERYTHING, {"flow": dense_flow}),
        ("match", FRAMES, dataclasses.replace(OPTIONS, cue="match"), {}),
        ("known cameras", FRAMES, OPTIONS, {"given": Given(cameras=known, flow=flow)}),
        ("two frames", 2, OPTIONS, {}),
    ):
        result = pipeline.reconstruct(model, clip(count), config, refiner=_refined, **options)  # pyright: ignore[reportArgumentType]
        scene = result.scene
        arrays.add(f"method: {name}: scene", (scene.world_from_cam, scene.intrinsics, scene.depth, scene.confidence))
        arrays.add(f"method: {name}: score", (scene.dynamic_score, result.losses))
        arrays.add(f"masks: {name}", (scene.dynamic_mask, scene.static_mask))


def _refined(rgb, masks, *, progress):
    """Masks as they are; on process 1 others, which nobody must use."""
    return masks if jax.process_index() == 0 else ~masks


def with_other_poses() -> None:
    """On process 1, poses by RANSAC that nobody must use: as on a processor that rounds differently, only more so."""
    solve = cv2.solvePnPRansac

    def other(*arguments, **options):
        found, rotation, translation, inliers = solve(*arguments, **options)
        return found, rotation + 0.05, translation + 0.05, inliers

    if jax.process_index() == 1:
        cv2.solvePnPRansac = other


def processes(mesh: jax.sharding.Mesh, arrays: Arrays) -> None:
    """What a process computes itself is that of process 0 everywhere: the last rows are on the last process."""
    own = np.array([1.0, 1e-300, np.nan]) + jax.process_index()
    rows = np.broadcast_to(sharding.agreed(own, mesh)[None], (8, 3))
    arrays.add("agreed", sharding.shard_rows(rows.astype(np.float32), mesh))
    assert sharding.agreed_text("first" if jax.process_index() == 0 else "", mesh) == "first"
    numbers = sharding.own_rows(16, mesh)
    assert len(numbers) == 16 // jax.process_count()
    arrays.add("own rows", sharding.shard_own_rows(np.stack([numbers, -numbers], axis=1), 16, mesh))


def main(output: str, port: str = "", number: str = "0") -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    if port:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # see apps/distributed.py
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
    assert len(jax.devices()) == 8 and jax.process_count() == 1 + bool(port)
    mesh, arrays = sharding.data_mesh(all_hosts=True), Arrays()
    model = on_devices(network(NETWORK), all_hosts=True)
    with_other_poses()
    processes(mesh, arrays)
    stages(model, arrays)
    whole_method(model, arrays)
    if jax.process_index() == 0:
        np.savez(output, **arrays)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main(*sys.argv[1:])
