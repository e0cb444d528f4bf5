"""VGGT's camera head: camera tokens to translations, rotations and fields of view, in a few refinements."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.layers import LayerNorm, Linear
from easi3r_jax.models.vggt.blocks import Block, stack_of_blocks
from easi3r_jax.models.vggt.config import VGGTConfig

_NUMBERS = 9


class CameraHead(nnx.Module):
    """A transformer over the frames, whose input is modulated by the cameras that it found before."""

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        dim, hidden = 2 * config.dim, config.dim
        self.token_norm = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.trunk_norm = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.empty_pose = nnx.Param(jnp.zeros((1, 1, _NUMBERS), jnp.float32))
        self.embed_pose = Linear(_NUMBERS, dim, rngs=rngs)
        self.modulation = Linear(dim, 3 * dim, rngs=rngs)
        self.trunk = stack_of_blocks(
            config.camera_depth,
            lambda r: Block(
                dim, config.num_heads, config.mlp_ratio, epsilon=1e-5, normed=False, scale=0.01, dtype="float32", rngs=r
            ),
            rngs,
        )
        self.fc1 = Linear(dim, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, _NUMBERS, rngs=rngs)
        self.iterations = config.camera_iterations

    def __call__(self, tokens: Float[Array, "T C_2"]) -> tuple[Float[Array, "R T 9"], Float[Array, "R T 9"]]:
        """Cameras after every refinement (R, T, 9), see `geometry.cameras_of`, and the corrections (R, T, 9).

        The fields of view are clipped to at least 0; what the next refinement reads is not.
        """
        x = self.token_norm(tokens)
        plain = _normalised(x)

        def refine(encoding: Array, first: Array) -> tuple[Array, tuple[Array, Array]]:
            empty = jnp.broadcast_to(self.empty_pose[...][0].astype(x.dtype), encoding.shape)
            embedded = self.embed_pose(jnp.where(first, empty, encoding))
            shift, scale, gate = jnp.split(self.modulation(jax.nn.silu(embedded)), 3, axis=-1)
            y = gate * (plain * (1 + scale) + shift) + x
            y, _ = jax.lax.scan(lambda y, block: (block(y)[0], None), y[None], self.trunk)
            delta = self.fc2(jax.nn.gelu(self.fc1(self.trunk_norm(y[0])), approximate=False))
            encoding = encoding + delta
            return encoding, (encoding, delta)

        start = jnp.zeros((len(x), _NUMBERS), x.dtype)
        _, (encodings, deltas) = jax.lax.scan(refine, start, jnp.arange(self.iterations) == 0)
        return encodings.at[..., 7:].set(jax.nn.relu(encodings[..., 7:])), deltas


def _normalised(x: Array) -> Array:
    """A LayerNorm without parameters, epsilon 1e-6."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)
