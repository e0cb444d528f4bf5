"""The few layers DUSt3R is made of. Parameters are float32; a layer computes in the dtype of its input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class Linear(nnx.Module):
    """y = x @ kernel + bias, with kernel (in, out)."""

    def __init__(self, in_dim: int, out_dim: int, *, gain: float = 1.0, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.kernel = nnx.Param(gain * init(rngs.params(), (in_dim, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        bias = self.bias[...].astype(x.dtype)
        return x @ self.kernel[...].astype(x.dtype) + jnp.broadcast_to(bias, (*x.shape[:-1], bias.shape[0]))


class LayerNorm(nnx.Module):
    """Normalises the last axis in float32 (epsilon 1e-6) and returns `dtype`."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        del rngs  # nothing random; the signature is every layer's
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))

    def __call__(self, x: Array, dtype: jnp.dtype) -> Array:
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale, bias = (jnp.broadcast_to(p[...], x.shape) for p in (self.scale, self.bias))
        return (centred * jax.lax.rsqrt(variance + 1e-6) * scale + bias).astype(dtype)


class MLP(nnx.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, dim, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Conv(nnx.Module):
    """Two-dimensional convolution, channels last, kernel (*size, in / groups, out), padding size // 2."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        sides = (size, size) if isinstance(size, int) else size
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (*sides, in_dim // groups, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32)) if bias else None
        self.stride = stride
        self.groups = groups

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(side // 2, side // 2) for side in kernel.shape[:2]],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(y.dtype), y.shape)


class TransposedConv(nnx.Module):
    """Transposed convolution whose stride is its kernel size: every input pixel becomes a block, without overlap.

    Kernel (in, size, size, out).
    """

    def __init__(self, in_dim: int, out_dim: int, size: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal(in_axis=0, out_axis=-1)
        self.kernel = nnx.Param(init(rngs.params(), (in_dim, size, size, out_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        batch, height, width, _ = x.shape
        size, out_dim = kernel.shape[1], kernel.shape[-1]
        y = jnp.einsum("bhwi,iklo->bhkwlo", x, kernel)
        y = y.reshape(batch, height * size, width * size, out_dim)
        return y + jnp.broadcast_to(self.bias[...].astype(y.dtype), y.shape)


def upsample(x: Array, factor: int) -> Array:
    """Enlarges (B, H, W, C) to (B, factor H, factor W, C): bilinear, corner pixels aligned with corner pixels."""
    for axis in (1, 2):
        size = x.shape[axis]
        position = jnp.arange(factor * size, dtype=jnp.float32) * ((size - 1) / max(factor * size - 1, 1))
        low = jnp.clip(position.astype(jnp.int32), 0, size - 1)
        high = jnp.minimum(low + 1, size - 1)
        weight = (position - low.astype(jnp.float32)).reshape([-1 if a == axis else 1 for a in range(4)])
        weight = weight.astype(x.dtype)
        x = jnp.take(x, low, axis=axis) * (1 - weight) + jnp.take(x, high, axis=axis) * weight
    return x
