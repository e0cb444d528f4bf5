"""Statistics that VGGT4D's cue reads (arXiv 2511.19971): products of a frame's queries and keys with other frames'.

For frame t, S(t) are the frames 2, 4 and 6 before and after it, x_t,l,a,i is the query or key of its token i in head a
of layer l, and y another frame's. Of a band of L layers with A heads, M averages the products over its layers, its
heads and the frames of S(t):

    M(i, j) = 1 / (L A |S|) sum_l,a,s x_t,l,a,i . y_s,l,a,j  =  X_i . Y_j

where X_i and Y_j are the vectors over all layers and heads side by side, Y_j averaged over S(t), both divided by the
root of L A. Over the tokens j, with n of them,

    mean(i) = X_i . mean(Y),    deviation(i)² = X_i' Cov(Y) X_i,  Cov(Y) = 1/(n - 1) sum_j (Y_j - mean(Y)) (...)'

so the first and second moments of Y serve, and no map of tokens by tokens is made. The mean is a mean of layers, too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.layers import at_least_float32
from easi3r_jax.models.statistics import product_moments

#: Other frames of a frame's window, relative to it.
OFFSETS = (-6, -4, -2, 2, 4, 6)


def window_weights(num_frames: int) -> Float[np.ndarray, "T T"]:
    """(T, T) float32: row t averages over the frames of t's window; it is 0 where the window is empty."""
    frames = np.arange(num_frames)
    inside = np.isin(frames[None] - frames[:, None], OFFSETS)
    return (inside / np.maximum(inside.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def layer_means(own: Float[Array, "T N A D"], other: Float[Array, "T N A D"]) -> Float[Array, "T N"]:
    """mean(i) of one layer: of each token's products with the tokens of the frame's window, (T, N) float32 or wider."""
    wide, exact = at_least_float32(own.dtype), jax.lax.Precision.HIGHEST
    own, per_frame = own.astype(wide), jnp.mean(other.astype(wide), axis=1)
    weights = jnp.asarray(window_weights(len(own)), wide)
    window = jnp.einsum("ts,sad->tad", weights, per_frame, precision=exact)
    return jnp.einsum("tnad,tad->tn", own, window, precision=exact) / own.shape[2]


def band_deviations(own: Float[Array, "L T N A D"], other: Float[Array, "L T N A D"]) -> Float[Array, "T N"]:
    """deviation(i) of a band of layers, (T, N) float32 or wider. One frame at a time."""
    depth, num_frames, count, heads, _ = own.shape
    wide = at_least_float32(own.dtype)

    def side_by_side(x: Array) -> Array:  # (L, N, A, D) to (1, N, 1, L A D)
        return jnp.moveaxis(x.astype(wide), 0, 1).reshape(1, count, 1, -1) * (depth * heads) ** -0.5

    def of_frame(t: Array) -> Array:
        frames = t + jnp.asarray(OFFSETS)
        inside = ((frames >= 0) & (frames < num_frames)).astype(wide)
        weights = inside / jnp.maximum(jnp.sum(inside), 1)
        window = jnp.zeros(other.shape[:1] + other.shape[2:], wide)
        for n in range(len(OFFSETS)):
            source = jax.lax.dynamic_index_in_dim(other, jnp.clip(frames[n], 0, num_frames - 1), 1, keepdims=False)
            window = window + weights[n] * source.astype(wide)
        mine = jax.lax.dynamic_index_in_dim(own, t, 1, keepdims=False)
        _, std = product_moments(side_by_side(mine), side_by_side(window))
        return std[0, 0] * (count / max(count - 1, 1)) ** 0.5

    return jax.lax.map(of_frame, jnp.arange(num_frames))
