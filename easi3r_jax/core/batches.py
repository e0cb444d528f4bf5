"""Processes many pairs in batches of one shape, sharded over devices: batch order and storage of the results.

    batches = Batches(edges, most=28, mesh=mesh)
    for n in range(batches.count):
        part, valid = batches[n]
        ...                                   # (B, 2) frames of the batch's pairs, (B,) which of them are valid

Letters: D devices, B pairs in a batch.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from easi3r_jax.core import sharding, target
from easi3r_jax.core.arrays import Array, Bool, Int, Shaped
from easi3r_jax.core.sharding import REPLICATED, ROWS

# From this many batches on, all are full: the last one then wastes at most an eighth of the work.
_MIN_FULL_BATCHES = 8
# Bytes: of an accelerator that does not report its memory, and the largest budget for a batch on an accelerator.
_UNKNOWN_MEMORY, _MAX_BUDGET = 32 * 10**9, 66 * 10**8


class Batches:
    """A clip's pairs in batches.

    Each device has E / D consecutive rows of the arrays; a batch takes the next few from every device. To keep one
    shape, the last batch repeats rows of the one before, marked invalid.

    Args:
      edges: (E, 2) pairs of frames; E is a multiple of D (see `pad_pairs`).
      most: maximum number of pairs per device in a batch.
      mesh: of the devices; None: one device.
      valid: (E,) bool, which pairs are not padding; None: all.
      batch: B; 0 chooses: `most` per device if there are many pairs, so that the shape does not depend on the clip's
        length, else a size that leaves few rows over (see `batch_size`).

    Attributes:
      count: number of batches.
    """

    def __init__(
        self,
        edges: Int[np.ndarray, "E 2"],
        most: int,
        mesh: Mesh | None,
        *,
        valid: Bool[np.ndarray, "E"] | None = None,
        batch: int = 0,
    ):
        self._edges, self._mesh = np.asarray(edges), mesh
        self._valid = np.ones(len(edges), bool) if valid is None else np.asarray(valid)
        self._shards = sharding.num_shards(mesh)
        self._per_device, rest = divmod(len(edges), self._shards)
        assert not rest, "pairs must be padded to a multiple of the devices"
        per_batch = -(-batch // self._shards) if batch else batch_size(self._per_device, most)
        self._per_batch = min(per_batch, self._per_device)
        self.count = -(-self._per_device // self._per_batch)

    def __getitem__(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames of the n-th batch's pairs (B, 2), and (B,) bool which of them are valid."""
        own = self._start(n) + np.arange(self._per_batch)
        numbers = (np.arange(self._shards)[:, None] * self._per_device + own[None]).ravel()
        is_new = np.tile(own >= n * self._per_batch, self._shards)
        return self._edges[numbers], self._valid[numbers] & is_new

    def done(self, n: int) -> int:
        """Approximate number of pairs done before the n-th batch."""
        return min(n * self._per_batch * self._shards, int(self._valid.sum()))

    def empty(self, shape: tuple[int, ...], dtype: str) -> Shaped[Array, "E *rest"]:
        """(E, ...) zeros, sharded like the results."""
        place = None if self._mesh is None else NamedSharding(self._mesh, ROWS)
        return jnp.zeros((len(self._edges), *shape), dtype, device=place)

    def keep(
        self, store: tuple[Shaped[Array, "E ..."], ...], values: tuple[Shaped[Array, "B ..."], ...], n: int
    ) -> tuple[Shaped[Array, "E ..."], ...]:
        """Writes the n-th batch's results, (B, ...) each, to its rows. The store is donated."""
        return _keep(store, values, self._start(n), self._mesh)

    def _start(self, n: int) -> int:
        return min(n * self._per_batch, self._per_device - self._per_batch)


def pad_pairs(
    edges: Int[np.ndarray, "E 2"], count: int, mesh: Mesh | None
) -> tuple[Int[np.ndarray, "pairs 2"], Bool[np.ndarray, "pairs"] | None]:
    """Pads pairs to a common length that splits into equal shards.

    Args:
      edges: (E, 2) pairs of frames.
      count: minimum number of pairs after padding.
      mesh: mesh over which they are sharded; None: one device.

    Returns:
      (E', 2) int32, padded by repeating the last pair, and (E',) bool, False for padding; None if nothing was padded.
    """
    shards = sharding.num_shards(mesh)
    total = -(-max(len(edges), count) // shards) * shards
    longer = padded(np.asarray(edges, np.int32), total)
    return longer, None if count == 0 and total == len(edges) else np.arange(total) < len(edges)


def most_at_once(bytes_each: float, on_cpu: int = 800_000_000) -> int:
    """Items, such as pairs or frames, that a device takes at a time; at least one. The one place where this is decided.

    It depends on the memory that JAX may use, not on what is in it: programs compiled for one run fit the next. On
    several hosts, all must be allowed the same.

    Args:
      bytes_each: temporary memory of an item, in bytes.
      on_cpu: bytes for all of them on a CPU, where more are not faster. An accelerator gives an eighth of the memory
        that JAX may use, but not more than keeps it busy, 6.6 GB; where it is not reported, 4 GB.
    """
    budget = on_cpu if target.platform() == "cpu" else accelerator_budget(target.memory_limit())
    return max(1, int(budget / bytes_each))


def accelerator_budget(limit: int | None) -> int:
    """Bytes for a batch on an accelerator with so much memory; None if it is not known. See `most_at_once`."""
    return min((_UNKNOWN_MEMORY if limit is None else limit) // 8, _MAX_BUDGET)


def batch_size(count: int, most: int) -> int:
    """Items per batch: `most` if there are many; else the size above `most / 2` with the fewest items in all batches.

    All batches have the same size, so the last one may repeat items. Eight items, three at most: four batches of two
    compute eight, three batches of three would compute nine. Of equals, the largest.
    """
    if -(-count // most) >= _MIN_FULL_BATCHES:
        return most
    sizes = range(min(count, most), min(count, most) // 2, -1)
    return min(sizes, key=lambda size: -(-count // size) * size, default=1)


def bucket_size(count: int) -> int:
    """Rounds up to one of 1, 2, ... 16, 18, 20, ... 32, 36, ...: eight sizes between powers of two.

    Clips padded to the same size share compiled code, and are at most an eighth longer.
    """
    step = 1 << max(0, (count - 1).bit_length() - 4)
    return -(-count // step) * step


def padded(x: Shaped[np.ndarray, "n *rest"], length: int) -> Shaped[np.ndarray, "length *rest"]:
    """Repeats the last entry up to `length`."""
    return x[np.minimum(np.arange(length), len(x) - 1)]


@partial(jax.jit, static_argnames=("mesh",), donate_argnames=("store",))
def _keep(store, values, start, mesh):
    """Writes in place: the store is donated, so only one copy exists."""

    def write(store, values, start):
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(s, _within(v, s.dtype), start, 0)
            for s, v in zip(store, values, strict=True)
        )

    return sharding.shard_map(write, mesh, (ROWS, ROWS, REPLICATED), ROWS)(store, values, start)


def _within(x: Array, dtype: jnp.dtype) -> Array:
    """Casts to a narrower type; finite values are clipped to its range instead of overflowing to infinity."""
    if dtype == x.dtype:
        return x
    largest = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(dtype)
