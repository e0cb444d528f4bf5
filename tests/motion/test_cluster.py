"""k-means: known optima, brute force, and properties of Lloyd's iteration."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import vq

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.motion.cluster import cluster_score, init_plus_plus, kmeans, lloyd

run = jax.jit(kmeans, static_argnums=1, static_argnames=("restarts", "max_iterations"))


def exact_inertia(points, labels):
    """Sum of squared distances to the means of the labelled groups, float64."""
    points = np.asarray(points, np.float64)
    return sum(((points[labels == k] - points[labels == k].mean(0)) ** 2).sum() for k in np.unique(labels))


def blobs(rng, num_blobs=10, size=40, channels=8, spread=0.05):
    """Well-separated groups in random order."""
    centres = rng.permutation(np.eye(num_blobs, channels + num_blobs)[:, :])[:, : channels + num_blobs] * 3
    truth = rng.permutation(np.repeat(np.arange(num_blobs), size))
    return (centres[truth] + spread * rng.standard_normal((len(truth), centres.shape[1]))).astype(np.float32), truth


@pytest.mark.parametrize("seed", range(5))
def test_separated_blobs_are_found(seed):
    points, truth = blobs(np.random.default_rng(seed))
    found = run(points, 10, jax.random.key(seed), restarts=2)
    pairs = set(zip(truth.tolist(), np.asarray(found.labels).tolist(), strict=True))
    assert len(pairs) == 10, "labels are not the blobs up to a permutation"
    np.testing.assert_allclose(found.inertia, exact_inertia(points, truth), rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_optimum_of_a_few_points(seed):
    """Nine points in the plane, three clusters: all 3^9 labellings are tried."""
    points = np.random.default_rng(seed).standard_normal((9, 2)).astype(np.float32)
    members = np.eye(3)[np.array(list(itertools.product(range(3), repeat=9)))]  # (labellings, points, clusters)
    sums, sizes = np.einsum("lpk,pc->lkc", members, points.astype(np.float64)), members.sum(1)
    best = np.sum(points.astype(np.float64) ** 2) - ((sums**2).sum(-1) / np.maximum(sizes, 1)).sum(-1).max()
    found = run(points, 3, jax.random.key(seed), restarts=30)
    np.testing.assert_allclose(found.inertia, best, rtol=1e-5)
    np.testing.assert_allclose(exact_inertia(points, np.asarray(found.labels)), best, rtol=1e-5)


def test_labels_centroids_and_inertia_agree():
    points = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32) + 5
    found = run(points, 12, jax.random.key(0))
    distances = ((points[:, None].astype(np.float64) - np.asarray(found.centroids, np.float64)) ** 2).sum(-1)
    labels = np.asarray(found.labels)
    np.testing.assert_allclose(distances[np.arange(500), labels], distances.min(1), rtol=1e-4)
    np.testing.assert_allclose(found.inertia, distances.min(1).sum(), rtol=1e-5)
    for k in range(12):  # converged, up to the tolerance
        np.testing.assert_allclose(points[labels == k].mean(0), found.centroids[k], atol=0.02)


def test_lloyd_never_increases_the_inertia():
    points = np.random.default_rng(1).standard_normal((400, 8)).astype(np.float32)
    points -= points.mean(0)
    start = jnp.asarray(points[:20])
    inertia = [float(lloyd(points, start, n).inertia) for n in range(12)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(inertia))
    assert inertia[-1] < 0.9 * inertia[0]


def test_more_restarts_are_never_worse():
    points = np.random.default_rng(2).standard_normal((300, 4)).astype(np.float32)
    one = [float(run(points, 16, key).inertia) for key in jax.random.split(jax.random.key(0), 4)]
    four = float(run(points, 16, jax.random.key(0), restarts=4).inertia)
    assert four <= np.mean(one)


def test_plus_plus_beats_random_points():
    points, _ = blobs(np.random.default_rng(3), num_blobs=12, size=30)
    points -= points.mean(0)
    seeded = jax.jit(init_plus_plus, static_argnums=1)
    started = [seeded(points, 12, jax.random.key(s)) for s in range(5)]
    greedy = np.mean([float(lloyd(points, c, 0).inertia) for c in started])
    drawn = np.random.default_rng(0)
    random = np.mean([float(lloyd(points, jnp.asarray(drawn.permutation(points)[:12]), 0).inertia) for _ in range(5)])
    assert greedy < 0.5 * random


def test_equal_keys_give_equal_results():
    points = np.random.default_rng(4).standard_normal((200, 6)).astype(np.float32)
    a, b = (run(points, 8, jax.random.key(5), restarts=2) for _ in range(2))
    chex.assert_trees_all_equal(a, b)
    c = run(points, 8, jax.random.key(6), restarts=2)
    assert not np.array_equal(a.labels, c.labels)


def test_points_that_do_not_count_only_get_labels():
    """Although they are far away, they are not drawn as centroids and do not move any."""
    points, _ = blobs(np.random.default_rng(8))
    more = np.concatenate([points, np.full((7, points.shape[1]), 1e3, np.float32)])
    expected = run(points, 10, jax.random.key(2), restarts=2)
    found = jax.jit(lambda x, count: kmeans(x, 10, jax.random.key(2), count=count, restarts=2))(more, len(points))
    np.testing.assert_array_equal(found.labels[: len(points)], expected.labels)
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.inertia, expected.inertia, rtol=1e-5)
    assert len(found.labels) == len(more)


@pytest.mark.parametrize("num_points", [1, 2, 5])
def test_fewer_points_than_clusters(num_points):
    points = np.random.default_rng(5).standard_normal((num_points, 3)).astype(np.float32)
    found = run(points, 64, jax.random.key(0))
    assert len(set(np.asarray(found.labels).tolist())) == num_points
    np.testing.assert_allclose(found.inertia, 0, atol=1e-10)


def test_identical_points():
    found = run(np.full((50, 4), 3.3, np.float32), 8, jax.random.key(0), restarts=2)
    chex.assert_tree_all_finite(found)
    assert len(set(np.asarray(found.labels).tolist())) == 1
    np.testing.assert_allclose(found.inertia, 0, atol=1e-8)


def test_fewer_distinct_points_than_clusters():
    points = np.repeat(np.array([[0.0, 0], [1, 0], [5, 5]], np.float32), 20, axis=0)
    found = run(points, 8, jax.random.key(1), restarts=2)
    chex.assert_tree_all_finite(found)
    np.testing.assert_allclose(found.inertia, 0, atol=1e-9)
    assert len(set(np.asarray(found.labels).tolist())) == 3


def test_empty_clusters_are_refilled():
    """Two of three initial centroids are far from all points; both restart at 1.2, so one has to restart again."""
    points = np.array([[-1.0], [-1.0], [0.0], [0.1], [1.2], [1.2]], np.float32)
    found = lloyd(jnp.asarray(points), jnp.array([[0.0], [100.0], [200.0]]))
    assert len(set(np.asarray(found.labels).tolist())) == 3
    np.testing.assert_allclose(found.inertia, 0.005, rtol=1e-4)


def test_points_far_from_the_origin():
    """A common offset of a thousand standard deviations costs no accuracy."""
    points, truth = blobs(np.random.default_rng(6))
    found = run(points + 1000, 10, jax.random.key(0), restarts=2)
    assert len(set(zip(truth.tolist(), np.asarray(found.labels).tolist(), strict=True))) == 10


def test_bfloat16_points_and_vmap():
    points = jnp.asarray(np.random.default_rng(7).standard_normal((2, 100, 5)), jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(lambda x, key: kmeans(x, 6, key)))(points, keys)
    for n in range(2):
        alone = run(points[n].astype(jnp.float32), 6, keys[n])
        np.testing.assert_array_equal(together.labels[n], alone.labels)


def test_memory_is_limited_to_points_times_clusters():
    """Twenty restarts of 20 000 points: one distance matrix and one indicator at a time, and the centred points."""
    n, channels, k = 20_000, 32, 64
    shape = jax.ShapeDtypeStruct((n, channels), jnp.float32)
    compiled = run.lower(shape, k, jax.random.key(0), restarts=20).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        pytest.skip("this backend does not report its memory")
    assert analysis.temp_size_in_bytes < 4 * n * (3 * k + 4 * channels) + 8 * 20 * n


def test_numbers_that_are_not_positive_are_refused():
    for wrong in ({"num_clusters": 0}, {"restarts": 0}, {"max_iterations": 0}):
        with pytest.raises(ConfigError, match="at least one"):
            kmeans(jnp.zeros((4, 2)), key=jax.random.key(0), **{"num_clusters": 2, **wrong})


def test_cluster_score_is_the_mean_of_the_cluster():
    rng = np.random.default_rng(8)
    score, labels = rng.random((3, 4, 5)).astype(np.float32), rng.integers(0, 6, (3, 4, 5))
    expected = np.zeros((3, 4, 5))
    for k in range(6):
        expected[labels == k] = score[labels == k].mean()
    low, high = expected.min((1, 2), keepdims=True), expected.max((1, 2), keepdims=True)
    found = cluster_score(jnp.asarray(score), jnp.asarray(labels), 64)
    np.testing.assert_allclose(found, (expected - low) / (high - low + 1e-6), atol=1e-6)


def test_rounding_hardly_changes_the_clusters():
    """Without separate groups, where k-means has many optima: points, and the same rounded to bfloat16.

    Pairs of points in a common cluster of one labelling that are in one of the other too: .85 on average; with draws
    from the cumulative distances, .60.
    """
    shared = []
    for seed in range(4):
        points = jnp.asarray(np.random.default_rng(seed).standard_normal((400, 6)), jnp.float32)
        key = jax.random.key(seed)
        a, b = (np.asarray(run(x, 16, key).labels) for x in (points, points.astype(jnp.bfloat16)))
        a, b = (x[:, None] == x[None] for x in (a, b))
        shared.append(np.sum(a & b) / np.sum(a | b))
    assert np.mean(shared) > 0.75


def test_clusters_are_as_tight_as_those_of_independent_draws():
    """Against SciPy's k-means++, each from ten seeds without restarts."""
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 3, (12, 8))
    points = (centres[rng.integers(12, size=400)] + rng.normal(size=(400, 8))).astype(np.float32)
    ours = [float(run(points, 12, jax.random.key(seed), restarts=1).inertia) for seed in range(10)]
    theirs = []
    for seed in range(10):
        centroids, labels = vq.kmeans2(points, 12, iter=100, minit="++", rng=seed)
        theirs.append(np.sum((points - centroids[labels]) ** 2))
    assert np.mean(ours) <= 1.05 * np.mean(theirs)
