"""Standard output and error whose reader may leave, as in `easi3r ... | head`: the work goes on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class _MayClose:
    """A stream whose reader may leave (`| head`): the work goes on, and what it still prints is dropped."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._unless_closed(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        self._unless_closed(self._stream.flush, None)

    def _unless_closed(self, act: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return act()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            return otherwise


@contextlib.contextmanager
def outputs_that_may_close() -> Iterator[None]:
    """Within this context, a reader of stdout or stderr may leave."""
    before = sys.stdout, sys.stderr
    out: Any = _MayClose(sys.stdout)
    err: Any = _MayClose(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
