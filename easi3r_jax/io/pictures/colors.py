"""Colour scales for numbers and for time, and colours for optical flow.

Colour maps are perceptually uniform: lightness grows evenly with the number, so that they can also be read in grey and
by the colour-blind.
"""

from __future__ import annotations

import dataclasses

import numpy as np

#: Colour of missing numbers: a grey that does not occur in the maps in use.
UNKNOWN = (110, 110, 110)
# Percentiles of robust limits: one outlier must not darken a whole clip.
_PERCENTILES = (1, 99)
# The percentiles are of about this many numbers.
_SAMPLE_SIZE = 200_000


@dataclasses.dataclass(frozen=True)
class Scale:
    """A colour scale for numbers, the same for all frames of a clip.

    Attributes:
      colormap: name in matplotlib; a final "_r" reverses it.
      low, high: numbers at the two ends; numbers outside are clipped to them.
      log: logarithmic: equal ratios are equal steps of colour. Then low > 0, and numbers that are not positive count as
        missing.
    """

    colormap: str
    low: float
    high: float
    log: bool = False

    def colors(self, values: np.ndarray) -> np.ndarray:
        """(...) numbers -> (..., 3) uint8; `UNKNOWN` where the number is missing."""
        from matplotlib import colormaps

        values = np.asarray(values, np.float32)
        known = np.isfinite(values) & (values > 0 if self.log else True)
        low, high, x = self.low, self.high, np.where(known, values, self.low)
        if self.log:
            low, high, x = np.log(low), np.log(high), np.log(x)
        position = np.clip((x - low) / (high - low), 0, 1)
        return np.where(
            known[..., None], colormaps[self.colormap](position, bytes=True)[..., :3], np.array(UNKNOWN, np.uint8)
        )

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """The numbers at positions on the scale, from 0 (low) to 1 (high)."""
        if self.log:
            return self.low * (self.high / self.low) ** np.asarray(positions)
        return self.low + (self.high - self.low) * np.asarray(positions)


def robust_scale(values: np.ndarray, colormap: str, *, log: bool = False) -> Scale:
    """A scale from the 1st to the 99th percentile of a clip's numbers; of a sample, if there are many."""
    flat = np.asarray(values).reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE_SIZE) | 1]
    sample = sample[np.isfinite(sample) & (sample > 0 if log else True)]
    low, high = (float(x) for x in np.percentile(sample, _PERCENTILES)) if sample.size else (1.0, 2.0)
    # If all numbers are equal, they are at the middle of a small scale.
    min_span = 1e-3 * max(abs(low), abs(high)) or 1e-3
    if high - low < min_span:
        low, high = low - min_span, high + min_span
    return Scale(colormap, low, high, log)


def tinted(rgb: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 image in grey, with the pixels of the (...) bool masks tinted red."""
    grey = rgb.mean(-1, keepdims=True).repeat(3, -1)
    red = 0.45 * rgb + 0.55 * np.array([235.0, 40.0, 50.0])
    return np.where(masks[..., None], red, 0.35 * 255 + 0.65 * grey).astype(np.uint8)


def time_colors(num_frames: int) -> np.ndarray:
    """(T, 3) uint8: violet (first frame) to yellow (last), perceptually uniform."""
    from matplotlib import colormaps

    return colormaps["plasma"](np.linspace(0.1, 0.95, num_frames), bytes=True)[:, :3]


def flow_image(flow: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Colours flow: hue is direction, saturation is length.

    Red to the right, yellow-green down, cyan to the left, violet up; white for zero flow.

    Args:
      flow: (..., H, W, 2) pixels (x, y).
      largest: length in pixels of full saturation; longer flow is clipped to it. None: the 99th percentile of the
        input, but at least 1, so that noise stays pale.

    Returns:
      (..., H, W, 3) uint8 RGB.
    """
    from matplotlib.colors import hsv_to_rgb

    flow = np.asarray(flow, np.float32)
    length = np.hypot(flow[..., 0], flow[..., 1])
    if largest is None:
        sample = length.reshape(-1)[:: max(1, length.size // 200_000)]
        largest = max(1.0, float(np.percentile(sample, 99))) if sample.size else 1.0
    hue = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1
    colours = hsv_to_rgb(np.stack([hue, np.minimum(length / largest, 1), np.ones_like(hue)], axis=-1))
    return np.rint(255 * colours).astype(np.uint8)
