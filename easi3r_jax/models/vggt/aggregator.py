"""VGGT's aggregator: attention within each frame and over all frames, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easi3r_jax.core.arrays import Array, Bool, Float, pytree_dataclass
from easi3r_jax.models.layers import DType
from easi3r_jax.models.vggt.blocks import Block, frame_rope, stack_of_blocks
from easi3r_jax.models.vggt.config import VGGTConfig
from easi3r_jax.models.vggt.statistics import band_deviations, layer_means

#: Of 24 layers, so many of the first leave out dynamic tokens in a masked pass.
_MASKED_LAYERS = 5
#: A statistic of queries and keys, and the layers of its band: (name of `GRAM_STATISTICS`, first, last + 1).
Band = tuple[str, int, int]


@pytree_dataclass
class Aggregated:
    """The aggregator's outputs.

    Attributes:
      levels: (4, T, N, 2 C), patch tokens of the layers that dense heads read: of the frame block, and of the global.
      cameras: (T, 2 C), camera tokens of the last layer.
      statistics: (F, T, N) float32, one for each band that was asked for; see `statistics`.
      intermediates: with `intermediates=True`: `tokens` (T, P, C), `frame` and `global` (L, T, P, C), and queries and
        keys of both, (L, T, P, A, D); else empty.
    """

    levels: Float[Array, "K T N C_2"]
    cameras: Float[Array, "T C_2"]
    statistics: Float[Array, "F T N"]
    intermediates: dict[str, Any]


class Aggregator(nnx.Module):
    """Camera and register tokens, two stacks of blocks run together by one `scan`."""

    def __init__(self, config: VGGTConfig, *, dtype: DType, rngs: nnx.Rngs):
        dim, small = config.dim, nnx.initializers.normal(1e-2)
        self.camera_token = nnx.Param(small(rngs.params(), (1, 2, 1, dim), jnp.float32))
        self.register_token = nnx.Param(small(rngs.params(), (1, 2, config.registers, dim), jnp.float32))

        def make(r: nnx.Rngs) -> Block:
            return Block(
                dim, config.num_heads, config.mlp_ratio, epsilon=1e-5, normed=True, scale=0.01, dtype=dtype, rngs=r
            )

        self.frame_blocks = stack_of_blocks(config.depth, make, rngs)
        self.global_blocks = stack_of_blocks(config.depth, make, rngs)
        self.config = config

    def __call__(
        self,
        features: Float[Array, "T N C"],
        grid: tuple[int, int],
        dynamic_tokens: Bool[Array, "T N"] | None = None,
        *,
        bands: Sequence[Band] = (),
        intermediates: bool = False,
    ) -> Aggregated:
        """Aggregates the frames of a sequence.

        Args:
          features: (T, N, C) of the encoder. The first frame is the reference.
          grid: (h, w) tokens.
          dynamic_tokens: (T, N) bool. Keys and values of these tokens are left out of both attentions of the first
            layers, so that no token sees them there.
          bands: statistics to compute beside.
          intermediates: return every layer's record.
        """
        config, special = self.config, self.config.special
        num_frames, num_tokens, dim = features.shape
        rope = frame_rope(grid, special, dim // config.num_heads, config.rope_base)
        tokens = self._with_special(features)
        masked = np.arange(config.depth) < -(-_MASKED_LAYERS * config.depth // 24)
        static = None
        if dynamic_tokens is not None:
            static = jnp.pad(~dynamic_tokens, ((0, 0), (special, 0)), constant_values=True)

        # Layers whose output, queries or keys are read later write to their slots; writes of all others are dropped.
        read = {"levels": config.levels, **_read_by(bands)}
        slots = {name: _slots(layers, config.depth) for name, layers in read.items()}
        heads = (config.num_heads, dim // config.num_heads)
        kept = {
            name: jnp.zeros((len(layers), num_frames, num_tokens, *((2 * dim,) if name == "levels" else heads)), dtype)
            for name, layers in read.items()
            for dtype in [tokens.dtype if name == "levels" else self.frame_blocks.mlp.fc1.dtype]
        }
        products = sorted({name[:2] for name, _, _ in bands if name.endswith("_mean")})

        def step(carry, layer):
            x, _, kept = carry
            frame_block, global_block, slot, is_masked = layer
            seen = None if static is None else static | ~is_masked
            within, frame_record = frame_block(x, rope, seen)
            x, (queries, keys) = global_block(within, rope, seen, across=True)
            of = {
                "levels": jnp.concatenate([within, x], axis=-1)[:, special:],
                "q": queries[:, special:],
                "k": keys[:, special:],
            }
            kept = {name: kept[name].at[slot[name]].set(of[name], mode="drop") for name in kept}
            means = {p: layer_means(of[p[0]], of[p[1]]) for p in products}
            records = {}
            if intermediates:
                records = {"frame": within, "global": x, "frame_qk": frame_record, "global_qk": (queries, keys)}
            return (x, jnp.concatenate([within, x], axis=-1)[:, 0], kept), (means, records)

        start = (tokens, jnp.zeros((num_frames, 2 * dim), tokens.dtype), kept)
        layers = (self.frame_blocks, self.global_blocks, slots, jnp.asarray(masked))
        (_, cameras, kept), (means, records) = jax.lax.scan(step, start, layers)
        statistics = [_statistic(band, means, kept, read) for band in bands]
        return Aggregated(
            levels=kept["levels"],
            cameras=cameras,
            statistics=jnp.stack(statistics) if statistics else jnp.zeros((0, num_frames, num_tokens)),
            intermediates=records | {"tokens": tokens} if intermediates else {},
        )

    def _with_special(self, features: Array) -> Array:
        """(T, P, C): each frame's camera token and registers, then its patches. The first frame has its own tokens."""
        special = jnp.concatenate([self.camera_token[...], self.register_token[...]], axis=2)[0]
        own = special[np.minimum(np.arange(len(features)), 1)].astype(features.dtype)
        return jnp.concatenate([own, features], axis=1)


def _slots(layers: Sequence[int], depth: int) -> Array:
    """(L,) int32: where each layer is kept; beyond the end for those that are not."""
    slots = np.full(depth, len(layers), np.int32)
    slots[list(layers)] = np.arange(len(layers))
    return jnp.asarray(slots)


def _read_by(bands: Sequence[Band]) -> dict[str, tuple[int, ...]]:
    """Layers whose queries ("q") and keys ("k") the deviations read."""
    found: dict[str, set[int]] = {}
    for name, first, last in bands:
        if name.endswith("_std"):
            for kind in name[:2]:
                found.setdefault(kind, set()).update(range(first, last))
    return {kind: tuple(sorted(layers)) for kind, layers in found.items()}


def _statistic(band: Band, means: dict[str, Array], kept: dict[str, Array], read: dict[str, Sequence[int]]) -> Array:
    """(T, N) of a band."""
    (name, first, last), product = band, band[0][:2]
    if name.endswith("_mean"):
        return jnp.mean(means[product][first:last], axis=0)
    own, other = (kept[kind][np.array([read[kind].index(n) for n in range(first, last)])] for kind in product)
    return band_deviations(own, other)
