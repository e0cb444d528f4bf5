"""Checks that the device can convert between number types."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from easi3r_jax.core.errors import ConfigError


def check_conversion(dtype: str) -> None:
    """Refuses a storage type that the device cannot convert to and from float32.

    On x86, XLA compiles float16 conversions to F16C instructions only, which processors before 2012 lack.

    Raises:
      ConfigError: the device cannot convert the type.
    """
    if not _converts(dtype, jax.default_backend()):
        raise ConfigError(f"This processor cannot convert {dtype} (it lacks F16C): use bfloat16 or float32 instead.")


@functools.cache
def _converts(dtype: str, backend: str) -> bool:
    """Tries a conversion: XLA does not list what it supports, and may compile for instructions the CPU lacks."""
    if dtype != "float16" or backend != "cpu":
        return True
    try:
        jax.block_until_ready(jax.jit(lambda x: x.astype(dtype).astype(x.dtype))(jnp.zeros(1)))
    except jax.errors.JaxRuntimeError:
        return False
    return True
