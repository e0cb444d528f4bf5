"""SEA-RAFT "M" (arXiv 2405.14793): RAFT with an initial flow from the context network and a simpler recurrent unit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Float, Real
from easi3r_jax.core.geometry import camera
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.models.correlation import LEVELS, make_lookup
from easi3r_jax.models.dust3r import normalize_rgb
from easi3r_jax.models.flow_layers import ITERATIONS, FlowEncoder, MotionEncoder, TwoConvs, convex_upsample
from easi3r_jax.models.layers import LayerNorm, Linear, conv2d, depthwise_conv2d
from easi3r_jax.models.precision import Precision, multiplying

_DIM = 128
_RADIUS = 4
_STAGES = ((64, 3), (128, 4), (256, 6))  # width and blocks: a ResNet-34 up to its third stage


class ConvNextBlock(nnx.Module):
    """Depthwise 7 x 7 convolution, LayerNorm, MLP with layer scale, residual; then a projection (arXiv 2201.03545)."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.depthwise = depthwise_conv2d(in_dim, 7, rngs=rngs)
        self.norm = LayerNorm(in_dim, rngs=rngs)
        self.fc1 = Linear(in_dim, 4 * out_dim, rngs=rngs)
        self.fc2 = Linear(4 * out_dim, in_dim, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((in_dim,), 1e-6, jnp.float32))
        self.out = conv2d(in_dim, out_dim, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w in_dim"]) -> Float[Array, "B h w out_dim"]:
        y = self.norm(self.depthwise(x))
        y = self.fc2(jax.nn.gelu(self.fc1(y), approximate=False))
        return self.out(x + jnp.broadcast_to(self.gamma[...], y.shape) * y)


class SEARAFT(nnx.Module):
    """Optical flow from image i to image j. For its derivative see `RAFT`.

    Attributes:
      config: which network this is.
      precision: how it multiplies (`heads`).
      radius: of the correlation lookup's window.
    """

    def __init__(self, config: FlowConfig, *, rngs: nnx.Rngs, precision: Precision = Precision()):
        self.config = config
        self.precision = precision
        self.radius = _RADIUS
        self.features = FlowEncoder(3, _STAGES, 2 * _DIM, "batch", rngs=rngs)
        self.context = FlowEncoder(6, _STAGES, 2 * _DIM, "batch", rngs=rngs)
        self.split = conv2d(2 * _DIM, 2 * _DIM, 3, rngs=rngs)
        self.motion = MotionEncoder(LEVELS * (2 * _RADIUS + 1) ** 2, (256, 192), (128, 64), _DIM, rngs=rngs)
        self.refine = nnx.List([ConvNextBlock(3 * _DIM, _DIM, rngs=rngs) for _ in range(2)])
        self.flow = TwoConvs(_DIM, 2 * _DIM, 6, 3, rngs=rngs)
        self.upsampling = TwoConvs(_DIM, 2 * _DIM, 9 * 64, 1, rngs=rngs)

    def __call__(
        self, rgb_i: Real[Array, "B H W 3"], rgb_j: Real[Array, "B H W 3"], iterations: int = ITERATIONS
    ) -> tuple[Float[Array, "B H W 2"], dict[str, Float[Array, "..."]]]:
        """Estimates flow.

        Args:
          rgb_i, rgb_j: (B, H, W, 3), 0 to 255; H and W are multiples of 8.
          iterations: of the refinement; 0 gives the initial estimate.

        Returns:
          flow: (B, H, W, 2) float32, (x, y) pixels from i to j.
          out: dict of `features_i`, `features_j`, `context`, `split` (the initial state and the inputs before they are
            split), `hidden` (I, B, h, w, 128), `coarse`, the initial flow and the flow after every iteration at 1/8 of
            the resolution (1 + I, B, h, w, 2), and `uncertainty`, the last four channels of the flow head (B, h, w, 4),
            which describe its mixture of two Laplacians.
        """
        with multiplying(self.precision.heads):
            image_i, image_j = normalize_rgb(rgb_i), normalize_rgb(rgb_j)
            context = self.context(jnp.concatenate([image_i, image_j], axis=-1))
            split = self.split(context)
            hidden, inputs = split[..., :_DIM], split[..., _DIM:]
            features_i, features_j = self.features(image_i), self.features(image_j)
            lookup = make_lookup(features_i, features_j, self.radius)
            height, width = hidden.shape[1:3]
            start = camera.pixel_grid(height, width)[None]

            def step(carry: tuple[Array, Array, Array], _: None):
                hidden, flow, _uncertainty = carry
                motion = self.motion(flow, lookup(start + flow))
                for block in self.refine:
                    hidden = block(jnp.concatenate([hidden, inputs, motion], axis=-1))
                update = self.flow(hidden)
                flow = flow + update[..., :2]
                return (hidden, flow, update[..., 2:]), (hidden, flow)

            initial = self.flow(hidden)
            first = (hidden, initial[..., :2], initial[..., 2:])
            (hidden, flow, uncertainty), (hiddens, flows) = jax.lax.scan(step, first, None, length=iterations)
            fine = convex_upsample(flow, 0.25 * self.upsampling(hidden))
        return fine, {
            "features_i": features_i,
            "features_j": features_j,
            "context": context,
            "split": split,
            "hidden": hiddens,
            "coarse": jnp.concatenate([initial[None, ..., :2], flows]),
            "uncertainty": uncertainty,
        }
