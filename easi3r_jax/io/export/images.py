"""`depth/` and `masks/`: one PNG per frame."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from PIL import Image

#: PNG value of depths at or beyond the range that a 16-bit PNG can hold; 0 stands for "no depth".
SATURATED = 65535

# Depth of the sky and of outliers may be thousands of times that of the scene: including it would leave too few of the
# 65534 steps for the rest. Twenty times the median keeps the step below 0.04 % of the median depth.
_RANGE_IN_MEDIANS = 20.0


def depth_scale(depth: np.ndarray) -> float:
    """World units per PNG step, the same for the whole clip. Depth = value * scale."""
    known = depth[np.isfinite(depth) & (depth > 0)]
    if known.size == 0:
        return 1.0
    return float(min(known.max(), _RANGE_IN_MEDIANS * np.median(known))) / (SATURATED - 1)


def write_depth(folder: str | os.PathLike, depth: np.ndarray, *, unit: str = "arbitrary") -> None:
    """Writes `NNNNN.png` (16 bit), `scale.txt` and colour previews `preview/NNNNN.jpg` (near is bright).

    Args:
      folder: created.
      depth: (T, H, W) z in the camera, in world units.
      unit: of the world, see `Reconstruction.unit`.
    """
    from matplotlib import colormaps

    folder = pathlib.Path(folder)
    (folder / "preview").mkdir(parents=True)
    scale = depth_scale(depth)
    (folder / "scale.txt").write_text(scale_text(scale, unit))
    nearness = _nearness(depth)
    for t, frame in enumerate(depth):
        Image.fromarray(encode_depth(frame, scale)).save(folder / f"{t:05d}.png", compress_level=3)
        colours = colormaps["inferno"](nearness[t], bytes=True)[..., :3]
        Image.fromarray(colours).save(folder / "preview" / f"{t:05d}.jpg", quality=92)


def scale_text(scale: float, unit: str = "arbitrary") -> str:
    """Content of `scale.txt`."""
    length = "metres" if unit == "metres" else "world units"
    return f"{scale:.9g}\n# depth (z, {length}) = PNG value * this number; 0: none; {SATURATED}: beyond the range\n"


def encode_depth(depth: np.ndarray, scale: float) -> np.ndarray:
    """uint16 values of a depth map: rounded to the nearest step, 0 where there is no positive depth."""
    known = np.isfinite(depth) & (depth > 0)
    steps = np.rint(np.where(known, depth, 0).astype(np.float64) / scale)
    return np.where(known, np.clip(steps, 1, SATURATED), 0).astype(np.uint16)


def write_masks(folder: str | os.PathLike, masks: np.ndarray) -> None:
    """Writes `NNNNN.png`, 8 bit: 255 in dynamic regions, 0 elsewhere.

    Args:
      folder: created.
      masks: (T, H, W) bool.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    for t, mask in enumerate(masks):
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / f"{t:05d}.png")


def _nearness(depth: np.ndarray) -> np.ndarray:
    """Inverse depth in [0, 1] between the clip's 2nd and 98th percentile; 0 where there is no depth."""
    known = np.isfinite(depth) & (depth > 0)
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape, np.float32), where=known)
    # A sample suffices for percentiles of millions of pixels.
    sample = inverse[known][:: max(1, known.sum() // 200_000)]
    low, high = np.percentile(sample, (2, 98)) if sample.size else (0.0, 1.0)
    return np.clip((inverse - low) / max(high - low, 1e-12), 0, 1)
