"""VGGT: tokens, blocks, cameras, depth, points and tracks, its position embedding, and its input."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from easi3r_jax.apps.parity.report import NETWORK, ROUNDING, Golden, Row, at_most, compare, equal
from easi3r_jax.apps.parity.weights import golden_vggt, golden_vggt_config
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.io.video import multiview_images
from easi3r_jax.models import VGGT
from easi3r_jax.models.vggt import cameras_of, encoded_cameras, points_from_depth
from easi3r_jax.models.vggt.dpt import depth_and_confidence, points_and_confidence
from easi3r_jax.models.vggt.encoder import resized_positions, standardize_rgb

#: Of the tracker after its first iteration: its frequencies of up to 1000 per pixel enlarge rounding. The reference in
#: float32 differs by as much from itself in float64. Pixels, and probabilities.
_TRACK_PIXELS, _TRACK_PROBABILITY = 2e-2, 3e-3
_PATCH = 14


def is_folder(settings: dict[str, Any]) -> bool:
    """Whether a `config.json` describes arrays of this kind."""
    return "aggregator" in settings and "files" in settings


def check_folder(folder: pathlib.Path) -> Iterator[Row]:
    """Every array of the folder."""
    settings = json.loads((folder / "config.json").read_text())
    for name, entry in settings["files"].items():
        if (folder / name).is_file():
            model = golden_vggt(golden_vggt_config(settings, entry["kind"]), entry)
            yield from check_network(f"{folder.name}/{name.removesuffix('.npz')}", model, Golden(folder / name))
    for path in sorted(folder.glob("posembed_interp_*.npz")):
        yield from check_positions(f"{folder.name}/{path.stem}", Golden(path))
    if (folder / "preprocess.npz").is_file():
        yield from check_images(f"{folder.name}/preprocess", Golden(folder / "preprocess.npz"), settings["preprocess"])


def check_network(stage: str, model: VGGT, golden: Golden) -> Iterator[Row]:
    """Every array of a file."""
    rgb, points = jnp.asarray(golden["frames_u8"]), golden.get("query_points")
    golden.used.add("query_points")
    bases = {name: re.sub(r"(_every\d+(tok|ch)|_stride\d+|_f0)+$", "", name) for name in set(golden) - golden.used}
    wanted = frozenset(base.split("_")[0] for base in bases.values())
    ours = _arrays(model, rgb, None if points is None else jnp.asarray(points), wanted)
    ours |= _first_queries(model, ours["tokens_in"])
    for name, base in bases.items():
        if base not in ours:
            yield Row(stage, f"{name}: unknown array", np.inf, np.inf, NETWORK)
            continue
        array, mine = golden[name], _subsampled(np.asarray(ours[base]), name)
        if array.dtype.kind in "bi":
            yield equal(stage, name, mine, array)
        elif base in ("track_iters", "track_delta_iters"):
            yield compare(stage, f"{name}, first iteration", mine[0], array[0], NETWORK)
            yield at_most(stage, f"{name}, others", np.abs(mine[1:] - array[1:]).max(), _TRACK_PIXELS)
        elif base in ("track_vis", "track_conf"):
            yield at_most(stage, name, np.abs(mine - array).max(), _TRACK_PROBABILITY)
        else:
            yield compare(stage, name, mine, array, NETWORK)


def _subsampled(x: np.ndarray, name: str) -> np.ndarray:
    """As the suffixes of a golden array's name say."""
    x = x[0] if name.endswith("_f0") or "_f0_" in name else x
    for kind, step in re.findall(r"_(every\d+(?:tok|ch)|stride)(\d*)", name):
        step = int(step or re.findall(r"\d+", kind)[0])
        if kind.endswith("tok"):
            x = x[..., ::step, :]
        elif kind.endswith("ch"):  # before the axes of the pixels
            x = x[::step]
        else:
            x = x[:, ::step, ::step]
    return x


@partial(jax.jit, static_argnames="wanted")
def _arrays(model: VGGT, rgb: jax.Array, points: jax.Array | None, wanted: Collection[str]) -> dict[str, Any]:
    """Arrays by their golden names, without suffixes of a sub-sampling; dense ones of heads: channels first."""
    size = (rgb.shape[1], rgb.shape[2])
    grid = model.grid(size)
    tokens, encoder = model.encoder(standardize_rgb(rgb), intermediates=True)
    found = model.aggregate(tokens, grid, intermediates=True)
    record = found.intermediates
    both = jnp.concatenate([record["frame"], record["global"]], axis=-1)
    out: dict[str, Any] = {
        "patch_tokens": tokens,
        "tokens_in": record["tokens"],
        "pos": _positions(grid, model.config.special),
        "frame_block_out": record["frame"],
        "global_block_out": record["global"],
        "aggregated_list": both,
        "aggregated_last": both[-1],
    }
    if encoder:
        out |= {"dino_conv": encoder["patches"], "dino_pos_embed_interp": encoder["positions"]}
        out |= {"dino_block0_all_tokens": encoder["blocks"][0], "dino_prenorm_all_tokens": encoder["blocks"][-1]}
    for n, kind in enumerate(("q", "k")):
        out[f"frame0_{kind}_rope"] = jnp.moveaxis(record["frame_qk"][n][0], -2, 1)
        out[f"global0_{kind}_rope"] = jnp.swapaxes(jnp.concatenate(list(record["global_qk"][n][0])), 0, 1)
    assert model.camera_head and model.depth_head and model.point_head
    out["pose_enc_iters"], out["pose_delta_iters"] = model.camera_head(found.cameras)
    cam_from_world, intrinsics = cameras_of(out["pose_enc_iters"][-1], size)
    out |= {"extrinsic": cam_from_world[:, :3], "intrinsic": intrinsics}
    out["pose_enc_back"] = encoded_cameras(cam_from_world, intrinsics, size)
    raw, steps = model.depth_head(found.levels, grid, intermediates=True)
    out["depth"], out["depth_conf"] = depth_and_confidence(raw)
    first = {"depth_raw": raw, "depth_output_conv1": steps["conv1"]}
    first |= {f"depth_refinenet{n + 1}": steps[f"fusion{n}"] for n in range(4)}
    out["points_from_depth"] = points_from_depth(out["depth"], cam_from_world, intrinsics)
    if {"world", "point"} & set(wanted):
        first["point_raw"], _ = model.point_head(found.levels, grid)
        out["world_points"], out["world_points_conf"] = points_and_confidence(first["point_raw"])
    if "track" in wanted and model.track_head is not None:
        maps, _ = model.track_head.extractor(found.levels, grid)
        out["track_iters"], out["track_vis"], out["track_conf"], steps = model.track_head(maps, points)
        first["track_feature"] = maps
        out |= {"track_delta_iters": steps["delta"], "track_corr_mlp_iter0": steps["correlation"][0]}
    return out | {name: jnp.moveaxis(x, -1, 1) for name, x in first.items()}


def _first_queries(model: VGGT, tokens: jax.Array) -> dict[str, np.ndarray]:
    """Queries of the first frame block before and after their norm, of the first frame: (1, A, P, D)."""
    block = jax.tree.map(lambda x: x[0], model.aggregator.frame_blocks)
    queries = jnp.split(block.attention.qkv(block.norm1(tokens[:1])), 3, axis=-1)[0]
    queries = queries.reshape(*queries.shape[:-1], model.config.num_heads, -1)
    normed = block.attention.q_norm(queries)
    return {f"frame0_q_{name}": np.swapaxes(x, 1, 2) for name, x in (("raw", queries), ("normed", normed))}


def _positions(grid: tuple[int, int], special: int) -> np.ndarray:
    """(P, 2): the format's positions of tokens, which the rotations imply."""
    return np.concatenate([np.zeros((special, 2), int), np.indices(grid).reshape(2, -1).T + 1])


def check_positions(stage: str, golden: Golden) -> Iterator[Row]:
    """The position embedding of the released network's size, resized."""
    embedding = jnp.asarray(golden["pos_embed"])[None]
    for name in sorted(n for n in golden if n.startswith("interp_")):
        height, width = map(int, re.findall(r"\d+", name))
        ours = resized_positions(embedding, (height // _PATCH, width // _PATCH))
        yield compare(stage, name, ours, golden[name], NETWORK)
    yield from golden.unread(stage, "no_antialias_.*")


def check_images(stage: str, golden: Golden, cases: dict[str, Any]) -> Iterator[Row]:
    """Images that are resized, cropped and padded: equal levels."""
    config = FrameConfig(size=518, patch_size=_PATCH, fit="width")
    for case, settings in cases.items():
        name = next(n for n in golden if re.fullmatch(rf"{case}_u8_stride\d+", n))
        step = int(name.rpartition("stride")[2])
        ours = multiview_images([_test_image(*image) for image in settings["images_WHkA"]], config, settings["mode"])
        yield equal(stage, f"{case} size", ours.shape, np.array(settings["out_shape"])[[0, 2, 3, 1]])
        yield equal(stage, name, ours[:, ::step, ::step], golden[name])
        mean = (ours / 255.0).mean(axis=(0, 1, 2))
        yield compare(stage, f"{case} mean", mean, golden[f"{case}_mean_f64"], ROUNDING)
    yield from golden.unread(stage, "")


def _test_image(width: int, height: int, k: int, alpha: int) -> Image.Image:
    """The format's image of a size and a number."""
    y, x = np.mgrid[:height, :width]
    channels = [((x * x * (c + 1)) // (37 + k) + (y * (x + 3 * c)) // 11 + 5 * c * y) % 256 for c in range(3)]
    channels[1] = ((3 * x + 2 * y + 17 * k) // 4) % 256
    channels += [(4 * x + y) % 256] if alpha else []
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8), "RGBA" if alpha else "RGB")
