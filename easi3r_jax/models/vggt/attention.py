"""Attention over one or many frames' tokens, without a map over the tokens of all frames, and with keys left out.

Shapes: queries, keys and values are (B, N, A, D).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.models import attention
from easi3r_jax.models.layers import at_least_float32
from easi3r_jax.models.vggt.chunks import by_chunks

#: Numbers of a map of queries by keys that may be in memory at a time.
MAP_SIZE = 1 << 26
# Keys of a block; the queries of a block follow from `MAP_SIZE`.
_KEYS = 2048
# Logit of a key that is left out. Its weight underflows to 0, and differences of such logits stay finite.
_LEFT_OUT = -1e30
# The same as a product of an additional channel, within half precision. The fused kernel takes multiples of 8 channels.
_LEFT_OUT_HALF, _CHANNELS = -3e4, 8


def attend(
    queries: Float[Array, "B query A D"],
    keys: Float[Array, "B key A D"],
    values: Float[Array, "B key A D"],
    kept: Bool[Array, "B key"] | None = None,
    *,
    map_size: int = MAP_SIZE,
) -> Float[Array, "B query A D"]:
    """softmax(q k^T / sqrt(D)) v over the kept keys.

    A fused kernel computes it where there is one. Otherwise, where the map is larger than `map_size`, blocks of queries
    run over blocks of keys, with the softmax's maximum and sum carried along (arXiv 2205.14135).

    Args:
      queries, keys, values: (B, N, A, D).
      kept: (B, N_key) bool, False for keys that are left out; at least one is kept in each row. None: all.
      map_size: numbers of the map of queries by keys that may be in memory at a time.
    """
    batch, count, heads, dim = queries.shape
    fits = kept is None or dim + _CHANNELS <= attention.FUSED_HEAD_DIM
    if fits and attention._is_fused(queries):
        return _fused(queries, keys, values, kept)
    one = heads * count * keys.shape[1]
    if batch * one <= map_size:
        weights = jax.nn.softmax(_logits(queries, keys, kept), axis=-1).astype(keys.dtype)
        return jnp.einsum("baqk,bkad->bqad", weights, values)
    if batch == 1:
        return _blockwise(queries, keys, values, kept, map_size)

    rows = max(1, map_size // one)
    return by_chunks(lambda x: attend(*x, map_size=map_size), (queries, keys, values, kept), rows)


def _logits(queries: Array, keys: Array, kept: Array | None) -> Array:
    """(B, A, N_query, N_key), float32 or wider."""
    wide = at_least_float32(queries.dtype)
    logits = jnp.einsum("bqad,bkad->baqk", queries, keys, preferred_element_type=wide) * queries.shape[-1] ** -0.5
    return logits if kept is None else jnp.where(kept[:, None, None], logits, _LEFT_OUT)


def _fused(queries: Array, keys: Array, values: Array, kept: Array | None) -> Array:
    """By cuDNN. Left-out keys get an additional channel: a mask would be an array of the map's size."""
    if kept is None:
        return attention.dot_product_attention(queries, keys, values)
    dim, scale = queries.shape[-1], queries.shape[-1] ** -0.5

    def widened(x: Array, channel: Array) -> Array:
        channel = jnp.broadcast_to(channel.astype(x.dtype)[..., None, None], (*x.shape[:-1], 1))
        return jnp.pad(jnp.concatenate([x, channel], axis=-1), [(0, 0)] * 3 + [(0, _CHANNELS - 1)])

    ones, zeros = jnp.ones(queries.shape[:2]), jnp.zeros(keys.shape[:2])
    with jax.numpy_dtype_promotion("standard"):  # JAX's function mixes half and single precision inside
        out = jax.nn.dot_product_attention(
            widened(queries, ones),
            widened(keys, jnp.where(kept, 0.0, _LEFT_OUT_HALF)),
            widened(values, zeros),
            scale=scale,
            implementation="cudnn",
        )
    return out[..., :dim]


def _blockwise(queries: Array, keys: Array, values: Array, kept: Array | None, map_size: int) -> Array:
    """One sequence of many tokens: B = 1."""
    (count, heads, dim), num_keys = queries.shape[1:], keys.shape[1]
    wide = at_least_float32(queries.dtype)
    per_block = min(_KEYS, max(1, map_size // heads), num_keys)
    blocks = -(-num_keys // per_block)
    left = blocks * per_block - num_keys
    if left and kept is None:
        kept = jnp.ones((1, num_keys), bool)

    def in_blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, left), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(blocks, 1, per_block, *x.shape[2:])

    key_blocks = jax.tree.map(in_blocks, (keys, values, kept))

    def of_queries(own: Array) -> Array:
        def step(carry, block):
            peak, total, out = carry
            block_keys, block_values, block_kept = block
            logits = _logits(own, block_keys, block_kept)
            higher = jnp.maximum(peak, jnp.max(logits, axis=-1, keepdims=True))
            weights, fade = jnp.exp(logits - higher), jnp.exp(peak - higher)
            total = total * fade + jnp.sum(weights, axis=-1, keepdims=True)
            seen = jnp.einsum(
                "baqk,bkad->baqd", weights.astype(block_values.dtype), block_values, preferred_element_type=wide
            )
            return (higher, total, out * fade + seen), None

        shape = (1, heads, own.shape[1])
        start = (jnp.full((*shape, 1), _LEFT_OUT, wide), jnp.zeros((*shape, 1), wide), jnp.zeros((*shape, dim), wide))
        (_, total, out), _ = jax.lax.scan(step, start, key_blocks)
        return jnp.swapaxes(out / total, 1, 2).astype(values.dtype)[0]

    at_once = min(count, max(1, map_size // (heads * per_block)))
    groups = -(-count // at_once)
    padded = jnp.pad(queries, ((0, 0), (0, groups * at_once - count), (0, 0), (0, 0)))
    out = jax.lax.map(lambda q: of_queries(q[None]), padded.reshape(groups, at_once, heads, dim))
    return out.reshape(1, groups * at_once, heads, dim)[:, :count]
