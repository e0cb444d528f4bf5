"""Depth maps in OpenEXR files: one scan-line part with one channel, uncompressed or deflated.

OpenCV's wheels have no OpenEXR reader, or disable it unless an environment variable is set before the import. FFmpeg's
reader returns a truncated file as an image that ends in zeros, which here would mean "unknown". Depth maps need only a
small part of the format. It is read here with NumPy and zlib, and every scan line must be present. Format:
https://openexr.com/en/latest/OpenEXRFileLayout.html.
"""

from __future__ import annotations

import pathlib
import struct
import zlib

import numpy as np

from easi3r_jax.core.errors import InputError

_MAGIC = 20000630
_LONG_NAMES = 0x400
_PIXELS = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
_NONE, _ZIPS, _ZIP = 0, 2, 3
_LINES = {_NONE: 1, _ZIPS: 1, _ZIP: 16}


def read_exr(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
    """Reads the only channel of an OpenEXR file.

    Args:
      path: the file.
      shape: the required (H, W).

    Returns:
      (H, W) float16, float32 or uint32, as stored.

    Raises:
      InputError: a file that is missing, damaged, truncated, of another shape, or of an unsupported kind.
    """
    try:
        return _decode(path.read_bytes(), shape)
    except FileNotFoundError as error:
        raise InputError(f"No file {path}: restore it, or remove the sequence.") from error
    except (IndexError, struct.error) as error:
        raise InputError(f"Cannot read {path}: its header is damaged. Restore it, or remove the sequence.") from error
    except (OSError, ValueError, zlib.error) as error:
        raise InputError(f"Cannot read {path}: {error}. Restore it, or remove the sequence.") from error


def _decode(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    magic, version = struct.unpack_from("<iI", data)
    if magic != _MAGIC:
        raise ValueError("it is not an OpenEXR file")
    if version & ~_LONG_NAMES != 2:
        raise ValueError("it is tiled, deep or has several parts; plain scan lines are needed")
    attributes, position = _attributes(data, 8)
    for name in ("channels", "compression", "dataWindow"):
        if name not in attributes:
            raise ValueError(f"its header has no {name}")
    dtype = _only_channel(attributes["channels"])
    compression = attributes["compression"][0]
    if compression not in _LINES:
        raise ValueError(f"it is compressed by method {compression}; none, ZIPS or ZIP is needed")
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
    height, width = bottom - top + 1, right - left + 1
    if (height, width) != shape:
        raise ValueError(f"it has shape {(height, width)}, its image {shape}")

    lines = _LINES[compression]
    image = np.empty(shape, dtype)
    missing = set(range(0, height, lines))
    for (offset,) in struct.iter_unpack("<Q", _piece(data, position, 8 * -(-height // lines))):
        line, size = struct.unpack("<ii", _piece(data, offset, 8))
        row = line - top
        if row not in missing:
            raise ValueError(f"scan line {line} is a duplicate or out of range")
        missing.remove(row)
        rows = min(lines, height - row)
        block = _unpacked(_piece(data, offset + 8, size), rows * width * dtype.itemsize)
        image[row : row + rows] = np.frombuffer(block, dtype).reshape(rows, width)
    return image


def _attributes(data: bytes, position: int) -> tuple[dict[str, bytes], int]:
    """The header's attributes (name, type, size, value) and where they end."""
    attributes = {}
    while data[position]:
        name, position = _text(data, position)
        _, position = _text(data, position)
        (size,) = struct.unpack_from("<i", data, position)
        attributes[name] = _piece(data, position + 4, size)
        position += 4 + size
    return attributes, position + 1


def _only_channel(channels: bytes) -> np.dtype:
    """Dtype of the pixels. A channel is a name, a type, four bytes that are ignored here, and two sampling steps."""
    _, position = _text(channels, 0)
    kind, _, step_x, step_y = struct.unpack_from("<iIii", channels, position)
    if channels[position + 16]:
        raise ValueError("it has several channels; only one, the depth, is needed")
    if kind not in _PIXELS or (step_x, step_y) != (1, 1):
        raise ValueError("its channel has an unsupported type")
    return _PIXELS[kind]


def _unpacked(block: bytes, size: int) -> bytes:
    """Pixels of a block: deflated differences of its even, then its odd bytes; stored raw if that is smaller."""
    if len(block) == size:
        return block
    inflate = zlib.decompressobj()
    packed = np.frombuffer(inflate.decompress(block, size), np.uint8).copy()
    if len(packed) != size or not inflate.eof:
        raise ValueError("a block does not have the size of its scan lines")
    packed[1:] -= 128
    packed = np.cumsum(packed, dtype=np.uint8)
    pixels = np.empty_like(packed)
    half = (size + 1) // 2
    pixels[::2], pixels[1::2] = packed[:half], packed[half:]
    return pixels.tobytes()


def _text(data: bytes, position: int) -> tuple[str, int]:
    end = data.index(b"\0", position)
    return data[position:end].decode("latin-1"), end + 1


def _piece(data: bytes, position: int, size: int) -> bytes:
    if position < 0 or size < 0 or position + size > len(data):
        raise ValueError("it is truncated")
    return data[position : position + size]
