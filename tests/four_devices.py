"""Run on four devices by tests/alignment/test_device_gradients.py: derivatives on one device and on all, in float64.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.four_devices
"""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import alignment
from easi3r_jax.core import sharding
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.types import PairPredictions

T, H, W = 4, 4, 6
EDGES = np.array([(i, j) for i in range(T) for j in range(T) if i != j], np.int32)
CONFIG = AlignConfig(flow_weight=0.7, smoothing_weight=0.1)


def relative(one, many) -> float:
    """The largest difference of two trees' arrays as a share of the array's largest value."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(a)).max()) for a, b in pairs)


def derivatives(state: alignment.AlignState, predictions: PairPredictions, flow: jax.Array) -> dict:
    def loss(state, predictions, flow):
        return alignment.total_loss(state, alignment.make_problem(predictions, CONFIG, flow=flow))

    def of_arrays(state, points, confidence, flow):
        return loss(state, dataclasses.replace(predictions, points_i=points, confidence_j=confidence), flow)

    at = (state, predictions.points_i, predictions.confidence_j, flow)
    first = jax.grad(of_arrays, argnums=(0, 1, 2, 3))
    if sharding.mesh_of_rows(predictions) is None:  # else not compiled: a traced array does not say where it lies
        first = jax.jit(first)
    first = first(*at)
    problem = alignment.make_problem(predictions, CONFIG, flow=flow)

    def gradient(state, weights):
        return jax.grad(alignment.total_loss)(state, dataclasses.replace(problem, weights_i=weights))

    along = jax.tree.map(jnp.cos, state)
    second = jax.jit(lambda s: jax.jvp(lambda s: gradient(s, problem.weights_i), (s,), (along,))[1])(state)
    mixed = jax.jit(jax.grad(lambda w: sum(jnp.sum(jnp.sin(g)) for g in jax.tree.leaves(gradient(state, w)))))
    mixed = mixed(problem.weights_i)
    return {"first": first, "second": second, "mixed": mixed}


def main() -> None:
    assert jax.local_device_count() == 4
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        identity = np.array([0.0, 0, 0, 1, 0, 0, 0])
        state = alignment.AlignState(
            pair_poses=jnp.asarray(rng.standard_normal((len(EDGES), 8))),
            frame_poses=jnp.asarray(identity + 0.05 * rng.standard_normal((T, 7))),
            log_depth=jnp.asarray(rng.uniform(0.5, 1.5, (T, H, W))),
            log_focal=jnp.asarray(20 * np.log(rng.uniform(5, 7, T))),
        )
        points = rng.normal([0, 0, 3], 1, (2, len(EDGES), H, W, 3))
        confidence = rng.uniform(1, 9, (2, len(EDGES), H, W))
        predictions = PairPredictions(EDGES, *(jnp.asarray(x) for x in (*points, *confidence)))
        flow = jnp.asarray(rng.normal(0, 2, (len(EDGES), H, W, 2)))
        mesh = sharding.data_mesh()
        divided = dataclasses.replace(sharding.shard_rows(predictions, mesh), edges=EDGES)
        on_all = sharding.replicate(state, mesh)
        one, many = derivatives(state, predictions, flow), derivatives(on_all, divided, sharding.shard_rows(flow, mesh))
        found = {name: relative(one[name], many[name]) for name in one}
        found["by_rows"] = all(x.sharding.spec == sharding.ROWS for x in many["first"][1:])
        found["least"] = min(float(np.abs(x).max()) for x in jax.tree.leaves(one))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
