"""Single-precision sums in the order in which PyTorch adds on a CPU.

Two of the published depth alignments stop at a point that rounding decides (`depth_fit`), so their numbers can be
reproduced only by adding in the same order: eight lanes (AVX2), four independent rows of lanes at a time, four levels
of partial sums, one thread. NumPy's own sum is as accurate but adds in another order.
"""

from __future__ import annotations

import numpy as np

from easi3r_jax.core.arrays import Real

_LANES = 8
_ROWS = 4
_LEVELS = 4
_MIN_BLOCK = 16


def cascade_sum(x: Real[np.ndarray, "P"]) -> np.float32:
    """Sum of (P,) float32."""
    x = np.asarray(x, np.float32)
    whole = len(x) // _LANES * _LANES
    total = _add_rows(x[whole:, None])[0]
    for lane in _add_rows(x[:whole].reshape(-1, _LANES)):
        total = total + lane
    return total


def _add_rows(x: np.ndarray) -> np.ndarray:
    """(n, K) -> (K,): four interleaved partial sums of rows, then the remaining rows, then the four sums together."""
    n, width = x.shape
    whole = n // _ROWS * _ROWS
    partial = _add_levels(x[:whole].reshape(-1, _ROWS * width)).reshape(_ROWS, width)
    for row in x[whole:]:
        partial[0] += row
    return _in_order(partial)


def _add_levels(x: np.ndarray) -> np.ndarray:
    """(n, K) -> (K,): blocks of rows, then blocks of blocks; an incomplete block stays at its level until the end."""
    doublings = max(len(x) - 1, 1).bit_length()
    block = max(_MIN_BLOCK, 2 ** (doublings // _LEVELS))
    levels = []
    for _ in range(_LEVELS - 1):
        whole = len(x) // block * block
        levels.append(_in_order(x[whole:]))
        x = _in_order(x[:whole].reshape(-1, block, x.shape[1]).swapaxes(0, 1))
    return _in_order(np.stack([*levels, _in_order(x)]))


def _in_order(x: np.ndarray) -> np.ndarray:
    """(n, ...) -> (...): sums strictly in order, which NumPy's sum does not guarantee."""
    total = np.zeros(x.shape[1:], np.float32)
    for row in x:
        total += row
    return total
