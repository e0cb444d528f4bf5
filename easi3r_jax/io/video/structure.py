"""Checks the structure of a video file: walks the elements that its format consists of, without decoding any.

Where an element is invalid, FFmpeg's demuxers search for the next valid one, and they take a truncated element for the
end of the file. Both lose pictures silently. The walk reads headers only, a few bytes per element.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np


def first_fault(path: pathlib.Path, format_name: str) -> int | None:
    """The position in bytes from which on the file is broken or missing; None if it is intact or of another format.

    Args:
      path: the file.
      format_name: FFmpeg's name of the format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        match format_name:
            case "mov,mp4,m4a,3gp,3g2,mj2":
                return _mp4(file, size)
            case "matroska,webm":
                return _matroska(file, size)
            case "gif":
                return _gif(file, size)
            case "apng":
                return _png(file, size)
            case "mpegts":
                return _transport(path, size)
            case "asf":
                return _asf(file, size)
    return None


_BOXES = frozenset(b"ftyp styp moov moof mdat mfra sidx ssix emsg prft free skip wide uuid meta udta pdin".split())


def _mp4(file: BinaryIO, size: int) -> int | None:
    """Boxes of (length, type, content). Junk after an unfragmented file is harmless: its index is complete."""
    position, fragmented = 0, False
    while position < size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        fragmented |= kind == b"moof"
        if kind not in _BOXES:
            return position if fragmented else None
        if length == 0:  # up to the end of the file
            return None
        if length == 1:
            length = int.from_bytes(header[8:])
        if length < 8:
            return position
        position += length
    return size if position > size else None


_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_IN_CLUSTER = {0xEC, 0xBF, 0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF}
_IN_SEGMENT = {0xEC, 0xBF, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}


def _matroska(file: BinaryIO, size: int) -> int | None:
    """A segment of clusters of blocks; the lengths of segment and clusters may be undefined (live recordings)."""
    position, segment_end, cluster_end = 0, 0, 0
    while position < size:
        element = _element(file, position)
        if element is None:
            return position
        kind, begin, end = element
        if position == 0:  # the file's header
            position = size if end is None else end
        elif kind == _SEGMENT:
            position, segment_end = begin, end or 0
        elif kind == _CLUSTER:
            position, cluster_end = begin, end or size
        else:
            is_block = kind in _IN_CLUSTER and position < cluster_end
            limit = min(size, cluster_end) if is_block else size
            if end is None or end > limit or not (is_block or kind in _IN_SEGMENT):
                return position
            position = end
    return size if max(segment_end, cluster_end) > size else None


def _element(file: BinaryIO, position: int) -> tuple[int, int, int | None] | None:
    """(kind, begin and end of the content) of the element at a position; the end is None if its length is undefined."""
    file.seek(position)
    head = file.read(12)
    kind_length = 9 - head[0].bit_length()
    if kind_length > 4 or len(head) <= kind_length:
        return None
    length_length = 9 - head[kind_length].bit_length()
    begin = kind_length + length_length
    if length_length > 8 or len(head) < begin:
        return None
    ones = (1 << 7 * length_length) - 1
    length = int.from_bytes(head[kind_length:begin]) & ones
    end = None if length == ones else position + begin + length
    return int.from_bytes(head[:kind_length]), position + begin, end


def _gif(file: BinaryIO, size: int) -> int | None:
    """Images and extensions, each a chain of small blocks, and a final semicolon."""

    def skip_palette(flags: int) -> None:
        if flags & 0x80:
            file.seek(3 << (flags & 7) + 1, os.SEEK_CUR)

    skip_palette((file.read(13) + bytes(13))[10])
    while True:
        begin = file.tell()
        match file.read(1):
            case b";":
                return None
            case b",":
                skip_palette((file.read(9) + bytes(9))[8])
                file.seek(1, os.SEEK_CUR)
            case b"!":
                file.seek(1, os.SEEK_CUR)
            case _:
                return min(begin, size)
        for length in _lengths(file):
            file.seek(length, os.SEEK_CUR)


def _lengths(file: BinaryIO) -> Iterator[int]:
    while length := file.read(1):
        if length == b"\0":
            return
        yield length[0]


def _png(file: BinaryIO, size: int) -> int | None:
    """Chunks of (length, type, content, checksum); the last is IEND."""
    position = 8
    while position + 12 <= size:
        file.seek(position)
        header = file.read(8)
        end = position + 12 + int.from_bytes(header[:4])
        if end > size:
            return position
        if header[4:] == b"IEND":
            return None
        position = end
    return position


def _transport(path: pathlib.Path, size: int) -> int | None:
    """Packets of equal length with a sync byte each: plain, preceded by a time stamp (Blu-ray) or with a checksum."""
    data = np.memmap(path, np.uint8, "r")
    for length, offset in ((188, 0), (192, 4), (204, 0)):
        if (data[offset : 5 * length : length] == 0x47).all():
            return size // length * length if size % length else None
    return None


_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _asf(file: BinaryIO, size: int) -> int | None:
    """The header (of WMV files) declares the file's length, unless it is a broadcast."""
    head = file.read(1 << 16)
    properties = head.find(_ASF_FILE_PROPERTIES)
    if properties < 0:
        return None
    declared = int.from_bytes(head[properties + 40 : properties + 48], "little")
    is_broadcast = head[properties + 88 : properties + 89] != b"" and head[properties + 88] & 1
    return size if declared > size and not is_broadcast else None
