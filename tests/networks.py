"""The smallest network with all parts, for tests to modify, and its weights."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from easi3r_jax.apps.parity.weights import golden_source, golden_vggt
from easi3r_jax.models import VGGT, DUSt3R, VGGTConfig, policy
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.dust3r import abstract_parts
from easi3r_jax.models.parameters import FlowNetwork, model_from, parameter_shapes

_SMALL = dataclasses.replace(DUSt3RConfig.thumbnail(), enc_dim=16, enc_depth=1, dec_dim=16)


def small_network(**changes: Any) -> DUSt3RConfig:
    """Its configuration, with these fields changed."""
    return dataclasses.replace(_SMALL, **changes)


#: The smallest VGGT with a layer in every band of its cue. Its encoder is only a patch embedding.
SMALL_VGGT = VGGTConfig(
    image_size=(28, 28),
    encoder="conv",
    dim=16,
    depth=4,
    num_heads=2,
    mlp_ratio=2.0,
    heads=("camera", "depth"),
    camera_depth=1,
    camera_iterations=2,
    features=8,
    level_dims=(4, 4, 8, 8),
)

# Fields of view of about 1.
_VGGT = {
    "gains": {"pose_branch.fc2.weight": 0.2, ".ls1.gamma": 0.3, ".ls2.gamma": 0.3},
    "offsets": {"pose_branch.fc2.bias": (0, 0, 0.1, 0, 0, 0, 1.0, 0.5, 0.6)},
}


def vggt_tensors(config: VGGTConfig = SMALL_VGGT, seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict of VGGT under its released names."""
    source = golden_source(config, seed, _VGGT["gains"], _VGGT["offsets"])
    return {name: np.ascontiguousarray(tensor.read()) for name, tensor in source.tensors.items()}


def vggt(config: VGGTConfig = SMALL_VGGT, seed: int = 0) -> VGGT:
    """A VGGT with the weights of `vggt_tensors`."""
    return golden_vggt(config, {"weight_seed": seed, **_VGGT})


def small_released(head: str) -> DUSt3RConfig:
    """As narrow, with the patches and the decoder's depth that the DPT head needs."""
    describes = {"descriptor_dim": 6, "metric": True} if head == "catmlp+dpt" else {}
    return small_network(patch_size=16, enc_depth=2, dec_dim=24, dec_depth=4, head=head, **describes)


def network(config: DUSt3RConfig, precision: str = "exact", *, seed: int = 0) -> DUSt3R:
    """As `random_model`, with other numbers: drawn by NumPy, since JAX would compile a program for every shape."""
    graphdef, _ = abstract_parts(config, policy(precision), None)
    # Its own arrays, which a test may donate or change.
    arrays = jax.tree.map(lambda x: jax.device_put(x.copy()), _drawn(config, precision, seed))
    return nnx.merge(graphdef, arrays, copy=True)


@functools.cache
def _drawn(config: DUSt3RConfig, precision: str, seed: int) -> nnx.State:
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if "kernel" not in name:
            return np.full(leaf.shape, 1.0 if "scale" in name else 0.0, leaf.dtype)
        if leaf.ndim == 4:  # of a convolution
            deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        else:  # of a linear layer, or of those of all blocks
            deviation = math.sqrt(2 / sum(leaf.shape[-2:])) * (0.02 if ".out." in name else 1.0)
        return (rng.uniform(-1, 1, leaf.shape) * math.sqrt(3) * deviation).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_parts(config, policy(precision), None)[1])


@functools.cache
def flow_network(config: FlowConfig) -> FlowNetwork:
    """A flow network of random weights, drawn once: not to be changed."""
    rng, shapes = np.random.default_rng(0), parameter_shapes(config)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        uniform = rng.random(shape, np.float32)
        if name.endswith("var"):
            return uniform + np.float32(0.5)
        return np.float32((3 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 1) * (2 * uniform - 1)

    return model_from(config, {name: jax.device_put(draw(name, shape)) for name, shape in shapes.items()})
