"""Self- and cross-attention that return queries and keys with the output; `statistics` reduces them.

Shapes: queries, keys and values are (B, N, A, D); pre-softmax maps ("logits") are (B, A, N_query, N_key).
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core import target
from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.models.layers import DType, at_least_float32, linear
from easi3r_jax.models.rope import apply_rope
from easi3r_jax.models.statistics import QueriesKeys

#: Most channels of a head that cuDNN's fused kernel takes.
FUSED_HEAD_DIM = 128


def dot_product_attention(
    queries: Float[Array, "B query A D"], keys: Float[Array, "B key A D"], values: Float[Array, "B key A D_v"]
) -> Float[Array, "B query A D_v"]:
    """softmax(q k^T / sqrt(D)) v; the N x N map is not materialised where the backend has a fused kernel."""
    if _is_fused(queries):
        with jax.numpy_dtype_promotion("standard"):  # JAX's function mixes half and single precision inside
            return jax.nn.dot_product_attention(
                queries, keys, values, scale=queries.shape[-1] ** -0.5, implementation="cudnn"
            )
    return jnp.einsum("baqk,bkad->bqad", _weights(queries, keys), values)


def _weights(queries: Array, keys: Array) -> Array:
    """softmax(q k^T / sqrt(D)), (B, A, N_query, N_key), computed in float32 or wider and rounded to the keys' dtype.

    The numbers are those of `jax.nn.dot_product_attention(implementation="xla")`, which takes a quarter more time on a
    CPU and six times the temporary memory (3 x 576 tokens, 12 heads: 219 and 161 ms, 96 and 16 MB).
    """
    wide = at_least_float32(queries.dtype)
    logits = jnp.einsum("bqad,bkad->baqk", queries, keys, preferred_element_type=wide) * queries.shape[-1] ** -0.5
    return jax.nn.softmax(logits, axis=-1).astype(keys.dtype)


def _is_fused(queries: Array) -> bool:
    """Whether cuDNN's fused kernel serves: it takes half precision only."""
    head_dim, half = queries.shape[-1], queries.dtype in (jnp.bfloat16, jnp.float16)
    return half and head_dim % 8 == 0 and head_dim <= FUSED_HEAD_DIM and _has_fused_kernel()


def _has_fused_kernel() -> bool:
    """Whether the target is NVIDIA GPUs of compute capability 8.0 (Ampere) or later."""
    if not target.is_this_process():
        return target.platform() == "gpu"
    return _has_recent_gpu()


@functools.cache
def _has_recent_gpu() -> bool:
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # "9.0"; a name on ROCm
    is_nvidia = jax.default_backend() == "gpu" and re.fullmatch(r"\d+\.\d+", capability) is not None
    return is_nvidia and float(capability) >= 8.0


def attention_logits(
    queries: Float[Array, "B query A D"], keys: Float[Array, "B key A D"]
) -> Float[Array, "B A query key"]:
    """The full pre-softmax maps, (B, A, N_query, N_key), float32 or wider. Quadratic: for research and tests only."""
    queries, keys = (x.astype(at_least_float32(x.dtype)) for x in (queries, keys))
    products = jnp.einsum("bqad,bkad->baqk", queries, keys, precision=jax.lax.Precision.HIGHEST)
    return products * queries.shape[-1] ** -0.5


def masked_attention(
    queries: Float[Array, "B query A D"],
    keys: Float[Array, "B key A D"],
    values: Float[Array, "B key A D"],
    dynamic_query: Bool[Array, "B query"],
    dynamic_key: Bool[Array, "B key"],
) -> Float[Array, "B query A D"]:
    """Attention in which static queries ignore dynamic keys (Easi3R, eq. 9).

    Weights from static queries to dynamic keys are zeroed *after* the softmax; rows are not renormalised. This equals
    plain attention over values that are zero at the dynamic keys, so a fused kernel still applies. An additive -inf
    mask would renormalise, and is wrong. Without a fused kernel, one softmax serves both kinds of values, side by side:
    174 ms instead of 258 for 3 x 576 tokens and 12 heads on a CPU, with the same numbers.

    Args:
      queries, keys, values: (B, N, A, D).
      dynamic_query: (B, N_query) bool.
      dynamic_key: (B, N_key) bool.
    """
    static_values = jnp.where(dynamic_key[:, :, None, None], jnp.zeros_like(values), values)
    if _is_fused(queries):
        seen_by_static = dot_product_attention(queries, keys, static_values)
        seen_by_dynamic = dot_product_attention(queries, keys, values)
    else:
        both = jnp.concatenate([values, static_values], axis=-1)
        seen_by_dynamic, seen_by_static = jnp.split(dot_product_attention(queries, keys, both), 2, axis=-1)
    return jnp.where(dynamic_query[:, :, None, None], seen_by_dynamic, seen_by_static)


def _split_heads(x: Array, num_heads: int) -> Array:
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with rotary position embedding."""

    def __init__(self, dim: int, num_heads: int, *, dtype: DType, rngs: nnx.Rngs):
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.num_heads = num_heads

    def __call__(
        self,
        x: Float[Array, "B N C"],
        rope: tuple[Float[Array, "N 2 angles"], Float[Array, "N 2 angles"]],
        *,
        intermediates: bool = False,
    ) -> tuple[Float[Array, "B N C"], dict[str, Float[Array, "..."]]]:
        """Returns the output (B, N, C) and, with `intermediates`, a dict of queries, keys and pre-softmax maps."""
        queries, keys, values = (_split_heads(p, self.num_heads) for p in jnp.split(self.qkv(x), 3, axis=-1))
        rotated_queries, rotated_keys = apply_rope(queries, rope), apply_rope(keys, rope)
        out = dot_product_attention(rotated_queries, rotated_keys, values)
        record = {}
        if intermediates:
            record = {
                "queries": queries,
                "keys": keys,
                "rotated_queries": rotated_queries,
                "rotated_keys": rotated_keys,
                "logits": attention_logits(rotated_queries, rotated_keys),
            }
        return self.proj(out.reshape(x.shape)), record


class CrossAttention(nnx.Module):
    """Multi-head attention to another view's tokens, with rotary position embedding on both sides."""

    def __init__(self, dim: int, num_heads: int, *, dtype: DType, rngs: nnx.Rngs):
        self.q = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.k = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.v = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.num_heads = num_heads

    def __call__(
        self,
        x: Float[Array, "B N C"],
        memory: Float[Array, "B N C"],
        rope: tuple[Float[Array, "N 2 angles"], Float[Array, "N 2 angles"]],
        dynamic_tokens: tuple[Bool[Array, "B N"], Bool[Array, "B N"]] | None = None,
        *,
        intermediates: bool = False,
    ) -> tuple[Float[Array, "B N C"], QueriesKeys, dict[str, Float[Array, "..."]]]:
        """Attends from `x` to `memory`, both (B, N, C).

        Args:
          x, memory: tokens of this view and of the other view.
          rope: from `rope_table`.
          dynamic_tokens: (query, key) token masks, (B, N) bool each, for masked re-attention; None for plain attention.
          intermediates: also return rotated queries and keys and the full pre-softmax maps.

        Returns:
          output (B, N, C); queries and keys (B, N, A, D) with rotary embedding; dict of intermediates.
        """
        queries = apply_rope(_split_heads(self.q(x), self.num_heads), rope)
        keys = apply_rope(_split_heads(self.k(memory), self.num_heads), rope)
        values = _split_heads(self.v(memory), self.num_heads)
        if dynamic_tokens is None:
            out = dot_product_attention(queries, keys, values)
        else:
            out = masked_attention(queries, keys, values, *dynamic_tokens)
        record = {}
        if intermediates:
            logits = attention_logits(queries, keys)
            record = {"rotated_queries": queries, "rotated_keys": keys, "logits": logits}
        return self.proj(out.reshape(x.shape)), (queries, keys), record
