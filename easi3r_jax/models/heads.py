"""Prediction heads: tokens to a point map and its confidence, and to descriptors.

Float32 arrays in every policy (see `precision`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.models.layers import Linear, TransposedConv, conv2d, upsample


def points_and_confidence(
    raw: Float[Array, "*batch 4"], confidence_range: tuple[float, float]
) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch"]]:
    """Turns the head's four channels into geometry (DUSt3R, sec. 3.1 and its released `exp` modes).

    points = direction * expm1(norm) of the first three; confidence = min(low + exp(fourth), high).

    Args:
      raw: (..., 4).
      confidence_range: (low, high).

    Returns:
      points (..., 3) and confidence (...).
    """
    xyz = raw[..., :3]
    norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(xyz), axis=-1, keepdims=True), 1e-16))
    low, high = confidence_range
    return xyz * (jnp.expm1(norm) / norm), low + jnp.minimum(jnp.exp(raw[..., 3]), high - low)


def descriptors_and_confidence(
    raw: Float[Array, "*batch channels"], confidence_range: tuple[float, float]
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
    """Turns the channels of `LocalFeatures` into descriptors of length 1 and their confidence (MASt3R, sec. 3.2).

    Args:
      raw: (..., D + 1); the last channel is the confidence's: min(low + exp(channel), high).
      confidence_range: (low, high).

    Returns:
      descriptors (..., D) and confidence (...).
    """
    features, (low, high) = raw[..., :-1], confidence_range
    # Descriptors of length 0 do not occur; the bound keeps their gradient finite.
    squared = jnp.maximum(jnp.sum(jnp.square(features), axis=-1, keepdims=True), 1e-30)
    return features * jax.lax.rsqrt(squared), low + jnp.minimum(jnp.exp(raw[..., -1]), high - low)


def _pixels(tokens: Float[Array, "B N C"], grid: tuple[int, int], patch: int) -> Float[Array, "B H W channels"]:
    """Spreads every token's numbers, channel by channel, over the pixels of its patch."""
    h, w = grid
    blocks = tokens.reshape(-1, h, w, tokens.shape[-1] // patch**2, patch, patch)
    return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(-1, h * patch, w * patch, blocks.shape[3])


class LinearHead(nnx.Module):
    """One linear projection per token, then a pixel shuffle."""

    def __init__(self, config: DUSt3RConfig, *, rngs: nnx.Rngs):
        self.proj = Linear(config.dec_dim, 4 * config.patch_size**2, rngs=rngs)
        self.patch_size = config.patch_size

    def __call__(
        self,
        features: Float[Array, "B N C_enc"],
        tokens: Float[Array, "1 B N C_dec"],
        grid: tuple[int, int],
        *,
        intermediates: bool = False,
    ) -> tuple[Float[Array, "B H W 4"], dict[str, Float[Array, "..."]]]:
        """Maps tokens (1, B, N, C) to raw channels (B, H, W, 4). `features` is unused: the DPT head needs it."""
        del features, intermediates
        return _pixels(self.proj(tokens[-1]), grid, self.patch_size), {}


class ResidualConv(nnx.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv1 = conv2d(dim, dim, 3, rngs=rngs)
        self.conv2 = conv2d(dim, dim, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


class Fusion(nnx.Module):
    """Adds a level to the result of the coarser levels, refines the sum, and doubles the resolution."""

    def __init__(self, dim: int, *, coarsest: bool, rngs: nnx.Rngs):
        self.residual1 = None if coarsest else ResidualConv(dim, rngs=rngs)
        self.residual2 = ResidualConv(dim, rngs=rngs)
        self.out_conv = Linear(dim, dim, rngs=rngs)

    def __call__(
        self, level: Float[Array, "B H W C"], path: Float[Array, "B H W C"] | None
    ) -> Float[Array, "B 2*H 2*W C"]:
        if self.residual1 is not None and path is not None:
            level = path + self.residual1(level)
        # A 1x1 convolution and a bilinear resize commute. Before the resize, the convolution costs a quarter.
        return upsample(self.out_conv(self.residual2(level)), 2)


class DPTHead(nnx.Module):
    """Dense prediction transformer (arXiv 2103.13413) on the encoder's output and three decoder depths."""

    FEATURES = 256
    LEVELS = (96, 192, 384, 768)

    def __init__(self, config: DUSt3RConfig, *, rngs: nnx.Rngs):
        dims = (config.enc_dim, config.dec_dim, config.dec_dim, config.dec_dim)
        self.project = nnx.List([Linear(d, level, rngs=rngs) for d, level in zip(dims, self.LEVELS, strict=True)])
        self.enlarge4 = TransposedConv(self.LEVELS[0], self.LEVELS[0], 4, rngs=rngs)
        self.enlarge2 = TransposedConv(self.LEVELS[1], self.LEVELS[1], 2, rngs=rngs)
        self.shrink = conv2d(self.LEVELS[3], self.LEVELS[3], 3, stride=2, rngs=rngs)
        self.level_convs = nnx.List(
            [conv2d(level, self.FEATURES, 3, use_bias=False, rngs=rngs) for level in self.LEVELS]
        )
        self.fusions = nnx.List([Fusion(self.FEATURES, coarsest=n == 3, rngs=rngs) for n in range(4)])
        self.conv1 = conv2d(self.FEATURES, self.FEATURES // 2, 3, rngs=rngs)
        self.conv2 = conv2d(self.FEATURES // 2, self.FEATURES // 2, 3, rngs=rngs)
        # Points are exponential in these channels: by default they would start with a standard deviation of about 30.
        small = nnx.initializers.variance_scaling(0.02**2, "fan_avg", "uniform")
        self.out = Linear(self.FEATURES // 2, 4, kernel_init=small, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "B N C_enc"],
        tokens: Float[Array, "3 B N C_dec"],
        grid: tuple[int, int],
        *,
        intermediates: bool = False,
    ) -> tuple[Float[Array, "B H W 4"], dict[str, Float[Array, "..."]]]:
        """Maps encoder tokens (B, N, C_enc) and decoder tokens (3, B, N, C_dec) to raw channels (B, H, W, 4)."""
        maps = [t.reshape(-1, *grid, t.shape[-1]) for t in (features, *tokens)]
        levels = [project(m) for project, m in zip(self.project, maps, strict=True)]
        levels = [self.enlarge4(levels[0]), self.enlarge2(levels[1]), levels[2], self.shrink(levels[3])]
        levels = [conv(level) for conv, level in zip(self.level_convs, levels, strict=True)]

        path, paths = None, {}
        for n in (3, 2, 1, 0):
            path = self.fusions[n](levels[n], path)
            paths[f"fusion{n}"] = path
            if n == 3:  # halving an odd grid rounds up
                path = path[:, : grid[0], : grid[1]]
        x = self.conv2(upsample(self.conv1(path), 2))
        return self.out(jax.nn.relu(x)), paths if intermediates else {}


class LocalFeatures(nnx.Module):
    """Descriptors of pixels: an MLP on the encoder's and the decoder's token, then a pixel shuffle (MASt3R, sec. 3.2).

    One of MASt3R's two parallel heads; the other is a `DPTHead`.
    """

    def __init__(self, config: DUSt3RConfig, *, rngs: nnx.Rngs):
        dim = config.enc_dim + config.dec_dim
        channels = config.descriptor_dim + 1
        self.fc1 = Linear(dim, 4 * dim, rngs=rngs)
        self.fc2 = Linear(4 * dim, channels * config.patch_size**2, rngs=rngs)
        self.patch_size = config.patch_size

    def __call__(
        self, features: Float[Array, "B N C_enc"], tokens: Float[Array, "B N C_dec"], grid: tuple[int, int]
    ) -> Float[Array, "B H W channels"]:
        """Maps encoder tokens and the decoder's last tokens, after its norm, to D + 1 raw channels of every pixel."""
        x = jnp.concatenate([features.astype(tokens.dtype), tokens], axis=-1)
        return _pixels(self.fc2(jax.nn.gelu(self.fc1(x), approximate=False)), grid, self.patch_size)


def make_head(config: DUSt3RConfig, *, rngs: nnx.Rngs) -> LinearHead | DPTHead:
    """The head that the configuration names."""
    return DPTHead(config, rngs=rngs) if config.is_dpt else LinearHead(config, rngs=rngs)
