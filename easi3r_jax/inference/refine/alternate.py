"""Scheme for refining masks: one half of the frames prompts the tracker for the other half, and vice versa.

A wrong mask in one frame is corrected by its neighbours', so a frame's mask is never predicted from itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from easi3r_jax.core.arrays import Bool
from easi3r_jax.core.types import Progress, silent


class Tracker(Protocol):
    """A network that tracks one mask through one video."""

    def prompt(self, frame: int, mask: Bool[np.ndarray, "H W"]) -> None:
        """Sets the mask (H, W) bool of a frame as a prompt. All prompts come before the first call of `follow`."""
        ...

    def follow(self, frame: int, *, reverse: bool) -> Bool[np.ndarray, "H W"]:
        """Predicts the mask (H, W) bool of a frame that is not a prompt; its neighbour was tracked or prompted before.

        `reverse`: frames are visited from last to first.
        """
        ...


def alternate(
    start: Callable[[], Tracker],
    masks: Bool[np.ndarray, "T H W"],
    *,
    progress: Progress = silent,
    stage: str = "refine",
) -> Bool[np.ndarray, "T H W"]:
    """Refines masks: those of odd frames prompt the even ones and vice versa; the result is added to the input.

    Frames are numbered from 0. A half's prompts are its non-empty masks; a half without any is skipped. Frames after
    the first prompt are tracked forward, those before it backward.

    Args:
      start: creates a tracker of the video without prompts.
      masks: (T, H, W) bool.
      progress: called before each frame and at the end; a frame counts in both halves.
      stage: name of the stage for `progress`.

    Returns:
      (T, H, W) bool: union of the input and the tracked masks.

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
            if (t - half[0]) % 2:  # in the other half; this half's own empty masks are filled from the other one
                refined[t] |= found
            done += 1
    if halves:
        progress(stage, total, total, "")
    return refined
