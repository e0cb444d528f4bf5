"""Shared by the kernels' custom derivatives, which return every requested cotangent or raise."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from easi3r_jax.core.arrays import Array, Shaped
from easi3r_jax.core.errors import GradientError

_T = TypeVar("_T")


def is_wanted(x: CustomVJPPrimal) -> bool:
    """Within a forward rule with `symbolic_zeros`: whether this argument is differentiated."""
    return bool(x.perturbed) and jnp.issubdtype(x.value.dtype, jnp.floating)


def values_of(tree: Any) -> Any:
    """Within a forward rule with `symbolic_zeros`: the arguments' arrays."""
    return jax.tree.map(lambda x: x.value, tree)


def instantiated(cotangent: Shaped[Array, "..."] | SymbolicZero) -> Shaped[Array, "..."]:
    """Within a backward rule with `symbolic_zeros`: the cotangent as an array."""
    if isinstance(cotangent, SymbolicZero):
        abstract: Any = cotangent.aval
        return jnp.zeros(abstract.shape, abstract.dtype)
    return cotangent


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def without_derivative(x: _T, reason: str) -> _T:
    """`x`; differentiating with respect to it raises a `GradientError` with this reason."""
    del reason
    return x


@without_derivative.defjvp
def _refuse(reason: str, primals: tuple, tangents: tuple):
    del primals, tangents
    raise GradientError(reason)
