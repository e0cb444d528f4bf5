"""Depth maps in OpenEXR files: one channel, in scan lines or tiles, of any compression.

Needs OpenEXR (extra `datasets`). Neither OpenCV nor FFmpeg does instead: OpenCV's wheels come without a reader (and
those that have one hide it behind an environment variable that must be set before the import); FFmpeg's gives a file
that is cut off back as a picture that ends in zeros, which here would mean "unknown". OpenEXR refuses every cut; it
says so in a line of its own on standard error, too.
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
      InputError: OpenEXR or the file is missing; the file is damaged, cut off, of another shape or of several channels.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise InputError("OpenEXR, which reads .exr files, is missing: pip install 'easi3r_jax[datasets]'.") from error
    if not path.exists():
        raise InputError(f"No file {path}: restore it, or remove the sequence.")
    try:
        # Not `OpenEXR.File`: of damaged pixels it prints what is wrong, and raises that the file has no parts.
        with contextlib.closing(OpenEXR.InputFile(str(path))) as file:
            header = file.header()
            low, high = header["dataWindow"].min, header["dataWindow"].max
            found = (high.y - low.y + 1, high.x - low.x + 1)
            if found != shape:  # before memory is taken for it
                raise ValueError(f"it has shape {found}, its image {shape}")
            if len(header["channels"]) != 1:
                raise ValueError("it has several channels; one, the depth, needed")
            ((name, channel),) = header["channels"].items()
            if (channel.xSampling, channel.ySampling) != (1, 1):
                raise ValueError("its channel leaves pixels out")
            return np.frombuffer(file.channel(name), _PIXELS[channel.type.v]).reshape(shape)
    except (OSError, ValueError, LookupError, SystemError) as error:  # SystemError: a header with names of no encoding
        reason = " ".join(str(error).split())
        raise InputError(f"Cannot read {path}: {reason}. Restore it, or remove the sequence.") from error
