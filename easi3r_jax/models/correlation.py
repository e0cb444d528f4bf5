"""How alike the pixels of two feature maps are, around where a flow points (RAFT, arXiv 2003.12039, sec. 3.2).

Letters: B pairs, h w the feature maps' pixels, N = h w, C channels, r the window's radius, D = 2 r + 1 its side.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from easi3r_jax.core.errors import InputError

Array = jax.Array

LEVELS = 4
#: Bytes of all-pairs maps above which they are computed anew, some rows at a time, whenever they are looked up.
MOST_BYTES = 1 << 30


def make_lookup(
    features_i: Array, features_j: Array, radius: int, *, most_bytes: int = MOST_BYTES
) -> Callable[[Array], Array]:
    """Prepares the look-up of correlations of two images' features, (B, h, w, C) each.

    A level's map is that of the image-j features averaged over 2 x 2 pixels of the level before (odd rows and columns
    are left out): the same as averaging the map, since it is linear in them, and, for halves, as resizing bilinearly.

    Returns:
      A function from coordinates in image j (B, h, w, 2), one for each pixel of image i, in pixels (x, y) of the
      features, to correlations (B, h, w, LEVELS * D * D): at each level the window around the coordinate, x before y,
      sampled bilinearly, 0 outside the image.

    Raises:
      InputError: features of fewer than 8 pixels a side, so of images below 64: the coarsest level has none.
    """
    batch, h, w, channels = features_i.shape
    if min(h, w) < 2 ** (LEVELS - 1):
        raise InputError(f"Optical flow needs images of at least {8 * 2 ** (LEVELS - 1)} pixels a side.")
    queries = features_i.reshape(batch, h * w, channels) * channels**-0.5
    levels = [features_j]
    while len(levels) < LEVELS:
        levels.append(halve(levels[-1]))
    cells = sum(level.shape[1] * level.shape[2] for level in levels)
    rows = _rows_at_a_time(4 * batch * cells, h * w, most_bytes)

    def sample(maps: list[Array], coords: Array) -> Array:
        windows = [window(m, coords * 0.5**n, radius) for n, m in enumerate(maps)]
        return jnp.concatenate(windows, axis=-1)

    if rows == h * w:
        maps = [correlate(queries, level) for level in levels]
        return lambda coords: sample(maps, coords.reshape(batch, h * w, 2)).reshape(batch, h, w, -1)

    def some(args: tuple[Array, Array]) -> Array:
        some_queries, coords = args
        return sample([correlate(some_queries, level) for level in levels], coords)

    def chunks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, h * w // rows, rows, -1), 1, 0)

    def lookup(coords: Array) -> Array:
        found = jax.lax.map(some, (chunks(queries), chunks(coords.reshape(batch, h * w, 2))))
        return jnp.moveaxis(found, 0, 1).reshape(batch, h, w, -1)

    return lookup


def _rows_at_a_time(bytes_of_a_row: int, count: int, most_bytes: int) -> int:
    """The largest divisor of `count` whose rows fit; one row always does."""
    return max(n for n in range(1, count + 1) if count % n == 0 and (n == 1 or n * bytes_of_a_row <= most_bytes))


def halve(x: Array) -> Array:
    """(B, h, w, C) -> (B, h // 2, w // 2, C): means over 2 x 2 pixels."""
    batch, h, w, channels = x.shape
    blocks = x[:, : h // 2 * 2, : w // 2 * 2].reshape(batch, h // 2, 2, w // 2, 2, channels)
    return jnp.mean(blocks, axis=(2, 4))


def correlate(queries: Array, features: Array) -> Array:
    """Products of queries (B, N, C) with the features of all pixels (B, h, w, C): (B, N, h, w)."""
    return jnp.einsum("bnc,byxc->bnyx", queries, features)


def window(maps: Array, coords: Array, radius: int) -> Array:
    """Samples maps (B, N, h, w) bilinearly around a coordinate (B, N, 2) each: (B, N, D * D), x before y, 0 outside.

    As products with the weights of linear interpolation, at most two of a row not 0: no gather, which accelerators do
    slowly, and no special case outside.
    """

    def weights(position: Array, side: int) -> Array:
        """(B, N, D, side)."""
        steps = jnp.arange(-radius, radius + 1, dtype=position.dtype).reshape(1, 1, -1)
        pixels = jnp.arange(side, dtype=position.dtype).reshape(1, 1, 1, -1)
        return jnp.maximum(1 - jnp.abs((position[..., None] + steps)[..., None] - pixels), 0)

    along_x = jnp.einsum("bnyx,bnax->bnya", maps, weights(coords[..., 0], maps.shape[3]))
    both = jnp.einsum("bnya,bncy->bnac", along_x, weights(coords[..., 1], maps.shape[2]))
    return both.reshape(*both.shape[:2], -1)
