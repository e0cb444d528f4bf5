"""Layers of the networks: Flax's, with the settings that they share, and the few that Flax does not have.

Parameters are float32, and a layer computes in the dtype of its inputs, unless it is constructed with a dtype: then it
computes in that, and stores its parameters in it.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core import target
from easi3r_jax.core.arrays import Array, Float

DType = str | type | jnp.dtype

#: y = x @ kernel + bias, with kernel (in, out).
Linear = functools.partial(nnx.Linear, kernel_init=nnx.initializers.xavier_uniform())
#: Variance in two passes: in one, E[x^2] - E[x]^2 cancels where a token's mean is far from 0.
LayerNorm = functools.partial(nnx.LayerNorm, epsilon=1e-6, use_fast_variance=False)


def linear(in_dim: int, out_dim: int, *, dtype: DType, rngs: nnx.Rngs) -> nnx.Linear:
    """As `Linear`, computing and stored in `dtype`."""
    return Linear(in_dim, out_dim, dtype=dtype, param_dtype=dtype, rngs=rngs)


def at_least_float32(dtype: DType) -> jnp.dtype:
    """Float32, or float64 for float64: the dtype of what half precision would spoil where layers compute in `dtype`."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def conv2d(
    in_dim: int,
    out_dim: int,
    size: int | tuple[int, int],
    *,
    stride: int = 1,
    use_bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Two-dimensional convolution, channels last, kernel (*size, in / groups, out).

    Both sides are padded by size // 2. "SAME" pads a stride of 2 on one side only.
    """
    sides = (size, size) if isinstance(size, int) else size
    return nnx.Conv(
        in_dim,
        out_dim,
        sides,
        stride,
        padding=[(side // 2, side // 2) for side in sides],
        use_bias=use_bias,
        kernel_init=nnx.initializers.he_normal(),
        rngs=rngs,
    )


def depthwise_conv2d(dim: int, size: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    """As `conv2d`, with one filter per channel: kernel (size, size, 1, dim)."""
    return nnx.Conv(
        dim,
        dim,
        (size, size),
        padding=size // 2,
        feature_group_count=dim,
        kernel_init=nnx.initializers.he_normal(),
        conv_general_dilated=_filtered_by_channel,
        rngs=rngs,
    )


def _filtered_by_channel(
    x: Float[Array, "B H W C"], kernel: Float[Array, "kh kw 1 C"], strides: Any, padding: Any, **options: Any
) -> Float[Array, "B h w C"]:
    """`jax.lax.conv_general_dilated` of one filter per channel with stride 1.

    On a CPU as a sum of shifted images times weights, since XLA's own runs below 1 GFLOP/s there: 73 ms against 5.2 for
    a 7 x 7 kernel, 384 channels, 36 x 64 pixels.
    """
    if target.platform() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _shifted_products(x, kernel, tuple(map(tuple, padding)))


# Rematerialised: in a loop, the gradient would otherwise keep every shifted image of every iteration.
@functools.partial(jax.checkpoint, static_argnums=2)
def _shifted_products(x: Array, kernel: Array, padding: Any) -> Array:
    rows, columns, _, channels = kernel.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    shifted = (
        padded[:, row : row + height, column : column + width] * kernel[row, column].reshape(1, 1, 1, channels)
        for row, column in itertools.product(range(rows), range(columns))
    )
    return functools.reduce(jnp.add, shifted)


class MLP(nnx.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, dim: int, hidden: int, *, dtype: DType, rngs: nnx.Rngs):
        self.fc1 = linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class TransposedConv(nnx.Module):
    """Transposed convolution whose stride is its kernel size: every input pixel becomes a block; blocks do not overlap.

    Kernel (in, size, size, out).
    """

    # nnx.ConvTranspose computes the same, but its gradient is a dilated convolution, which takes 10 to 18 times as long
    # on a CPU: 399 ms against 31 for 192 channels, x2, 24 x 32 pixels.

    def __init__(self, in_dim: int, out_dim: int, size: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal(in_axis=0, out_axis=-1)
        self.kernel = nnx.Param(init(rngs.params(), (in_dim, size, size, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32))

    def __call__(self, x: Float[Array, "B H W in_dim"]) -> Float[Array, "B height width out_dim"]:
        kernel = self.kernel[...]
        batch, height, width, _ = x.shape
        size, out_dim = kernel.shape[1], kernel.shape[-1]
        y = jnp.einsum("bhwi,iklo->bhkwlo", x, kernel)
        y = y.reshape(batch, height * size, width * size, out_dim)
        return y + jnp.broadcast_to(self.bias[...], y.shape)


def upsample(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B height width C"]:
    """Bilinear upsampling with aligned corners: (B, H, W, C) to (B, factor * H, factor * W, C)."""
    return resize(x, (factor * x.shape[1], factor * x.shape[2]))


def resize(x: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B height width C"]:
    """Bilinear interpolation with aligned corners: (B, H, W, C) to (B, *size, C)."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        position = jnp.arange(new, dtype=jnp.float32) * ((old - 1) / max(new - 1, 1))
        low = jnp.clip(position.astype(jnp.int32), 0, old - 1)
        high = jnp.minimum(low + 1, old - 1)
        weight = (position - low.astype(jnp.float32)).reshape([-1 if a == axis else 1 for a in range(4)])
        weight = weight.astype(x.dtype)
        x = jnp.take(x, low, axis=axis) * (1 - weight) + jnp.take(x, high, axis=axis) * weight
    return x
