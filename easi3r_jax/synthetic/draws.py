"""Random numbers of several distributions from one call of `jax.random`.

Each call of `jax.random` adds about 50 ms of compilation, and a scene needs some sixty different quantities. So
functions draw all their uniform numbers at once and then transform them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float, Int, Key
from easi3r_jax.core.geometry import se3


def uniforms(key: Key[Array, ""], **shapes: tuple[int, ...]) -> dict[str, Float[Array, "..."]]:
    """Independent numbers, uniform in [0, 1), by name: `uniforms(key, angle=(), position=(5, 3))`."""
    counts = [math.prod(shape) for shape in shapes.values()]
    values = jax.random.uniform(key, (sum(counts),))
    ends = [sum(counts[: n + 1]) for n in range(len(counts))]
    return {
        name: values[end - count : end].reshape(shape)
        for (name, shape), count, end in zip(shapes.items(), counts, ends, strict=True)
    }


def between(
    low: float | Float[Array, "..."], high: float | Float[Array, "..."], uniform: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Uniform numbers between `low` and `high`. If these are arrays, they have the rank of `uniform`."""
    return low + (high - low) * uniform


def log_between(low: float, high: float, uniform: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Log-uniform numbers between `low` and `high`."""
    return jnp.exp(between(math.log(low), math.log(high), uniform))


def one_of(count: int, uniform: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Uniform integers from 0 to count - 1, int32."""
    return jnp.minimum(uniform * count, count - 1).astype(jnp.int32)


def normal(uniform: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Standard normal numbers."""
    return jnp.sqrt(2.0) * jax.lax.erf_inv(jnp.maximum(2 * uniform - 1, -1 + 2.0**-24))


def rotations(uniform: Float[Array, "*batch 4"]) -> Float[Array, "*batch 3 3"]:
    """(..., 3, 3) uniformly random rotations from (..., 4) uniform numbers, by normal quaternions (Shoemake 1992)."""
    return se3.matrix_from_quaternion(normal(uniform))
