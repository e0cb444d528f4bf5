"""Number types that the device may be unable to convert."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from easi3r_jax.core.errors import ConfigError


def check_conversion(dtype: str) -> None:
    """Refuses a type that arrays of float32 are to be kept in, where the device cannot convert to it and back.

    XLA compiles conversions of float16 on x86 to the instructions F16C only, which processors before 2012 lack.

    Raises:
      ConfigError: it cannot.
    """
    if not _converts(dtype, jax.default_backend()):
        raise ConfigError(f"This processor cannot convert {dtype} (it lacks F16C): use bfloat16 or float32 instead.")


@functools.cache
def _converts(dtype: str, backend: str) -> bool:
    """Asked by trying: XLA has no list, and what it compiles for is not always what the processor has."""
    if dtype != "float16" or backend != "cpu":
        return True
    try:
        jax.block_until_ready(jax.jit(lambda x: x.astype(dtype).astype(x.dtype))(jnp.zeros(1)))
    except jax.errors.JaxRuntimeError:
        return False
    return True
