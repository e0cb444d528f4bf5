"""Rotary embedding: positions enter products only through their differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.models.rope import apply_rope, rope_table


@pytest.fixture(scope="module")
def vectors():
    queries, keys = jax.random.normal(jax.random.key(0), (2, 1, 20, 3, 16))
    return queries, keys


def test_first_token_is_not_rotated(vectors):
    rotated = apply_rope(vectors[0], rope_table((4, 5), 16, 100.0))
    np.testing.assert_array_equal(rotated[:, 0], vectors[0][:, 0])


def test_rotation_keeps_norms(vectors):
    rotated = apply_rope(vectors[0], rope_table((4, 5), 16, 100.0))
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(vectors[0], axis=-1), rtol=1e-6)


def test_products_depend_on_relative_positions_only(vectors):
    grid = (4, 5)
    same_everywhere = [jnp.broadcast_to(v[:, :1], v.shape) for v in vectors]
    queries, keys = (apply_rope(v, rope_table(grid, 16, 100.0)) for v in same_everywhere)
    products = np.einsum("nad,mad->nma", queries[0], keys[0]).reshape(*grid, *grid, 3)
    np.testing.assert_allclose(products[1, 2, 2, 4], products[0, 1, 1, 3], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(products[3, 4, 1, 0], products[2, 4, 0, 0], rtol=2e-5, atol=2e-5)
    assert abs(products[0, 0, 0, 1, 0] - products[0, 0, 1, 0, 0]) > 1e-3  # rows and columns differ


def test_rows_rotate_the_first_half_and_columns_the_second(vectors):
    rotated = np.asarray(apply_rope(vectors[0], rope_table((4, 5), 16, 100.0)))
    np.testing.assert_array_equal(rotated[0, 1:5, :, :8], vectors[0][0, 1:5, :, :8])  # row 0: only the column rotates
    np.testing.assert_array_equal(rotated[0, 5::5, :, 8:], vectors[0][0, 5::5, :, 8:])  # column 0: only the row rotates
    assert np.abs(rotated[0, 1:5, :, 8:] - vectors[0][0, 1:5, :, 8:]).max() > 1e-2


def test_the_first_channel_pair_rotates_by_the_position():
    """Channels 0 and D/2 form a pair of frequency 1: at row 2 it rotates by 2 radians."""
    x = jnp.zeros((1, 3, 1, 8)).at[..., 0].set(1.0)
    rotated = np.asarray(apply_rope(x, rope_table((3, 1), 8, 100.0)))[0, 2, 0]
    np.testing.assert_allclose(rotated[[0, 2]], [np.cos(2), np.sin(2)], rtol=1e-6)
