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
        self._pressed: dict[str, threading.Event] = {}
        self._results: dict[str, list[Products]] = {}

    def press(self, session: str) -> None:
        """The page has asked for a job, which begins when it is its turn: it can be stopped from now on."""
        with self._lock:
            self._pressed[session] = threading.Event()

    def begin(self, session: str) -> threading.Event:
        """Registers a job of the page; setting the event ends it."""
        with self._lock:
            event = self._pressed.pop(session, None) or threading.Event()
            self._stops.setdefault(session, set()).add(event)
        return event

    def end(self, session: str, event: threading.Event, products: Products | None) -> None:
        """Registers the end of a job. Its result replaces the page's former one, or is removed if nobody waits."""
        with self._lock:
            waiting = self._stops.get(session, set())
            is_wanted = event in waiting and not event.is_set()
            waiting.discard(event)
            if not waiting:
                self._stops.pop(session, None)
            removed = [products] if products is not None else []
            if products is not None and is_wanted:
                removed, self._results[session] = self._results.get(session, []), [products]
        for old in removed:
            self._jobs.store.remove(old.folder)

    def stop(self, session: str) -> None:
        """Ends the page's jobs at their next progress report."""
        with self._lock:
            events = self._stops.pop(session, set())
            if session in self._pressed:  # it stays, for the job that may be about to begin
                events.add(self._pressed[session])
        for event in events:
            event.set()

    def close(self, session: str) -> None:
        """The page was closed: ends its jobs and removes its results."""
        self.stop(session)
        with self._lock:
            self._pressed.pop(session, None)
            results = self._results.pop(session, [])
        for products in results:
            self._jobs.store.remove(products.folder)
