"""The figure of docs/scaling.md: memory counted by the compiler, and time and memory of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from easi3r_jax.apps.long_clips.run import WindowRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _RED, _GREY = "#2f6db5", "#c8323c", "#8a8f98"


def long_clips_figure(
    at_once: Mapping[int, float],
    window: int,
    in_windows: float,
    limit: float,
    records: Sequence[WindowRecord],
    size: str,
) -> Figure:
    """Two plots.

    Args:
      at_once: frames -> bytes of a clip that is not split.
      window: frames of a window.
      in_windows: bytes of a window.
      limit: bytes of the device.
      records: of the run.
      size: of the frames that are counted, e.g. 512x288.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.9), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    lengths = sorted(at_once)
    left.plot(lengths, [at_once[n] / 1e9 for n in lengths], "o-", color=_RED, label="the clip at once")
    split = [window, *(n for n in lengths if n > window)]
    left.plot(split, [in_windows / 1e9] * len(split), "o-", color=_BLUE, label=f"windows of {window} frames")
    left.axhline(limit / 1e9, color=_GREY, linestyle="--", label=f"a device of {limit / 1e9:.0f} GB")
    left.set(xscale="log", yscale="log", xlabel=f"frames of {size}", ylabel="device memory, counted (GB)")
    left.set_xticks(lengths, [str(n) for n in lengths], minor=False)
    left.minorticks_off()
    left.legend(frameon=False)

    frames = np.array([r.frames for r in records])
    right.plot(frames, [r.seconds / 60 for r in records], color=_RED)
    right.set(xlabel="frames done", xlim=(0, None), ylim=(0, None))
    right.set_ylabel("minutes", color=_RED)
    other = right.twinx()
    other.plot(frames, [r.process_bytes / 1e9 for r in records], color=_BLUE, label="process")
    other.plot(
        frames, [r.array_bytes / 1e9 for r in records], color=_BLUE, linestyle="--", label="arrays on the device"
    )
    other.set_ylim(0, 1.6 * max(r.process_bytes for r in records) / 1e9)
    other.set_ylabel("memory, measured (GB)", color=_BLUE)
    other.legend(frameon=False, loc="upper left")
    return figure
