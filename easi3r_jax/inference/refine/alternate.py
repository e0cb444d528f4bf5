"""Scheme for refining masks: one half of the frames prompts the tracker for the other half, and vice versa.

A wrong mask in one frame is corrected by its neighbours', so a frame's mask is never predicted from itself.

What one half alone has seen would be found in every second frame. If that half has the only prompts, it fills its own
empty frames too: an object that was seen once is followed. Otherwise, what appears in a frame and in neither of the
frames beside it is not added: the object is shown where it was seen. A region is in the frame beside if it overlaps one
there, or if one there has nothing that it overlaps: then the object moves by more than its width, or is small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np

from easi3r_jax.core.arrays import Bool
from easi3r_jax.core.types import Progress, silent

# Largest factor between the sizes of a fast object's regions in frames beside each other.
_MAX_GROWTH = 4.0


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

    Frames are numbered from 0. A half's prompts are its non-empty masks; a half without any is skipped, and its prompts
    are the other's. Frames after the first prompt are tracked forward, those before it backward. Found regions that no
    frame beside theirs has are left out.

    Args:
      start: creates a tracker of the video without prompts.
      masks: (T, H, W) bool.
      progress: called before each frame and at the end; a frame counts in both halves.
      stage: name of the stage for `progress`.

    Returns:
      (T, H, W) bool: union of the input and the tracked masks.

    Source: Easi3R's released program (refinement of masks by SAM 2); what one half alone has seen flickers there.
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
            # This half's own empty masks are filled from the other one, if that has any prompts.
            if (t - half[0]) % 2 or len(halves) == 1:
                refined[t] |= found
            done += 1
    if halves:
        progress(stage, total, total, "")
    return _steady(refined, masks) if len(halves) > 1 else refined


def _steady(refined: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The refined masks without added regions that neither of the frames beside theirs has."""
    steady = refined.copy()
    for t in range(len(refined)):
        count, regions = cv2.connectedComponents(refined[t].astype(np.uint8))
        kept = np.zeros(count, bool)
        kept[np.unique(regions[masks[t]])] = True  # regions that touch the frame's own mask are part of it
        for other in (t - 1, t + 1):
            if 0 <= other < len(refined):
                kept |= _is_beside(regions, count, refined[other])
        kept[0] = False
        steady[t] &= kept[regions] | masks[t]
    return steady


def _is_beside(regions: np.ndarray, count: int, beside: np.ndarray) -> np.ndarray:
    """(count,) bool: which of a frame's numbered regions a frame beside has too."""
    found = np.zeros(count, bool)
    found[np.unique(regions[beside])] = True
    found[0] = False
    number, others = cv2.connectedComponents(beside.astype(np.uint8))
    sizes, other_sizes = np.bincount(regions.ravel(), minlength=count), np.bincount(others.ravel(), minlength=number)
    alone = np.ones(number, bool)
    alone[np.unique(others[regions > 0]).astype(np.intp)] = False
    alone[0] = False
    # A fast object's region is about as large in both frames: the most similar sizes first, each region once.
    pairs = [
        (abs(np.log(sizes[region] / other_sizes[other])), region, other)
        for region in np.flatnonzero(~found[1:]) + 1
        for other in np.flatnonzero(alone)
    ]
    for difference, region, other in sorted(pairs):
        if difference <= np.log(_MAX_GROWTH) and alone[other] and not found[region]:
            found[region], alone[other] = True, False
    return found
