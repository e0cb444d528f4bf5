"""Network stages: tokens, rotary embedding, decoder layers, maps, statistics, heads, matches of descriptors."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax import motion
from easi3r_jax.apps.parity import matching
from easi3r_jax.apps.parity.report import NETWORK, Row, compare, equal
from easi3r_jax.apps.parity.weights import golden_config, golden_model
from easi3r_jax.models import DUSt3R, normalize_rgb

_MATCHES = "reciprocal_nn.npz"
#: Arrays of a golden file that are inputs.
_INPUTS = {"frames_u8", "atten_mask_full"}


def check_folder(folder: pathlib.Path) -> Iterator[Row]:
    """Compares every file that the folder's `config.json` lists, and the matches beside them."""
    settings = json.loads((folder / "config.json").read_text())
    for name, entry in settings["files"].items():
        if (folder / name).is_file():
            config = golden_config(folder, entry.get("head"), (entry["H"], entry["W"]))
            model = golden_model(config, entry["weight_seed"], entry.get("gains", {}))
            with np.load(folder / name) as file:
                yield from _check_file(f"{folder.name}/{name.removesuffix('.npz')}", model, dict(file))
    if (folder / _MATCHES).is_file():
        yield from matching.check_file(folder / _MATCHES)


def _check_file(stage: str, model: DUSt3R, golden: dict[str, np.ndarray]) -> Iterator[Row]:
    rgb = jnp.asarray(golden["frames_u8"])
    grid = model.grid((rgb.shape[1], rgb.shape[2]))
    ours = dict(_encoder_arrays(model, rgb, grid))
    masks = None
    if "atten_mask_full" in golden:
        masks = motion.token_masks(jnp.asarray(golden["atten_mask_full"]), model.config.patch_size)
        ours |= {"token_mask1": masks[0], "token_mask2": masks[1]}
    features = model.encode(rgb)
    for mode in ("plain", "masked"):
        for order, (i, j) in {"ab": (0, 1), "ba": (1, 0)}.items():
            # A file of one order leaves it out.
            named = any(k.startswith(f"{mode}_{order}_") for k in golden)
            if named or (order == "ab" and any(k.startswith(f"{mode}_") for k in golden)):
                dynamic = None if mode == "plain" or masks is None else (masks[i][None], masks[j][None])
                prefix = f"{mode}_{order}_" if named else f"{mode}_"
                ours |= _pair_arrays(model, features[i][None], features[j][None], grid, dynamic, prefix)

    for name, array in golden.items():
        if name in _INPUTS or name.endswith("_dec_layers"):
            continue
        mine = _pick(ours, name, golden)
        if mine is None:
            yield Row(stage, f"{name}: unknown array", np.inf, np.inf, NETWORK)
        elif array.dtype.kind in "bi":
            yield equal(stage, name, mine, array)
        else:
            yield compare(stage, name, mine, array, NETWORK)


def _encoder_arrays(model: DUSt3R, rgb: jax.Array, grid: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    tokens, out = jax.jit(lambda m, x: m.encoder(normalize_rgb(x), intermediates=True))(model, rgb)
    yield "enc_tokens", tokens
    yield "match_feature", tokens[0].reshape(*grid, -1)
    yield "patch_tokens", out["patch_tokens"]
    yield "patch_pos", np.stack([np.indices(grid).reshape(2, -1).T] * len(rgb))
    for layer, tokens in enumerate(out["blocks"]):
        yield f"enc_block{layer}", tokens
    for short, record in {
        "q_pre_rope": "queries",
        "k_pre_rope": "keys",
        "q_rope": "rotated_queries",
        "k_rope": "rotated_keys",
    }.items():
        yield f"enc0_{short}", np.swapaxes(out["attention"][record][0], 1, 2)


def _pair_arrays(model, features_i, features_j, grid, dynamic, prefix: str) -> dict[str, np.ndarray]:
    """All arrays of one directed pair; arrays whose golden name has no order are also returned without prefix."""
    decoded, raw, paths, predicted, described = _run_pair(model, features_i, features_j, dynamic, grid)
    points_i, confidence_i, points_j, confidence_j = predicted
    own: dict[str, np.ndarray] = {}
    for branch, tokens, stats in ((1, decoded.tokens_i, decoded.stats.src), (2, decoded.tokens_j, decoded.stats.ref)):
        record = decoded.intermediates[f"branch{branch}"]
        own[f"dec_b{branch}"] = np.asarray(record["blocks"][:, 0])
        own[f"dec_norm_b{branch}"] = np.asarray(tokens[-1, 0])
        own[f"attn_k_b{branch}"] = np.asarray(stats[0]).reshape(-1, *grid).transpose(1, 2, 0)
        for layer in range(model.config.dec_depth):
            own[f"cross_pre_softmax_L{layer}_b{branch}"] = np.asarray(record["cross"]["logits"][layer, 0])
            own[f"self_pre_softmax_L{layer}_b{branch}"] = np.asarray(record["self"]["logits"][layer, 0])
            for short, key in (("q", "rotated_queries"), ("k", "rotated_keys")):
                own[f"dec{layer}_b{branch}_cross_{short}_rope"] = np.swapaxes(record["cross"][key][layer], 1, 2)
        own[f"head{branch}_raw"] = _raw_layout(np.asarray(raw[branch - 1][0]), model.config)
        if described:
            own[f"dpt_raw_{branch}"] = own[f"head{branch}_raw"]
            descriptors, confidence, local = described[branch - 1]
            own |= {f"desc_{branch}": descriptors[0], f"desc_conf_{branch}": confidence[0]}
            own[f"local_raw_{branch}"] = _token_layout(np.asarray(local[0]), model.config.patch_size)
        for level, path in paths[branch - 1].items():
            own[f"dpt_refinenet{int(level[-1]) + 1}_h{branch}_out"] = np.asarray(path[0]).transpose(2, 0, 1)
    own |= {"pts3d_1": points_i[0], "conf_1": confidence_i[0], "pts3d_2": points_j[0], "conf_2": confidence_j[0]}
    named = {prefix + k: v for k, v in own.items()}
    return named | own if prefix == "plain_ab_" else named


@partial(jax.jit, static_argnames=("grid",))
def _run_pair(model, features_i, features_j, dynamic, grid):
    decoded = model.decode(features_i, features_j, grid, dynamic, intermediates=True)
    raw_i, paths_i = model.head1(features_i, decoded.tokens_i, grid, intermediates=True)
    raw_j, paths_j = model.head2(features_j, decoded.tokens_j, grid, intermediates=True)
    described = ()
    if model.config.descriptor_dim:
        found = model.describe(features_i, features_j, decoded, grid)
        local_i = model.local1(features_i, decoded.tokens_i[-1], grid)
        local_j = model.local2(features_j, decoded.tokens_j[-1], grid)
        described = ((*found[:2], local_i), (*found[2:], local_j))
    predicted = model.predict(features_i, features_j, decoded, grid)
    return decoded, (raw_i, raw_j), (paths_i, paths_j), predicted, described


def _raw_layout(raw: np.ndarray, config) -> np.ndarray:
    """Head channels (H, W, 4) as the goldens store them: (4, H, W) for DPT, (N, 4 p p) for linear."""
    return raw.transpose(2, 0, 1) if config.is_dpt else _token_layout(raw, config.patch_size)


def _token_layout(raw: np.ndarray, p: int) -> np.ndarray:
    """Channels of pixels (H, W, C) as the tokens' (N, C p p)."""
    height, width, channels = raw.shape
    blocks = raw.reshape(height // p, p, width // p, p, channels).transpose(0, 2, 4, 1, 3)
    return blocks.reshape(-1, channels * p * p)


def _pick(ours: dict[str, np.ndarray], name: str, golden: dict[str, np.ndarray]) -> np.ndarray | None:
    """Our array for a golden name, subsampled like the golden one."""
    array = golden[name]
    base = re.sub(r"_stride\d+$", "", name)
    if subsampled := re.fullmatch(r"(dpt_refinenet\d_h\d_out)_every(\d+)ch", base):
        full = ours.get(subsampled[1])
        channels = None if full is None else np.asarray(full)[:: int(subsampled[2])]
        return None if channels is None else _subsample(channels, array.shape, axes=(1, 2))
    if subsampled := re.fullmatch(r"(.+)_every(\d+)tok_every(\d+)ch", base):
        full = ours.get(subsampled[1])
        return None if full is None else np.asarray(full)[:: int(subsampled[2]), :: int(subsampled[3])]
    full = ours.get(base)
    if full is None:
        return None
    full = np.asarray(full)
    if re.search(r"_dec_b\d$", base):
        return full[golden[base[:-1].removesuffix("_b") + "_layers"]]
    if re.search(r"(head\d_raw|dpt_raw_\d)$", base) and full.ndim == 3:
        return _subsample(full, array.shape, axes=(1, 2))
    if re.search(r"(pts3d|conf|desc)_\d$", base):
        return _subsample(full, array.shape, axes=(0, 1))
    return full


def _subsample(full: np.ndarray, shape: tuple[int, ...], axes: tuple[int, int]) -> np.ndarray:
    """Subsamples two axes with an integer step to the golden shape."""
    for axis in axes:
        step = -(-full.shape[axis] // shape[axis])
        full = full.take(np.arange(0, full.shape[axis], step), axis=axis)
    return full
