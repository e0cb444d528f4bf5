"""Optical flow: features, correlations, flow after each number of iterations, upsampling."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.apps.parity.report import AGGREGATED, Golden, Row, compare, equal
from easi3r_jax.apps.parity.weights import golden_flow_network
from easi3r_jax.inference.flow import pad_images
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.models.correlation import correlate, halve, make_lookup

_NETWORKS = {
    "raft_basic": FlowConfig("raft"),
    "raft_small": FlowConfig("raft-small"),
    "sea_raft_m": FlowConfig("sea-raft"),
}
_ITERATIONS = 20
# Arrays that describe other arrays.
_NOT_COMPARED = r"flow_up_unpadded_shape|n_predictions"


def check_folder(folder: pathlib.Path) -> Iterator[Row]:
    """Compares every file that the folder's `config.json` lists."""
    for name, entry in json.loads((folder / "config.json").read_text()).items():
        path = folder / f"{name}.npz"
        config = next((config for stem, config in _NETWORKS.items() if name.startswith(stem)), None)
        if path.is_file() and config is not None:
            network = golden_flow_network(config, entry["weight_seed"], entry["gains"])
            yield from _check_file(f"{folder.name}/{name}", network, Golden(path))


def _check_file(stage: str, network, golden: Golden) -> Iterator[Row]:
    frames = jnp.asarray(golden["frames_u8"])
    padded, (top, left) = pad_images(frames)
    height, width = frames.shape[1:3]
    bottom, right = padded.shape[1] - height - top, padded.shape[2] - width - left
    yield equal(stage, "pad_l_r_t_b", np.array([left, right, top, bottom]), golden["pad_l_r_t_b"])
    run = jax.jit(lambda network, i, j, iterations: network(i, j, iterations), static_argnums=3)
    flow, out = run(network, padded[:1], padded[1:], _ITERATIONS)
    first = 0 if "flow_low_iter0" in golden else 1  # SEA-RAFT has an initial estimate

    ours = {"cnet_out": out["context"], "fmap1": out["features_i"], "fmap2": out["features_j"]}
    if first == 0:
        ours |= {"init_conv_out": out["split"], "hidden_after_iter1": out["hidden"][0]}
    ours = {f"{name}_every8ch": _channels_first(array)[:, ::8] for name, array in ours.items()}
    ours |= {f"flow_low_iter{n + first}": _channels_first(coarse) for n, coarse in enumerate(out["coarse"])}
    for iterations in (0, 4, _ITERATIONS):
        if f"flow_up_iter{iterations}" in golden:
            fine = flow if iterations == _ITERATIONS else run(network, padded[:1], padded[1:], iterations)[0]
            ours[f"flow_up_iter{iterations}"] = _channels_first(fine)
    if "flow_up_4iters_final" in golden:
        ours["flow_up_4iters_final"] = _channels_first(run(network, padded[:1], padded[1:], 4)[0])
        ours[f"info_low_iter{_ITERATIONS}"] = _channels_first(out["uncertainty"])
    if "lookup_coords" in golden:
        ours |= _lookups(network.radius, out["features_i"], out["features_j"], golden)

    for name, array in ours.items():
        if name in golden:
            theirs = golden[name]
            if array.shape != theirs.shape:  # SEA-RAFT's fine flow has the image's size, RAFT's the padded size
                array = array[..., top : top + height, left : left + width]
            yield compare(stage, name, array, theirs, AGGREGATED)
    yield from golden.unread(stage, _NOT_COMPARED)


def _lookups(radius: int, features_i: jax.Array, features_j: jax.Array, golden: Golden) -> dict[str, np.ndarray]:
    """Correlations around the given coordinates, and the third level of the first pixel's map."""
    coords = jnp.moveaxis(jnp.asarray(golden["lookup_coords"]), 1, -1)
    windows = make_lookup(features_i, features_j, radius)(coords)
    levels = [features_j]
    while len(levels) < len(golden["corr_pyramid_shapes"]):
        levels.append(halve(levels[-1]))
    query = features_i[:, 0, :1] * features_i.shape[-1] ** -0.5
    return {
        "lookup_corr_rows_every5": _channels_first(windows)[:, :, ::5],
        "corr_pyramid_l2_row0": np.asarray(correlate(query, levels[2]))[0],
        "corr_pyramid_shapes": np.array([level.shape[1:3] for level in levels]),
    }


def _channels_first(array: jax.Array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)
