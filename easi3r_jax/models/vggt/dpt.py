"""VGGT's dense heads: tokens of four layers to depth, points or features, with their confidence. Float32 arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.heads import ResidualConv
from easi3r_jax.models.layers import LayerNorm, Linear, TransposedConv, conv2d, resize
from easi3r_jax.models.vggt.config import VGGTConfig

_POSITIONS_WEIGHT = 0.1
_OUT_HIDDEN = 32


class Fusion(nnx.Module):
    """Adds a level to the result of the coarser levels, refines the sum, and enlarges it to the next level's size.

    The released units take the ReLU of their input in place, so that what they add to it is added to its ReLU.
    """

    def __init__(self, dim: int, *, coarsest: bool, rngs: nnx.Rngs):
        self.residual1 = None if coarsest else ResidualConv(dim, rngs=rngs)
        self.residual2 = ResidualConv(dim, rngs=rngs)
        self.out_conv = Linear(dim, dim, rngs=rngs)

    def __call__(
        self, level: Float[Array, "B H W C"], path: Float[Array, "B H W C"] | None, size: tuple[int, int]
    ) -> Float[Array, "B height width C"]:
        if self.residual1 is not None and path is not None:
            level = path + self.residual1(jax.nn.relu(level))
        # A 1x1 convolution and a bilinear resize commute. Before the resize, the convolution costs a quarter.
        return resize(self.out_conv(self.residual2(jax.nn.relu(level))), size)


class DenseHead(nnx.Module):
    """Dense prediction transformer (arXiv 2103.13413) on four layers of the aggregator.

    Args:
      channels: of the output; None: the features before the last convolutions, at 1 / `down` of the image's size.
      features: width.
      positions: whether the position embedding is added.
    """

    def __init__(
        self,
        config: VGGTConfig,
        channels: int | None,
        features: int,
        *,
        positions: bool = True,
        down: int = 1,
        rngs: nnx.Rngs,
    ):
        dim, dims = 2 * config.dim, config.level_dims
        self.norm = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.project = nnx.List([Linear(dim, level, rngs=rngs) for level in dims])
        self.enlarge4 = TransposedConv(dims[0], dims[0], 4, rngs=rngs)
        self.enlarge2 = TransposedConv(dims[1], dims[1], 2, rngs=rngs)
        self.shrink = conv2d(dims[3], dims[3], 3, stride=2, rngs=rngs)
        self.level_convs = nnx.List([conv2d(level, features, 3, use_bias=False, rngs=rngs) for level in dims])
        self.fusions = nnx.List([Fusion(features, coarsest=n == 3, rngs=rngs) for n in range(4)])
        half = features // 2
        self.conv1 = conv2d(features, features if channels is None else half, 3, rngs=rngs)
        self.conv2 = None if channels is None else conv2d(half, _OUT_HIDDEN, 3, rngs=rngs)
        self.out = None if channels is None else Linear(_OUT_HIDDEN, channels, rngs=rngs)
        self.patch_size, self.down, self.positions = config.patch_size, down, positions

    def __call__(
        self, levels: Float[Array, "4 B N C_2"], grid: tuple[int, int], *, intermediates: bool = False
    ) -> tuple[Float[Array, "B height width out"], dict[str, Float[Array, "..."]]]:
        """Maps patch tokens (4, B, N, 2 C) to raw channels or features (B, height, width, channels)."""
        size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        maps = []
        for project, tokens in zip(self.project, levels, strict=True):
            x = project(self.norm(tokens.astype(jnp.float32)))
            maps.append(self._placed(x.reshape(-1, *grid, x.shape[-1]), size))
        maps = [self.enlarge4(maps[0]), self.enlarge2(maps[1]), maps[2], self.shrink(maps[3])]
        maps = [conv(level) for conv, level in zip(self.level_convs, maps, strict=True)]

        path, out = None, {}
        for n in (3, 2, 1, 0):
            _, height, width, _ = maps[n - 1].shape if n else maps[n].shape
            path = self.fusions[n](maps[n], path, (height, width) if n else (2 * height, 2 * width))
            out[f"fusion{n}"] = path
        x = out["conv1"] = self.conv1(path)
        x = self._placed(resize(x, (size[0] // self.down, size[1] // self.down)), size)
        if self.conv2 is not None and self.out is not None:
            x = self.out(jax.nn.relu(self.conv2(x)))
        return x, out if intermediates else {}

    def _placed(self, x: Array, size: tuple[int, int]) -> Array:
        if not self.positions:
            return x
        return x + _POSITIONS_WEIGHT * position_map(x.shape[1:], size[1] / size[0]).astype(x.dtype)[None]


def position_map(shape: tuple[int, ...], aspect: float) -> Float[Array, "h w C"]:
    """Sines and cosines of a map's positions, (h, w, C): first of the column, then of the row.

    Positions lie on the image's half diagonal of length 1, at pixel centres; frequencies are 100^(-k / (C / 4)).

    Args:
      shape: (h, w, C).
      aspect: width over height of the image.
    """
    height, width, channels = shape
    diagonal = (aspect**2 + 1) ** 0.5
    frequencies = 100.0 ** (-np.arange(channels // 4) / (channels / 4))

    def waves(count: int, extent: float) -> Array:
        last = extent / diagonal * (count - 1) / count
        angles = np.linspace(-last, last, count)[:, None] * frequencies
        return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)

    # Small tables, broadcast in the program: the whole map would be a constant of 80 MB in it.
    columns, rows = waves(width, aspect), waves(height, 1.0)
    columns = jnp.broadcast_to(columns[None], (height, width, columns.shape[1]))
    rows = jnp.broadcast_to(rows[:, None], (height, width, rows.shape[1]))
    return jnp.concatenate([columns, rows], axis=2)


def depth_and_confidence(raw: Float[Array, "*batch 2"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """exp(first) and 1 + exp(second) of two channels."""
    return jnp.exp(raw[..., 0]), 1 + jnp.exp(raw[..., 1])


def points_and_confidence(raw: Float[Array, "*batch 4"]) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch"]]:
    """sign(y) expm1(|y|) of each of three coordinates, and 1 + exp(fourth)."""
    xyz = raw[..., :3]
    return jnp.sign(xyz) * jnp.expm1(jnp.abs(xyz)), 1 + jnp.exp(raw[..., 3])
