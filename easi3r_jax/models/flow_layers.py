"""Layers of RAFT and SEA-RAFT. Shapes: (B, h, w, C); flows (B, h, w, 2) are (x, y) in pixels of their grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.layers import conv2d, upsample

NormKind = Literal["batch", "instance", "none"]

#: Both networks estimate flow at 1/8 of the image's resolution.
STRIDE = 8
#: Default number of refinement iterations, as in the released programs.
ITERATIONS = 20
_EPSILON = 1e-5


def make_norm(
    dim: int, kind: NormKind, *, rngs: nnx.Rngs
) -> Callable[[Float[Array, "*batch C"]], Float[Array, "*batch C"]]:
    """Normalisation at inference: `batch` uses stored statistics, `instance` those of the image, `none` is identity."""
    if kind == "batch":
        return nnx.BatchNorm(dim, use_running_average=True, epsilon=_EPSILON, rngs=rngs)
    if kind == "instance":
        return nnx.InstanceNorm(
            dim, epsilon=_EPSILON, use_scale=False, use_bias=False, use_fast_variance=False, rngs=rngs
        )
    return nnx.identity


class ResidualBlock(nnx.Module):
    """Convolutions with a residual connection, through a 1 x 1 convolution where the size changes.

    Two 3 x 3 convolutions; with `bottleneck`, one at a quarter of the width between two 1 x 1 convolutions.
    """

    def __init__(self, in_dim: int, dim: int, stride: int, kind: NormKind, *, bottleneck: bool, rngs: nnx.Rngs):
        if bottleneck:
            layers = ((in_dim, dim // 4, 1, 1), (dim // 4, dim // 4, 3, stride), (dim // 4, dim, 1, 1))
        else:
            layers = ((in_dim, dim, 3, stride), (dim, dim, 3, 1))
        self.convs = nnx.List([conv2d(a, b, size, stride=step, rngs=rngs) for a, b, size, step in layers])
        self.norms = nnx.List([make_norm(b, kind, rngs=rngs) for _, b, _, _ in layers])
        self.shortcut = conv2d(in_dim, dim, 1, stride=stride, rngs=rngs) if stride != 1 else None
        self.shortcut_norm = make_norm(dim, kind, rngs=rngs) if stride != 1 else None

    def __call__(self, x: Float[Array, "B H W in_dim"]) -> Float[Array, "B h w dim"]:
        y = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = jax.nn.relu(norm(conv(y)))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return jax.nn.relu(x + y)


class FlowEncoder(nnx.Module):
    """Images (B, H, W, C) to features (B, H/8, W/8, out_dim).

    Args:
      stages: width and number of blocks of each stage; all but the first stage halve the resolution.
    """

    def __init__(
        self,
        channels: int,
        stages: Sequence[tuple[int, int]],
        out_dim: int,
        kind: NormKind,
        *,
        bottleneck: bool = False,
        rngs: nnx.Rngs,
    ):
        width = stages[0][0]
        self.conv1 = conv2d(channels, width, 7, stride=2, rngs=rngs)
        self.norm1 = make_norm(width, kind, rngs=rngs)
        self.blocks = nnx.List([])
        for stage, (dim, count) in enumerate(stages):
            for n in range(count):
                stride = 2 if stage and not n else 1
                self.blocks.append(ResidualBlock(width, dim, stride, kind, bottleneck=bottleneck, rngs=rngs))
                width = dim
        self.out = conv2d(width, out_dim, 1, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w out_dim"]:
        x = jax.nn.relu(self.norm1(self.conv1(images)))
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class MotionEncoder(nnx.Module):
    """Encodes correlations and flow as features; their last two channels are the flow itself.

    Args:
      correlations: channels of the correlations.
      correlation_dims: widths of the convolutions on correlations: 1 x 1, then 3 x 3.
      flow_dims: widths of the convolutions on flow: 7 x 7, then 3 x 3.
      dim: width of the result.
    """

    def __init__(
        self,
        correlations: int,
        correlation_dims: Sequence[int],
        flow_dims: tuple[int, int],
        dim: int,
        *,
        rngs: nnx.Rngs,
    ):
        widths = (correlations, *correlation_dims)
        self.correlation = nnx.List(
            [conv2d(a, b, 3 if n else 1, rngs=rngs) for n, (a, b) in enumerate(itertools.pairwise(widths))]
        )
        self.flow1 = conv2d(2, flow_dims[0], 7, rngs=rngs)
        self.flow2 = conv2d(flow_dims[0], flow_dims[1], 3, rngs=rngs)
        self.out = conv2d(correlation_dims[-1] + flow_dims[1], dim - 2, 3, rngs=rngs)

    def __call__(
        self, flow: Float[Array, "B h w 2"], correlation: Float[Array, "B h w correlations"]
    ) -> Float[Array, "B h w dim"]:
        for conv in self.correlation:
            correlation = jax.nn.relu(conv(correlation))
        flow_features = jax.nn.relu(self.flow2(jax.nn.relu(self.flow1(flow))))
        out = jax.nn.relu(self.out(jnp.concatenate([correlation, flow_features], axis=-1)))
        return jnp.concatenate([out, flow], axis=-1)


class TwoConvs(nnx.Module):
    """Convolution, ReLU, convolution: 3 x 3, then `size` x `size`."""

    def __init__(self, in_dim: int, dim: int, out_dim: int, size: int, *, rngs: nnx.Rngs):
        self.conv1 = conv2d(in_dim, dim, 3, rngs=rngs)
        self.conv2 = conv2d(dim, out_dim, size, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w in_dim"]) -> Float[Array, "B h w out_dim"]:
        return self.conv2(jax.nn.relu(self.conv1(x)))


def convex_upsample(flow: Float[Array, "B h w 2"], weights: Float[Array, "B h w 576"]) -> Float[Array, "B 8*h 8*w 2"]:
    """Upsamples flow to full resolution, in full-resolution pixels: (B, 8 h, 8 w, 2) (RAFT, sec. 3.3).

    Each fine pixel is a convex combination of the 3 x 3 coarse pixels around it; flow outside the image counts as 0.

    Args:
      flow: (B, h, w, 2).
      weights: (B, h, w, 9 * 8 * 8), before the softmax over the nine neighbours.
    """
    batch, h, w, channels = flow.shape
    weights = jax.nn.softmax(weights.reshape(batch, h, w, 9, STRIDE, STRIDE), axis=3)
    padded = jnp.pad(STRIDE * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = jnp.stack([padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)], axis=3)
    # Exact in every policy: the factors are pixels, of which TF32 would keep 10 bits.
    fine = jnp.einsum("bhwkyx,bhwkc->bhywxc", weights, around, precision=jax.lax.Precision.HIGHEST)
    return fine.reshape(batch, STRIDE * h, STRIDE * w, channels)


def bilinear_upsample(flow: Float[Array, "B h w 2"]) -> Float[Array, "B 8*h 8*w 2"]:
    """As `convex_upsample`, but bilinear with aligned corners instead of learned weights."""
    return STRIDE * upsample(flow, STRIDE)
