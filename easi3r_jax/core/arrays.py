"""Arrays in annotations, and dataclasses that are pytrees."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool as Bool
from jaxtyping import Float as Float
from jaxtyping import Int as Int
from jaxtyping import Key as Key
from jaxtyping import PyTree as PyTree
from jaxtyping import Real as Real
from jaxtyping import Shaped as Shaped
from jaxtyping import UInt8 as UInt8
from jaxtyping import UInt32 as UInt32

if TYPE_CHECKING:
    # Stages take host arrays and device arrays, and no type that checkers understand has the methods of both. So
    # `Float[Array, "T H W"]` is anything to them; shapes and dtypes are checked while the tests run.
    Array: TypeAlias = Any
else:
    Array = jax.Array | np.ndarray

_T = TypeVar("_T")


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """() bool: whether every floating-point leaf of a pytree is finite everywhere."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)]
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]).all()


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[_T]) -> type[_T]:
    """Makes `cls` a frozen dataclass whose fields are pytree children, except those with the metadata "static"."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def static_field(**options: Any) -> Any:
    """A field of a `pytree_dataclass` that is part of the tree's structure, not one of its leaves."""
    return dataclasses.field(metadata={"static": True}, **options)
