"""Checks that a video was read completely: what was read against what the file declares."""

from __future__ import annotations

import pathlib
import re
from fractions import Fraction
from typing import Any

import av

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video import structure

# Frames by which decoding may precede the display: H.264's limit.
_MAX_REORDERING = 16


class Completeness:
    """Observes the packets of a video and tells whether some are missing.

    Attributes:
      latest_decoding: decoding time of the last video packet, in the stream's time base; None if unknown.

    Args:
      path, container, stream: the open file and its video stream.
      rate: mean frames per second.
    """

    def __init__(self, path: pathlib.Path, container: Any, stream: Any, rate: Fraction):
        self._path = path
        self._container = container
        self._stream = stream
        self._interval = 1 / rate
        self._fault = structure.first_fault(path, container.format.name)
        is_whole = self._fault is None
        self._expected = structure.packets_of_complete(path, container.format.name) if is_whole else None
        self._packets = 0
        self.latest_decoding: int | None = None
        self._spans: dict[int, tuple[Fraction, Fraction]] = {}  # stream -> (earliest time, end of the latest packet)

    def add(self, packet: Any) -> None:
        """Records a packet of any stream."""
        is_counted = packet.stream.type == "video" or self._container.format.name != "avi"
        self._packets += bool(packet.size and is_counted)
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or packet.is_discard:  # the flush at the end, or outside the edit list
            return
        is_picture = packet.stream.index == self._stream.index
        self.latest_decoding = packet.dts if is_picture else self.latest_decoding
        start = time * packet.time_base
        length = packet.duration * packet.time_base if packet.duration else self._interval * is_picture
        if is_picture and self._container.format.name == "flv":  # it stores no durations
            length = max(length, self._interval)
        earliest, latest = self._spans.get(packet.stream.index, (start, start))
        self._spans[packet.stream.index] = (min(earliest, start), max(latest, start + length))

    def breaks_before(self, packet: Any) -> bool:
        """Whether the file's structure is broken before this packet, so that the demuxer has skipped the damage."""
        return self._fault is not None and packet.pos is not None and packet.pos >= self._fault

    def is_complete(self) -> bool:
        """Whether everything that the file declares was read. Call it after the last packet."""
        return self._fault is None and self._index_fits() and (self._count_fits() or self._length_fits())

    def check(self, decoded: int) -> None:
        """Raises InputError if the end of the file is missing.

        Args:
          decoded: number of frames that were decoded.
        """
        if not self.is_complete():
            declared = f" of {self._stream.frames}" if self._stream.frames > decoded else ""
            after = f"after frame {decoded - 1}{declared} (counted from 0)" if decoded else "before its first frame"
            rest = f", or read only the {decoded} frames it has (first)" if decoded else ""
            raise InputError(
                f"{self._path} is truncated: it ends {after}, short of its declared length. Copy it again{rest}."
            )

    def _index_fits(self) -> bool:
        """Whether the file reaches to the packets that its index lists (mp4, avi)."""
        entries = getattr(self._stream, "index_entries", ())  # PyAV 17 and later
        return max((e.pos + e.size for e in entries), default=0) <= self._path.stat().st_size

    def _count_fits(self) -> bool:
        """Whether all packets were read that the file's structure shows."""
        return self._expected is not None and self._packets >= self._expected

    def _length_fits(self) -> bool:
        """Whether the last packet ends where the file declares the end of the clip."""
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
        # Matroska and Flash declare the end of the clip, counted from 0, to the millisecond. Other formats declare the
        # length, and some writers are a frame off: for these, the index or the count is the stricter test.
        from_zero = is_matroska or self._container.format.name == "flv"
        begin = Fraction(0) if from_zero else min((s[0] for s in spans), default=Fraction(0))
        slack = self._interval * (Fraction(3, 4) if from_zero else Fraction(3, 2))
        if self._container.format.name == "asf" and self._stream.codec_context.has_b_frames:
            slack += self._interval * _MAX_REORDERING  # its times are those of decoding
        return max((s[1] for s in spans), default=begin) - begin >= declared - slack
