"""VGGT's encoder: frames to patch tokens, each frame on its own. DINOv2 with registers, or only a patch embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easi3r_jax.core.arrays import Array, Float, Real
from easi3r_jax.models.encoder import patchify
from easi3r_jax.models.layers import DType, LayerNorm, at_least_float32, linear
from easi3r_jax.models.vggt.blocks import Block, stack_of_blocks
from easi3r_jax.models.vggt.config import VGGTConfig

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def standardize_rgb(rgb: Real[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """uint8 RGB to the encoder's range, (rgb / 255 - mean) / deviation of ImageNet, float32."""
    mean, std = (jnp.asarray(x, jnp.float32).reshape((1,) * (rgb.ndim - 1) + (3,)) for x in (_MEAN, _STD))
    return (rgb.astype(jnp.float32) / np.float32(255.0) - mean) / std


def resized_positions(embedding: Float[Array, "1 positions C"], grid: tuple[int, int]) -> Float[Array, "N_1 C"]:
    """The position embedding for a grid of patches: (1 + h w, C) float32.

    The first entry is the class token's. The others, a square grid, are resized by bicubic interpolation (a = -0.5)
    with antialiasing. Another kernel or no antialiasing differs by 5 to 60 % of the embedding's magnitude.
    """
    first, square = embedding[0, :1], embedding[0, 1:]
    side = round(len(square) ** 0.5)
    rows, columns = (jnp.asarray(_bicubic(side, n)) for n in grid)
    square = square.reshape(side, side, -1)
    exact = jax.lax.Precision.HIGHEST
    resized = jnp.einsum("hy,yxc,wx->hwc", rows, square, columns, precision=exact)
    return jnp.concatenate([first, resized.reshape(grid[0] * grid[1], -1)])


def _bicubic(inputs: int, outputs: int) -> np.ndarray:
    """(outputs, inputs) weights of an axis, float32."""
    step = inputs / outputs
    scale = max(step, 1.0)
    weights = np.zeros((outputs, inputs))
    for i in range(outputs):
        centre = step * (i + 0.5)
        low, high = max(int(centre - 2 * scale + 0.5), 0), min(int(centre + 2 * scale + 0.5), inputs)
        x = np.abs((np.arange(low, high) - centre + 0.5) / scale)
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        taps = np.where(x < 1, near, np.where(x < 2, far, 0))
        weights[i, low:high] = taps / taps.sum()
    return weights.astype(np.float32)


class DinoEncoder(nnx.Module):
    """DINOv2 (arXiv 2304.07193) with registers (arXiv 2309.16588): blocks run by one `scan`, final norm."""

    def __init__(self, config: VGGTConfig, *, dtype: DType, rngs: nnx.Rngs):
        dim, side = config.dim, config.image_size[0] // config.patch_size
        small = nnx.initializers.normal(0.02)
        self.patch_embed = linear(3 * config.patch_size**2, dim, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(small(rngs.params(), (1, 1, dim), jnp.float32))
        self.register_tokens = nnx.Param(small(rngs.params(), (1, config.registers, dim), jnp.float32))
        self.positions = nnx.Param(small(rngs.params(), (1, 1 + side * side, dim), jnp.float32))
        self.blocks = stack_of_blocks(
            config.enc_depth,
            lambda r: Block(
                dim, config.num_heads, config.mlp_ratio, epsilon=1e-6, normed=False, scale=1.0, dtype=dtype, rngs=r
            ),
            rngs,
        )
        self.norm = LayerNorm(dim, rngs=rngs)
        self.config = config

    def __call__(
        self, images: Float[Array, "B H W 3"], *, intermediates: bool = False
    ) -> tuple[Float[Array, "B N C"], dict[str, Float[Array, "..."]]]:
        """Standardised images (B, H, W, 3) to normalised patch tokens (B, N, C), float32 or wider.

        With `intermediates`, also `patches` (B, N, C), `positions` (1 + N, C) and `blocks` (depth, B, 1 + R + N, C).
        """
        size = self.config.patch_size
        grid = (images.shape[1] // size, images.shape[2] // size)
        patches = self.patch_embed(patchify(images, size))
        patches = patches.astype(at_least_float32(patches.dtype))
        positions = resized_positions(self.positions[...], grid)
        batch, dim = len(images), patches.shape[-1]
        cls, registers = (
            jnp.broadcast_to(t.astype(patches.dtype), (batch, t.shape[1], dim))
            for t in (self.cls_token[...], self.register_tokens[...])
        )
        placed = jnp.concatenate([cls, patches], axis=1) + positions.astype(patches.dtype)[None]
        x = jnp.concatenate([placed[:, :1], registers, placed[:, 1:]], axis=1)

        def step(x: Array, block: Block):
            x, _ = block(x)
            return x, x if intermediates else None

        x, blocks = jax.lax.scan(step, x, self.blocks)
        out = {"patches": patches, "positions": positions, "blocks": blocks} if intermediates else {}
        return self.norm(x)[:, self.config.special :], out


class ConvEncoder(nnx.Module):
    """Only the patch embedding."""

    def __init__(self, config: VGGTConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.patch_embed = linear(3 * config.patch_size**2, config.dim, dtype=dtype, rngs=rngs)
        self.config = config

    def __call__(
        self, images: Float[Array, "B H W 3"], *, intermediates: bool = False
    ) -> tuple[Float[Array, "B N C"], dict[str, Float[Array, "..."]]]:
        """As `DinoEncoder`; there are no intermediates."""
        del intermediates
        tokens = self.patch_embed(patchify(images, self.config.patch_size))
        return tokens.astype(at_least_float32(tokens.dtype)), {}
