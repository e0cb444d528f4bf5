"""Floating-point operations of network and alignment, counted from shapes (a multiply-add is two)."""

from __future__ import annotations

from easi3r_jax.config import DUSt3RConfig
from easi3r_jax.models.heads import DPTHead


def encoder_flops(config: DUSt3RConfig, grid: tuple[int, int]) -> float:
    """Per frame: patch embedding and all blocks."""
    n, c = grid[0] * grid[1], config.enc_dim
    block = 2 * n * c * c * (4 + 2 * config.mlp_ratio) + 4 * n * n * c  # qkv + proj + MLP; q.k and weights.v
    return 2 * n * 3 * config.patch_size**2 * c + config.enc_depth * block


def decoder_flops(config: DUSt3RConfig, grid: tuple[int, int]) -> float:
    """Per directed pair: embedding of both views and all blocks of both branches, without statistics."""
    n, c = grid[0] * grid[1], config.dec_dim
    block = 2 * n * c * c * (8 + 2 * config.mlp_ratio) + 8 * n * n * c
    return 2 * (2 * n * config.enc_dim * c + config.dec_depth * block)


def statistics_flops(config: DUSt3RConfig, grid: tuple[int, int]) -> float:
    """Per directed pair: mean query, and its products with every key, in every layer of both branches."""
    n, c = grid[0] * grid[1], config.dec_dim
    return 2 * config.dec_depth * (n * c + 2 * n * c)


def heads_flops(config: DUSt3RConfig, grid: tuple[int, int]) -> float:
    """Per directed pair: both heads."""
    n = grid[0] * grid[1]
    if config.head == "linear":
        return 2 * 2 * n * config.dec_dim * 4 * config.patch_size**2
    f, levels = DPTHead.FEATURES, DPTHead.LEVELS
    dims = (config.enc_dim, *[config.dec_dim] * 3)
    total = sum(2 * n * d * level for d, level in zip(dims, levels, strict=True))  # 1x1 projections
    total += 2 * n * 16 * levels[0] ** 2 + 2 * n * 4 * levels[1] ** 2 + 2 * (n / 4) * 9 * levels[3] ** 2
    for level, size in zip(levels, (16 * n, 4 * n, n, n / 4), strict=True):
        residuals = 1 if level == levels[3] else 2
        total += 2 * size * (9 * level * f + residuals * 2 * 9 * f * f + f * f)
    return 2 * (total + 2 * 64 * n * 9 * f * (f // 2) + 2 * 256 * n * (9 * (f // 2) ** 2 + (f // 2) * 4))


def alignment_flops(num_edges: int, num_pixels: int, iterations: int) -> float:
    """The objective and its gradient at every pixel of both sides of every pair; all else is small beside it.

    Per observation: residual 21, squared distance 5, inverse root and weight 2, value 3, pull on the points 3 + 3,
    gradient by the pair's transform 18 + 3. They move about 40 bytes (point, weight, the frame's point, its gradient),
    so memory bounds the rate, not arithmetic.
    """
    return 58.0 * 2 * num_edges * num_pixels * iterations
