"""Sums of products over pixels, as the streaming kernels need them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from easi3r_jax.core import target
from easi3r_jax.core.arrays import Array, Float


def pixel_sums(rows: Float[Array, "K P"], vectors: Sequence[Float[Array, "P"]]) -> Float[Array, "K N"]:
    """sum_p rows[k, p] vectors[n][p], (K, N) float.

    On a CPU each sum is a call of a library, with its overhead: one call for each vector instead of one for each
    product. Elsewhere products and sums are fused with what makes their operands, which a matrix product would prevent.
    """
    if target.platform() == "cpu":
        return jnp.stack([jnp.matmul(rows, v, precision=jax.lax.Precision.HIGHEST) for v in vectors], axis=-1)
    return jnp.stack([jnp.sum(rows * v[None], axis=-1) for v in vectors], axis=-1)
