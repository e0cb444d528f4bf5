"""Work on many pairs, in batches of one shape, divided over devices: which pair is done when, and where it is kept.

    batches = Batches(edges, largest=28, mesh=mesh)
    for n in range(batches.count):
        part, counts = batches[n]
        ...                                   # (B, 2) frames of the batch's pairs, (B,) which of them count

Letters: D devices, B pairs of a batch, R rows of the arrays that keep what comes out, at least E.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from easi3r_jax.core import sharding
from easi3r_jax.core.sharding import ROWS, WHOLE
from easi3r_jax.core.types import Array

# So many full batches or more stay full: the last one wastes an eighth of the work at most.
_MANY = 8


class Batches:
    """A clip's pairs in batches.

    Each device has R / D rows of the arrays, one after another; a batch takes the next few of every device. The last
    batch takes rows of the one before along, which do not count again: no other shape. Rows beyond the pairs repeat the
    last one.

    Args:
      edges: (E, 2) pairs of frames.
      most: pairs that a device takes at a time at most.
      mesh: of the devices; None: one.
      rows: R at least; 0: as many as there are pairs.
      batch: B; 0 chooses: `most` on every device where there are many, so that the shape does not depend on the clip's
        length, else equal batches.

    Attributes:
      count: of batches.
      rows: R, a multiple of D.
    """

    def __init__(self, edges: np.ndarray, most: int, mesh: Mesh | None, *, rows: int = 0, batch: int = 0):
        self._edges, self._mesh = np.asarray(edges), mesh
        shares = sharding.num_shares(mesh)
        self._of_device = -(-max(rows, len(edges)) // shares)
        share = -(-batch // shares) if batch else batch_size(self._of_device, most)
        self._share = min(share, self._of_device)
        self.count = -(-self._of_device // self._share)
        self.rows = self._of_device * shares

    def __getitem__(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames of the n-th batch's pairs (B, 2), and (B,) bool which of them count."""
        shares = self.rows // self._of_device
        own = self._start(n) + np.arange(self._share)
        numbers = (np.arange(shares)[:, None] * self._of_device + own[None]).ravel()
        counts = (numbers < len(self._edges)) & np.tile(own >= n * self._share, shares)
        return self._edges[np.minimum(numbers, len(self._edges) - 1)], counts

    def done(self, n: int) -> int:
        """About how many pairs are done before the n-th batch."""
        return min(n * self._share * (self.rows // self._of_device), len(self._edges))

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """(R, ...) zeros, on the devices that will fill them."""
        place = None if self._mesh is None else NamedSharding(self._mesh, ROWS)
        return jnp.zeros((self.rows, *shape), dtype, device=place)

    def keep(self, store: tuple[Array, ...], values: tuple[Array, ...], n: int) -> tuple[Array, ...]:
        """Writes what came out of the n-th batch, (B, ...) each, to its rows. The store is used up."""
        return _keep(store, values, self._start(n), self._mesh)

    def _start(self, n: int) -> int:
        return min(n * self._share, self._of_device - self._share)


def batch_size(count: int, most: int) -> int:
    """Items at a time: `most` where there are many, else as many as make equal batches."""
    rounds = -(-count // most)
    return most if rounds >= _MANY else -(-count // rounds)


def room(count: int) -> int:
    """The smallest of 1, 2, ... 16, 18, 20, ... 32, 36, ... that is not less: eight lengths between powers of two.

    Clips that are made so long share what is compiled, and are an eighth longer at most.
    """
    step = 1 << max(0, (count - 1).bit_length() - 4)
    return -(-count // step) * step


def padded(x: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last entry up to `length`."""
    return x[np.minimum(np.arange(length), len(x) - 1)]


@partial(jax.jit, static_argnames=("mesh",), donate_argnames=("store",))
def _keep(store, values, start, mesh):
    """In place: the store is donated, so that it exists once."""

    def write(store, values, start):
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(s, _within(v, s.dtype), start, 0)
            for s, v in zip(store, values, strict=True)
        )

    return sharding.divided(write, mesh, (ROWS, ROWS, WHOLE), ROWS)(store, values, start)


def _within(x: Array, dtype: jnp.dtype) -> Array:
    """The values in a shorter type, none of them infinite for being large."""
    if dtype == x.dtype:
        return x
    largest = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(dtype)
