"""Deterministic weights of the golden arrays: every tensor is a function of a seed, its name and its shape."""

from __future__ import annotations

import ast
import functools
import json
import pathlib
import types
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.models import VGGT, DUSt3R, FlowNetwork, VGGTConfig, model_from, parameter_shapes
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.vggt.config import HEADS
from easi3r_jax.weights.convert import read_parameters, table
from easi3r_jax.weights.convert.model_string import parse_model_string
from easi3r_jax.weights.convert.tensors import LazyTensor, OpenedWeights


def golden_tensor(
    seed: int,
    name: str,
    shape: tuple[int, ...],
    gains: Mapping[str, float],
    offsets: Mapping[str, Sequence[float]] = types.MappingProxyType({}),
) -> np.ndarray:
    """The tensor of a state-dict entry, as the golden format defines it; `name` is the canonical one of aliases."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if len(shape) >= 2:
        tensor = rng.standard_normal(shape) * np.sqrt(1.0 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        tensor = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        tensor = 0.1 * rng.standard_normal(shape)
    elif name.endswith((".weight", ".gamma")):
        tensor = 1.0 + 0.1 * rng.standard_normal(shape)
    else:
        tensor = 0.02 * rng.standard_normal(shape)
    tensor = tensor.astype(np.float32)
    for suffix, gain in gains.items():
        if name.endswith(suffix):
            tensor = tensor * np.float32(gain)
    for suffix, offset in offsets.items():
        if name.endswith(suffix):
            tensor = tensor + np.asarray(offset, np.float32)
    return tensor


def golden_config(folder: pathlib.Path, head: str | None, image_size: tuple[int, int]) -> DUSt3RConfig:
    """The architecture that a golden folder's `config.json` describes under `model`.

    A folder without a description uses the network of those sibling folders whose descriptions leave the head open.
    `head` is None where the folder's own description names it.

    Raises:
      InputError: no description, or siblings with different ones.
    """
    own = [folder / "config.json"]
    shared = [m for m in _descriptions(sorted(folder.parent.glob("*/config.json"))) if "head_type" not in m]
    models = _descriptions(own) or shared
    if len(models) != 1:
        raise InputError(
            f"{folder / 'config.json'} describes no network under 'model', and its sibling folders "
            f"{'describe different ones' if models else 'do not either'}."
        )
    arguments = models[0]
    arguments |= {"img_size": str(tuple(image_size))} | ({} if head is None else {"head_type": head})
    name = "AsymmetricMASt3R" if "two_confs" in arguments else "AsymmetricCroCo3DStereo"
    return parse_model_string(f"{name}({', '.join(f'{k}={_source(v)}' for k, v in arguments.items())})")


def _descriptions(paths: list[pathlib.Path]) -> list[dict[str, str]]:
    """The distinct networks that the files describe."""
    found: list[dict[str, str]] = []
    for path in paths:
        model = json.loads(path.read_text()).get("model")
        if model and model not in found:
            found.append(dict(model))
    return found


def _source(value: str) -> str:
    """A value as Python source: the format writes strings without quotes."""
    try:
        ast.literal_eval(str(value).replace("inf", "1e999"))
    except (ValueError, SyntaxError):
        return repr(value)
    return str(value)


def golden_model(config: DUSt3RConfig, seed: int, gains: Mapping[str, float]) -> DUSt3R:
    """The network with golden weights, which are converted like a real checkpoint."""
    return _golden_model(config, seed, tuple(gains.items()))


@functools.lru_cache(maxsize=2)
def _golden_model(config: DUSt3RConfig, seed: int, gains: tuple[tuple[str, float], ...]) -> DUSt3R:
    return model_from(config, read_parameters(golden_source(config, seed, dict(gains)))[0])


def golden_flow_network(config: FlowConfig, seed: int, gains: Mapping[str, float]) -> FlowNetwork:
    """As `golden_model`, for an optical flow network."""
    return model_from(config, read_parameters(golden_source(config, seed, gains))[0])


def golden_vggt_config(settings: Mapping[str, Any], encoder: str) -> VGGTConfig:
    """The architecture that the `config.json` of a folder of VGGT's arrays describes."""
    aggregator, dino, dense = (settings[name] for name in ("aggregator", "dino", "dpt_heads"))
    sizes: dict[str, Any] = {}
    if track := settings.get("track_head"):
        names = {"features": "features", "hidden_size": "hidden", "corr_levels": "levels", "corr_radius": "radius"}
        sizes = {f"track_{ours}": track[theirs] for theirs, ours in names.items()}
        sizes |= {"track_iterations": track["iters"]}
    return VGGTConfig(
        image_size=(aggregator["img_size"],) * 2,
        patch_size=aggregator["patch_size"],
        encoder="dino" if encoder == "dino" else "conv",
        enc_depth=dino["depth"],
        dim=aggregator["embed_dim"],
        depth=aggregator["depth"],
        num_heads=aggregator["num_heads"],
        registers=aggregator["num_register_tokens"],
        heads=HEADS if track else HEADS[:3],
        camera_depth=settings.get("camera_head", {}).get("trunk_depth", 4),
        features=dense["features"],
        level_dims=tuple(dense["out_channels"]),
        **sizes,
    )


def golden_vggt(config: VGGTConfig, entry: Mapping[str, Any]) -> VGGT:
    """As `golden_model`, for VGGT.

    Args:
      config: the architecture.
      entry: of a file in `config.json`: `weight_seed`, `gains` and `offsets`.
    """
    source = golden_source(config, entry["weight_seed"], entry["gains"], entry["offsets"])
    return model_from(config, read_parameters(source)[0])


def golden_source(
    config: DUSt3RConfig | VGGTConfig | FlowConfig,
    seed: int,
    gains: Mapping[str, float],
    offsets: Mapping[str, Sequence[float]] = types.MappingProxyType({}),
) -> OpenedWeights:
    """Golden weights under their state-dict names, as an open checkpoint whose tensors are computed on demand."""

    def lazy(name: str, shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(shape, "float32", lambda: golden_tensor(seed, name, shape, gains, offsets), identity=name)

    shapes = parameter_shapes(config)
    tensors = {name: lazy(name, shape) for name, shape in table.unused(config).items()}
    for rule in table.rules(config):
        shape = shapes[rule.target]
        stacked = "{}" in rule.source
        their_shape = rule.transform.their_shape(shape[1:] if stacked else shape)
        for n in range(shape[0] if stacked else 1):
            name = rule.source.format(n)
            tensors[name] = lazy(name, their_shape)
            if rule.alias is not None:
                tensors[rule.alias] = tensors[name]
    return OpenedWeights("golden weights", (), config, tensors, ())
