"""k-means on encoder features: tokens that belong together move together (Easi3R, sec. 3.2).

Greedy k-means++ (Arthur & Vassilvitskii 2007: of a few candidates, the one that lowers the inertia most) and Lloyd's
iterations, restarted from several seeds. The draws hardly depend on rounding (see `init_plus_plus`). Distances are
matrix products, |x|² - 2 x·c + |c|², of features minus their mean, which keeps float32 accurate. Nothing larger than
points × clusters is ever stored, and restarts run one after another. Sums over a cluster are products with its
indicator and not scattered additions: these are unordered on a GPU, and the same seed must give the same labels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, Int, Key
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.motion.normalise import min_max

#: Lloyd stops when the centroids' total squared shift falls below this fraction of the mean variance of a feature.
TOLERANCE = 1e-4


class Clusters(NamedTuple):
    """A clustering of n points; k is the smaller of the requested number and n.

    Attributes:
      labels: (n,) int32 index of the nearest centroid.
      centroids: (k, C) float32. With identical points, some may have no points.
      inertia: () float32, sum of squared distances to the nearest centroid.
    """

    labels: Int[Array, "n"]
    centroids: Float[Array, "k C"]
    inertia: Float[Array, ""]


def kmeans(
    points: Float[Array, "n C"],
    num_clusters: int,
    key: Key[Array, ""],
    *,
    count: Int[Array, ""] | None = None,
    restarts: int = 1,
    max_iterations: int = 300,
) -> Clusters:
    """Clusters points; of all restarts, returns the one with the lowest inertia. Deterministic for a key and machine.

    Args:
      points: (n, C) float, finite; n at least 1.
      num_clusters: requested number of clusters; n if there are fewer points.
      key: random key.
      count: () int, how many of the first points count; the others only get labels. None: all.
      restarts: number of independent initialisations.
      max_iterations: largest number of Lloyd iterations of each.

    Raises:
      ConfigError: a number is not positive.
    """
    if min(num_clusters, restarts, max_iterations) < 1:
        raise ConfigError("k-means needs at least one cluster, one restart and one iteration.")
    num_clusters = min(num_clusters, len(points))
    points = points.astype(jnp.float32)
    counts = None if count is None else (jnp.arange(len(points)) < count).astype(jnp.float32)
    mean = _mean(points, counts)
    points = points - mean[None]

    def restart(key: Array) -> Clusters:
        return lloyd(points, init_plus_plus(points, num_clusters, key, counts), max_iterations, counts)

    runs = jax.lax.map(restart, jax.random.split(key, restarts))
    best = jax.tree.map(lambda x: x[jnp.argmin(runs.inertia)], runs)
    return best._replace(centroids=best.centroids + mean[None])


def init_plus_plus(
    points: Float[Array, "n C"], num_clusters: int, key: Key[Array, ""], counts: Float[Array, "n"] | None = None
) -> Float[Array, "k C"]:
    """Greedy k-means++: (k, C) centroids, drawn by chance, points that are far from earlier centroids more often.

    Each is the best of 2 + log k candidates, as in Arthur's own code and scikit-learn. The points should have zero
    mean. `counts` is (n,) float, 1 for the first points and 0 for the others, which are never drawn.

    Candidates win an exponential race (Efraimidis & Spirakis 2006): a point with squared distance d arrives after
    E / d, E exponential. One draw alone is that of k-means++, with probability proportional to d. But E is the same for
    all draws, which therefore are not independent: features in bfloat16 then give nearly the clusters of those in
    float32. Draws from the cumulative distances would be shifted by rounding past many small entries, and one other
    centroid changes all later draws: docs/precision.md has the measurement.
    """
    num_points = len(points) if counts is None else jnp.sum(counts).astype(jnp.int32)
    candidates = min(2 + int(math.log(num_clusters)), len(points))
    points = jnp.asarray(points)
    norms = _squared_norms(points)
    first_key, key = jax.random.split(key)
    first = points[jax.random.randint(first_key, (), 0, num_points)]
    centroids = jnp.zeros((num_clusters, points.shape[1]), jnp.float32).at[0].set(first)
    nearest = _counted(squared_distances(points, first[None], norms)[:, 0], counts)
    # By number, so that padding does not change the clip's own draws.
    clocks = jax.vmap(lambda n: jax.random.exponential(jax.random.fold_in(key, n)))(jnp.arange(len(points)))
    clocks = jnp.maximum(clocks, 1e-7)

    def add(n: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centroids, nearest = carry
        drawn = jnp.minimum(jax.lax.top_k(nearest / clocks, candidates)[1], num_points - 1)
        distances = jnp.minimum(_counted(squared_distances(points, points[drawn], norms), counts), nearest[:, None])
        best = jnp.argmin(jnp.sum(distances, axis=0))
        return centroids.at[n].set(points[drawn[best]]), distances[:, best]

    return jax.lax.fori_loop(1, num_clusters, add, (centroids, nearest))[0]


def lloyd(
    points: Float[Array, "n C"],
    centroids: Float[Array, "k C"],
    max_iterations: int = 300,
    counts: Float[Array, "n"] | None = None,
) -> Clusters:
    """Alternates nearest centroids and cluster means until convergence. The points should have zero mean.

    A point whose `counts` (n,) float is 0 gets a label and has no other influence.
    """
    points, centroids = jnp.asarray(points), jnp.asarray(centroids)
    norms = _squared_norms(points)
    spread = jnp.square(points - _mean(points, counts)[None])
    tolerance = TOLERANCE * jnp.mean(_mean(spread, counts))

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        iteration, centroids, _ = carry
        new = _update(points, centroids, squared_distances(points, centroids, norms), counts)
        return iteration + 1, new, jnp.sum(jnp.square(new - centroids))

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        iteration, _, shift = carry
        return (iteration < max_iterations) & (shift > tolerance)

    start = (jnp.zeros((), jnp.int32), centroids, jnp.array(jnp.inf, jnp.float32))
    _, centroids, _ = jax.lax.while_loop(unfinished, step, start)
    labels = jnp.argmin(squared_distances(points, centroids, norms), axis=1).astype(jnp.int32)
    # From differences and not from the expanded square: accurate for tight clusters far from the mean.
    inertia = jnp.sum(_counted(jnp.square(points - centroids[labels]), counts))
    return Clusters(labels, centroids, inertia)


def squared_distances(
    points: Float[Array, "n C"], centroids: Float[Array, "k C"], norms: Float[Array, "n"]
) -> Float[Array, "n k"]:
    """(n, k) squared distances; `norms` are the points' squared norms."""
    products = jnp.matmul(points, centroids.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(norms[:, None] - 2.0 * products + _squared_norms(centroids)[None], 0.0)


def cluster_score(
    score: Float[Array, "T h w"],
    labels: Int[Array, "T h w"],
    num_clusters: int,
    observed: Bool[Array, "T h w"] | None = None,
) -> Float[Array, "T h w"]:
    """`cluster_mean`, then min-max per frame: (T, h, w) float32 in [0, 1)."""
    return min_max(cluster_mean(score, labels, num_clusters, observed), axis=(-2, -1))


def cluster_mean(
    score: Float[Array, "T h w"],
    labels: Int[Array, "T h w"],
    num_clusters: int,
    observed: Bool[Array, "T h w"] | None = None,
) -> Float[Array, "T h w"]:
    """Gives every token the mean score of its cluster.

    Args:
      score: (T, h, w) float32.
      labels: (T, h, w) int in [0, num_clusters), joint over frames.
      num_clusters: of the labels.
      observed: (T, h, w) bool, tokens that count in the mean; None: all. A cluster without any scores 0.
    """
    indicator = jax.nn.one_hot(labels.ravel(), num_clusters, dtype=jnp.float32)
    if observed is not None:
        indicator = jnp.where(observed.ravel()[:, None], indicator, 0.0)
    total = jnp.matmul(score.ravel(), indicator, precision=jax.lax.Precision.HIGHEST)
    mean = total / jnp.maximum(jnp.sum(indicator, axis=0), 1.0)
    return mean[labels]


def _squared_norms(x: Array) -> Array:
    return jnp.sum(jnp.square(x), axis=1)


def _counted(x: Array, counts: Array | None) -> Array:
    """(n, ...) with zeros for points that do not count."""
    return x if counts is None else x * counts.reshape(-1, *(1 for _ in x.shape[1:]))


def _mean(x: Array, counts: Array | None) -> Array:
    """Mean over the points (first axis) that count."""
    return jnp.mean(x, axis=0) if counts is None else jnp.sum(_counted(x, counts), axis=0) / jnp.sum(counts)


def _update(points: Array, centroids: Array, distances: Array, counts: Array | None) -> Array:
    """Means of the nearest points. An empty cluster is restarted at one of the points farthest from their centroid."""
    num_clusters = len(centroids)
    labels = jnp.argmin(distances, axis=1)
    indicator = _counted(jax.nn.one_hot(labels, num_clusters, dtype=jnp.float32), counts)
    sizes = jnp.sum(indicator, axis=0)
    sums = jnp.matmul(indicator.T, points, precision=jax.lax.Precision.HIGHEST)
    means = jnp.where(sizes[:, None] > 0, sums / jnp.maximum(sizes, 1.0)[:, None], centroids)

    def refill(means: Array) -> Array:
        gaps, far = jax.lax.top_k(_counted(jnp.min(distances, axis=1), counts), num_clusters)
        rank = jnp.maximum(jnp.cumsum((sizes == 0).astype(jnp.int32)) - 1, 0)
        useful = (sizes == 0) & (gaps[rank] > 0)
        return jnp.where(useful[:, None], points[far[rank]], means)

    return jax.lax.cond(jnp.any(sizes == 0), refill, lambda means: means, means)
