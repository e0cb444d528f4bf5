"""VGGT's track head: points of the first frame, followed through all frames. Float32 arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.layers import LayerNorm, Linear
from easi3r_jax.models.vggt.config import VGGTConfig
from easi3r_jax.models.vggt.dpt import DenseHead
from easi3r_jax.models.vggt.updateformer import UpdateFormer

#: Pixels of the image per pixel of the feature maps.
STRIDE = 2
# Displacements are divided by the released network's image size, whatever the image's.
_LARGEST = 518.0


class TrackHead(nnx.Module):
    """Feature maps, and a tracker that corrects positions and features in iterations.

    Its embedding of displacements has frequencies up to 1000 per pixel of the feature maps. So rounding alone moves
    tracks by up to 0.005 pixels after the second iteration.
    """

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        dim, hidden = config.track_features, config.track_hidden
        in_dim = 3 * dim + 4
        self.extractor = DenseHead(config, None, dim, positions=False, down=STRIDE, rngs=rngs)
        self.map_norm = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.correlation1 = Linear(config.track_levels * (2 * config.track_radius + 1) ** 2, hidden, rngs=rngs)
        self.correlation2 = Linear(hidden, dim, rngs=rngs)
        self.reference_token = nnx.Param(jax.random.normal(rngs.params(), (1, 2, in_dim), jnp.float32))
        self.former = UpdateFormer(in_dim, hidden, 2 + dim, rngs=rngs)
        self.feature_norm = LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.feature_update = Linear(dim, dim, rngs=rngs)
        self.visibility = Linear(dim, 1, rngs=rngs)
        self.confidence = Linear(dim, 1, rngs=rngs)
        self.config = config

    def __call__(
        self, maps: Float[Array, "T h w C"], points: Float[Array, "N 2"]
    ) -> tuple[Float[Array, "R T N 2"], Float[Array, "T N"], Float[Array, "T N"], dict[str, Float[Array, "..."]]]:
        """Follows points of the first frame.

        Args:
          maps: (T, h, w, C), features of the extractor at half the image's size.
          points: (N, 2) pixels (x, y) of the first frame.

        Returns:
          tracks (R, T, N, 2) in pixels after every iteration; of the last, the probability of being visible (T, N) and
          the confidence (T, N); and `correlation` (R, N, T, C) and `delta` (R, N, T, 2 + C).
        """
        config, num_frames = self.config, len(maps)
        maps = self.map_norm(maps)
        start = points / STRIDE
        pyramid = [maps]
        for _ in range(config.track_levels - 1):
            pyramid.append(_halved(pyramid[-1]))
        feature = sampled(maps[0], start, border=True)  # (N, C)
        features = jnp.broadcast_to(feature[:, None], (len(start), num_frames, feature.shape[-1]))
        coordinates = jnp.broadcast_to(start[:, None], (len(start), num_frames, 2))
        in_dim = self.reference_token.shape[-1]
        first = jnp.minimum(jnp.arange(num_frames), 1)
        place = _table_at(start, maps.shape[1:3], in_dim)[:, None] + self.reference_token[...][0, first][None]

        def iterate(carry: tuple[Array, Array], _: None):
            coordinates, features = carry
            correlation = self.correlation1(self._correlations(pyramid, features, coordinates))
            correlation = self.correlation2(jax.nn.gelu(correlation, approximate=False))
            flow = coordinates - coordinates[:, :1]
            scaled = flow / _LARGEST
            tokens = [_waves(flow, features.shape[-1]), scaled, scaled, correlation, features]
            delta = self.former(jnp.concatenate(tokens, axis=-1) + place)
            coordinates = (coordinates + delta[..., :2]).at[:, 0].set(start)
            update = self.feature_update(self.feature_norm(delta[..., 2:]))
            features = features + jax.nn.gelu(update, approximate=False)
            return (coordinates, features), (coordinates, correlation, delta)

        (_, features), (found, correlation, delta) = jax.lax.scan(
            iterate, (coordinates, features), length=config.track_iterations
        )
        visible, sure = (jax.nn.sigmoid(head(features))[..., 0].T for head in (self.visibility, self.confidence))
        return jnp.swapaxes(found, 1, 2) * STRIDE, visible, sure, {"correlation": correlation, "delta": delta}

    def _correlations(self, pyramid: list[Array], features: Array, coordinates: Array) -> Array:
        """(N, T, levels (2 r + 1)²): products with the maps around each track; the first axis of a window moves x."""
        radius = np.arange(-self.config.track_radius, self.config.track_radius + 1, dtype=np.float32)
        window = jnp.asarray(np.stack(np.meshgrid(radius, radius, indexing="ij"), axis=-1).reshape(-1, 2))

        def of_frame(frame: tuple[list[Array], Array, Array]) -> Array:
            levels, own, centres = frame
            parts = []
            for number, level in enumerate(levels):
                product = jnp.einsum("nc,hwc->nhw", own, level) * own.shape[-1] ** -0.5
                where = centres[:, None] / 2**number + window[None]
                parts.append(jax.vmap(lambda m, p: sampled(m[..., None], p)[..., 0])(product, where))
            return jnp.concatenate(parts, axis=-1)

        frames = (pyramid, jnp.swapaxes(features, 0, 1), jnp.swapaxes(coordinates, 0, 1))
        return jnp.swapaxes(jax.lax.map(of_frame, frames), 0, 1)


def sampled(image: Float[Array, "h w C"], points: Float[Array, "N 2"], *, border: bool = False) -> Float[Array, "N C"]:
    """Bilinear samples (N, C) at (x, y), with pixel centres at whole numbers; outside 0, or the nearest border."""
    height, width, _ = image.shape
    largest = jnp.asarray([width - 1, height - 1], points.dtype)
    points = jnp.clip(points, 0, largest[None]) if border else points
    low = jnp.floor(points)
    share = points - low
    total = jnp.zeros((len(points), image.shape[-1]), image.dtype)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = low[:, 0] + dx, low[:, 1] + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        weight = (share[:, 0] if dx else 1 - share[:, 0]) * (share[:, 1] if dy else 1 - share[:, 1])
        rows, columns = (jnp.clip(v, 0, n - 1).astype(jnp.int32) for v, n in ((y, height), (x, width)))
        total = total + jnp.where(inside, weight, 0)[:, None] * image[rows, columns]
    return total


def _halved(maps: Array) -> Array:
    """Means of 2 x 2 pixels; an odd last row or column is dropped."""
    count, height, width, channels = maps.shape
    height, width = height // 2, width // 2
    cut = maps[:, : 2 * height, : 2 * width].reshape(count, height, 2, width, 2, channels)
    return jnp.mean(cut, axis=(2, 4))


def _waves(flow: Array, channels: int) -> Array:
    """(..., channels): of x, then of y, sines and cosines in turns, with the frequencies (1000 / E) (0, 2, 4, ...)."""
    half = channels // 2
    frequencies = jnp.asarray((1000.0 / half) * np.arange(0, half, 2), flow.dtype)
    angles = flow[..., None] * frequencies.reshape((1,) * flow.ndim + (-1,))  # (..., 2, E / 2)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*flow.shape[:-1], channels)


def _table_at(points: Array, size: tuple[int, int], channels: int) -> Array:
    """(N, channels): a table of sines and cosines of whole positions, of x then of y, between which is interpolated."""
    frequencies = 10000.0 ** (-np.arange(channels // 4) / (channels / 4))
    parts = []
    for axis, count in enumerate((size[1], size[0])):
        angles = np.arange(count)[:, None] * frequencies
        table = jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), points.dtype)
        along = jnp.stack([points[:, axis], jnp.zeros_like(points[:, axis])], axis=-1)
        parts.append(sampled(table[None], along, border=True))
    return jnp.concatenate(parts, axis=-1)
