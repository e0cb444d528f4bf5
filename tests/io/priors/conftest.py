"""Black clips of known geometry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.types import Frames
from easi3r_jax.io.video import frame_geometry

RATE = 24


def make_clip(
    length: int = 8, *, every: int = 1, width: int = 100, height: int = 70, config: FrameConfig | None = None
) -> Frames:
    """A black clip: every n-th frame of a source of width x height pixels, by default scaled and cropped."""
    geometry = frame_geometry(width, height, config or FrameConfig(size=64))
    index = np.arange(length, dtype=np.int32) * every
    return Frames(
        rgb=np.zeros((length, geometry.size[1], geometry.size[0], 3), np.uint8),
        source_index=index,
        time=index / RATE,
        frame_from_source=geometry.frame_from_source,
        source_size=np.array([height, width], np.int32),
    )


@pytest.fixture(scope="session")
def clip() -> Callable[..., Frames]:
    """`make_clip`."""
    return make_clip
