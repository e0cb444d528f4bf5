"""Rigid motions and similarities in 3-D space.

Notation: `b_from_a` is a (..., 4, 4) matrix that maps homogeneous coordinates in frame a to frame b, so
`c_from_a = c_from_b @ b_from_a`. A rigid motion has an orthonormal upper-left block R; a similarity has s R with s > 0.
Quaternions are (..., 4) in the order x y z w; as inputs they need not have unit length.

All functions take any leading batch axes and any float dtype. Products run at the highest precision: the default on a
TPU or GPU (bfloat16, TF32) loses four digits, too much for a pose.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Float

_HIGHEST = jax.lax.Precision.HIGHEST
#: Called outside of a compiled function, each of these is one program, not one for every operation; inside, it is as if
#: written there.
_compiled_alone = functools.partial(jax.jit, inline=True)


@_compiled_alone
def safe_norm(x: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Euclidean norm over the last axis, with gradient 0 (not NaN) where the vector is 0."""
    return safe_root(jnp.sum(x * x, axis=-1))


@_compiled_alone
def safe_root(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Square root of x >= 0, with gradient 0 (not infinity) at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


@_compiled_alone
def matrix_from_quaternion(quaternion: Float[Array, "*batch 4"]) -> Float[Array, "*batch 3 3"]:
    """(..., 4) quaternion x y z w of any length -> (..., 3, 3) rotation; a zero quaternion gives the identity."""
    norm = safe_norm(quaternion)[..., None]
    x, y, z, w = jnp.moveaxis(quaternion / jnp.where(norm > 0, norm, 1), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


@_compiled_alone
def quaternion_from_matrix(rotation: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 4"]:
    """(..., 3, 3) rotation -> (..., 4) unit quaternion x y z w with w >= 0.

    The entries of 4 q q^T are linear in R (Shepperd 1978). Its row with the largest diagonal entry, normalised, is q up
    to sign: there is no division by a small number at any angle.
    """
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    xw, yw, zw = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    outer = jnp.stack(
        [
            jnp.stack([1 + xx - yy - zz, xy, xz, xw], axis=-1),
            jnp.stack([xy, 1 - xx + yy - zz, yz, yw], axis=-1),
            jnp.stack([xz, yz, 1 - xx - yy + zz, zw], axis=-1),
            jnp.stack([xw, yw, zw, 1 + xx + yy + zz], axis=-1),
        ],
        axis=-2,
    )
    largest = jnp.argmax(jnp.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    row = jnp.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    quaternion = row / jnp.linalg.norm(row, axis=-1, keepdims=True)
    return jnp.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def signed_log1p(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """sign(x) log(1 + |x|): the parametrisation of translations (DUSt3R's released optimiser)."""
    xp = x.__array_namespace__()
    return xp.sign(x) * xp.log1p(xp.abs(x))


@_compiled_alone
def signed_expm1(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Inverse of `signed_log1p`. Its derivative at exactly 0 is taken as 0 (that of sign and |.|), not 1.

    So a translation that starts at exactly 0 stays there under gradient descent. This is the case for the alignment's
    root frame: it fixes the world's origin, here and in the reference.
    """
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@_compiled_alone
def from_parts(linear: Float[Array, "*batch 3 3"], translation: Float[Array, "*batch 3"]) -> Float[Array, "*batch 4 4"]:
    """(..., 3, 3) rotation, possibly times a scale, and (..., 3) translation -> (..., 4, 4)."""
    top = jnp.concatenate([linear, translation[..., None]], axis=-1)
    bottom = jnp.broadcast_to(jnp.asarray([[0, 0, 0, 1]], top.dtype), (*top.shape[:-2], 1, 4))
    return jnp.concatenate([top, bottom], axis=-2)


def compose(c_from_b: Float[Array, "*batch 4 4"], b_from_a: Float[Array, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """`c_from_a`, for equal batch shapes."""
    return jnp.matmul(c_from_b, b_from_a, precision=_HIGHEST)


@_compiled_alone
def inverse(b_from_a: Float[Array, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """`a_from_b` of a rigid motion or a similarity: (s R)^-1 = (s R)^T / s^2 with s^2 = |s R|_F^2 / 3."""
    linear, translation = b_from_a[..., :3, :3], b_from_a[..., :3, 3]
    squared_scale = jnp.sum(linear * linear, axis=(-2, -1), keepdims=True) / 3
    transposed = jnp.swapaxes(linear, -1, -2) / squared_scale
    return from_parts(transposed, -jnp.einsum("...ij,...j->...i", transposed, translation, precision=_HIGHEST))


@_compiled_alone
def transform_points(
    b_from_a: Float[Array, "*batch 4 4"], points: Float[Array, "*shape 3"]
) -> Float[Array, "*shape 3"]:
    """Maps (B..., P..., 3) points in frame a to frame b by (B..., 4, 4): one matrix for each leading batch index."""
    batch = b_from_a.shape[:-2]
    flat = points.reshape(*batch, math.prod(points.shape[len(batch) : -1]), 3)  # not -1: a batch may be empty
    moved = jnp.einsum("...ij,...pj->...pi", b_from_a[..., :3, :3], flat, precision=_HIGHEST)
    return (moved + b_from_a[..., None, :3, 3]).reshape(points.shape)
