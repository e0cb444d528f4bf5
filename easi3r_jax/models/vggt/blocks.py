"""Transformer blocks of VGGT: pre-norm, layer scale, and in the aggregator norms and rotations of queries and keys.

Residual stream, norms and rotations stay float32; the branches compute in the blocks' number type.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.models.layers import MLP, DType, LayerNorm, at_least_float32, linear
from easi3r_jax.models.rope import apply_rope, rope_table
from easi3r_jax.models.statistics import QueriesKeys
from easi3r_jax.models.vggt.attention import attend
from easi3r_jax.models.vggt.chunks import by_chunks

Rope = tuple[Float[Array, "N 2 angles"], Float[Array, "N 2 angles"]]
# Tokens whose hidden channels of the MLP are in memory at a time.
_MLP_TOKENS = 1 << 15


class Attention(nnx.Module):
    """Multi-head self-attention over each frame's tokens, or over all frames' tokens together."""

    def __init__(self, dim: int, num_heads: int, *, normed: bool, dtype: DType, rngs: nnx.Rngs):
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = linear(dim, dim, dtype=dtype, rngs=rngs)
        head_dim = dim // num_heads
        self.q_norm = LayerNorm(head_dim, epsilon=1e-5, rngs=rngs) if normed else None
        self.k_norm = LayerNorm(head_dim, epsilon=1e-5, rngs=rngs) if normed else None
        self.num_heads = num_heads

    def __call__(
        self,
        x: Float[Array, "B N C"],
        rope: Rope | None = None,
        kept: Bool[Array, "B N"] | None = None,
        *,
        across: bool = False,
    ) -> tuple[Float[Array, "B N C"], QueriesKeys]:
        """Returns the output (B, N, C), and queries and keys (B, N, A, D) as they are multiplied."""
        projected = self.qkv(x)
        queries, keys, values = (p.reshape(*p.shape[:-1], self.num_heads, -1) for p in jnp.split(projected, 3, axis=-1))
        queries, keys = self._positioned(queries, self.q_norm, rope), self._positioned(keys, self.k_norm, rope)
        together = (lambda y: y.reshape(1, -1, *y.shape[2:])) if across else (lambda y: y)
        seen = None if kept is None else together(kept)
        out = attend(together(queries), together(keys), together(values), seen)
        return self.proj(out.reshape(x.shape)), (queries, keys)

    @staticmethod
    def _positioned(x: Array, norm: Callable[[Array], Array] | None, rope: Rope | None) -> Array:
        wide = at_least_float32(x.dtype)
        y = x if norm is None else norm(x.astype(wide))
        return (y if rope is None else apply_rope(y, rope)).astype(x.dtype)


class Block(nnx.Module):
    """x += scale1 * attention(norm1(x)); x += scale2 * mlp(norm2(x))."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        epsilon: float,
        normed: bool,
        scale: float,
        dtype: DType,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.attention = Attention(dim, num_heads, normed=normed, dtype=dtype, rngs=rngs)
        self.scale1 = nnx.Param(jnp.full((dim,), scale, jnp.float32))
        self.norm2 = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.mlp = MLP(dim, int(dim * mlp_ratio), dtype=dtype, rngs=rngs)
        self.scale2 = nnx.Param(jnp.full((dim,), scale, jnp.float32))

    def __call__(
        self,
        x: Float[Array, "B N C"],
        rope: Rope | None = None,
        kept: Bool[Array, "B N"] | None = None,
        *,
        across: bool = False,
    ) -> tuple[Float[Array, "B N C"], QueriesKeys]:
        """Tokens after the block, and the queries and keys of its attention; see `Attention`.

        Args:
          x: (B, N, C) tokens of B frames.
          rope: rotations of a frame's tokens; None: no rotation.
          kept: (B, N) bool, False for tokens whose keys and values are left out; None: all.
          across: one attention over the tokens of all frames, instead of one in each frame.
        """
        attended, queries_keys = self.attention(self.norm1(x), rope, kept, across=across)
        x = x + attended.astype(x.dtype) * _last(self.scale1[...], x)
        x = x + self._mlp(self.norm2(x)).astype(x.dtype) * _last(self.scale2[...], x)
        return x, queries_keys

    def _mlp(self, x: Array) -> Array:
        return by_chunks(self.mlp, x, max(1, _MLP_TOKENS // x.shape[1]))


def _last(scale: Array, x: Array) -> Array:
    """A vector of channels, with the rank of `x`."""
    return scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def stack_of_blocks(depth: int, make: Callable[[nnx.Rngs], Block], rngs: nnx.Rngs) -> Block:
    """Blocks stacked along a leading axis of their parameters, for `jax.lax.scan`."""
    return jax.vmap(make)(rngs.split(depth))


def frame_rope(grid: tuple[int, int], special: int, head_dim: int, base: float) -> Rope:
    """Rotations of a frame's tokens: the special ones at position (0, 0), then the patches at (row + 1, column + 1)."""

    def with_special(table: Array) -> Array:
        patches = table.reshape(grid[0] + 1, grid[1] + 1, *table.shape[1:])[1:, 1:]
        patches = patches.reshape(grid[0] * grid[1], *table.shape[1:])
        return jnp.concatenate([jnp.broadcast_to(table[:1], (special, *table.shape[1:])), patches])

    cos, sin = rope_table((grid[0] + 1, grid[1] + 1), head_dim, base)
    return with_special(cos), with_special(sin)
