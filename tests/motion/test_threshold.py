"""Multi-Otsu against exhaustive search and the reference thresholds."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.motion.threshold import _best_partition, _interval_scores, histogram, multi_otsu

counted = jax.jit(histogram)
otsu = jax.jit(multi_otsu, static_argnums=1, static_argnames=("class_counts",))


def exhaustive(counts, num_classes):
    """Largest between-class variance Σ S² / P over all partitions of the filled bins, in float64."""
    filled = np.flatnonzero(counts)
    number, mass = np.maximum(filled, 1).astype(np.float64), counts[filled] / counts.sum()
    scores = {}
    for ends in itertools.combinations(range(1, len(filled)), num_classes - 1):
        bounds = [0, *ends, len(filled)]
        scores[tuple(int(filled[e - 1]) for e in ends)] = sum(
            (mass[a:b] * number[a:b]).sum() ** 2 / mass[a:b].sum() for a, b in itertools.pairwise(bounds)
        )
    return scores


@pytest.mark.parametrize("name", ["bimodal", "trimodal", "quadmodal", "uniform", "skewed"])
def test_reference_thresholds(golden, name):
    g = np.load(golden / "aggregation" / "otsu_synthetic.npz")
    found = otsu(jnp.asarray(g[name]))
    np.testing.assert_allclose(found.threshold, g[f"{name}_threshold_f64"], atol=1e-6)
    np.testing.assert_allclose(found.scores, g[f"{name}_scores_2_3_4_f64"], atol=1e-6)
    for n, thresholds in zip((2, 3, 4), found.thresholds, strict=True):
        np.testing.assert_allclose(thresholds, g[f"{name}_thresholds_{n}_f64"], atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_no_partition_has_lower_inertia(seed, num_classes):
    """Twelve of 256 bins are filled, so that all partitions can be tried."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(256, np.int32)
    counts[rng.choice(256, 12, replace=False)] = rng.integers(1, 50, 12)
    found = jax.jit(_best_partition, static_argnums=2)(_interval_scores(jnp.asarray(counts)), counts, num_classes)
    scores = exhaustive(counts, num_classes)
    # Thresholds that differ by empty bins are equally good: the first is taken, which is at a filled bin.
    np.testing.assert_allclose(scores[tuple(int(e) for e in found)], max(scores.values()), rtol=1e-6)


def test_as_many_values_as_classes():
    """Three values, one per class: thresholds separate them, and higher class counts are not feasible."""
    x = np.repeat(np.array([0.0, 0.25, 1.0], np.float32), [50, 20, 7])
    found = otsu(x)
    low, high = found.thresholds[1]
    assert 0 < low < 0.25 < high < 1
    means = np.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(found.scores[1], means.var() / np.sqrt(3), rtol=1e-6)
    assert found.scores[2] == -jnp.inf
    assert jnp.isfinite(found.threshold)


def test_two_values_are_separated():
    x = np.array([0.2] * 90 + [0.9] * 10, np.float32)
    found = otsu(x)
    np.testing.assert_array_equal(x > found.threshold, x > 0.5)
    np.testing.assert_allclose(found.scores[0], np.var([0.2, 0.9]) / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0, 1e-30])
def test_constant_map_has_nothing_above_its_threshold(value):
    x = np.full((4, 5), value, np.float32)
    found = otsu(x)
    assert found.threshold == x[0, 0]
    assert not jnp.any(x > found.threshold)
    assert jnp.all(found.scores == -jnp.inf)


@pytest.mark.parametrize("x", [np.zeros(1), np.array([0.0, 1e-40]), np.array([1.0, 1.0 + 1.2e-7]), np.array([0, 1.0])])
def test_tiny_maps_are_defined(x):
    found = otsu(jnp.asarray(x, jnp.float32))
    assert jnp.isfinite(found.threshold)
    assert not jnp.any(jnp.isnan(found.scores))


@pytest.mark.parametrize(("scale", "shift"), [(4.0, 0.0), (0.5, 8.0)])
def test_the_threshold_is_equivariant_to_affine_maps(scale, shift):
    x = np.round(np.random.default_rng(0).beta(0.5, 2, 5000) * 1024).astype(np.float32) / 1024
    a, b = otsu(jnp.asarray(x)), otsu(jnp.asarray(scale * x + shift))
    np.testing.assert_allclose(b.threshold, scale * a.threshold + shift, rtol=1e-6)
    np.testing.assert_allclose(b.scores, scale**2 * a.scores, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_histogram_equals_numpy(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=30_000).astype(np.float32)
    np.testing.assert_array_equal(counted(x, x.min(), x.max(), np.ones(x.shape, bool)), np.histogram(x, 256)[0])
    grid = rng.integers(0, 257, 10_000).astype(np.float32) / 256  # values on the edges
    counts = np.histogram(grid, 256, range=(0, 1))[0]
    np.testing.assert_array_equal(counted(grid, np.float32(0), np.float32(1), np.ones(grid.shape, bool)), counts)


def test_any_class_counts_and_the_first_wins_ties():
    x = jnp.asarray(np.random.default_rng(1).random(3000), jnp.float32)
    many = otsu(x, (4, 2))
    assert many.thresholds[0].shape == (3,) and many.thresholds[1].shape == (1,)
    best = many.thresholds[int(jnp.argmax(many.scores))]
    assert many.threshold == best[-1]
    for wrong in ((), (1, 2), (5,)):
        with pytest.raises(ConfigError, match="class counts"):
            multi_otsu(x, wrong)


def test_vmap_and_one_trace():
    x = jnp.asarray(np.random.default_rng(2).random((3, 20, 30)), jnp.float32)
    together = jax.jit(jax.vmap(multi_otsu))(x)
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(multi_otsu, n=1))
    for n in range(3):
        chex.assert_trees_all_close(jax.tree.map(lambda y, n=n: y[n], together), once(x[n]), atol=1e-6)


def test_values_that_do_not_count_have_no_influence():
    random = np.random.default_rng(3)
    x = np.concatenate([random.normal(0.2, 0.05, 500), random.normal(0.7, 0.05, 300)]).astype(np.float32)
    more = np.concatenate([x, [-9.0, 0.45, 7.0, 7.0]]).astype(np.float32)
    found = jax.jit(multi_otsu)(more, where=jnp.arange(len(more)) < len(x))
    expected = jax.jit(multi_otsu)(x)
    np.testing.assert_allclose(found.threshold, expected.threshold, rtol=1e-6)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
