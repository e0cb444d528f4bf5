"""The track head's transformer: attention over frames, and over tracks by way of a few virtual ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.layers import MLP, LayerNorm, Linear
from easi3r_jax.models.vggt.attention import attend

_ROUNDS, _HEADS, _VIRTUAL, _MLP_RATIO = 6, 8, 64, 4


class TrackBlock(nnx.Module):
    """x = norm1(x); x += attention(x, context); x += mlp(norm2(x)): what is added to is the normalised x."""

    def __init__(self, dim: int, *, cross: bool, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.norm_context = LayerNorm(dim, epsilon=1e-5, rngs=rngs) if cross else None
        self.qkv = Linear(dim, 3 * dim, rngs=rngs)
        self.proj = Linear(dim, dim, rngs=rngs)
        self.norm2 = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.mlp = MLP(dim, _MLP_RATIO * dim, dtype="float32", rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], context: Float[Array, "B M D"] | None = None) -> Float[Array, "B N D"]:
        """Attends from `x` to itself, or to `context`."""
        x = self.norm1(x)
        if self.norm_context is None or context is None:
            queries, keys, values = jnp.split(self.qkv(x), 3, axis=-1)
        else:
            queries = jnp.split(self.qkv(x), 3, axis=-1)[0]
            _, keys, values = jnp.split(self.qkv(self.norm_context(context)), 3, axis=-1)
        by_head = (y.reshape(*y.shape[:-1], _HEADS, -1) for y in (queries, keys, values))
        x = x + self.proj(attend(*by_head).reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class UpdateFormer(nnx.Module):
    """Tokens of all tracks in all frames to corrections of their positions and features."""

    def __init__(self, in_dim: int, dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.input_norm = LayerNorm(in_dim, epsilon=1e-5, rngs=rngs)
        self.input_transform = Linear(in_dim, dim, rngs=rngs)
        self.virtual_tracks = nnx.Param(jax.random.normal(rngs.params(), (1, _VIRTUAL, 1, dim), jnp.float32))

        def stack(cross: bool) -> TrackBlock:
            return jax.vmap(lambda r: TrackBlock(dim, cross=cross, rngs=r))(rngs.split(_ROUNDS))

        self.time, self.virtual = stack(cross=False), stack(cross=False)
        self.from_points, self.to_points = stack(cross=True), stack(cross=True)
        self.output_norm = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.flow_head = Linear(dim, out_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "N T in_dim"]) -> Float[Array, "N T out_dim"]:
        """Maps tokens (N, T, in) of N tracks in T frames to (N, T, out)."""
        count, num_frames, _ = x.shape
        tokens = self.input_transform(self.input_norm(x))
        virtual = jnp.broadcast_to(self.virtual_tracks[...][0], (_VIRTUAL, num_frames, tokens.shape[-1]))

        def one_round(y: Array, blocks: tuple[TrackBlock, ...]) -> tuple[Array, None]:
            over_time, from_points, among_virtual, to_points = blocks
            by_frame = jnp.swapaxes(over_time(y), 0, 1)
            points, virtual = by_frame[:, :count], by_frame[:, count:]
            virtual = among_virtual(from_points(virtual, points))
            points = to_points(points, virtual)
            return jnp.swapaxes(jnp.concatenate([points, virtual], axis=1), 0, 1), None

        rounds = (self.time, self.from_points, self.virtual, self.to_points)
        y, _ = jax.lax.scan(one_round, jnp.concatenate([tokens, virtual]), rounds)
        return self.flow_head(self.output_norm(y[:count] + tokens))
