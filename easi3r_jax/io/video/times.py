"""Display times of a video's pictures. Pictures come out of the decoder in display order; their times must rise.

Files give times that do not: AVI and ASF store none, and FFmpeg's guess from the order of decoding is wrong for
reordered pictures; programs copy such streams to other formats and write decoding times as display times; joined
recordings start again at zero; some pictures have no time, or one that the picture before has.
"""

from __future__ import annotations

import collections
import itertools
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.error import FFmpegError

# FFmpeg invents display times for these formats, wrong ones for reordered pictures.
_WITHOUT_DISPLAY_TIMES = frozenset({"avi", "asf"})
# Packets and pictures of the start of a file by which its display times are checked.
_CHECKED_PACKETS, _CHECKED_PICTURES = 96, 48
# A time that is earlier than the previous one by more is a new start, in seconds and in frames.
_RESTART_SECONDS, _RESTART_FRAMES = 1, 32
# Part of a frame by which a picture follows one that should have come later.
_CLOSE = 64


class GivenTimes:
    """The times that a file gives for its pictures.

    Attributes:
      are_display_times: whether they are what the file calls display times. Otherwise those are times of decoding, and
        pictures have them in their order: the n-th that is displayed has the n-th time.

    Args:
      path: the file; it is opened a second time if its first packets leave a doubt.
      container, stream: the open file and its video stream.
    """

    def __init__(self, path: pathlib.Path, container: Any, stream: Any):
        self._base = stream.time_base
        self._has_none = container.format.name in _WITHOUT_DISPLAY_TIMES
        self._waiting: collections.deque[int] = collections.deque()
        self.are_display_times = not (self._has_none or _are_decoding_times(path, stream))

    def add(self, packet: Any) -> None:
        """Records a packet that is decoded."""
        if not self.are_display_times and packet.pts is not None and packet.size and not packet.is_discard:
            self._waiting.append(packet.pts)

    def of(self, picture: av.VideoFrame) -> Fraction | None:
        """Seconds of the next picture; None if it has no time."""
        time = picture.pts
        if self._has_none:
            time = picture.dts
        elif not self.are_display_times:
            time = self._waiting.popleft() if self._waiting else None
        return None if time is None else time * self._base


def _are_decoding_times(path: pathlib.Path, stream: Any) -> bool:
    """Whether the pictures at the start of a file have display times that do not rise, although those of packets do."""
    context = stream.codec_context
    if not (context.has_b_frames or context.name == "mpeg4"):  # MPEG-4 tells only while it is decoded
        return False
    try:
        options = {"protocol_whitelist": "file"}
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as again:
            same: Any = again.streams[stream.index]
            packets = itertools.islice(again.demux(same), _CHECKED_PACKETS)
            order = [packet.pts for packet in packets if packet.pts is not None]
        if any(after < before for before, after in itertools.pairwise(order)):
            return False  # reordered, as they should be
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as again:
            shown = itertools.islice(again.decode(again.streams[stream.index]), _CHECKED_PICTURES)
            given = [picture.pts for picture in shown if picture.pts is not None]
            return any(after <= before for before, after in itertools.pairwise(given))
    except FFmpegError:  # damage, which reading the pictures will report
        return False


class RisingTimes:
    """Seconds since the first picture, rising.

    A time that rises is kept. One that is missing or repeated becomes that of the previous picture plus the step before
    it, or half the way to the next picture's if that is less; an earlier one follows the previous one closely, so that
    right times are met again. After a new start, times continue.

    Args:
      interval: mean seconds from picture to picture.
    """

    def __init__(self, interval: Fraction):
        self._interval = interval
        self._step = interval
        self._offset: Fraction | None = None
        self._last: Fraction | None = None
        self._last_is_given = False

    def stamped(self, pictures: Iterator[tuple[Any, Fraction | None]]) -> Iterator[tuple[Any, Fraction]]:
        """(picture, seconds) of pictures with the times that the file gives, None where it has none."""
        waiting: list[tuple[Any, Fraction | None]] = []
        failure: Exception | None = None
        while True:
            if not waiting:
                if failure is not None:
                    raise failure
                found = next(pictures, None)
                if found is None:
                    return
                waiting.append(found)
            picture, given = waiting.pop(0)
            if not self._rises(given) and failure is None:  # then the next picture's time counts
                try:
                    waiting.extend(found for found in (next(pictures, None),) if found is not None)
                except Exception as error:  # raised after this picture
                    failure = error
            yield picture, self._next(given, waiting[0][1] if waiting else None)
            del picture

    def _rises(self, given: Fraction | None) -> bool:
        return given is not None and (self._last is None or given + (self._offset or 0) > self._last)

    def _next(self, given: Fraction | None, following: Fraction | None) -> Fraction:
        if self._last is None:
            if given is None and following is not None:
                given = following - self._interval
            self._offset, self._last = -(given or Fraction(0)), Fraction(0)
            self._last_is_given = given is not None
            return self._last
        offset = self._offset or Fraction(0)
        if given is not None and given + offset > self._last:
            if self._last_is_given:
                self._step = given + offset - self._last
            self._last, self._last_is_given = given + offset, True
            return self._last
        is_behind = given is not None and given + offset < self._last
        time = self._last + (self._interval / _CLOSE if is_behind else self._step)
        if given is not None and self._last - given - offset > max(_RESTART_SECONDS, _RESTART_FRAMES * self._interval):
            time = self._last + self._step
            self._offset = time - given
        elif following is not None and self._last < following + offset:
            time = min(time, (self._last + following + offset) / 2)
        self._last, self._last_is_given = time, False
        return time
