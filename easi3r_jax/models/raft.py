"""RAFT (arXiv 2003.12039), basic and small: optical flow by recurrent refinement."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Float, Real
from easi3r_jax.core.geometry import camera
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.models.correlation import LEVELS, make_lookup
from easi3r_jax.models.dust3r import normalize_rgb
from easi3r_jax.models.flow_layers import (
    ITERATIONS,
    FlowEncoder,
    MotionEncoder,
    TwoConvs,
    bilinear_upsample,
    convex_upsample,
)
from easi3r_jax.models.layers import conv2d
from easi3r_jax.models.precision import Precision, multiplying


class GRU(nnx.Module):
    """Convolutional gated recurrent unit."""

    def __init__(self, hidden: int, inputs: int, size: int | tuple[int, int], *, rngs: nnx.Rngs):
        self.update = conv2d(hidden + inputs, hidden, size, rngs=rngs)
        self.reset = conv2d(hidden + inputs, hidden, size, rngs=rngs)
        self.candidate = conv2d(hidden + inputs, hidden, size, rngs=rngs)

    def __call__(
        self, hidden: Float[Array, "B h w hidden"], inputs: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h w hidden"]:
        both = jnp.concatenate([hidden, inputs], axis=-1)
        update, reset = jax.nn.sigmoid(self.update(both)), jax.nn.sigmoid(self.reset(both))
        candidate = jnp.tanh(self.candidate(jnp.concatenate([reset * hidden, inputs], axis=-1)))
        return (1 - update) * hidden + update * candidate


class RAFT(nnx.Module):
    """Optical flow from image i to image j.

    Its derivative goes through all iterations; RAFT's training stops it between them (sec. 3.3).

    Attributes:
      config: which of the two networks this is.
      precision: how it multiplies (`heads`).
      radius: of the correlation lookup's window.
      hidden: width of the recurrent state.
    """

    def __init__(self, config: FlowConfig, *, rngs: nnx.Rngs, precision: Precision = Precision()):
        small = config.network == "raft-small"
        self.config = config
        self.precision = precision
        self.radius, self.hidden = (3, 96) if small else (4, 128)
        context = 64 if small else 128
        stages = tuple((dim, 2) for dim in ((32, 64, 96) if small else (64, 96, 128)))
        kind = "none" if small else "batch"
        self.features = FlowEncoder(3, stages, 128 if small else 256, "instance", bottleneck=small, rngs=rngs)
        self.context = FlowEncoder(3, stages, self.hidden + context, kind, bottleneck=small, rngs=rngs)
        correlations = LEVELS * (2 * self.radius + 1) ** 2
        motion = 82 if small else 128
        self.motion = MotionEncoder(
            correlations, (96,) if small else (256, 192), (64, 32) if small else (128, 64), motion, rngs=rngs
        )
        sizes = (3,) if small else ((1, 5), (5, 1))
        self.grus = nnx.List([GRU(self.hidden, context + motion, size, rngs=rngs) for size in sizes])
        self.flow = TwoConvs(self.hidden, 128 if small else 256, 2, 3, rngs=rngs)
        self.upsampling = None if small else TwoConvs(self.hidden, 256, 9 * 64, 1, rngs=rngs)

    def __call__(
        self, rgb_i: Real[Array, "B H W 3"], rgb_j: Real[Array, "B H W 3"], iterations: int = ITERATIONS
    ) -> tuple[Float[Array, "B H W 2"], dict[str, Float[Array, "..."]]]:
        """Estimates flow.

        Args:
          rgb_i, rgb_j: (B, H, W, 3), 0 to 255; H and W are multiples of 8.
          iterations: number of refinement iterations.

        Returns:
          flow: (B, H, W, 2) float32, (x, y) pixels from i to j.
          out: dict of `features_i`, `features_j`, `context` (before it is split) and `coarse`, the flow after every
            iteration at 1/8 of the resolution (I, B, h, w, 2).
        """
        with multiplying(self.precision.heads):
            image_i, image_j = normalize_rgb(rgb_i), normalize_rgb(rgb_j)
            features_i, features_j = self.features(image_i), self.features(image_j)
            context = self.context(image_i)
            hidden, inputs = jnp.tanh(context[..., : self.hidden]), jax.nn.relu(context[..., self.hidden :])
            lookup = make_lookup(features_i, features_j, self.radius)
            height, width = hidden.shape[1:3]
            start = camera.pixel_grid(height, width)[None]

            def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
                hidden, flow = carry
                motion = self.motion(flow, lookup(start + flow))
                for gru in self.grus:
                    hidden = gru(hidden, jnp.concatenate([inputs, motion], axis=-1))
                flow = flow + self.flow(hidden)
                return (hidden, flow), flow

            first = (hidden, jnp.zeros((*hidden.shape[:3], 2), jnp.float32))
            (hidden, flow), coarse = jax.lax.scan(step, first, None, length=iterations)
            fine = (
                bilinear_upsample(flow)
                if self.upsampling is None
                else convex_upsample(flow, 0.25 * self.upsampling(hidden))
            )
        return fine, {"features_i": features_i, "features_j": features_j, "context": context, "coarse": coarse}
