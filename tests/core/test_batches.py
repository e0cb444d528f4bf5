"""Which pair is done when, and where it is kept; lengths that clips share."""

import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.batches import Batches, _within, batch_size, padded, room


@pytest.mark.parametrize("batch", [0, 1, 3, 4, 50])
@pytest.mark.parametrize("rows", [0, 13, 16])
def test_every_pair_is_done_once_and_kept_in_its_row(batch, rows):
    edges = np.stack([np.arange(11), np.arange(11) + 100], axis=1)
    batches = Batches(edges, 4, None, rows=rows, batch=batch)
    (store,) = (batches.empty((2,), "float32"),)
    seen = []
    for n in range(batches.count):
        part, counts = batches[n]
        seen += part[counts].tolist()
        store = batches.keep((store,), (jnp.asarray(part, jnp.float32),), n)[0]
    assert seen == edges.tolist() and batches.rows >= max(rows, 11) and len(store) == batches.rows
    np.testing.assert_array_equal(store[:11], edges)
    np.testing.assert_array_equal(store[11:], np.broadcast_to(edges[-1], (batches.rows - 11, 2)))
    assert batches.done(0) == 0 and batches.done(batches.count) == 11


def test_many_pairs_come_in_full_batches_whatever_their_number():
    assert {batch_size(count, 28) for count in range(28 * 7 + 1, 1000)} == {28}
    for count in range(1, 28 * 7 + 1):  # few: equal batches, hardly any padding
        rounds = -(-count // 28)
        assert batch_size(count, 28) <= 28 and 0 <= rounds * batch_size(count, 28) - count < rounds


def test_rooms_are_eight_between_powers_of_two_and_at_most_an_eighth_too_large():
    rooms = [room(count) for count in range(1, 1025)]
    assert all(count <= r <= count * 9 / 8 for count, r in enumerate(rooms, 1))
    assert rooms == sorted(rooms) and rooms[:16] == list(range(1, 17))
    for power in range(4, 10):
        assert len({r for r in rooms if 2**power < r <= 2 ** (power + 1)}) == 8
    assert all(room(r) == r for r in rooms)


def test_padding_repeats_the_last_entry():
    np.testing.assert_array_equal(padded(np.array([[1], [2]]), 4), [[1], [2], [2], [2]])
    np.testing.assert_array_equal(padded(np.arange(3), 3), np.arange(3))


def test_values_beyond_a_short_type_are_its_largest():
    with np.errstate(over="ignore"):
        short = _within(jnp.asarray([1e9, -1e9, 1.0, jnp.nan, jnp.inf]), jnp.dtype("float16"))
    np.testing.assert_array_equal(short, np.array([65504, -65504, 1, np.nan, np.inf], np.float16))
