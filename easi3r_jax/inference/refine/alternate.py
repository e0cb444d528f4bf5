"""Which masks are prompts and which are found: half of the frames tells of the other half, and the reverse.

A mask that is wrong in one frame is put right by its neighbours', which is why no frame's mask is found from itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from easi3r_jax.core.types import Progress, silent


class Tracker(Protocol):
    """A network that follows one mask through one video."""

    def prompt(self, frame: int, mask: np.ndarray) -> None:
        """Takes the mask (H, W) bool of a frame for given. All prompts come before the first call of `follow`."""
        ...

    def follow(self, frame: int, *, reverse: bool) -> np.ndarray:
        """Finds the mask (H, W) bool of a frame that is no prompt; its neighbour was followed, or prompted, before.

        `reverse`: frames are visited from the last to the first.
        """
        ...


def alternate(
    start: Callable[[], Tracker], masks: np.ndarray, *, progress: Progress = silent, stage: str = "refine"
) -> np.ndarray:
    """Refines masks: those of odd frames prompt the even ones, those of even frames the odd ones; the union counts.

    Frames are counted from 0. A half's prompts are its masks that are not empty; without any it finds nothing. From
    the first prompt on, frames are followed forward; those before it, backward.

    Args:
      start: a tracker of the video that knows no prompts yet.
      masks: (T, H, W) bool.
      progress: called after each frame; a frame counts in both halves.
      stage: what `progress` is told.

    Returns:
      (T, H, W) bool: the input's pixels and those found.

    Source: Easi3R's released program (refinement of masks by SAM 2).
    """
    refined = masks.copy()
    prompts = [[t for t in range(first, len(masks), 2) if masks[t].any()] for first in (1, 0)]
    halves = [half for half in prompts if half and len(masks) > 1]
    done, total = 0, len(halves) * len(masks)
    for half in halves:
        tracker = start()
        for t in half:
            progress(stage, done, total, "")
            tracker.prompt(t, masks[t])
            done += 1
        order = [(t, False) for t in range(half[0], len(masks))] + [(t, True) for t in range(half[0] - 1, -1, -1)]
        for t, reverse in order:
            if t in half:
                continue
            progress(stage, done, total, "")
            found = tracker.follow(t, reverse=reverse)
            if (t - half[0]) % 2:  # not of this half: its own empty masks are the other half's to fill
                refined[t] |= found
            done += 1
    if halves:
        progress(stage, total, total, "")
    return refined
