"""Checks the structure of a video file: walks the elements that its format consists of, without decoding any.

Where an element is invalid, FFmpeg's demuxers search for the next valid one, and they take a truncated element for the
end of the file. Both lose pictures silently. The walk reads headers only, a few bytes per element.
"""

from __future__ import annotations

import os
import pathlib
import re
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
            case "avi":
                return _avi(file, size)
    return None


def packets_of_complete(path: pathlib.Path, format_name: str) -> int | None:
    """The number of packets, of all streams (AVI: of video), from which on a file without `first_fault` is complete.

    Then declared lengths need not be compared: some are rounded, estimated, or remain from before an edit.

    Returns:
      0 if the format's reader tells by itself; None if the structure does not show where the file ends.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        match format_name:
            case "mov,mp4,m4a,3gp,3g2,mj2":  # the index lists all packets
                return 0 if all(kind != b"moof" for kind, _, _ in _mp4_boxes(file, size)) else None
            case "matroska,webm":
                elements = list(_matroska_elements(file, size))
                has_length = any(kind == _SEGMENT and end is not None for kind, _, _, end in elements)
                return sum(kind in _BLOCKS for kind, _, _, _ in elements) if has_length else None
            case "avi":
                chunks = [chunk for part in _avi_parts(file, size) for chunk in _avi_chunks(file, *part[:2])]
                return None if _avi_length(file) is None else sum(_is_picture(*chunk) for chunk in chunks)
            case "gif" | "apng":
                return 0
    return None


# Zeros after the last box that are padding and no lost fragment.
_MAX_ZEROS = 4096
_BOXES = frozenset(b"ftyp styp moov moof mdat mfra sidx ssix emsg prft free skip wide uuid meta udta pdin".split())


def _mp4(file: BinaryIO, size: int) -> int | None:
    """Boxes of (length, type, content). Junk after an unfragmented file is harmless: its index is complete.

    After the last fragment there may be a box that a phone has appended, or a few zeros.
    """
    fragmented, foreign = False, None
    for kind, position, end in _mp4_boxes(file, size):
        fragmented |= kind == b"moof"
        is_known = kind in _BOXES
        if foreign is not None and is_known:  # what was no box of the format had been one: there pictures are lost
            return foreign
        if is_known and end < position + 8:
            return position
        if is_known and end > size:
            return size
        if not is_known and not fragmented:
            return None
        if not is_known and kind.isalnum() and position + 8 <= end <= size:
            foreign = position if foreign is None else foreign
        elif not is_known:
            file.seek(position)
            rest = file.read(_MAX_ZEROS + 1)
            return None if len(rest) <= _MAX_ZEROS and not rest.strip(b"\0") else position
    return None


def _mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, begin, end) of the boxes, up to the first that is none; the last may end after the file."""
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:])
        end = size if length == 0 else position + length  # 0: up to the end of the file
        yield kind, position, end
        if (kind not in _BOXES and not kind.isalnum()) or end < position + 8:
            return
        position = end


_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_IN_CLUSTER = {0xEC, 0xBF, 0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF}
_IN_SEGMENT = {0xEC, 0xBF, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}


_BLOCKS = frozenset({0xA3, 0xA0})


def _matroska(file: BinaryIO, size: int) -> int | None:
    """A segment of clusters of blocks; the lengths of segment and clusters may be undefined (live recordings)."""
    last = 0
    for kind, position, _, end in _matroska_elements(file, size):
        last = max(last, end or 0) if kind in (_SEGMENT, _CLUSTER) else last
        if kind is None:
            return position
    return size if last > size else None


def _matroska_elements(file: BinaryIO, size: int) -> Iterator[tuple[int | None, int, int, int | None]]:
    """(kind, position, begin and end of the content) of the elements; the kind of an invalid one, the last, is None."""
    position, cluster_end = 0, 0
    while position < size:
        element = _element(file, position)
        if element is None:
            yield None, position, position, None
            return
        kind, begin, end = element
        found = kind, position, begin, end
        if position == 0:  # the file's header
            position = size if end is None else end
        elif kind == _SEGMENT:
            position = begin
        elif kind == _CLUSTER:
            position, cluster_end = begin, end or size
        else:
            is_block = kind in _IN_CLUSTER and position < cluster_end
            limit = min(size, cluster_end) if is_block else size
            if end is None or end > limit or not (is_block or kind in _IN_SEGMENT):
                yield None, position, begin, None
                return
            position = end
        yield found


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


# Lengths that programs write which do not know them, as they stream.
_UNKNOWN_LENGTHS = frozenset({0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFF7})
_AVI_CHUNK = re.compile(rb"(?:[0-9a-fA-F]{2}(?:db|dc|wb|tx|pc|sb|iv)|ix[0-9a-fA-F]{2}|JUNK|LIST|idx1|rec )", re.DOTALL)


def _avi_length(file: BinaryIO) -> int | None:
    """The length that the first part of the file declares, with its header; None if it does not know it."""
    file.seek(0)
    head = file.read(12)
    length = int.from_bytes(head[4:8], "little")
    return None if head[:4] != b"RIFF" or length in _UNKNOWN_LENGTHS else length + 8


def _avi(file: BinaryIO, size: int) -> int | None:
    """RIFF parts (one, or several of 1 GB) of chunks (type, length, content, a byte of padding after odd lengths).

    Empty chunks are legal: they show the picture before them again.
    """
    for begin, end, declared in _avi_parts(file, size):
        for kind, position, _ in _avi_chunks(file, begin, end):
            if kind is None:
                return position
        if declared > size:
            return size
    return None


def _avi_parts(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, declared end) of the content of each part; what follows the last one is harmless."""
    position = 0
    while position + 12 <= size:
        file.seek(position)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or head[8:] not in (b"AVI ", b"AVIX"):
            return
        declared = size if length in _UNKNOWN_LENGTHS else position + 8 + length
        yield position + 12, min(declared, size), declared
        position = declared + declared % 2


def _avi_chunks(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes | None, int, int]]:
    """(type, position, length) of a part's chunks, in its list of pictures too; an invalid one's type is None."""
    position, movie_end = begin, begin
    while position + 8 <= end:
        file.seek(position)
        head = file.read(12)
        kind, length = head[:4], int.from_bytes(head[4:8], "little")
        if kind == b"LIST" and head[8:12] in (b"movi", b"rec "):
            if head[8:12] == b"movi":
                movie_end = end if length in _UNKNOWN_LENGTHS else position + 8 + length
            position += 12
            continue
        if position < movie_end and not _AVI_CHUNK.fullmatch(kind):
            position -= 1  # some writers leave the padding out
            file.seek(position)
            head = file.read(8)
            kind, length = head[:4], int.from_bytes(head[4:8], "little")
        after = position + 8 + length
        if after > end or (position < movie_end and not _AVI_CHUNK.fullmatch(kind)):
            yield None, position, length
            return
        yield kind, position, length
        position = after + after % 2


def _is_picture(kind: bytes | None, position: int, length: int) -> bool:
    return kind is not None and kind[2:] in (b"db", b"dc") and length > 0


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
