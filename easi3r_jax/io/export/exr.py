"""Depth as OpenEXR: exact, in world units, losslessly compressed (ZIP). Needs OpenEXR (extra `export`)."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from easi3r_jax.core.errors import ConfigError

#: OpenEXR's name of the depth channel.
CHANNEL = "Z"


def require_openexr() -> Any:
    """The module `OpenEXR`.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise ConfigError("Depth as exr needs OpenEXR: pip install 'easi3r_jax[export]'.") from error
    return OpenEXR


def write_exr(path: pathlib.Path, depth: np.ndarray) -> None:
    """Writes a depth map.

    Args:
      path: the file.
      depth: (H, W) z; values that are not finite or not positive become 0: unknown.

    Raises:
      ConfigError: OpenEXR is not installed.
      OSError: the file cannot be written.
    """
    openexr = require_openexr()
    pixels = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    try:
        openexr.File(header, {CHANNEL: pixels}).write(str(path))
    except RuntimeError as error:  # 'Failed to write pixel data to image file "...". No space left on device.'
        raise OSError(str(error).rpartition('". ')[2].rstrip(".")) from error
