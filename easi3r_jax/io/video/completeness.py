"""Did all of a video come? What the file declares against what was read."""

from __future__ import annotations

import pathlib
import re
from fractions import Fraction
from typing import Any

import av

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video import structure


class Completeness:
    """Watches the packets of a video go by and says whether some are missing.

    Attributes:
      latest_decoding: when the last picture's packet was to be decoded, in the stream's time base; None if unknown.

    Args:
      path, container, stream: the open file and its pictures.
      rate: mean frames per second.
    """

    def __init__(self, path: pathlib.Path, container: Any, stream: Any, rate: Fraction):
        self._path = path
        self._container = container
        self._stream = stream
        self._interval = 1 / rate
        self._fault = structure.first_fault(path, container.format.name)
        self._packets = 0
        self.latest_decoding: int | None = None
        self._spans: dict[int, tuple[Fraction, Fraction]] = {}  # stream -> (earliest time, end of the latest packet)

    def add(self, packet: Any) -> None:
        """Notes a packet of any stream."""
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or packet.is_discard:  # the flush at the end, or outside the edit list
            return
        is_picture = packet.stream.index == self._stream.index
        self._packets += is_picture
        self.latest_decoding = packet.dts if is_picture else self.latest_decoding
        start = time * packet.time_base
        length = packet.duration * packet.time_base if packet.duration else self._interval * is_picture
        earliest, latest = self._spans.get(packet.stream.index, (start, start))
        self._spans[packet.stream.index] = (min(earliest, start), max(latest, start + length))

    def breaks_before(self, packet: Any) -> bool:
        """Whether the file's structure is broken before this packet: the demuxer looked for it beyond the damage."""
        return self._fault is not None and packet.pos is not None and packet.pos >= self._fault

    def is_whole(self) -> bool:
        """Whether all came that the file declares; to be asked after the last packet."""
        return self._fault is None and self._index_fits() and self._count_fits() and self._length_fits()

    def check(self, decoded: int) -> None:
        """Raises InputError where the end of the file is missing.

        Args:
          decoded: number of frames that came.
        """
        if not self.is_whole():
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
        # Matroska and Flash declare where the clip ends, counted from 0, and to the millisecond. Others declare the
        # length, and some writers are a frame off: there the index or the count is the sharper test.
        from_zero = is_matroska or self._container.format.name == "flv"
        begin = Fraction(0) if from_zero else min((s[0] for s in spans), default=Fraction(0))
        slack = self._interval * (Fraction(3, 4) if from_zero else Fraction(3, 2))
        return max((s[1] for s in spans), default=begin) - begin >= declared - slack
