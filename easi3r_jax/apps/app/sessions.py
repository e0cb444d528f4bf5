"""The open pages: which job each waits for, and which results it holds."""

from __future__ import annotations

import threading

from easi3r_jax.apps.app.job import Jobs, Products


class Sessions:
    """State of each open page.

    Every job has an event of its own, which ends that job and no other: a page may start the next one while a stopped
    one is still on its way to its next progress report.

    Args:
      jobs: the owner of the results.
    """

    def __init__(self, jobs: Jobs):
        self._jobs = jobs
        self._lock = threading.Lock()
        self._stops: dict[str, set[threading.Event]] = {}
        self._results: dict[str, list[Products]] = {}

    def begin(self, session: str) -> threading.Event:
        """Registers a job of the page; setting the event ends it."""
        event = threading.Event()
        with self._lock:
            self._stops.setdefault(session, set()).add(event)
        return event

    def end(self, session: str, event: threading.Event, products: Products | None) -> None:
        """Registers the end of a job. A result that nobody waits for any more is removed at once."""
        with self._lock:
            waiting = self._stops.get(session, set())
            is_wanted = event in waiting
            waiting.discard(event)
            if not waiting:
                self._stops.pop(session, None)
            if products is not None and is_wanted:
                self._results.setdefault(session, []).append(products)
            elif products is not None:
                self._jobs.store.remove(products.folder)

    def stop(self, session: str) -> None:
        """Ends the page's jobs at their next progress report."""
        with self._lock:
            events = self._stops.pop(session, set())
        for event in events:
            event.set()

    def close(self, session: str) -> None:
        """The page was closed: ends its jobs and removes its results."""
        self.stop(session)
        with self._lock:
            results = self._results.pop(session, [])
        for products in results:
            self._jobs.store.remove(products.folder)
