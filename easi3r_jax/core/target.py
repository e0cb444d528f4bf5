"""The device that programs are traced for: this process's, unless they are compiled for another one.

Batch sizes, blocks and kernels depend on the platform and its memory. They are chosen while a program is traced, by
`platform` and `memory_limit`, so that a program for a GPU or a TPU can be made, compiled and inspected on a machine
without one.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax

Platform = Literal["cpu", "gpu", "tpu"]

_CHOSEN: contextvars.ContextVar[tuple[Platform, int | None] | None] = contextvars.ContextVar("target", default=None)


def platform() -> str:
    """The platform that is traced for: "cpu", "gpu" (of any vendor) or "tpu"."""
    chosen = _CHOSEN.get()
    return jax.default_backend() if chosen is None else chosen[0]


def memory_limit() -> int | None:
    """Bytes that programs may use of a device's memory; None if it does not report them."""
    chosen = _CHOSEN.get()
    if chosen is None:
        return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return chosen[1]


def is_this_process() -> bool:
    """Whether programs are traced for this process's devices, so that these may be asked for their properties."""
    return _CHOSEN.get() is None


@contextlib.contextmanager
def traced_for(name: Platform, memory: int | None = None) -> Iterator[None]:
    """Within it, functions are traced for another platform, with so many bytes of memory. They cannot be run.

    JAX's caches are cleared before and after: they do not know of this choice.
    """
    jax.clear_caches()
    token = _CHOSEN.set((name, memory))
    try:
        yield
    finally:
        _CHOSEN.reset(token)
        jax.clear_caches()
