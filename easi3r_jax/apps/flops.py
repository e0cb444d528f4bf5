"""Floating-point operations (a multiply-add is two) and bytes of every stage, counted from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from easi3r_jax.models.config import DUSt3RConfig
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


def statistics_flops(config: DUSt3RConfig, grid: tuple[int, int], *, gram: bool = False) -> float:
    """Per directed pair: mean query, and its products with every key, in every layer of both branches.

    With `gram`, also the Gram statistics of a layer: mean and covariance of the queries and of the keys of both views
    (4), and a product of every token with three of them for each view (6).
    """
    n, c = grid[0] * grid[1], config.dec_dim
    total = 2 * (n * c + 2 * n * c)
    if gram:
        by_covariance = 2 * n * c * (c // config.dec_heads)
        total += 4 * (by_covariance + 2 * n * c) + 6 * (by_covariance + 4 * n * c)
    return config.dec_depth * total


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


def alignment_flops(num_edges: int, num_pixels: int, iterations: int, *, with_flow: bool) -> float:
    """The objective and its gradient at every pixel of every pair; everything else is negligible.

    Per observation (two per pixel of a pair): residual 21, squared distance 5, inverse root and weight 2, value 3,
    gradient by the points 3 + 3, gradient by the pair's transform 18 + 3. With flow, per pixel of a pair: projection
    20; for each coordinate the loss 14, its slope 10 and the gradient by the depth 4; gradients 24 + 5. Comparisons and
    selections are not counted.
    """
    return float((2 * 58 + (105 if with_flow else 0)) * num_edges * num_pixels * iterations)


def alignment_bytes(
    num_frames: int, num_edges: int, num_pixels: int, iterations: int, *, with_flow: bool, number: int = 4
) -> float:
    """Bytes that the alignment reads and writes, if nothing stays in a cache from one pair to the next.

    Per observation: its point and weight, 4 x `number`; the frame's point, 12; and that point's gradient, read and
    written, 24. With flow, per pixel of a pair: the flow, 8; its mask, 1; the depth, 4; and its gradient, read
    and written, 8. Per pixel of a frame: Adam's gradient, moments and parameter, 28; world points and their
    gradient, 24.
    """
    pair = 2 * (4 * number + 36) + (21 if with_flow else 0)
    return float(iterations * num_pixels * (num_edges * pair + num_frames * 52))


def traced_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of a function's matrix products and convolutions, including loops of known length.

    For networks that are not counted by hand. Convolutions with one filter per channel, which a CPU computes as sums,
    are not counted there: .3 % of SEA-RAFT. Nothing is computed: `arguments` may be `jax.ShapeDtypeStruct`s.
    """
    return sum(products(jax.make_jaxpr(function)(*arguments).jaxpr).values())


def products(jaxpr: Any) -> dict[str, float]:
    """Operations of a traced function's products and convolutions, by the arithmetic that they ask for.

    Kinds: "half" (bfloat16 or float16), and of float32 "exact" (all bits of the factors), "reduced" (TensorFloat-32,
    three passes of bfloat16) and "default" (what the device does by default). Kernels outside of XLA are not counted,
    nor are loops of unknown length more than once.
    """
    total: dict[str, float] = {}
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        shapes = [v.aval.shape for v in equation.invars]
        result = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            contracted = params["dimension_numbers"][0][0]
            parts = [{_arithmetic(equation): 2.0 * result * math.prod(shapes[0][axis] for axis in contracted)}]
        elif name == "conv_general_dilated":
            kernel = shapes[1]
            operations = 2.0 * result * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
            parts = [{_arithmetic(equation): operations}]
        else:
            parts = [products(getattr(x, "jaxpr", x)) for value in params.values() for x in _jaxprs(value)]
            if name == "cond":  # the most expensive branch
                parts = [max(parts, key=lambda part: sum(part.values()), default={})]
        times = params["length"] if name == "scan" else 1
        for kind, count in (item for part in parts for item in part.items()):
            total[kind] = total.get(kind, 0.0) + times * count
    return total


def _arithmetic(equation: Any) -> str:
    """The kind of a product, see `products`."""
    if all(v.aval.dtype.itemsize < 4 for v in equation.invars[:2]):
        return "half"
    precision = equation.params["precision"]
    factors = precision if isinstance(precision, tuple) else (precision,)
    asked = {"default" if p is None else p.name for p in factors}
    if asked <= {"HIGHEST", "F32_F32_F32", "F64_F64_F64"}:
        return "exact"
    return "default" if asked <= {"default", "DEFAULT"} else "reduced"


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs in an equation's parameter."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [x for x in values if hasattr(x, "eqns")]
