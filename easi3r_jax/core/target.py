"""The platform that programs are traced for: this process's, unless they are compiled for another one.

Batch sizes, blocks and kernels depend on the platform. They are chosen while a program is traced, by `platform`, so
that a program for a GPU or a TPU can be made, compiled and inspected on a machine without one.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax

Platform = Literal["cpu", "gpu", "tpu"]

_CHOSEN: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """The platform that is traced for: "cpu", "gpu" (of any vendor) or "tpu"."""
    return _CHOSEN.get() or jax.default_backend()


def is_this_process() -> bool:
    """Whether it is that of this process's devices, so that these may be asked for their properties."""
    return _CHOSEN.get() is None


@contextlib.contextmanager
def traced_for(name: Platform) -> Iterator[None]:
    """Within it, functions are traced for another platform. For lowering and compiling, not for running.

    JAX's caches are cleared before and after: they do not know of this choice.
    """
    jax.clear_caches()
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)
        jax.clear_caches()
