"""The two-branch decoder: two views' tokens exchange information through cross-attention."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easi3r_jax.core.arrays import Array, Bool, Float, pytree_dataclass
from easi3r_jax.core.statistics import AttentionStats, GramStats
from easi3r_jax.models.attention import CrossAttention, SelfAttention
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.models.layers import MLP, DType, LayerNorm, at_least_float32, linear
from easi3r_jax.models.rope import rope_table
from easi3r_jax.models.statistics import QueriesKeys, gram_statistics, mean_logits


@pytree_dataclass
class Decoded:
    """The decoder's outputs for E directed pairs (i, j).

    Attributes:
      tokens_i, tokens_j: (K, E, N, C), outputs of the K blocks that the head reads (K = 1 for the linear head);
        the last one is normalised.
      stats: statistics of the cross-attention, (E, L, A, N); with `gram=True`, `stats.gram` too.
      intermediates: with `intermediates=True`, `branch1` and `branch2`: dicts of `blocks` (L, E, N, C), `self` and
        `cross` attention records (queries, keys, full pre-softmax maps); else empty.
    """

    tokens_i: Float[Array, "K E N C"]
    tokens_j: Float[Array, "K E N C"]
    stats: AttentionStats
    intermediates: dict


class DecoderBlock(nnx.Module):
    """Self-attention, cross-attention to the other branch's previous layer, MLP; pre-norm, float32 residual stream."""

    def __init__(self, config: DUSt3RConfig, *, dtype: DType, rngs: nnx.Rngs):
        dim, heads = config.dec_dim, config.dec_heads
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.self_attention = SelfAttention(dim, heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)
        self.norm_y = LayerNorm(dim, rngs=rngs)
        self.cross_attention = CrossAttention(dim, heads, dtype=dtype, rngs=rngs)
        self.norm3 = LayerNorm(dim, rngs=rngs)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "E N C"],
        other: Float[Array, "E N C"],
        rope: tuple[Float[Array, "N 2 angles"], Float[Array, "N 2 angles"]],
        dynamic_tokens: tuple[Bool[Array, "E N"], Bool[Array, "E N"]] | None = None,
        *,
        intermediates: bool = False,
    ) -> tuple[Float[Array, "E N C"], QueriesKeys, dict]:
        """Returns the tokens, queries and keys of the cross-attention, and a dict of intermediates."""
        attended, self_record = self.self_attention(self.norm1(x), rope, intermediates=intermediates)
        x = x + attended.astype(x.dtype)
        attended, queries_keys, cross_record = self.cross_attention(
            self.norm2(x), self.norm_y(other), rope, dynamic_tokens, intermediates=intermediates
        )
        x = x + attended.astype(x.dtype)
        x = x + self.mlp(self.norm3(x)).astype(x.dtype)
        return x, queries_keys, {"blocks": x, "self": self_record, "cross": cross_record} if intermediates else {}


class Decoder(nnx.Module):
    """Embedding, two stacks of blocks run together by one `scan`, one norm for both branches."""

    def __init__(self, config: DUSt3RConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.embed = linear(config.enc_dim, config.dec_dim, dtype=dtype, rngs=rngs)
        self.branch1 = jax.vmap(lambda r: DecoderBlock(config, dtype=dtype, rngs=r))(rngs.split(config.dec_depth))
        self.branch2 = jax.vmap(lambda r: DecoderBlock(config, dtype=dtype, rngs=r))(rngs.split(config.dec_depth))
        self.norm = LayerNorm(config.dec_dim, rngs=rngs)
        self.config = config

    def __call__(
        self,
        features_i: Float[Array, "E N C_enc"],
        features_j: Float[Array, "E N C_enc"],
        grid: tuple[int, int],
        dynamic_tokens: tuple[Bool[Array, "E N"], Bool[Array, "E N"]] | None = None,
        *,
        gram: bool = False,
        intermediates: bool = False,
    ) -> Decoded:
        """Decodes E directed pairs.

        Both branches of a layer read the *previous* layer of both. Branch 1 carries the tokens of view i, branch 2
        those of view j.

        Args:
          features_i, features_j: (E, N, C_enc) encoder tokens.
          grid: (h, w) tokens of either view.
          dynamic_tokens: (of view i, of view j) token masks, (E, N) bool; masks the cross-attention of branch 1 only.
          gram: also return Gram statistics, for cues that read them.
          intermediates: return every layer's record.
        """
        config = self.config
        rope = rope_table(grid, config.dec_dim // config.dec_heads, config.rope_base)
        tokens_i, tokens_j = (self.embed(f) for f in (features_i, features_j))
        tokens_i, tokens_j = (x.astype(at_least_float32(x.dtype)) for x in (tokens_i, tokens_j))

        # The DPT head reads a few layers. Each of them writes to its slot; the writes of all others are dropped.
        hooks = config.dpt_hooks[1:] if config.is_dpt else (config.dec_depth,)
        slots = np.full(config.dec_depth, len(hooks), np.int32)
        slots[np.array(hooks) - 1] = np.arange(len(hooks))
        kept = jnp.zeros((2, len(hooks), *tokens_i.shape), tokens_i.dtype)

        def step(carry, layer):
            (x1, x2, kept), (block1, block2, slot) = carry, layer
            y1, branch1, record1 = block1(x1, x2, rope, dynamic_tokens, intermediates=intermediates)
            y2, branch2, record2 = block2(x2, x1, rope, intermediates=intermediates)
            kept = kept.at[:, slot].set(jnp.stack([y1, y2]), mode="drop")
            records = {"branch1": record1, "branch2": record2} if intermediates else {}
            stats = AttentionStats(src=mean_logits(*branch1), ref=mean_logits(*branch2))
            if gram:
                stats = dataclasses.replace(stats, gram=GramStats(*gram_statistics(branch1, branch2)))
            return (y1, y2, kept), (stats, records)

        (_, _, kept), (stats, records) = jax.lax.scan(
            step, (tokens_i, tokens_j, kept), (self.branch1, self.branch2, jnp.asarray(slots))
        )
        kept = kept.at[:, -1].set(self.norm(kept[:, -1]))
        stats = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), stats)
        return Decoded(tokens_i=kept[0], tokens_j=kept[1], stats=stats, intermediates=records)
