"""One threshold for a clip's score maps: multi-level Otsu with the number of classes chosen (Easi3R, sec. 3.2).

Otsu's classes maximise the variance between class means, Σ Sₖ² / Pₖ over classes k, where Pₖ counts the values of a
class and Sₖ sums them (Liao, Chen & Chung 2001). On a histogram of B = 256 bins, the scores of all intervals of bins
are a B×B table; all partitions are then compared, B³ / 2 sums for four classes. Of equally good partitions (their
thresholds differ by empty bins) the first is taken. Dynamic programming would need B² sums for any number of classes,
but it adds in another order, and thresholds would differ from the released program's where partitions are almost
equally good.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float, Int
from easi3r_jax.core.errors import ConfigError

NUM_BINS = 256
#: Values of the lowest threshold that are tried at a time.
_BLOCK = 64


class Otsu(NamedTuple):
    """Thresholds of a map.

    Attributes:
      threshold: () float32, the highest threshold of the best class count. If no class count is feasible, the map's
        maximum: no value is above it.
      scores: (n,) float32 per class count: var(class means) / sqrt(classes); -inf if it is not feasible.
      thresholds: one (classes - 1,) float32 array per class count, ascending bin centres; meaningless if the count is
        not feasible.
    """

    threshold: Float[Array, ""]
    scores: Float[Array, "n"]
    thresholds: tuple[Float[Array, "_"], ...]


def multi_otsu(
    x: Float[Array, "*shape"],
    class_counts: tuple[int, ...] = (2, 3, 4),
    where: Bool[Array, "*shape"] | None = None,
) -> Otsu:
    """Thresholds `x` into each number of classes, and selects the number with the largest spread of class means.

    A class count is feasible if the map fills at least as many of the 256 bins. The reference raises if one is not;
    here it is skipped. For a constant map none is feasible.

    Args:
      x: float array of any shape, finite.
      class_counts: numbers of classes to try, each 2, 3 or 4; the first wins ties.
      where: bool of the same shape, True somewhere: only these values count; None: all.

    Raises:
      ConfigError: there is no class count, or one is not 2, 3 or 4.
    """
    if not class_counts or not set(class_counts) <= {2, 3, 4}:
        raise ConfigError(f"Otsu class counts must be among 2, 3 and 4, not {class_counts}.")
    x = x.astype(jnp.float32)
    if where is None:
        where = jnp.ones(x.shape, bool)
    low = jnp.min(x, where=where, initial=jnp.inf)
    high = jnp.max(x, where=where, initial=-jnp.inf)
    counts = histogram(x, low, high, where)
    centres = low + (np.arange(NUM_BINS) + 0.5).astype(np.float32) * ((high - low) / NUM_BINS)
    filled = jnp.sum(counts > 0)

    intervals = _interval_scores(counts)
    thresholds = tuple(centres[_best_partition(intervals, counts, n)] for n in class_counts)
    scores = []
    for n, values in zip(class_counts, thresholds, strict=True):
        score = _spread(x, values, where)
        scores.append(jnp.where((filled >= n) & (high > low) & jnp.isfinite(score), score, -jnp.inf))
    scores = jnp.stack(scores)
    last = jnp.stack([values[-1] for values in thresholds])[jnp.argmax(scores)]
    return Otsu(jnp.where(jnp.isfinite(jnp.max(scores)), last, high), scores, thresholds)


def histogram(
    x: Float[Array, "*shape"], low: Float[Array, ""], high: Float[Array, ""], where: Bool[Array, "*shape"]
) -> Int[Array, "256"]:
    """Counts of `x` in 256 equal bins over [low, high], (256,) int32; values where `where` is False are ignored.

    A bin includes its lower edge, and the last bin both edges.
    """
    width = (high - low) / NUM_BINS
    index = jnp.floor((x - low) / jnp.where(width > 0, width, 1.0))
    # The division rounds, so the index is corrected by comparing the value with the edges of its bin.
    index = index - (x < low + index * width).astype(jnp.float32)
    index = index + (x >= low + (index + 1) * width).astype(jnp.float32)
    index = jnp.clip(index, 0, NUM_BINS - 1).astype(jnp.int32)
    return jnp.zeros(NUM_BINS, jnp.int32).at[index.ravel()].add(where.ravel().astype(jnp.int32))


def _interval_scores(counts: Array) -> Array:
    """S² / P of the values in bins i..j, (B, B) [i, j] float32; -inf for j < i.

    A value is represented by the number of its bin. Two partitions can be equally good up to float32's last digits. To
    find the same one as scikit-image's `threshold_multiotsu`, which the released program calls, sums are computed as
    there: in float32, bin by bin, with the first bin represented by the number of the second. (This order also makes
    partitions that differ by empty bins exactly equal.) Bin numbers relative to their mean would be more accurate, but
    with them 6 of 900 random histograms got a neighbouring threshold.
    """
    # Because of the barrier XLA divides; otherwise it multiplies by the reciprocal, which rounds differently.
    total = jax.lax.optimization_barrier(jnp.full(NUM_BINS, jnp.sum(counts)).astype(jnp.float32))
    probability = counts.astype(jnp.float32) / total
    number = np.maximum(np.arange(NUM_BINS, dtype=np.float32), 1.0)

    def add(total: Array, value: Array) -> tuple[Array, Array]:
        return total + value, total + value

    zero = jnp.zeros(2, jnp.float32)
    _, sums = jax.lax.scan(add, zero, jnp.stack([probability, probability * number], axis=1))
    upto, before = sums[None], jnp.concatenate([zero[None], sums[:-1]])[:, None]
    count, moment = jnp.moveaxis(upto - before, -1, 0)
    score = jnp.where(count > 0, jnp.square(moment) / jnp.where(count > 0, count, 1.0), 0.0)
    return jnp.where(np.tri(NUM_BINS, dtype=bool).T, score, -jnp.inf)


def _best_partition(intervals: Array, counts: Array, num_classes: int) -> Array:
    """Last bin of every class except the highest, (num_classes - 1,) int32, maximising the sum of interval scores."""
    following = jnp.concatenate([intervals[1:], jnp.full((1, NUM_BINS), -jnp.inf)])  # [s, t]: bins s+1..t

    def along(scores: Array, axis: int) -> Array:
        """Scores, broadcastable over the axes of the thresholds that bound the class, the first being `axis`."""
        shape = [1] * (num_classes - 1)
        shape[axis : axis + scores.ndim] = scores.shape
        return scores.reshape(shape)

    best, ends = -jnp.inf, jnp.zeros(num_classes - 1, jnp.int32)
    block = _BLOCK if num_classes > 3 else NUM_BINS
    for start in range(0, NUM_BINS, block):
        # The later thresholds are higher than the first one: about half of all partitions need no sum.
        lowest = slice(start, start + block)
        axes = [lowest, *(num_classes - 2) * [slice(start, None)]]
        # First and last class, then those between, in scikit-image's order: see above.
        total = along(intervals[0, lowest], 0) + along(following[axes[-1], -1], num_classes - 2)
        for axis, pair in enumerate(itertools.pairwise(axes)):
            total = total + along(following[pair], axis)
        first = jnp.argmax(total)
        found, value = jnp.stack(jnp.unravel_index(first, total.shape)).astype(jnp.int32) + start, total.ravel()[first]
        best, ends = jnp.where(value > best, value, best), jnp.where(value > best, found, ends)
    # If there are as many filled bins as classes, each class gets one.
    (filled,) = jnp.nonzero(counts > 0, size=num_classes, fill_value=0)
    return jnp.where(jnp.sum(counts > 0) == num_classes, filled[:-1].astype(jnp.int32), ends)


def _spread(x: Array, thresholds: Array, where: Array) -> Array:
    """Variance of class means divided by sqrt(classes); NaN if a class is empty."""
    num_classes = len(thresholds) + 1
    bounds = [jnp.array(-jnp.inf, jnp.float32), *thresholds, jnp.array(jnp.inf, jnp.float32)]
    means = []
    for lower, upper in itertools.pairwise(bounds):
        inside = where & (x > lower) & (x <= upper)
        means.append(jnp.sum(jnp.where(inside, x, 0.0)) / jnp.sum(inside, dtype=jnp.int32).astype(jnp.float32))
    return jnp.var(jnp.stack(means)) / np.float32(np.sqrt(num_classes))
