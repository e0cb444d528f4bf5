"""Display times of a video's pictures. Pictures come out of the decoder in display order; their times must rise.

Files give times that do not: AVI stores none, and FFmpeg's guess from the order of decoding is wrong for reordered
pictures; programs copy such streams to other formats and write decoding times as display times; joined recordings start
again at zero; some pictures have no time, or one that the picture before has.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.error import FFmpegError

# Packets and pictures of the start of a file by which its display times are checked.
_CHECKED_PACKETS, _CHECKED_PICTURES = 96, 48
# A time that is earlier than the previous one by more is a new start, in seconds and in frames.
_RESTART_SECONDS, _RESTART_FRAMES = 1, 32


def are_decoding_times(path: pathlib.Path, container: Any, stream: Any) -> bool:
    """Whether the display times in a file are decoding times: then those of the pictures are to be used.

    Args:
      path: the file; it is opened a second time if its first packets leave a doubt.
      container, stream: the open file and its video stream.
    """
    if container.format.name == "avi":
        return True
    if not stream.codec_context.has_b_frames:
        return False
    try:
        options = {"protocol_whitelist": "file"}
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as again:
            same: Any = again.streams[stream.index]
            times = []
            for packet in again.demux(same):
                if packet.pts != packet.dts:
                    return False
                if packet.pts is None or len(times) == _CHECKED_PACKETS:
                    break
                times.append(packet.pts)
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as again:
            shown = itertools.islice(again.decode(again.streams[stream.index]), _CHECKED_PICTURES)
            given = [picture.pts for picture in shown if picture.pts is not None]
            return any(after <= before for before, after in itertools.pairwise(given))
    except FFmpegError:  # damage, which reading the pictures will report
        return False


class RisingTimes:
    """Seconds since the first picture, rising.

    A time that rises is kept. One that is missing or does not rise becomes that of the previous picture plus the step
    before it, or half the way to the next picture's if that is less. After a new start, times continue.

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
        time = self._last + self._step
        if given is not None and self._last - given - offset > max(_RESTART_SECONDS, _RESTART_FRAMES * self._interval):
            self._offset = time - given
        elif following is not None and self._last < following + offset:
            time = min(time, (self._last + following + offset) / 2)
        self._last, self._last_is_given = time, False
        return time
