"""RAFT's correlation lookup (arXiv 2003.12039, sec. 3.2): similarity of two feature maps around the current flow.

Letters: B pairs, h w pixels of the feature maps, N = h w, C channels, r the window's radius, D = 2 r + 1 its side.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.errors import InputError

LEVELS = 4
#: Above this size, the all-pairs maps are not kept. Every lookup recomputes them, a few rows at a time.
MAX_CORRELATION_BYTES = 1 << 30


def make_lookup(
    features_i: Float[Array, "B h w C"],
    features_j: Float[Array, "B h w C"],
    radius: int,
    *,
    max_bytes: int = MAX_CORRELATION_BYTES,
) -> Callable[[Float[Array, "B h w 2"]], Float[Array, "B h w correlations"]]:
    """Prepares the lookup of correlations between two images' features, (B, h, w, C) each.

    Each level correlates with the image-j features of the level before, averaged over 2 x 2 pixels (a last odd row or
    column is omitted). The map is linear in the features, so this equals averaging the map, which at a factor of 2 is
    bilinear resizing.

    Returns:
      A function from coordinates in image j to correlations. Coordinates are (B, h, w, 2), one for each pixel of image
      i, in feature pixels (x, y). Correlations are (B, h, w, LEVELS * D * D): at each level the window around the
      coordinate, x before y, sampled bilinearly, 0 outside the image.

    Raises:
      InputError: features of fewer than 8 pixels a side (images below 64): the coarsest level would be empty.
    """
    batch, h, w, channels = features_i.shape
    if min(h, w) < 2 ** (LEVELS - 1):
        raise InputError(f"Optical flow needs images of at least {8 * 2 ** (LEVELS - 1)} pixels a side.")
    queries = features_i.reshape(batch, h * w, channels) * channels**-0.5
    levels = [features_j]
    while len(levels) < LEVELS:
        levels.append(halve(levels[-1]))
    cells = sum(level.shape[1] * level.shape[2] for level in levels)
    rows = _chunk_rows(4 * batch * cells, h * w, max_bytes)

    def sample(maps: list[Array], coords: Array) -> Array:
        windows = [window(m, coords * 0.5**n, radius) for n, m in enumerate(maps)]
        return jnp.concatenate(windows, axis=-1)

    if rows == h * w:
        maps = [correlate(queries, level) for level in levels]
        return lambda coords: sample(maps, coords.reshape(batch, h * w, 2)).reshape(batch, h, w, -1)

    def sample_chunk(chunk: tuple[Array, Array]) -> Array:
        chunk_queries, coords = chunk
        return sample([correlate(chunk_queries, level) for level in levels], coords)

    def chunks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, h * w // rows, rows, -1), 1, 0)

    def lookup(coords: Array) -> Array:
        found = jax.lax.map(sample_chunk, (chunks(queries), chunks(coords.reshape(batch, h * w, 2))))
        return jnp.moveaxis(found, 0, 1).reshape(batch, h, w, -1)

    return lookup


def _chunk_rows(bytes_per_row: int, count: int, max_bytes: int) -> int:
    """Rows of a chunk: the largest divisor of `count` that stays within `max_bytes`, at least 1."""
    return max(n for n in range(1, count + 1) if count % n == 0 and (n == 1 or n * bytes_per_row <= max_bytes))


def halve(x: Float[Array, "B h w C"]) -> Float[Array, "B h//2 w//2 C"]:
    """(B, h, w, C) -> (B, h // 2, w // 2, C): means over 2 x 2 pixels."""
    batch, h, w, channels = x.shape
    blocks = x[:, : h // 2 * 2, : w // 2 * 2].reshape(batch, h // 2, 2, w // 2, 2, channels)
    return jnp.mean(blocks, axis=(2, 4))


def correlate(queries: Float[Array, "B N C"], features: Float[Array, "B h w C"]) -> Float[Array, "B N h w"]:
    """Dot products of queries (B, N, C) with the features of all pixels (B, h, w, C): (B, N, h, w)."""
    return jnp.einsum("bnc,byxc->bnyx", queries, features)


def window(maps: Float[Array, "B N h w"], coords: Float[Array, "B N 2"], radius: int) -> Float[Array, "B N window"]:
    """Samples each map of (B, N, h, w) bilinearly around its coordinate (B, N, 2): (B, N, D * D), x before y.

    Values outside the map are 0. Written as products with interpolation weights, of which at most two in a row are not
    0. Gathers are slow on accelerators, and this needs no special case at the border.
    """

    def weights(position: Array, side: int) -> Array:
        """(B, N, D, side)."""
        steps = jnp.arange(-radius, radius + 1, dtype=position.dtype).reshape(1, 1, -1)
        pixels = jnp.arange(side, dtype=position.dtype).reshape(1, 1, 1, -1)
        return jnp.maximum(1 - jnp.abs((position[..., None] + steps)[..., None] - pixels), 0)

    along_x = jnp.einsum("bnyx,bnax->bnya", maps, weights(coords[..., 0], maps.shape[3]))
    both = jnp.einsum("bnya,bncy->bnac", along_x, weights(coords[..., 1], maps.shape[2]))
    return both.reshape(*both.shape[:2], -1)
