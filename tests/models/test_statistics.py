"""Statistics of the cross-attention, against the full maps that they do not compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax.core.config import GRAM_STATISTICS
from easi3r_jax.models.attention import attention_logits
from easi3r_jax.models.statistics import gram_statistics, mean_logits, product_moments
from tests.networks import network, small_network
from tests.wide import dot, in_float64, random_like, slope, widened

SHAPE = (2, 30, 4, 8)


@pytest.fixture(scope="module")
def four():
    """Queries of i, keys of j, queries of j, keys of i; keys far from zero."""
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE))
    return x.at[1::2].add(5.0)


def test_mean_logits_equals_the_mean_of_the_full_maps(four):
    q, k = four[:2]
    full = np.asarray(attention_logits(q, k), np.float64).mean(axis=2)
    np.testing.assert_allclose(mean_logits(q, k), full, atol=2e-6)


@pytest.mark.parametrize("statistics", [mean_logits, product_moments])
def test_they_need_no_quadratic_memory(statistics):
    """No array of the traced computation has as many elements as an N x N map."""
    tokens = 500
    shape = jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32)
    jaxpr = jax.make_jaxpr(statistics)(shape, shape)
    largest = max(v.aval.size for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars)
    assert largest <= tokens * 2 * 8
    assert jax.make_jaxpr(attention_logits)(shape, shape).out_avals[0].size == 2 * tokens**2


def test_moments_of_products_equal_those_of_the_full_map(four):
    own, other = four[0], four[1][:, :17]
    mean, std = product_moments(own, other)
    full = np.einsum("bnad,bmad->banm", *(np.asarray(x, np.float64) for x in (own, other)))
    np.testing.assert_allclose(mean, full.mean(-1), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(std, full.std(-1), rtol=1e-5)


def test_equal_tokens_do_not_deviate_and_have_finite_gradients(four):
    other = jnp.ones_like(four[1])
    assert not np.any(product_moments(four[0], other)[1])
    gradient = jax.grad(lambda x: jnp.sum(product_moments(four[0], x)[1]))(other)
    assert np.all(np.isfinite(gradient))


def test_gram_statistics_name_whose_tokens_they_are(four):
    """Of view j: its queries with those of i, its keys with those of i, its queries with the keys of i; and of i."""
    (q_i, k_j, q_j, k_i), heads = np.asarray(four, np.float64), SHAPE[2]
    found = gram_statistics((four[0], four[1]), (four[2], four[3]))
    products = (
        {"qq": (q_j, q_i), "kk": (k_j, k_i), "qk": (q_j, k_i)},
        {"qq": (q_i, q_j), "kk": (k_i, k_j), "qk": (q_i, k_j)},
    )
    for of_view, expected in zip(found, products, strict=True):
        for n, name in enumerate(GRAM_STATISTICS):
            kind, reduce = name.split("_")
            full = np.einsum("bnad,bmad->banm", *expected[kind])
            ours = of_view[:, n * heads : (n + 1) * heads]
            np.testing.assert_allclose(ours, getattr(np, reduce)(full, axis=-1), rtol=1e-5, atol=5e-5)


def test_derivatives(four):
    rng = np.random.default_rng(0)
    at = tuple(four[:2])
    weights = rng.standard_normal((2, SHAPE[0], SHAPE[2], SHAPE[1]))

    def figure(x):
        return sum(jnp.sum(m * jnp.asarray(w, m.dtype)) for m, w in zip(product_moments(*x), weights, strict=True))

    along = random_like(rng, at)
    found = dot(jax.grad(figure)(at), along)
    with jax.enable_x64(True):
        expected = slope(in_float64(figure, at), widened(at), along, 1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_network_returns_them_if_asked():
    """The same as from the queries and keys of its intermediates; the other outputs do not change."""
    model = network(small_network(), seed=2)
    rgb = np.random.default_rng(1).integers(0, 256, (3, 32, 48, 3), np.uint8)
    features, grid = e3r.encode_frames(model, rgb), model.grid((32, 48))
    i, j = features[np.array([0, 1])], features[np.array([1, 2])]
    plain = jax.jit(lambda m, i, j: m.decode(i, j, grid))(model, i, j)
    decoded = jax.jit(lambda m, i, j: m.decode(i, j, grid, gram=True, intermediates=True))(model, i, j)
    assert plain.stats.gram is None
    np.testing.assert_allclose(decoded.stats.src, plain.stats.src, atol=1e-6)
    cross = [decoded.intermediates[branch]["cross"] for branch in ("branch1", "branch2")]
    for layer in range(model.config.dec_depth):
        branches = [(c["rotated_queries"][layer], c["rotated_keys"][layer]) for c in cross]
        of_j, of_i = jax.jit(gram_statistics)(*branches)
        np.testing.assert_allclose(decoded.stats.gram.src[:, layer], of_j, atol=1e-5)
        np.testing.assert_allclose(decoded.stats.gram.ref[:, layer], of_i, atol=1e-5)
