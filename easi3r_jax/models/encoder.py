"""The ViT encoder: frames to tokens, each frame on its own."""

from __future__ import annotations

import jax
from flax import nnx

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.attention import SelfAttention
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.models.layers import MLP, DType, LayerNorm, at_least_float32, linear
from easi3r_jax.models.rope import rope_table


def patchify(images: Float[Array, "B H W 3"], patch_size: int) -> Float[Array, "B N patch"]:
    """Cuts (B, H, W, 3) into (B, N, patch_size * patch_size * 3): row-major patches, inside a patch (y, x, channel)."""
    batch, height, width, channels = images.shape
    grid = (height // patch_size, width // patch_size)
    patches = images.reshape(batch, grid[0], patch_size, grid[1], patch_size, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid[0] * grid[1], -1)


class EncoderBlock(nnx.Module):
    """Pre-norm transformer block. Residual stream and norms stay float32; the branches compute in `dtype`."""

    def __init__(self, config: DUSt3RConfig, *, dtype: DType, rngs: nnx.Rngs):
        dim = config.enc_dim
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, config.enc_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N C"],
        rope: tuple[Float[Array, "N 2 angles"], Float[Array, "N 2 angles"]],
        *,
        intermediates: bool = False,
    ) -> tuple[Float[Array, "B N C"], dict]:
        attended, record = self.attention(self.norm1(x), rope, intermediates=intermediates)
        x = x + attended.astype(x.dtype)
        x = x + self.mlp(self.norm2(x)).astype(x.dtype)
        return x, record


class Encoder(nnx.Module):
    """Patch embedding, stacked blocks run by one `scan`, final norm."""

    def __init__(self, config: DUSt3RConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.patch_embed = linear(3 * config.patch_size**2, config.enc_dim, dtype=dtype, rngs=rngs)
        self.blocks = jax.vmap(lambda r: EncoderBlock(config, dtype=dtype, rngs=r))(rngs.split(config.enc_depth))
        self.norm = LayerNorm(config.enc_dim, rngs=rngs)
        self.config = config

    def __call__(
        self, images: Float[Array, "B H W 3"], *, intermediates: bool = False
    ) -> tuple[Float[Array, "B N C"], dict]:
        """Encodes images (B, H, W, 3) in [-1, 1] to tokens (B, N, C), float32 or wider.

        Returns:
          tokens: after the final norm.
          out: with `intermediates`, a dict of `patch_tokens` (B, N, C), `blocks` (depth, B, N, C) and `attention`
            (per block: queries, keys, maps); else empty.
        """
        config = self.config
        grid = (images.shape[1] // config.patch_size, images.shape[2] // config.patch_size)
        rope = rope_table(grid, config.enc_dim // config.enc_heads, config.rope_base)
        patch_tokens = self.patch_embed(patchify(images, config.patch_size))
        patch_tokens = patch_tokens.astype(at_least_float32(patch_tokens.dtype))

        def step(x: Array, block: EncoderBlock):
            x, record = block(x, rope, intermediates=intermediates)
            return x, {"blocks": x, "attention": record} if intermediates else {}

        x, out = jax.lax.scan(step, patch_tokens, self.blocks)
        if intermediates:
            out["patch_tokens"] = patch_tokens
        return self.norm(x), out
