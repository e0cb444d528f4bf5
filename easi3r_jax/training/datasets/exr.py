"""Depth maps in OpenEXR files: one channel, in scan lines or tiles, of any compression.

Needs OpenEXR (extra `datasets`). OpenCV and FFmpeg are not substitutes: OpenCV's wheels lack a reader (or enable it
only by an environment variable set before the import), and FFmpeg reads a truncated file as an image that ends in
zeros, which would mean "unknown" here. OpenEXR refuses every truncated file; it also prints a line to standard error.
"""

from __future__ import annotations

import contextlib
import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError

_PIXELS = ("u4", "f2", "f4")  # by the number of the type in the header


def read_exr(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
    """Reads the only channel of an OpenEXR file.

    Args:
      path: the file.
      shape: the required (H, W).

    Returns:
      (H, W) float16, float32 or uint32, as stored.

    Raises:
      InputError: OpenEXR or the file is missing; the file is damaged, truncated, of another shape, or has several
        channels.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise InputError("OpenEXR, which reads .exr files, is missing: pip install 'easi3r_jax[datasets]'.") from error
    if not path.exists():
        raise InputError(f"No file {path}: restore it, or remove the sequence.")
    try:
        # Not `OpenEXR.File`: for damaged pixels it prints the cause and raises a misleading error (no parts).
        with contextlib.closing(OpenEXR.InputFile(str(path))) as file:
            header = file.header()
            low, high = header["dataWindow"].min, header["dataWindow"].max
            found = (high.y - low.y + 1, high.x - low.x + 1)
            if found != shape:  # before memory is taken for it
                raise ValueError(f"it has shape {found}, its image {shape}")
            if len(header["channels"]) != 1:
                raise ValueError("it has several channels, but a single one, depth, is needed")
            ((name, channel),) = header["channels"].items()
            if (channel.xSampling, channel.ySampling) != (1, 1):
                raise ValueError("its channel is subsampled")
            return np.frombuffer(file.channel(name), _PIXELS[channel.type.v]).reshape(shape)
    except (OSError, ValueError, LookupError, SystemError) as error:  # SystemError: a header with names of no encoding
        reason = " ".join(str(error).split())
        raise InputError(f"Cannot read {path}: {reason}. Restore it, or remove the sequence.") from error
