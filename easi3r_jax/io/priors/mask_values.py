"""What the values of a clip's masks mean: soft masks, numbers of objects, or two values. The rule is in `masks`.

Values tell it by their shape. Where a soft mask rises from static to dynamic, each of its values lies between a lower
and a higher one, at every scale: the smooth edge of a drawing, a heat map, a small map that was enlarged. Objects stand
on the background: beside them is, for the most part, what is lower only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from easi3r_jax.core.arrays import Int
from easi3r_jax.core.errors import InputError

# Ranges of whole numbers: of 8 and 16 bits, and of 32.
RANGES = (255, 65535, 2**31 - 1)
# With fewer values than the first in a mask, objects within each other are as likely as a rise: then only rises within
# three pixels count, and noise is not expected. With more than the second, values are compared in steps.
_FEW, _MANY = 6, 32
_STEPS = 8
# Part of the values between lowest and highest that lie between a lower and a higher neighbour, in soft masks. Of the
# generated masks of the tests, soft ones have at least 0.7 (0.56 where the object covers few cells of a small map that
# was enlarged), numbers of objects at most 0.56.
_MIN_RISING = 0.62
# Part of the differences between neighbours that are small, and how small, of the range of values that are not 0: of
# noise and of slow rises.
_MIN_SMALL, _SMALL = 0.3, 0.03
# Part of the dark pixels in flat regions, of noise; of numbers of objects it is about half.
_MAX_GRAINY = 0.02
# Gray up to a little above half of the range, in which a region may be an object or not. Where values differ by less
# than 1/64 within three pixels, or within 7 of an image 288 pixels high, regions are flat: plateaus within a rise.
_GRAY, _FLAT, _PLATEAU = (1 / 8, 5 / 8), 3, 1 / 41
# Plateaus have a few of 32 levels, and are neither the top nor the bottom, or about half of the range, so that noise
# would decide. They and flat regions matter from this part of all that is not black.
_LEVELS, _FEW_LEVELS, _MIN_CONCENTRATION = 32, 4, 0.7
_TOP, _HALF, _BOTTOM = 0.8, 0.55, 0.1
_MIN_FLAT = 0.005


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What one mask's values tell about their meaning.

    Attributes:
      values: the distinct values, at most three of them: the two lowest and the highest.
      num_values: their number.
      largest: the largest value of the range.
      is_real: real numbers from 0 to 1.
      is_lossy: the format changes values a little (JPEG).
      rising, other: number of runs or pixels of values between the mask's lowest and highest that lie between a lower
        and a higher neighbour, and of the others.
      small, steps: number of neighbours that differ a little, and that differ; 0 with few values.
      flat: number of pixels in flat gray regions.
      plateaus: (32,) number of pixels in larger ones, by their level.
      light: number of pixels that are not black.
    """

    values: tuple[float, ...] = ()
    num_values: int = 0
    largest: float = 255
    is_real: bool = False
    is_lossy: bool = False
    rising: int = 0
    other: int = 0
    small: int = 0
    steps: int = 0
    flat: int = 0
    plateaus: Int[np.ndarray, "levels"] = dataclasses.field(default_factory=lambda: np.zeros(_LEVELS, np.int64))
    light: int = 0

    @classmethod
    def of(cls, values: np.ndarray, largest: float, *, is_lossy: bool) -> Statistics:
        """Statistics of one mask.

        Args:
          values: (h, w) numbers, at least 0.
          largest: the largest value that its format has; 1 for real numbers.
          is_lossy: see above.
        """
        # Sorting millions of pixels takes longer than all that follows.
        distinct = np.flatnonzero(np.bincount(values.ravel())) if values.dtype.itemsize <= 2 else np.unique(values)
        kept = tuple(float(value) for value in (*distinct[:2], distinct[-1]))
        if np.issubdtype(values.dtype, np.floating):
            return cls(kept, len(distinct), largest, True)
        rising = other = small = steps = 0
        if len(distinct) > 2:
            lowest, top = int(distinct[distinct > 0][0]), int(distinct[-1])
            if len(distinct) - 1 < _FEW:
                rising, other = _rises_of_pixels(np.searchsorted(distinct, values).astype(np.uint8))
            elif len(distinct) - 1 <= _MANY:
                rising, other = _rises_of_runs(np.searchsorted(distinct, values), len(distinct) - 1)
            else:
                levels = np.maximum(values.astype(np.int64) - lowest, 0) * _STEPS // (top - lowest + 1)
                if lowest * _STEPS > top:  # numbers of objects such as 1001, 1002: 0 is far from all
                    levels = np.where(values > 0, levels + 1, 0)
                rising, other = _rises_of_runs(levels, int(levels.max()))
            if len(distinct) - 1 > _MANY or (len(distinct) - 1 >= _FEW and _is_grainy(values, top)):
                small, steps = _small_steps(values, _SMALL * (top - lowest))
        gray = (0, np.zeros(_LEVELS, np.int64), 0)
        if is_lossy or len(distinct) - 1 >= _FEW:
            gray = _flat_gray(values, next((limit for limit in RANGES if distinct[-1] <= limit), RANGES[-1]))
        return cls(kept, len(distinct), largest, False, is_lossy, rising, other, small, steps, *gray)


def _rises_of_pixels(ranks: np.ndarray) -> tuple[int, int]:
    """(rising, other) pixels, by their eight neighbours."""
    window = np.ones((3, 3), np.uint8)
    rises = (cv2.erode(ranks, window) < ranks) & (ranks < cv2.dilate(ranks, window))
    middle = (ranks > 0) & (ranks < ranks.max())
    rising = int((rises & middle).sum())
    return rising, int(middle.sum()) - rising


def _rises_of_runs(levels: np.ndarray, top: int) -> tuple[int, int]:
    """(rising, other) runs of equal levels in rows and columns, by the runs before and after."""
    rising = other = 0
    for table in (levels, levels.T):
        ends = np.full((len(table), 1), -1, np.int64)
        line = np.concatenate([table, ends], axis=1).ravel()
        runs = line[np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]]))]
        before, here, after = runs[:-2], runs[1:-1], runs[2:]
        middle = (here > 0) & (here < top) & (before >= 0) & (after >= 0)
        rises = (before < here) == (here < after)
        rising += int((rises & middle).sum())
        other += int((~rises & middle).sum())
    return rising, other


def _is_grainy(values: np.ndarray, top: int) -> bool:
    """Whether dark pixels are not in flat regions: what is left of JPEG, and not small numbers of objects."""
    dark, window = (values > 0) & (values < _GRAY[0] * top), np.ones((3, 3), np.uint8)
    ranks = np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.uint8)
    return int((dark & (cv2.dilate(ranks, window) == cv2.erode(ranks, window))).sum()) < _MAX_GRAINY * dark.sum()


def _small_steps(values: np.ndarray, limit: float) -> tuple[int, int]:
    small = steps = 0
    for axis in (0, 1):
        difference = np.abs(np.diff(values.astype(np.int64), axis=axis))
        steps += int((difference > 0).sum())
        small += int(((difference > 0) & (difference <= limit)).sum())
    return small, steps


def _flat_gray(values: np.ndarray, largest: int) -> tuple[int, np.ndarray, int]:
    """`flat`, `plateaus` and `light` of the statistics."""
    relative = (values.astype(np.float32) / np.float32(largest)).astype(np.float32)
    is_gray = (relative > _GRAY[0]) & (relative < _GRAY[1])

    def flat(size: int) -> np.ndarray:
        window = np.ones((size, size), np.uint8)
        return is_gray & (cv2.dilate(relative, window) - cv2.erode(relative, window) < 1 / 64)

    low, high = float(relative.min()), float(relative.max())
    wide = flat(max(round(min(values.shape) * _PLATEAU), _FLAT))
    wide &= (relative < max(_TOP * high, _HALF)) & (relative > low + _BOTTOM * (high - low))
    levels = np.bincount((relative[wide] * _LEVELS).astype(np.int64), minlength=_LEVELS)
    return int(flat(_FLAT).sum()), levels, int((relative > _GRAY[0]).sum())


def threshold(masks: Sequence[Statistics], name: str, *, has_white: bool = False) -> float:
    """The value above which pixels are dynamic.

    Args:
      masks: of a clip, at least one.
      name: of the masks, for messages.
      has_white: the largest value of the range has no meaning of its own, as in alpha and palettes.

    Raises:
      InputError: the values may mean one thing or another.
    """
    if any(mask.is_real for mask in masks):
        return 0.5
    distinct = sorted({value for mask in masks for value in mask.values})
    brightest, lowest = distinct[-1], distinct[0]
    limit = max(mask.largest for mask in masks)
    largest = next((r for r in RANGES if brightest <= r), limit)  # values of 8 bits in files of more
    is_lossy = any(mask.is_lossy for mask in masks)
    if len(distinct) == 1:
        if brightest in (0, largest):
            return largest / 2
        raise InputError(
            f"{name}: every pixel of every mask is {brightest:g}: save static pixels as 0, dynamic ones as 255."
        )
    if len(distinct) == 2 and max(mask.num_values for mask in masks) <= 2 and not is_lossy:
        return lowest
    if _has_objects(masks, name, is_lossy=is_lossy, is_dark=brightest <= largest / 2):
        if not has_white and brightest in RANGES:
            raise InputError(
                f"{name}: the masks have numbers or colours of objects, and also white, which may be to ignore: save "
                "dynamic pixels as 255 and the others as 0, or object numbers with a palette."
            )
        if lowest > 0:
            raise InputError(f"{name}: no pixel of any mask is 0: save static pixels as 0, dynamic ones as 255.")
        return 0
    if brightest <= largest / 2:
        raise InputError(
            f"{name}: no mask is brighter than half of the range, so no pixel would be dynamic: save dynamic pixels "
            "as 255, or object numbers with a palette."
        )
    return largest / 2


def _has_objects(masks: Sequence[Statistics], name: str, *, is_lossy: bool, is_dark: bool) -> bool:
    """Whether values are numbers or colours of objects; otherwise masks are soft, or black and white with noise.

    Raises:
      InputError: numbers of objects that are not exact.
    """
    rising, other, small, steps, flat, light = (
        sum(getattr(mask, field) for mask in masks) for field in ("rising", "other", "small", "steps", "flat", "light")
    )
    is_rising = rising > 0 and rising >= _MIN_RISING * (rising + other)
    if not (is_lossy or (steps > 0 and small > _MIN_SMALL * steps)):
        return not is_rising
    if is_dark:  # refused as such
        return False
    plateaus = np.sum([mask.plateaus for mask in masks], axis=0)
    in_few_levels = np.sort(plateaus)[-_FEW_LEVELS:].sum() >= _MIN_CONCENTRATION * plateaus.sum()
    if (plateaus.sum() if is_rising and in_few_levels else 0 if is_rising else flat) > _MIN_FLAT * light:
        raise InputError(
            f"{name}: the masks have gray regions, as if they were numbers or colours of objects, but not exactly: "
            "save them as PNG and not as JPEG, or dynamic pixels as 255 and the others as 0."
        )
    return False
