"""The network over a whole clip: every frame encoded, every pair decoded, in batches of one shape.

Within a pass, the network sees batches of one shape, which for long clips does not depend on their length. If the
network lies on a mesh (see `sharding`), its batches are sharded over the devices.

Letters: B pairs (or frames) in a batch.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from easi3r_jax import motion
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.batches import Batches, batch_size, most_at_once, pad_pairs, padded
from easi3r_jax.core.conversion import check_conversion
from easi3r_jax.core.sharding import REPLICATED, ROWS
from easi3r_jax.core.types import Frames, PairPredictions, Progress, silent
from easi3r_jax.models import PairNetwork

#: Temporary memory per token of a pair with DPT heads, the largest of the passes, in XLA's count for a CPU
#: (`compiled.memory_analysis()`: 227 MB of a pair of 512 x 288, which has 576 tokens).
BYTES_PER_TOKEN = 394_000


def encode(model: PairNetwork, frames: Frames, *, batch: int = 0, progress: Progress = silent) -> Float[Array, "T N C"]:
    """Encodes every frame once: (T, N, C) float32, replicated on every device of the network's mesh. Runs on the host.

    Args:
      model: the network.
      frames: the clip. If it has a `valid` field, clips share compiled shapes: unless the clip fits into one batch, all
        batches are full. The waste is small compared with the work on pairs.
      batch: frames at a time; 0: chosen by the number of tokens.
      progress: called before each batch and at the end.
    """
    num_frames, height, width = frames.rgb.shape[:3]
    mesh = sharding.mesh_of(model)
    shards = sharding.num_shards(mesh)
    per_device, most = -(-num_frames // shards), _most_at_once(model.grid((height, width)))
    full = frames.valid is not None and per_device > most
    batch = shards * (-(-batch // shards) or (most if full else batch_size(per_device, most)))
    parts = []
    for start in range(0, num_frames, batch):
        progress("encode", start, num_frames, "")
        rgb = sharding.shard_rows(padded(np.asarray(frames.rgb[start : start + batch]), batch), mesh)
        parts.append(sharding.replicate(_encode_batch(model, rgb, mesh).block_until_ready(), mesh))
    features = jnp.concatenate(parts)[:num_frames]
    progress("encode", num_frames, num_frames, "")
    return features


def attention_pass(
    model: PairNetwork,
    features: Float[Array, "T N C"],
    edges: Int[np.ndarray, "E 2"],
    grid: tuple[int, int],
    *,
    valid: Bool[np.ndarray, "E"] | None = None,
    gram: bool = False,
    batch: int = 0,
    progress: Progress = silent,
) -> motion.TemporalState:
    """First pass: statistics of every pair's cross-attention, aggregated over the pairs of each frame, without heads.

    Runs on the host; `attention_statistics` is its pure counterpart.

    Args:
      model: the network.
      features: (T, N, C) of all frames.
      edges: (E, 2) int, frames of the pairs.
      grid: (h, w) tokens.
      valid: (E,) bool, False for padding; None: all are valid.
      gram: also Gram statistics, for cues that read them.
      batch: pairs at a time; 0: chosen by the number of tokens.
      progress: called before each batch and at the end.
    """
    mesh = sharding.mesh_of(model)
    features = sharding.replicate(features, mesh)
    state = _empty_temporal(model, len(features), grid, mesh, gram)
    batches, _, _, total = _batched(edges, valid, grid, mesh, batch)
    for n in range(batches.count):
        progress("attention", batches.done(n), total, "")
        part, is_valid = batches[n]
        if not is_valid.any():
            continue
        stats, _ = _network_batch(model, *_gather_batch(features, part, None, mesh), grid, mesh, gram=gram, heads=False)
        state = jax.block_until_ready(_merge_batch(state, sharding.replicate(stats, mesh), part, is_valid, grid))
    progress("attention", total, total, "")
    return state


def prediction_pass(
    model: PairNetwork,
    features: Float[Array, "T N C"],
    edges: Int[np.ndarray, "pairs 2"],
    grid: tuple[int, int],
    *,
    valid: Bool[np.ndarray, "pairs"] | None = None,
    dynamic_tokens: Bool[Array, "T N"] | None = None,
    gram: bool = False,
    dtype: str = "float32",
    batch: int = 0,
    progress: Progress = silent,
    stage: str = "predict",
) -> tuple[PairPredictions, motion.TemporalState]:
    """Point maps of every pair, and the statistics of this pass. Runs on the host; see `predict_pairs` for a pure one.

    Args:
      model, features, edges, grid, valid, gram: as in `attention_pass`.
      dynamic_tokens: (T, N) bool, for masked re-attention; None for plain attention.
      dtype: of the point maps.
      batch: pairs at a time; 0: chosen by the number of tokens.
      progress: called before each batch and at the end.
      stage: name of the stage for `progress`.

    Returns:
      point maps sharded by pairs over the network's mesh, padded if the devices need equal shards; and statistics.

    Raises:
      ConfigError: the device cannot convert to `dtype`.
    """
    check_conversion(dtype)
    mesh = sharding.mesh_of(model)
    features, dynamic_tokens = sharding.replicate((features, dynamic_tokens), mesh)
    batches, edges, valid, total = _batched(edges, valid, grid, mesh, batch)
    state = _empty_temporal(model, len(features), grid, mesh, gram)
    size = (grid[0] * model.config.patch_size, grid[1] * model.config.patch_size)
    store = tuple(batches.empty((*size, *channels), dtype) for channels in ((3,), (), (3,), ()))
    for n in range(batches.count):
        progress(stage, batches.done(n), total, "")
        part, is_valid = batches[n]
        inputs = _gather_batch(features, part, dynamic_tokens, mesh)
        stats, predicted = _network_batch(model, *inputs, grid, mesh, gram=gram, heads=True)
        store = batches.keep(store, predicted, n)
        state = jax.block_until_ready(_merge_batch(state, sharding.replicate(stats, mesh), part, is_valid, grid))
    progress(stage, total, total, "")
    points_i, confidence_i, points_j, confidence_j = store
    maps = (points_i, points_j, confidence_i, confidence_j)
    return PairPredictions(edges, *maps, valid, len(features), metric=model.config.metric), state


def _batched(
    edges: np.ndarray, valid: np.ndarray | None, grid: tuple[int, int], mesh: Mesh | None, batch: int
) -> tuple[Batches, np.ndarray, np.ndarray | None, int]:
    """Batches of pairs, the pairs padded for the mesh, which of them are valid, and the number of valid ones."""
    count = len(edges)
    edges, added = pad_pairs(edges, 0, mesh)
    valid = added if valid is None else padded(valid, len(edges)) & (np.arange(len(edges)) < count)
    total = len(edges) if valid is None else int(np.sum(valid))
    return Batches(edges, _most_at_once(grid), mesh, valid=valid, batch=batch), edges, valid, total


def _most_at_once(grid: tuple[int, int]) -> int:
    """Pairs or frames that a device takes at a time."""
    return most_at_once(BYTES_PER_TOKEN * grid[0] * grid[1])


def _empty_temporal(
    model: PairNetwork, num_frames: int, grid: tuple[int, int], mesh: Mesh | None, gram: bool
) -> motion.TemporalState:
    config = model.config
    empty = _no_pairs(num_frames, config.dec_depth, config.dec_heads, grid[0] * grid[1], gram=gram)
    return sharding.replicate(empty, mesh)


# --- compiled ------------------------------------------------------------------------------------------------------
#
# The network is compiled separately from gathering its inputs and storing its outputs: these depend on the clip's
# length and compile quickly, while the network does neither.


_no_pairs = jax.jit(motion.init_temporal, static_argnums=(0, 1, 2, 3), static_argnames=("gram",))


@partial(jax.jit, static_argnames=("mesh",))
def _encode_batch(model: PairNetwork, rgb: Array, mesh: Mesh | None) -> Array:
    return sharding.shard_map(lambda model, rgb: model.encode(rgb), mesh, (REPLICATED, ROWS), ROWS)(model, rgb)


@partial(jax.jit, static_argnames=("mesh",))
def _gather_batch(features: Array, edges: Array, dynamic_tokens: Array | None, mesh: Mesh | None):
    """Features of both frames of a batch's pairs, (B, N, C), and their token masks."""

    def gather(features: Array, edges: Array, dynamic_tokens: Array | None):
        i, j = edges[:, 0], edges[:, 1]
        return features[i], features[j], None if dynamic_tokens is None else (dynamic_tokens[i], dynamic_tokens[j])

    return sharding.shard_map(gather, mesh, (REPLICATED, ROWS, REPLICATED), ROWS)(features, edges, dynamic_tokens)


@partial(jax.jit, static_argnames=("grid", "mesh", "gram", "heads"))
def _network_batch(model, features_i, features_j, dynamic_tokens, grid, mesh, *, gram, heads):
    """Statistics of a batch, and the heads' predictions if requested."""

    def network(model: PairNetwork, features_i: Array, features_j: Array, dynamic_tokens):
        decoded = model.decode(features_i, features_j, grid, dynamic_tokens, gram=gram)
        return decoded.stats, model.predict(features_i, features_j, decoded, grid) if heads else ()

    return sharding.shard_map(network, mesh, (REPLICATED, ROWS, ROWS, ROWS), ROWS)(
        model, features_i, features_j, dynamic_tokens
    )


@partial(jax.jit, static_argnames=("grid",), donate_argnames=("state",))
def _merge_batch(state, stats, edges, valid, grid):
    return motion.update_temporal(state, stats, edges, valid, grid)
