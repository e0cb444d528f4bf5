"""Prefetched batches: in order, a few ahead, and threads end when closed."""

import threading

import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.training.datasets import prefetched


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("batches")}


def test_batches_are_in_order_whichever_is_ready_first():
    turns = [threading.Event() for _ in range(6)]

    def batch(step):
        assert turns[step - 10].wait(10)
        return 2 * step

    with prefetched(batch, 10, threads=3, ahead=3) as batches:
        for turn in (2, 1, 0, 5, 4, 3):  # every third step is ready first
            turns[turn].set()
        assert [next(batches) for _ in range(3)] == [20, 22, 24]
        assert next(batches) == 26


@pytest.mark.parametrize(("count", "ahead"), [(1, 1), (1, 4), (3, 2), (4, 4)])
def test_the_number_of_batches_ahead_is_bounded(count, ahead):
    begun, lock = [], threading.Lock()

    def batch(step):
        with lock:
            begun.append(step)
        return step

    with prefetched(batch, 0, threads=count, ahead=ahead) as batches:
        for step in range(20):
            assert next(batches) == step
            with lock:
                assert max(begun) <= step + ahead
    assert sorted(begun) == list(range(len(begun))) and len(begun) <= 20 + ahead


def test_an_exception_is_raised_when_its_batch_is_due():
    def batch(step):
        if step == 2:
            raise InputError("frame 7 is missing")
        return step

    batches = prefetched(batch, 0, threads=2, ahead=4)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(InputError, match="frame 7 is missing"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert not threads()


def test_closing_stops_the_threads():
    release, begun = threading.Event(), []

    def batch(step):
        begun.append(step)
        release.wait(10)
        return step

    batches = prefetched(batch, 0, threads=2, ahead=50)
    assert len(threads()) == 2
    closing = threading.Thread(target=batches.close)
    closing.start()
    release.set()
    closing.join(10)
    assert not closing.is_alive() and not threads()
    assert len(begun) <= 4
    batches.close()  # a second time is harmless
    assert list(batches) == []


def test_leaving_the_context_stops_the_threads():
    with prefetched(lambda step: step, 0) as batches:
        assert next(batches) == 0
        assert threads()
    assert not threads()


@pytest.mark.parametrize("change", [{"threads": 0}, {"ahead": 0}])
def test_invalid_options(change):
    with pytest.raises(ConfigError):
        prefetched(lambda step: step, 0, **change)
