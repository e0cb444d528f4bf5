"""Colours that stand for time."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps


def time_colors(num_frames: int) -> np.ndarray:
    """(T, 3) uint8: from violet (first frame) to yellow (last), perceptually uniform."""
    return colormaps["plasma"](np.linspace(0.1, 0.95, num_frames), bytes=True)[:, :3]
