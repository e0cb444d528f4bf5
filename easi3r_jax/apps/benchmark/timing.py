"""Clocks, counters, and the two limits of a machine: a large matrix product and a large copy."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from easi3r_jax.apps.compilation import Compilations
from easi3r_jax.apps.environment import peak_memory_bytes, reset_peak_memory


@dataclasses.dataclass(frozen=True)
class Limits:
    """What this process reaches on this machine at this time.

    Attributes:
      product: FLOP/s of a large matrix product.
      copy: bytes read and written per second by a large copy.
    """

    product: float
    copy: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the tables.

    Attributes:
      items: frames, pairs, iterations, megabytes, or 1.
      seconds: median time.
      first_seconds: time of the first run, compilation included.
      compile_seconds, programs, cached: of the first run; `programs` includes those `cached` by an earlier process.
      flops, bytes: counted from shapes; None: not counted.
      peak_memory_bytes: while it ran, of the process ("host") and the first accelerator ("device").
      limits: measured before and after it in the same process; the larger ones.
    """

    items: int
    seconds: float
    first_seconds: float
    compile_seconds: float
    programs: int
    cached: int
    flops: float | None
    bytes: float | None
    peak_memory_bytes: Mapping[str, int]
    limits: Limits


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall-clock time of a call, until its result is ready."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


_product = jax.jit(jnp.matmul, static_argnames="precision")
#: Number type and precision of each kind of product, as `experiments.cost` distinguishes them.
PRODUCTS = {"half": ("bfloat16", "default"), "tf32": ("float32", "high"), "exact": ("float32", "highest")}
_negate = jax.jit(jnp.negative, donate_argnums=0)


def measure_limits(kind: str = "exact") -> Limits:
    """The median rates of five large products of a kind (see `PRODUCTS`) and five large copies."""
    return Limits(product_rate(kind), _copy_rate())


def product_rate(kind: str) -> float:
    """Operations per second of a large product of a kind."""
    dtype, precision = PRODUCTS[kind]
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    jax.block_until_ready(_product(a, a, precision=precision))
    return 2 * side**3 / median_seconds(lambda: _product(a, a, precision=precision), 5)


def _copy_rate() -> float:
    """Bytes per second when negating a large array in place: the peak rate of memory-bound stages.

    In place, because a new result of this size would be memory that the process has not touched yet: its page faults
    would take ten times as long as the copy.
    """
    x = jnp.ones(1 << (25 if jax.default_backend() == "cpu" else 30), jnp.float32)
    size = x.nbytes

    def again() -> jax.Array:
        nonlocal x
        x = _negate(x)
        return x

    jax.block_until_ready(again())
    return 2 * size / median_seconds(again, 5)


def higher(a: Limits, b: Limits) -> Limits:
    """The larger of each rate: other work on the machine lowers them."""
    return Limits(max(a.product, b.product), max(a.copy, b.copy))


def total(rows: list[Row]) -> Row:
    """Several rows as one, of one item."""
    seconds = sum(row.seconds for row in rows)
    counted = [row.flops for row in rows if row.flops is not None]
    product, copy = (
        sum(row.seconds * getattr(row.limits, name) for row in rows) / seconds for name in ("product", "copy")
    )
    return Row(
        items=1,
        seconds=seconds,
        first_seconds=sum(row.first_seconds for row in rows),
        compile_seconds=sum(row.compile_seconds for row in rows),
        programs=sum(row.programs for row in rows),
        cached=sum(row.cached for row in rows),
        flops=sum(counted) if counted else None,
        bytes=None,
        peak_memory_bytes=highest(row.peak_memory_bytes for row in rows),
        limits=Limits(product, copy),
    )


def highest(peaks: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The highest of several peaks of memory, by place."""
    found: dict[str, int] = {}
    for peak in peaks:
        for where, size in peak.items():
            found[where] = max(size, found.get(where, 0))
    return found


class StageTimer:
    """Times stages one after the other; their rows are in `rows`.

    Args:
      compilations: a running counter.
      repeats: timed runs of each stage, after one warm-up run.
      kind: of the product with which stages are compared, see `PRODUCTS`.
    """

    def __init__(self, compilations: Compilations, repeats: int, kind: str = "exact"):
        self.rows: dict[str, Row] = {}
        self.kind = kind
        self._compilations, self._repeats = compilations, repeats

    def __call__(
        self,
        name: str,
        items: int,
        run: Callable[[], Any],
        *,
        flops: float | None = None,
        moved: float | None = None,
        once: bool = False,
    ) -> Any:
        """Runs and times a stage with its number of items, counted operations and moved bytes; returns its result.

        `once`: the first run is what is measured.
        """
        print(f"  {name} ...", flush=True)
        limits = measure_limits(self.kind)
        reset_peak_memory()
        before, began = _counts(self._compilations), time.perf_counter()
        out = jax.block_until_ready(run())
        first, after = time.perf_counter() - began, _counts(self._compilations)
        seconds = first if once else median_seconds(run, self._repeats)
        peak = peak_memory_bytes()
        self.rows[name] = Row(
            items=items,
            seconds=seconds,
            first_seconds=first,
            compile_seconds=after.seconds - before.seconds,
            programs=after.count - before.count,
            cached=after.cached - before.cached,
            flops=flops,
            bytes=moved,
            peak_memory_bytes=peak,
            limits=higher(limits, measure_limits(self.kind)),
        )
        return out


@dataclasses.dataclass(frozen=True)
class _Counts:
    count: int
    cached: int
    seconds: float


def _counts(compilations: Compilations) -> _Counts:
    return _Counts(compilations.count, compilations.cached, compilations.seconds)
