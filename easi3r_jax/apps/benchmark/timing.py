"""Clocks, rates and counters."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from easi3r_jax.apps.environment import peak_memory_bytes


class Compilations:
    """Counts what XLA compiles and how long it takes, through JAX's own monitoring events.

    Attributes:
      count: programs.
      cached: programs that were found in a persistent cache.
      seconds: total compilation time.
    """

    def __init__(self):
        self.count, self.cached, self.seconds = 0, 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._listen_for_hits)

    def _listen(self, event: str, duration_secs: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            self.count += 1
            self.seconds += duration_secs

    def _listen_for_hits(self, event: str, **_) -> None:
        self.cached += event.endswith("compilation_cache/cache_hits")


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall-clock time of a call, until its result is ready."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a large square matrix product: the peak rate for this process on this machine."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return 2 * side**3 / median_seconds(lambda: product(a, a), 5)


def copy_rate() -> float:
    """Bytes read and written per second when negating a large array in place: the peak rate of memory-bound stages.

    In place, because a new result of this size would be memory that the process has not touched yet: its page faults
    would take ten times as long as the copy.
    """
    x = jnp.ones(1 << (25 if jax.default_backend() == "cpu" else 30), jnp.float32)
    size, negate = x.nbytes, jax.jit(jnp.negative, donate_argnums=0)

    def again() -> jax.Array:
        nonlocal x
        x = negate(x)
        return x

    jax.block_until_ready(again())
    return 2 * size / median_seconds(again, 5)


class StageTimer:
    """Times stages one after the other and stores their measurements in `results`.

    Args:
      compilations: a running counter.
      repeats: timed runs of each stage, after one warm-up run.
    """

    def __init__(self, compilations: Compilations, repeats: int):
        self.results: dict[str, dict[str, Any]] = {}
        self._compilations, self._repeats = compilations, repeats

    def __call__(
        self, name: str, items: int, run: Callable[[], Any], *, flops: float | None = None, moved: float | None = None
    ) -> Any:
        """Runs and times a stage with its number of items, counted operations and moved bytes; returns its result."""
        before, began = self._compilations.seconds, time.perf_counter()
        out = jax.block_until_ready(run())
        first = time.perf_counter() - began
        self.results[name] = {
            "items": items,
            "compile_seconds": self._compilations.seconds - before,
            "first_seconds": first,
            "seconds": median_seconds(run, self._repeats),
            "flops": flops,
            "bytes": moved,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        return out
