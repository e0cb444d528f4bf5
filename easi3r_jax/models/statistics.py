"""Statistics of cross-attention that are linear in the number of tokens, computed beside its output.

Shapes: queries and keys are (B, N, A, D), after rotary embedding.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models.layers import at_least_float32

#: Queries and keys of a cross-attention.
QueriesKeys: TypeAlias = tuple[Float[Array, "B query A D"], Float[Array, "B key A D"]]


def mean_logits(queries: Float[Array, "B query A D"], keys: Float[Array, "B key A D"]) -> Float[Array, "B A key"]:
    """Mean of the pre-softmax maps over the queries, for each key: (B, A, N_key), float32 or wider.

    mean_q(q . k) = mean_q(q) . k, so this is exact and linear in the number of tokens (Easi3R, eq. 3).
    """
    queries, keys = (x.astype(at_least_float32(x.dtype)) for x in (queries, keys))
    mean_query = jnp.mean(queries, axis=1)
    products = jnp.einsum("bad,bkad->bak", mean_query, keys, precision=jax.lax.Precision.HIGHEST)
    return products * queries.shape[-1] ** -0.5


def gram_statistics(
    branch1: QueriesKeys, branch2: QueriesKeys
) -> tuple[Float[Array, "B six_A N"], Float[Array, "B six_A N"]]:
    """Mean and deviation of each token's products with the other view's tokens, as `GramStats` orders them.

    Args:
      branch1: queries of view i, and keys of view j.
      branch2: queries of view j, and keys of view i.

    Returns:
      of the tokens of view j, and of those of view i: (B, 6 A, N) each, float32 or wider.
    """
    (queries_i, keys_j), (queries_j, keys_i) = branch1, branch2
    of_j = ((queries_j, queries_i), (keys_j, keys_i), (queries_j, keys_i))
    of_i = ((queries_i, queries_j), (keys_i, keys_j), (queries_i, keys_j))
    return _products(of_j), _products(of_i)


def _products(pairs: tuple[QueriesKeys, ...]) -> Float[Array, "B six_A N"]:
    return jnp.concatenate([x for own, other in pairs for x in product_moments(own, other)], axis=1)


def product_moments(
    own: Float[Array, "B N A D"], other: Float[Array, "B M A D"]
) -> tuple[Float[Array, "B A N"], Float[Array, "B A N"]]:
    """Mean and deviation (divisor M) over the other tokens m of the products own_n . other_m, without the N x M map.

    The mean is own_n . mean(other), the variance own_n' Cov(other) own_n: 2 N D² + M D² multiplications a head. Where
    the deviation is 0, its derivative is taken as 0.
    """
    own, other = (x.astype(at_least_float32(x.dtype)) for x in (own, other))
    exact = jax.lax.Precision.HIGHEST
    mean = jnp.mean(other, axis=1)
    centred = other - mean[:, None]
    covariance = jnp.einsum("bmad,bmae->bade", centred, centred, precision=exact) / other.shape[1]
    variance = jnp.sum(jnp.einsum("bnad,bade->bnae", own, covariance, precision=exact) * own, axis=-1)
    std = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    return jnp.einsum("bnad,bad->ban", own, mean, precision=exact), jnp.swapaxes(std, 1, 2)
