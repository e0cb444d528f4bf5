"""Batches of pairs: order, storage of results, and bucket sizes."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core import target
from easi3r_jax.core.batches import Batches, _within, batch_size, bucket_size, most_at_once, pad_pairs, padded


@pytest.mark.parametrize("batch", [0, 1, 3, 4, 50])
@pytest.mark.parametrize("count", [0, 13, 16])
def test_every_pair_is_done_once_and_kept_in_its_row(batch, count):
    edges = np.stack([np.arange(11), np.arange(11) + 100], axis=1)
    longer, valid = pad_pairs(edges, count, None)
    batches = Batches(longer, 4, None, valid=valid, batch=batch)
    (store,) = (batches.empty((2,), "float32"),)
    seen = []
    for n in range(batches.count):
        part, counts = batches[n]
        seen += part[counts].tolist()
        store = batches.keep((store,), (jnp.asarray(part, jnp.float32),), n)[0]
    assert seen == edges.tolist() and len(store) == max(count, 11)
    np.testing.assert_array_equal(store, longer)
    np.testing.assert_array_equal(store[:11], edges)
    np.testing.assert_array_equal(store[11:], np.broadcast_to(edges[-1], (len(store) - 11, 2)))
    assert batches.done(0) == 0 and batches.done(batches.count) == 11


def test_many_pairs_come_in_full_batches_whatever_their_number():
    assert {batch_size(count, 28) for count in range(28 * 7 + 1, 1000)} == {28}


def test_few_pairs_come_in_batches_that_leave_few_rows_over():
    for most in (1, 2, 3, 28):
        for count in range(1, 7 * most + 1):
            size, largest = batch_size(count, most), min(count, most)
            assert largest / 2 <= size <= largest
            left_over = -count % size
            assert all(left_over <= -count % other for other in range(largest // 2 + 1, largest + 1))
    assert batch_size(8, 3) == 2 and batch_size(9, 3) == 3 and batch_size(30, 28) == 15


def test_the_devices_memory_decides_how_many_it_takes(monkeypatch):
    assert most_at_once(1e8, on_cpu=350_000_000) == 3 and most_at_once(1e12) == 1

    def on_accelerator(stats, bytes_each=1e8):
        device = types.SimpleNamespace(memory_stats=lambda: stats)
        jax = types.SimpleNamespace(default_backend=lambda: "gpu", local_devices=lambda: [device])
        with monkeypatch.context() as patch:
            patch.setattr(target, "jax", jax)
            return most_at_once(bytes_each, on_cpu=1)

    sizes = [on_accelerator({"bytes_limit": gigabytes * 10**9}) for gigabytes in (1, 16, 24, 80)]
    assert sizes == [1, 20, 30, 66]  # an eighth, at least one item, at most 6.6 GB
    assert on_accelerator(None) == on_accelerator({}) == 40
    with target.traced_for("tpu", 16 * 10**9):
        assert most_at_once(1e8) == 20


def test_padding_is_reported_where_shapes_are_shared():
    """Also where nothing had to be padded: the same program serves both."""
    edges = np.array([[0, 1], [1, 0]])
    assert pad_pairs(edges, 0, None)[1] is None
    np.testing.assert_array_equal(pad_pairs(edges, 2, None)[1], [True, True])
    np.testing.assert_array_equal(pad_pairs(edges, 3, None)[0], [[0, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(pad_pairs(edges, 3, None)[1], [True, True, False])


def test_buckets_are_eight_between_powers_of_two_and_at_most_an_eighth_too_large():
    sizes = [bucket_size(count) for count in range(1, 1025)]
    assert all(count <= r <= count * 9 / 8 for count, r in enumerate(sizes, 1))
    assert sizes == sorted(sizes) and sizes[:16] == list(range(1, 17))
    for power in range(4, 10):
        assert len({r for r in sizes if 2**power < r <= 2 ** (power + 1)}) == 8
    assert all(bucket_size(r) == r for r in sizes)


def test_padding_repeats_the_last_entry():
    np.testing.assert_array_equal(padded(np.array([[1], [2]]), 4), [[1], [2], [2], [2]])
    np.testing.assert_array_equal(padded(np.arange(3), 3), np.arange(3))


def test_values_beyond_a_short_type_are_its_largest(convertible):
    convertible("float16")
    with np.errstate(over="ignore"):
        short = _within(jnp.asarray([1e9, -1e9, 1.0, jnp.nan, jnp.inf]), jnp.dtype("float16"))
    np.testing.assert_array_equal(short, np.array([65504, -65504, 1, np.nan, np.inf], np.float16))
