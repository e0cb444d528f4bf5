"""VGGT4D from frames alone: both passes of a tiny VGGT, the cue's statistics, masks, and poses of the second pass."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.apps.parity.report import NETWORK, Golden, Row, compare, equal
from easi3r_jax.apps.parity.weights import golden_vggt, golden_vggt_config
from easi3r_jax.core.config import SegmentationConfig
from easi3r_jax.core.geometry import se3
from easi3r_jax.inference.multiview import segment
from easi3r_jax.models import VGGT
from easi3r_jax.models.vggt import cameras_of

#: Statistics of the factors, as the format names them.
STATISTICS = ("mean1", "var1", "mean2", "mean3", "var3")


def check_clip(stage: str, path: pathlib.Path, golden: Golden) -> Iterator[Row]:
    """Rows of a file of the cue, with the network that its folder's `config.json` describes."""
    settings = json.loads((path.parent / "config.json").read_text())
    model = golden_vggt(golden_vggt_config(settings, "dino"), settings["files"][path.name])
    rgb, labels = jnp.asarray(golden["frames_u8"]), jnp.asarray(golden["cluster_labels"])
    size = (rgb.shape[1], rgb.shape[2])
    count, depth = len(rgb), model.config.depth
    bands = motion.gram_bands(depth) + motion.gram_bands(depth, motion.PAPER_FACTORS)

    has_points = any(name.endswith("world_points_stride2") for name in golden)
    run = partial(_run, model, rgb, bands=bands, has_points=has_points)
    first = run(jnp.zeros((count, labels[0].size), bool))
    yield compare(stage, "enc_feat", first["features"], golden["enc_feat"], NETWORK)
    values = first["statistics"].reshape(-1, *labels.shape)
    released, paper = values[: len(STATISTICS)], values[len(STATISTICS) :]
    for name, ours in zip(STATISTICS, released, strict=True):
        yield compare(stage, f"raw_{name}, from frames", ours, golden[f"raw_{name}"], NETWORK)
    dyn = motion.min_max(motion.gram_score(released), axis=(-2, -1))
    yield compare(stage, "dyn, from frames", dyn, golden["dyn"], NETWORK)
    if "paperform_a_dyn" in golden:
        score = motion.gram_score(paper, None, motion.PAPER_FACTORS)
        ours = motion.min_max(score, axis=(-2, -1))
        yield compare(stage, "paperform_a_dyn", ours, golden["paperform_a_dyn"], NETWORK)
    yield from _pass(stage, "pass1", first, golden)

    options = SegmentationConfig(num_clusters=len(golden["cluster_means"]))
    found = segment(released.reshape(len(STATISTICS), count, -1), labels, size, options)
    yield equal(stage, "dyn_masks, from frames", found.mask, golden["dyn_masks"])
    tokens = motion.token_masks(found.mask, model.config.patch_size).reshape(count, -1)
    yield from _pass(stage, "pass2", run(tokens), golden)
    masks = np.array(golden["true_mask"])
    masks[-1] = True
    tokens = motion.token_masks(jnp.asarray(masks), model.config.patch_size).reshape(count, -1)
    yield from _pass(stage, "masked_by_true_mask_last_frame_all", run(tokens), golden)


def _pass(stage: str, name: str, ours: dict[str, Any], golden: Golden) -> Iterator[Row]:
    """Every stored array of a pass."""
    for key in sorted(k for k in golden if k.startswith(f"{name}_")):
        base, _, step = key.removeprefix(f"{name}_").partition("_stride")
        mine = np.asarray(ours[base.removesuffix("_every5tok")])
        mine = mine[:, ::5] if base.endswith("_every5tok") else mine
        mine = mine[:, :: int(step), :: int(step)] if step else mine
        yield compare(stage, key, mine, golden[key], NETWORK)


@partial(jax.jit, static_argnames=("bands", "has_points"))
def _run(model: VGGT, rgb: jax.Array, dynamic: jax.Array, bands: Any, has_points: bool) -> dict[str, Any]:
    """A pass, by the format's names."""
    size = (rgb.shape[1], rgb.shape[2])
    grid, features = model.grid(size), model.encode(rgb)
    found = model.aggregate(features, grid, dynamic, bands=bands, intermediates=True)
    layers = jnp.concatenate([found.intermediates["frame"], found.intermediates["global"]], axis=-1)
    encoding = model.cameras(found)
    cam_from_world, intrinsics = cameras_of(encoding, size)
    depth, confidence = model.depth(found, grid)
    out = {"features": features, "statistics": found.statistics, "pose_enc": encoding, "intrinsic": intrinsics}
    out |= {f"aggregated_{n}": layers[n] for n in (model.config.levels[0], model.config.levels[-1])}
    out |= {"extrinsic": cam_from_world[:, :3], "cam2world": se3.inverse(cam_from_world)}
    out |= {"world_points": model.points(found, grid)[0]} if has_points else {}
    return out | {"depth": depth, "depth_conf": confidence}
