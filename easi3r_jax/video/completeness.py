"""Did all of a video come? What the file declares against what was read."""

from __future__ import annotations

import pathlib
import re
from fractions import Fraction
from typing import Any

import av

from easi3r_jax.errors import InputError


class Completeness:
    """Watches the packets of a video go by and says at the end whether some are missing.

    Args:
      path, container, stream: the open file and its pictures.
      rate: mean frames per second.
    """

    def __init__(self, path: pathlib.Path, container: Any, stream: Any, rate: Fraction):
        self._path = path
        self._container = container
        self._stream = stream
        self._interval = 1 / rate
        self._packets = 0
        self._spans: dict[int, tuple[Fraction, Fraction]] = {}  # stream -> (earliest time, end of the latest packet)

    def add(self, packet: Any) -> None:
        """Notes a packet of any stream."""
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or packet.is_discard:  # the flush at the end, or outside the edit list
            return
        is_picture = packet.stream.index == self._stream.index
        self._packets += is_picture
        start = time * packet.time_base
        length = packet.duration * packet.time_base if packet.duration else self._interval * is_picture
        earliest, latest = self._spans.get(packet.stream.index, (start, start))
        self._spans[packet.stream.index] = (min(earliest, start), max(latest, start + length))

    def check(self, decoded: int) -> None:
        """Raises InputError where the end of the file is missing.

        Args:
          decoded: number of frames that came.
        """
        if not (self._index_fits() and self._count_fits() and self._length_fits() and self._trailer_fits()):
            declared = f" of {self._stream.frames}" if self._stream.frames > decoded else ""
            after = f"after frame {decoded - 1}{declared} (counted from 0)" if decoded else "before its first frame"
            rest = f", or read only the {decoded} frames that are there (first)" if decoded else ""
            raise InputError(
                f"{self._path} is cut: it ends {after}, short of the length it declares. Copy it again{rest}."
            )

    def _index_fits(self) -> bool:
        """The places where the index says packets are (mp4, avi) exist."""
        entries = getattr(self._stream, "index_entries", ())  # PyAV 17 and later
        return max((e.pos + e.size for e in entries), default=0) <= self._path.stat().st_size

    def _count_fits(self) -> bool:
        """AVI's header counts the pictures. In mp4 the number includes what an edit list cuts away: no use."""
        return self._container.format.name != "avi" or self._packets >= self._stream.frames

    def _length_fits(self) -> bool:
        """The last packet ends where the file says the clip ends."""
        is_matroska = "matroska" in self._container.format.name
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self._stream.metadata.get("DURATION", "").strip())
        spans = self._spans.values()
        if is_matroska and tag:
            declared = int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
            spans = [s for i, s in self._spans.items() if i == self._stream.index]
        elif self._stream.duration:
            declared = self._stream.duration * self._stream.time_base
            spans = [s for i, s in self._spans.items() if i == self._stream.index]
        elif self._container.duration:  # of all streams together
            declared = Fraction(self._container.duration, av.time_base)
        else:
            return True
        # Matroska declares where the clip ends, counted from 0, and to the millisecond. Others declare the length, and
        # some writers are a frame off: there the index or the count is the sharper test.
        begin = Fraction(0) if is_matroska else min((s[0] for s in spans), default=Fraction(0))
        slack = self._interval * (Fraction(3, 4) if is_matroska else Fraction(3, 2))
        return max((s[1] for s in spans), default=begin) - begin >= declared - slack

    def _trailer_fits(self) -> bool:
        """Two formats declare no length: a GIF ends with a semicolon, a transport stream is made of whole packets."""
        size = self._path.stat().st_size
        if self._container.format.name == "mpegts":
            return any(size % packet == 0 for packet in (188, 192, 204))  # plain, Blu-ray, with error correction
        if self._container.format.name != "gif":
            return True
        with self._path.open("rb") as file:
            file.seek(max(0, size - 1024))
            return file.read().rstrip(b"\0\r\n").endswith(b";")
