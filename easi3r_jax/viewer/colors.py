"""Colours of points and pixels: the image's own, or a quantity through a perceptually uniform map. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.pictures.colors import time_colors
from easi3r_jax.viewer.clouds import Cloud

#: What points can be coloured by.
CHOICES = ("RGB", "depth", "confidence", "dynamic score", "mask", "time")
# Matplotlib's map for each quantity: all are perceptually uniform. Near is bright, as in a result's previews.
_MAPS = {"depth": "viridis_r", "confidence": "cividis", "dynamic score": "inferno"}
# Mask overlay: the colour of dynamic pixels, and how far static ones are blended towards white.
_DYNAMIC_RGB, _STATIC_WHITENING = np.array([240, 78, 60], np.uint8), 0.45


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The values at the ends of the colour maps; they span most of a clip's values.

    Attributes:
      limits: (low, high) of each quantity that has a map; depth in units of the placed scene.
      num_frames: number of frames of the clip, for the colours of time.
      seconds: time of the first and the last frame.
      scale: of the scene's placement; the legend divides by it and so shows the scene's own units.
    """

    limits: Mapping[str, tuple[float, float]]
    num_frames: int
    seconds: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0


def measure(scene: Scene4D, time: np.ndarray, scale: float = 1.0) -> Ranges:
    """The ranges of a clip, from a sample of its pixels.

    Args:
      scene: host arrays.
      time: (T,) seconds.
      scale: of the scene's placement; the limits of depth include it.
    """
    step = max(1, len(scene.depth) // 16)
    fields = {"depth": scene.depth, "confidence": scene.confidence, "dynamic score": scene.dynamic_score}
    samples = {name: np.asarray(field[::step, ::3, ::3], np.float32) for name, field in fields.items()}
    seen = np.isfinite(samples["depth"]) & (samples["depth"] > 0)
    limits = {}
    for name, sample in samples.items():
        known = seen & np.isfinite(sample) & (sample > 0 if name == "confidence" else True)  # 0: set by the clean-up
        sample = sample[known]
        low, high = np.percentile(sample, (2, 98)).tolist() if sample.size else (0.0, 1.0)
        if name == "dynamic score":  # its zero is meaningful, so the range starts there
            low, high = 0.0, float(sample.max()) if sample.size else 1.0
        limits[name] = (low, high if high > low else low + 1.0)
    low, high = limits["depth"]
    limits["depth"] = (scale * low, scale * high)
    return Ranges(limits, len(scene.depth), (float(time[0]), float(time[-1])), scale)


def shades(values: np.ndarray, quantity: str, ranges: Ranges) -> np.ndarray:
    """(...,) values of a quantity that has a map -> (..., 3) uint8. Values that are not finite are black."""
    from matplotlib import colormaps

    low, high = ranges.limits[quantity]
    known = np.isfinite(values)
    position = np.clip((np.where(known, values, low) - low) / (high - low), 0, 1)
    return np.where(known[..., None], colormaps[_MAPS[quantity]](position, bytes=True)[..., :3], 0).astype(np.uint8)


def mask_overlay(rgb: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """(..., 3) uint8: static pixels in pale grey, dynamic ones tinted red over their own brightness."""
    grey = rgb.mean(axis=-1, keepdims=True)
    static = np.broadcast_to((1 - _STATIC_WHITENING) * grey + _STATIC_WHITENING * 255, rgb.shape)
    return np.where(moving[..., None], 0.35 * grey + 0.65 * _DYNAMIC_RGB, static).astype(np.uint8)


def point_colors(cloud: Cloud, choice: str, ranges: Ranges) -> np.ndarray:
    """(P, 3) uint8: the colours of points, by one of `CHOICES`."""
    if choice == "RGB":
        return cloud.rgb
    if choice == "mask":
        return mask_overlay(cloud.rgb, cloud.moving)
    if choice == "time":
        return time_colors(ranges.num_frames)[cloud.frame]
    values = {"depth": cloud.depth, "confidence": cloud.confidence, "dynamic score": cloud.score}[choice]
    return shades(values, choice, ranges)


def legend(choice: str, ranges: Ranges) -> str:
    """The legend as HTML: a colour bar with the values at its ends; empty for RGB."""
    from matplotlib import colormaps

    if choice == "RGB":
        return ""
    if choice == "mask":
        red = "rgb({}, {}, {})".format(*_DYNAMIC_RGB)
        return _caption(f'<b style="color: {red}">&#9632;</b> dynamic', "static &#9632;")
    if choice == "time":
        stops, (low, high), unit = time_colors(9), ranges.seconds, " s"
    else:
        stops = colormaps[_MAPS[choice]](np.linspace(0, 1, 9), bytes=True)[:, :3]
        (low, high), unit = ranges.limits[choice], ""
        if choice == "depth":
            low, high = low / ranges.scale, high / ranges.scale
    steps = ", ".join("rgb({}, {}, {})".format(*stop) for stop in stops)
    bar = f'<div style="height: 0.7em; border-radius: 0.2em; background: linear-gradient(to right, {steps})"></div>'
    return f'<div style="padding: 0 0.75em">{bar}</div>' + _caption(f"{low:.3g}{unit}", f"{high:.3g}{unit}")


def _caption(left: str, right: str) -> str:
    style = "display: flex; justify-content: space-between; padding: 0.1em 0.75em 0.4em; font-size: 0.8em; opacity: 0.8"
    return f'<div style="{style}"><span>{left}</span><span>{right}</span></div>'
