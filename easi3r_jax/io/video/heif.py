"""HEIC and AVIF pictures: their structure (ISO/IEC 23008-12), and decoding by PyAV.

Such a file holds items. Its primary item is the picture that viewers show: one coded picture, or a grid of tiles, each
coded on its own, as phones write it. Other items are thumbnails, depth, gain maps and the like, or further pictures.
FFmpeg gives each coded item as a stream; without the structure, one tile would pass for the picture.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from PIL import Image

_BRANDS = frozenset({b"mif1", b"mif2", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"avif", b"avis"})
_CODED = frozenset({b"hvc1", b"hev1", b"av01", b"avc1"})
_PICTURES = _CODED | {b"grid", b"iovl", b"iden", b"jpeg"}
# Boxes that a file has on its top level; cut ones are a truncation.
_BOXES = frozenset({b"ftyp", b"meta", b"mdat", b"moov", b"moof", b"free", b"skip", b"wide", b"uuid"})
# Bytes of structure, tiles of a grid, and pixels (as Pillow's limit for other images) that are read at most.
_MAX_META, _MAX_TILES, _MAX_PIXELS = 16 << 20, 4096, 2 * 89_478_485


@dataclasses.dataclass(frozen=True)
class HeifPicture:
    """The primary picture of a file.

    Attributes:
      tiles: numbers of the coded items, row by row.
      columns: number of tiles in a row.
      size: (width, height) as coded, before the turns.
      turns: ("irot", (quarter turns anticlockwise,)), ("imir", (axis,)) or ("clap", (left, top, width, height)), in the
        order in which they apply.
      num_pictures: number of pictures in the file that are not part of another one, a thumbnail or an auxiliary image.
    """

    tiles: tuple[int, ...]
    columns: int
    size: tuple[int, int]
    turns: tuple[tuple[str, tuple[int, ...]], ...]
    num_pictures: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) as displayed."""
        width, height = self.size
        for kind, values in self.turns:
            if kind == "clap":
                width, height = values[2:]
            elif kind == "irot" and values[0] % 2:
                width, height = height, width
        return width, height


def is_heif(path: pathlib.Path) -> bool:
    """Whether a file is HEIC or AVIF, by its content."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] != b"ftyp":
        return False
    brands = head[8 : min(int.from_bytes(head[:4]), len(head))]
    return any(brands[k : k + 4] in _BRANDS for k in (0, *range(8, len(brands), 4)))


def is_sequence(path: pathlib.Path) -> bool:
    """Whether a HEIC or AVIF file is an animation: a track of pictures beside the still one."""
    return is_heif(path) and any(kind == b"moov" for kind, _, _ in _top_level(path))


def heif_picture(path: pathlib.Path) -> HeifPicture:
    """Reads the structure of a file.

    Raises:
      ValueError: it is damaged, or of a kind that is not read.
    """
    meta = next(((begin, end) for kind, begin, end in _top_level(path) if kind == b"meta"), None)
    if meta is None or meta[1] - meta[0] > _MAX_META:
        raise ValueError("it has no still picture")
    with path.open("rb") as file:
        file.seek(meta[0] + 4)
        data = file.read(meta[1] - meta[0] - 4)
        boxes = dict(_boxes(data))
        kinds, hidden = _items(boxes[b"iinf"])
        primary = _integer(boxes[b"pitm"], 4, 2 if boxes[b"pitm"][0] == 0 else 4)
        references = _references(boxes.get(b"iref", bytes(4)))
        properties = _properties(boxes[b"iprp"], primary)
        if kinds[primary] in _CODED:
            tiles, columns = (primary,), 1
            size = _size(properties)
        elif kinds[primary] == b"grid":
            grid = _item_data(boxes, primary, file)
            width = 4 if grid[1] & 1 else 2
            columns = grid[3] + 1
            size = _integer(grid, 4, width), _integer(grid, 4 + width, width)
            tiles = next(to for kind, item, to in references if (kind, item) == (b"dimg", primary))
            if len(tiles) != columns * (grid[2] + 1) or len(tiles) > _MAX_TILES:
                raise ValueError(f"it has {len(tiles)} tiles for {grid[2] + 1} x {columns}")
        else:
            raise ValueError(f"its picture is of kind {kinds[primary].decode('ascii', 'replace')}, which is not read")
    if not 0 < size[0] * size[1] <= _MAX_PIXELS:
        raise ValueError(f"it declares {size[0]}x{size[1]} pixels")
    parts = {target for kind, _, targets in references if kind == b"dimg" for target in targets}
    parts |= {item for kind, item, _ in references if kind in (b"thmb", b"auxl")}
    others = {item for item, kind in kinds.items() if kind in _PICTURES} - parts - hidden - {primary}
    turns = []
    for kind, content in properties:
        if kind in (b"irot", b"imir"):
            turns.append((kind.decode(), (content[0] & (3 if kind == b"irot" else 1),)))
        elif kind == b"clap":
            turns.append(("clap", _crop(content, size)))
    return HeifPicture(tiles, columns, size, tuple(turns), 1 + len(others))


def read_heif(path: pathlib.Path, picture: HeifPicture) -> Image.Image:
    """Decodes the primary picture as upright 8-bit RGB.

    Raises:
      ValueError: it is damaged.
      FFmpegError: as PyAV.
    """
    decoded: dict[int, np.ndarray] = {}
    with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
        streams = [stream for stream in container.streams.video if stream.id in picture.tiles]
        for stream in streams:
            if stream.codec_context is None:
                raise ValueError("its codec is unknown")
            stream.codec_context.options = {"err_detect": "explode+crccheck"}
        for packet in container.demux(streams):
            frames: Any = packet.decode()
            for frame in frames:
                if frame.is_corrupt:
                    raise ValueError("it is damaged")
                decoded.setdefault(packet.stream.id, frame.to_ndarray(format="rgb24"))
    if missing := [tile for tile in picture.tiles if tile not in decoded]:
        raise ValueError(f"{len(missing)} of its {len(picture.tiles)} tiles cannot be decoded")
    columns = picture.columns
    rows = [
        np.concatenate([decoded[tile] for tile in picture.tiles[k : k + columns]], axis=1)
        for k in range(0, len(picture.tiles), columns)
    ]
    rgb = np.concatenate(rows)[: picture.size[1], : picture.size[0]]
    if rgb.shape[:2] != picture.size[::-1]:
        raise ValueError(f"its tiles do not fill {picture.size[0]}x{picture.size[1]} pixels")
    for kind, values in picture.turns:
        if kind == "clap":
            left, top, width, height = values
            rgb = rgb[top : top + height, left : left + width]
        elif kind == "irot":
            rgb = np.rot90(rgb, values[0])
        else:
            rgb = rgb[:, ::-1] if values[0] else rgb[::-1]
    return Image.fromarray(np.ascontiguousarray(rgb))


def _top_level(path: pathlib.Path) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin and end of the content) of the file's boxes."""
    length, position, seen = path.stat().st_size, 0, set()
    with path.open("rb") as file:
        while position + 8 <= length:
            file.seek(position)
            header = file.read(16)
            size, begin = int.from_bytes(header[:4]), position + 8
            if size == 1:
                size, begin = int.from_bytes(header[8:]), position + 16
            end = length if size == 0 else position + size
            if end < begin or end > length:
                if header[4:8] not in _BOXES and seen >= {b"ftyp", b"meta"}:  # what phones append, and viewers ignore
                    return
                raise ValueError("it is truncated")
            seen.add(header[4:8])
            yield header[4:8], begin, end
            position = end


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of boxes that follow each other."""
    position = 0
    while position + 8 <= len(data):
        size, begin = int.from_bytes(data[position : position + 4]), position + 8
        if size == 1:
            size, begin = int.from_bytes(data[begin : begin + 8]), begin + 8
        end = len(data) if size == 0 else position + size
        if end < begin or end > len(data):
            raise ValueError("it is damaged: a box exceeds its parent")
        yield data[position + 4 : position + 8], data[begin:end]
        position = end


def _integer(data: bytes, at: int, length: int) -> int:
    if at + length > len(data):
        raise ValueError("it is damaged: a box is too short")
    return int.from_bytes(data[at : at + length])


def _items(iinf: bytes) -> tuple[dict[int, bytes], set[int]]:
    """Kind of each item, and the hidden ones."""
    kinds, hidden = {}, set()
    for kind, infe in _boxes(iinf[6 if iinf[0] == 0 else 8 :]):
        if kind == b"infe" and infe[0] >= 2:
            width = 2 if infe[0] == 2 else 4
            item = _integer(infe, 4, width)
            kinds[item] = infe[4 + width + 2 : 4 + width + 6]
            if infe[3] & 1:
                hidden.add(item)
    return kinds, hidden


def _references(iref: bytes) -> list[tuple[bytes, int, tuple[int, ...]]]:
    """(kind, item, items that it refers to)."""
    width = 4 if iref[0] else 2
    found = []
    for kind, content in _boxes(iref[4:]):
        count = _integer(content, width, 2)
        targets = tuple(_integer(content, width + 2 + k * width, width) for k in range(count))
        found.append((kind, _integer(content, 0, width), targets))
    return found


def _properties(iprp: bytes, item: int) -> list[tuple[bytes, bytes]]:
    """(kind, content) of an item's properties in order."""
    boxes = dict(_boxes(iprp))
    stored, ipma = list(_boxes(boxes[b"ipco"])), boxes[b"ipma"]
    id_width, width = (4 if ipma[0] else 2), (2 if ipma[3] & 1 else 1)
    at = 8
    for _ in range(_integer(ipma, 4, 4)):
        number, count = _integer(ipma, at, id_width), _integer(ipma, at + id_width, 1)
        at += id_width + 1
        indices = [_integer(ipma, at + k * width, width) & (0x7FFF if width == 2 else 0x7F) for k in range(count)]
        at += count * width
        if number == item:
            return [stored[index - 1] for index in indices if index]
    return []


def _size(properties: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    ispe = dict(properties)[b"ispe"]
    return _integer(ispe, 4, 4), _integer(ispe, 8, 4)


def _crop(clap: bytes, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a clean aperture: its size, and the offset of its centre from the picture's."""
    pairs = [(_integer(clap, k, 4), _integer(clap, k + 4, 4)) for k in range(0, 32, 8)]
    signed = [(top - (1 << 32) * (top >> 31), bottom) for top, bottom in pairs]
    if not all(bottom for _, bottom in signed):
        raise ValueError("it is damaged: its crop is divided by 0")
    width, height, right, down = (Fraction(top, bottom) for top, bottom in signed)
    left, top = round((size[0] - width) / 2 + right), round((size[1] - height) / 2 + down)
    crop = left, top, round(width), round(height)
    if min(crop) < 0 or min(crop[2:]) < 1 or left + crop[2] > size[0] or top + crop[3] > size[1]:
        raise ValueError("it is damaged: its crop exceeds the picture")
    return crop


def _item_data(boxes: dict[bytes, bytes], item: int, file: BinaryIO) -> bytes:
    """The content of a small item."""
    iloc = boxes[b"iloc"]
    version = iloc[0]
    offset_width, length_width, base_width, index_width = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4, iloc[5] & 15
    id_width = 4 if version == 2 else 2
    at = 6 + id_width
    for _ in range(_integer(iloc, 6, id_width)):
        number, at = _integer(iloc, at, id_width), at + id_width
        method = 0
        if version:
            method, at = _integer(iloc, at, 2) & 15, at + 2
        base, at = _integer(iloc, at + 2, base_width), at + 2 + base_width
        extents, at = _integer(iloc, at, 2), at + 2
        for _ in range(extents):
            at += index_width if version else 0
            offset, length = _integer(iloc, at, offset_width), _integer(iloc, at + offset_width, length_width)
            at += offset_width + length_width
            if number == item:
                if method == 1:
                    return boxes[b"idat"][base + offset : base + offset + length]
                file.seek(base + offset)
                return file.read(min(length, 64))
    raise ValueError("it is damaged: its grid has no place")
