"""The network's stages and the masks as pure functions, for `jit`, `vmap` and `grad`, also with respect to the model.

    encode_frames ──▶ features ──▶ attention_statistics ──▶ attention_maps ──▶ motion_masks
                         └──▶ predict_pairs ──▶ alignment.make_problem, alignment.total_loss

`pipeline` runs the same stages batch by batch from the host, with progress and in bounded memory. Here a whole stage is
one expression. `batch_size` bounds its memory: frames and pairs are then processed in batches (`jax.lax.map`), and each
batch is recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from easi3r_jax import motion
from easi3r_jax.core.arrays import Array, Bool, Float, Int, Key, UInt8
from easi3r_jax.core.config import SegmentationConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.statistics import AttentionStats
from easi3r_jax.core.types import PairPredictions, Segmentation, TemporalMaps
from easi3r_jax.inference.clip import check_size
from easi3r_jax.models import PairNetwork


def encode_frames(model: PairNetwork, rgb: UInt8[Array, "T H W 3"], *, batch_size: int = 0) -> Float[Array, "T N C"]:
    """Encodes every frame once: (T, H, W, 3) uint8 to (T, N, C) float32 features.

    Raises:
      InputError: frames of a size that the network cannot take or was not trained for.
    """
    check_size(model, (rgb.shape[1], rgb.shape[2]))
    return _encode(model, rgb, batch_size)


def predict_pairs(
    model: PairNetwork,
    rgb: UInt8[Array, "T H W 3"],
    edges: Int[Array, "E 2"],
    *,
    dynamic_mask: Bool[Array, "T H W"] | None = None,
    features: Float[Array, "T N C"] | None = None,
    batch_size: int = 0,
) -> PairPredictions:
    """Point maps of directed pairs of a clip's frames.

    Args:
      model: the network.
      rgb: (T, H, W, 3) uint8.
      edges: (E, 2) int, frames (i, j) of each pair.
      dynamic_mask: (T, H, W) bool, masked in the decoder's cross-attention (Easi3R, sec. 3.3); None: plain attention.
      features: precomputed `encode_frames(model, rgb)`.
      batch_size: frames and pairs at a time; 0: all at once.

    Raises:
      InputError: as `encode_frames`; pairs of frames that do not exist; arrays of another clip.
    """
    encoded = encode_frames(model, rgb, batch_size=batch_size) if features is None else features
    grid, edges = model.grid((rgb.shape[1], rgb.shape[2])), _checked(edges, len(rgb))
    for name, x in (("features", features), ("dynamic_mask", dynamic_mask)):
        if x is not None and len(x) != len(rgb):
            raise InputError(f"There are {name} of {len(x)} frames for a clip of {len(rgb)}.")
    tokens = None if dynamic_mask is None else motion.token_masks(dynamic_mask, model.config.patch_size)

    points_i, confidence_i, points_j, confidence_j = _point_maps(model, encoded, edges, tokens, grid, batch_size)
    maps = (points_i, points_j, confidence_i, confidence_j)
    return PairPredictions(edges, *maps, num_frames=len(rgb), metric=model.config.metric)


def attention_statistics(
    model: PairNetwork,
    features: Float[Array, "T N C"],
    edges: Int[Array, "E 2"],
    grid: tuple[int, int],
    *,
    gram: bool = False,
    batch_size: int = 0,
) -> motion.TemporalState:
    """Moments over each frame's pairs of the cross-attention statistics (Easi3R, sec. 3.2, eq. 3).

    Args:
      model: the network.
      features: (T, N, C) from `encode_frames`.
      edges: (E, 2) int, frames (i, j) of each pair.
      grid: (h, w) tokens: `model.grid((H, W))`.
      gram: also Gram statistics, for cues that read them.
      batch_size: pairs at a time; 0: all at once.

    Raises:
      InputError: pairs of frames that do not exist.
    """
    return _statistics(model, features, _checked(edges, len(features)), grid, gram, batch_size)


def attention_maps(
    model: PairNetwork, rgb: UInt8[Array, "T H W 3"], edges: Int[Array, "E 2"], *, batch_size: int = 0
) -> TemporalMaps:
    """The four temporal attention maps of every frame, (T, h, w) float32 in [0, 1] each (Easi3R, sec. 3.2).

    Args:
      model: the network.
      rgb: (T, H, W, 3) uint8.
      edges: (E, 2) int, frames (i, j) of each pair.
      batch_size: frames and pairs at a time; 0: all at once.

    Raises:
      InputError: as `encode_frames`.
    """
    grid = model.grid((rgb.shape[1], rgb.shape[2]))
    features = encode_frames(model, rgb, batch_size=batch_size)
    return _fuse(attention_statistics(model, features, edges, grid, batch_size=batch_size), grid)


def motion_masks(
    model: PairNetwork,
    rgb: UInt8[Array, "T H W 3"],
    edges: Int[Array, "E 2"],
    config: SegmentationConfig = SegmentationConfig(),
    *,
    readout: motion.Readout | None = None,
    key: Key[Array, ""] | None = None,
    batch_size: int = 0,
) -> Segmentation:
    """Dynamic regions of a clip from plain attention: the method up to its first masks (Easi3R, sec. 3.2).

    `score` is differentiable with respect to the model; clusters, threshold and mask are piecewise constant.

    Args:
      model: the network.
      rgb: (T, H, W, 3) uint8.
      edges: (E, 2) int, frames (i, j) of each pair.
      config: options for clustering and threshold.
      readout: of the attention; None: the network's own if it has one, else the published formula.
      key: for k-means; None: `jax.random.key(0)`.
      batch_size: frames and pairs at a time; 0: all at once.

    Raises:
      InputError: as `encode_frames`.
    """
    size = rgb.shape[1], rgb.shape[2]
    grid = model.grid(size)
    features = encode_frames(model, rgb, batch_size=batch_size)
    if readout is None and model.readout is not None:
        readout = motion.Readout.from_config(model.readout)
    gram = motion.needs_gram(readout)
    statistics = attention_statistics(model, features, edges, grid, gram=gram, batch_size=batch_size)
    key = jax.random.key(0) if key is None else key
    return _segment(statistics, features, size, grid, config, key, readout)


# Compiled a stage at a time, so that eager calls are fast: what calls them may compile them into one program.


@partial(jax.jit, static_argnames=("batch_size",))
def _encode(model: PairNetwork, rgb: Array, batch_size: int) -> Array:
    return _batched(model.encode, batch_size, rgb)


@partial(jax.jit, static_argnames=("grid", "gram", "batch_size"))
def _statistics(
    model: PairNetwork, features: Array, edges: Array, grid: tuple[int, int], gram: bool, batch_size: int
) -> motion.TemporalState:
    def pairs(edges: Array) -> AttentionStats:
        return model.decode(features[edges[:, 0]], features[edges[:, 1]], grid, gram=gram).stats

    config = model.config
    empty = motion.init_temporal(len(features), config.dec_depth, config.dec_heads, grid[0] * grid[1], gram=gram)
    return motion.update_temporal(empty, _batched(pairs, batch_size, edges), edges, jnp.ones(len(edges), bool), grid)


@partial(jax.jit, static_argnames=("grid", "batch_size"))
def _point_maps(
    model: PairNetwork, features: Array, edges: Array, tokens: Array | None, grid: tuple[int, int], batch_size: int
) -> tuple[Array, Array, Array, Array]:
    def pairs(edges: Array) -> tuple[Array, Array, Array, Array]:
        i, j = edges[:, 0], edges[:, 1]
        masked = None if tokens is None else (tokens[i], tokens[j])
        decoded = model.decode(features[i], features[j], grid, masked)
        return model.predict(features[i], features[j], decoded, grid)

    return _batched(pairs, batch_size, edges)


_fuse = jax.jit(motion.fuse_temporal, static_argnums=1)


@partial(jax.jit, static_argnames=("size", "grid", "config"))
def _segment(
    statistics: motion.TemporalState,
    features: Array,
    size: tuple[int, int],
    grid: tuple[int, int],
    config: SegmentationConfig,
    key: Array,
    readout: motion.Readout | None,
) -> Segmentation:
    labels = motion.cluster_labels(jax.lax.stop_gradient(features), grid, config, key)
    residual = None if readout is None else readout.residual(statistics, grid)
    maps = motion.motion_maps(statistics, labels, config, residual)
    return motion.masks_from_maps(maps, size, config, at_least=None if readout is None else readout.at_least)


def _checked(edges: Array, num_frames: int) -> Array:
    """(E, 2) int32. Indexing would take the last frame for one that does not exist; traced edges are not checked."""
    if not isinstance(edges, Tracer):
        numbers = np.asarray(edges)
        if numbers.size == 0 or numbers.min() < 0 or numbers.max() >= num_frames:
            raise InputError(
                f"The pairs must be of frames 0..{num_frames - 1}, at least one: got {numbers.tolist()[:8]}."
            )
    return jnp.asarray(edges, jnp.int32)


def _batched(f: Callable[[Array], Any], batch_size: int, x: Array) -> Any:
    """`f(x)`; with a batch size, computed that many rows at a time in the memory of one batch."""
    if not batch_size or batch_size >= len(x):
        return f(x)
    one = jax.checkpoint(lambda row: jax.tree.map(lambda y: y[0], f(row[None])))
    return jax.lax.map(one, x, batch_size=batch_size)
