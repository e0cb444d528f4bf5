"""Weighted registration of point sets with known correspondence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

_HIGHEST = jax.lax.Precision.HIGHEST


def register_similarity(source: Array, target: Array, weights: Array) -> tuple[Array, Array, Array]:
    """The similarity that brings `source` closest to `target`: minimises sum_p w_p |s R x_p + t - y_p|^2.

    Umeyama (PAMI 1991), with weights. R is a proper rotation even where a reflection would fit better. A scale has no
    meaning where the source or its correlation with the target vanishes (coincident points, weights all 0): then
    s = 1, R = I, and t is the shift of the weighted means.

    Args:
      source, target: (P, 3) points; `jax.vmap` for batches.
      weights: (P,) >= 0.

    Returns:
      scale (), rotation (3, 3), translation (3,).
    """
    total = jnp.sum(weights)
    w = weights / jnp.where(total > 0, total, 1)
    mean_source, mean_target = (jnp.matmul(w, points, precision=_HIGHEST) for points in (source, target))
    x, y = source - mean_source[None], target - mean_target[None]
    covariance = jnp.matmul((w[:, None] * y).T, x, precision=_HIGHEST)
    u, singular, vt = jnp.linalg.svd(covariance)
    handedness = jnp.linalg.det(jnp.matmul(u, vt, precision=_HIGHEST))
    signs = jnp.stack([jnp.ones_like(handedness), jnp.ones_like(handedness), jnp.sign(handedness)])
    rotation = jnp.matmul(u * signs[None, :], vt, precision=_HIGHEST)

    correlation = jnp.sum(singular * signs)
    variance = jnp.sum(w[:, None] * x * x)
    # Relative to the means: centring leaves rounding noise where all points coincide.
    noise = (jnp.finfo(source.dtype).eps * 8) ** 2
    tangible = (variance > noise * jnp.sum(mean_source**2)) & (variance > 0)
    scale = correlation / jnp.where(tangible, variance, 1)
    meaningful = tangible & (scale * scale * variance > noise * jnp.sum(mean_target**2)) & (scale > 0)
    scale = jnp.where(meaningful, scale, 1)
    rotation = jnp.where(meaningful, rotation, jnp.eye(3, dtype=rotation.dtype))
    translation = mean_target - scale * jnp.matmul(rotation, mean_source, precision=_HIGHEST)
    return scale, rotation, translation
