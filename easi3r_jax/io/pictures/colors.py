"""Colours that stand for numbers and for time.

Colour maps are perceptually uniform: lightness grows with the number, evenly, so that they read the same in grey and to
the colour-blind.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from matplotlib import colormaps

#: Where there is no number: a grey that none of the maps below has.
UNKNOWN = (110, 110, 110)
# Percentiles of robust limits: one wild pixel must not darken a whole clip.
_PERCENTILES = (1, 99)
_SAMPLE = 200_000


@dataclasses.dataclass(frozen=True)
class Scale:
    """Colours for numbers, the same for all frames of a clip.

    Attributes:
      colormap: of matplotlib; "_r" at its end turns it round.
      low, high: numbers of the two end colours, which what lies beyond has too.
      log: equal ratios are equal steps of colour, not equal differences; then low > 0, and numbers that are not
        positive have no colour.
    """

    colormap: str
    low: float
    high: float
    log: bool = False

    def colors(self, values: np.ndarray) -> np.ndarray:
        """(...) numbers to (..., 3) uint8; `UNKNOWN` where there is none."""
        values = np.asarray(values, np.float32)
        known = np.isfinite(values) & (values > 0 if self.log else True)
        low, high, x = self.low, self.high, np.where(known, values, self.low)
        if self.log:
            low, high, x = np.log(low), np.log(high), np.log(x)
        share = np.clip((x - low) / (high - low), 0, 1)
        return np.where(
            known[..., None], colormaps[self.colormap](share, bytes=True)[..., :3], np.array(UNKNOWN, np.uint8)
        )

    def numbers(self, shares: np.ndarray) -> np.ndarray:
        """The numbers whose colours lie at these shares of the scale, 0 to 1."""
        if self.log:
            return self.low * (self.high / self.low) ** np.asarray(shares)
        return self.low + (self.high - self.low) * np.asarray(shares)


def robust_scale(values: np.ndarray, colormap: str, *, log: bool = False) -> Scale:
    """A scale between the 1st and the 99th percentile of a clip's numbers; from a sample, where there are many."""
    flat = np.asarray(values).reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE) | 1]
    sample = sample[np.isfinite(sample) & (sample > 0 if log else True)]
    low, high = (float(x) for x in np.percentile(sample, _PERCENTILES)) if sample.size else (1.0, 2.0)
    # Where all numbers are alike there is still a scale, and they are at its middle.
    least = 1e-3 * max(abs(low), abs(high)) or 1e-3
    if high - low < least:
        low, high = low - least, high + least
    return Scale(colormap, low, high, log)


def tinted(rgb: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The image in grey, what is masked tinted red: (..., 3) uint8 and (...) bool."""
    grey = rgb.mean(-1, keepdims=True).repeat(3, -1)
    red = 0.45 * rgb + 0.55 * np.array([235.0, 40.0, 50.0])
    return np.where(masks[..., None], red, 0.35 * 255 + 0.65 * grey).astype(np.uint8)


def time_colors(num_frames: int) -> np.ndarray:
    """(T, 3) uint8: from violet (first frame) to yellow (last), perceptually uniform."""
    return colormaps["plasma"](np.linspace(0.1, 0.95, num_frames), bytes=True)[:, :3]
