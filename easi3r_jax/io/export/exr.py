"""Depth as OpenEXR: exact, in world units. One part of scan lines with one float channel, not compressed.

Format: https://openexr.com/en/latest/OpenEXRFileLayout.html.
"""

from __future__ import annotations

import pathlib
import struct

import numpy as np

_MAGIC, _VERSION = 20000630, 2
_FLOAT = 2
#: What OpenEXR calls the channel of depth.
CHANNEL = "Z"


def write_exr(path: pathlib.Path, depth: np.ndarray) -> None:
    """Writes a depth map.

    Args:
      path: the file.
      depth: (H, W) z; what is not finite or not positive becomes 0: no depth.
    """
    height, width = depth.shape
    rows = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype("<f4")
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channel = CHANNEL.encode() + b"\0" + struct.pack("<iIii", _FLOAT, 0, 1, 1) + b"\0"
    header = struct.pack("<iI", _MAGIC, _VERSION) + b"".join(
        f"{name}\0{kind}\0".encode() + struct.pack("<i", len(value)) + value
        for name, kind, value in (
            ("channels", "chlist", channel),
            ("compression", "compression", b"\0"),
            ("dataWindow", "box2i", window),
            ("displayWindow", "box2i", window),
            ("lineOrder", "lineOrder", b"\0"),
            ("pixelAspectRatio", "float", struct.pack("<f", 1)),
            ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
            ("screenWindowWidth", "float", struct.pack("<f", 1)),
        )
    )
    header += b"\0"
    line = np.empty(height, np.dtype([("y", "<i4"), ("size", "<i4"), ("pixels", "<f4", (width,))]))
    line["y"], line["size"], line["pixels"] = np.arange(height), 4 * width, rows
    offsets = len(header) + 8 * height + line.itemsize * np.arange(height, dtype="<u8")
    path.write_bytes(header + offsets.tobytes() + line.tobytes())
