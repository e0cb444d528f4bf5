"""Attention against its definition with full maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.models.attention import dot_product_attention, masked_attention


@pytest.fixture(scope="module")
def qkv():
    return jax.random.normal(jax.random.key(1), (3, 2, 30, 4, 8))


def _softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_attention_is_softmax_of_scaled_products(qkv):
    q, k, v = (np.asarray(x, np.float64) for x in qkv)
    weights = _softmax(np.einsum("bqad,bkad->baqk", q, k) / np.sqrt(8))
    expected = np.einsum("baqk,bkad->bqad", weights, v)
    np.testing.assert_allclose(dot_product_attention(*qkv), expected, atol=2e-6)


def test_masked_attention_zeroes_weights_after_the_softmax(qkv):
    q, k, v = (np.asarray(x, np.float64) for x in qkv)
    rng = np.random.default_rng(0)
    dynamic_query, dynamic_key = rng.random((2, 2, 30)) < 0.4
    weights = _softmax(np.einsum("bqad,bkad->baqk", q, k) / np.sqrt(8))
    weights = np.where(~dynamic_query[:, None, :, None] & dynamic_key[:, None, None, :], 0.0, weights)
    expected = np.einsum("baqk,bkad->bqad", weights, v)
    ours = masked_attention(*qkv, jnp.asarray(dynamic_query), jnp.asarray(dynamic_key))
    np.testing.assert_allclose(ours, expected, atol=2e-6)

    renormalised = np.einsum("baqk,bkad->bqad", weights / weights.sum(-1, keepdims=True), v)
    assert np.abs(renormalised - expected).max() > 0.1  # an additive -inf mask would give this instead


def test_an_empty_mask_changes_nothing(qkv):
    nothing = jnp.zeros((2, 30), bool)
    np.testing.assert_array_equal(masked_attention(*qkv, nothing, nothing), dot_product_attention(*qkv))
