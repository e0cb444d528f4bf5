"""Progress bars with the remaining time, and the time of each stage."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm

TITLES = {
    "hash": "reading the checkpoint",
    "convert": "converting the checkpoint",
    "read": "reading frames",
    "encode": "encoding frames",
    "attention": "pairs, first pass",
    "predict": "pairs, point maps",
    "motion": "motion cue",
    "flow": "optical flow",
    "flow masks": "flow against cameras",
    "refine": "refining masks",
    "align": "global alignment",
    "join": "joining windows",
    "track": "frame by frame",
    "compare": "metrics, comparison",
    "metrics": "computing metrics",
    "write": "writing",
    "export": "exporting",
    "pack": "packing",
    "pictures": "pictures, report",
}


class Stages:
    """Progress of a program: draws a bar for every stage and records its time.

    Attributes:
      seconds: stage -> wall-clock seconds, in the order of the stages; repeated stages are summed.
      units: stage -> number of frames, pairs or iterations.

    Args:
      quiet: draw nothing.
      leave: keep bars on screen when their stage has ended.
    """

    def __init__(self, *, quiet: bool = False, leave: bool = True):
        self.seconds: dict[str, float] = {}
        self.units: dict[str, int] = {}
        self._quiet, self._leave = quiet, leave
        self._done: set[str] = set()
        self._bar: tqdm | None = None
        self._began = 0.0
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if done == 0:
            self._done.discard(stage)  # it starts again
        if stage == "download" or stage in self._done:  # the hub's client draws its own bar; a late report
            return
        if stage != self._stage:
            self.close()
            self._stage, self._began = stage, time.perf_counter()
            self._bar = tqdm(
                total=total or None,
                desc=f"{TITLES.get(stage, stage):>26}",
                file=sys.stderr,
                disable=True if self._quiet else None,  # None: no bar where stderr is not a terminal
                bar_format="{desc} {bar:16} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]" if total else None,
                leave=self._leave,
            )
        if self._bar is not None:
            self._bar.n = done
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.refresh() if done in (0, total) else self._bar.update(0)
        self.units[stage] = max(done, self.units.get(stage, 0))
        if total and done >= total:  # 0: unknown
            self.close()
            self._done.add(stage)

    def close(self) -> None:
        """Ends the current stage."""
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.perf_counter() - self._began
        if self._bar is not None:
            self._bar.close()
        self._stage, self._bar = "", None


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """A plain-text table; the first column is left-aligned, the others right-aligned."""
    widths = [max(len(r[c]) for r in [header, *rows]) for c in range(len(header))]

    def line(row: tuple[str, ...]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  " + "  ".join(cells).rstrip()

    return "\n".join([line(header), "  " + "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(line, rows)])


def clock(seconds: float) -> str:
    """e.g. "40 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
