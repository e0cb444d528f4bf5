"""A common initial state for alignments that are compared.

Initial poses come from RANSAC, which may respond to rounding with other inliers: 1e-7 in the points becomes 1e-3 in a
pose, on some processors and for some clips. The later stages are stable.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax

from easi3r_jax import alignment
from easi3r_jax.alignment import AlignState


class CommonStart:
    """Within it, alignments start where the first of them does, as far as the arrays of both reach.

    It may be entered several times. Rows that only a later alignment has, padding, stay its own.

    Attributes:
      count: alignments that have started.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: AlignState | None = None
        self._patch = mock.patch.object(alignment, "start_state", self._start)
        self._original = alignment.start_state

    def __enter__(self) -> CommonStart:
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()

    def _start(self, *arguments: Any, **options: Any) -> AlignState:
        own = self._original(*arguments, **options)
        self.count += 1
        if self._first is None:
            self._first = jax.device_get(own)

        def shared(own: jax.Array, first: Any) -> jax.Array:
            rows = min(len(own), len(first))
            return own.at[:rows].set(first[:rows])

        return jax.tree.map(shared, own, self._first)
