"""Makes batches in background threads while the device trains."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from easi3r_jax.core.errors import ConfigError

T = TypeVar("T")


class Prefetcher(Generic[T], Iterator[T]):
    """Batches of consecutive steps, made in advance by threads. See `prefetched`."""

    def __init__(self, batch_function: Callable[[int], T], start_step: int, threads: int, ahead: int):
        if threads < 1 or ahead < 1:
            raise ConfigError(f"threads and ahead must be at least 1, got {threads} and {ahead}.")
        self._batch_function = batch_function
        self._next_step = start_step
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._pending: collections.deque[Future[T]] = collections.deque()
        self._closed = False
        for _ in range(ahead):
            self._submit()

    def __next__(self) -> T:
        if self._closed:
            raise StopIteration
        try:
            batch = self._pending.popleft().result()
        except BaseException:
            self.close()
            raise
        self._submit()
        return batch

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Starts no further batches, and waits for those in progress."""
        self._closed = True
        self._pending.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        self._pending.append(self._executor.submit(self._batch_function, self._next_step))
        self._next_step += 1


def prefetched(
    batch_function: Callable[[int], T], start_step: int, *, threads: int = 2, ahead: int = 4
) -> Prefetcher[T]:
    """Makes batches in the background, in the order of their steps.

        with prefetched(lambda step: mixture.batch(seed, step, batch_size), start_step) as batches:
            for batch in batches: ...

    Args:
      batch_function: step -> batch, called from several threads.
      start_step: step of the first batch.
      threads: number of threads.
      ahead: maximum number of batches in progress or waiting.

    Returns:
      An endless iterator and context manager. An exception in `batch_function` is raised when its batch is due, and
      closes the iterator.
    """
    return Prefetcher(batch_function, start_step, threads, ahead)
