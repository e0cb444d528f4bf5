"""Video files, by PyAV (FFmpeg). Strict: a truncated or damaged file raises; it never yields a silently shorter clip.

By default FFmpeg's decoders conceal damage (they patch broken pictures from others) and its demuxers take a truncation
for the end. Here decoders are told to fail on damage, and at the end of the file what was read is compared with what
the file declares. Some damage remains undetected: bytes that still decode to pictures (most formats have no checksums),
an index that is wrong but consistent, and a truncation between two packets or fragments of a file that declares no
length (MPEG-TS, live recordings, raw streams).
"""

from __future__ import annotations

import functools
import heapq
import pathlib
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any

import absl.logging
import av
from av.error import FFmpegError
from av.stream import Disposition
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video.clip import ASSUMED_RATE, ClipFrame, ClipReader
from easi3r_jax.io.video.completeness import Completeness
from easi3r_jax.io.video.pixels import conversion, display_matrix, upright
from easi3r_jax.io.video.times import GivenTimes, RisingTimes

# A file with pixels of a larger aspect ratio is refused.
_MAX_ASPECT = 4.0
# Formats without a container: what they say of the rate is in the coded pictures.
_RAW = frozenset({"h264", "hevc", "vvc", "obu"})
# Streams that are not the video: cover images, previews, tiles of a photograph.
_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent


def open_video(path: pathlib.Path) -> ClipReader:
    """Opens a video file. Frames are upright (display matrix applied), have square pixels and come in display order.

    Raises:
      InputError: the file is not a video, has no video stream, or cannot be read. Damage further on is raised by the
        clip's frames.
    """
    container = _container(path)
    streams = [s for s in container.streams.video if not s.disposition & _NO_VIDEO]
    if not streams or container.format.name == "tty":  # FFmpeg renders any .txt file
        container.close()
        raise InputError(f"{path} has no pictures: give a video file or a folder of images.")
    # As players choose; max takes the first of equals.
    stream = max(streams, key=lambda s: (bool(s.disposition & Disposition.default), s.frames != 1))
    others = [f"{s.width}x{s.height}" for s in streams if s.index != stream.index and s.frames != 1]
    if others:
        absl.logging.warning(
            "%s has %d video tracks: track %d (%dx%d) is read, as players choose; left out: %s",
            *(path, 1 + len(others), stream.index, stream.width, stream.height, ", ".join(others)),
        )
    if stream.codec_context is None:
        container.close()
        raise InputError(f"{path} is damaged, or its codec is unknown: convert it to H.264 .mp4.")
    stream.codec_context.options = {"err_detect": "explode+crccheck"}
    rate = stream.average_rate or stream.guessed_rate or ASSUMED_RATE
    if container.format.name in _RAW:  # its mean is an assumption of FFmpeg's
        rate = stream.guessed_rate or rate
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
        container.close()
        raise InputError(f"{path} declares pixels {float(aspect):.3g} times as wide as high: correct its header.")
    context = stream.codec_context
    colors, problem = conversion(int(context.color_primaries), int(context.color_trc), int(context.colorspace))
    if problem:
        absl.logging.warning("%s %s; convert it to BT.709 first.", path, problem)
    frames = _frames(path, container, stream, rate, aspect, colors)
    return ClipReader(str(path), frames, stream.frames or None, rate)


def _container(path: pathlib.Path) -> Any:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty: copy it again.")
        # Without "file:", FFmpeg would take a colon in the name for a protocol. Without the whitelist, a playlist could
        # read other files or the network.
        return av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except FFmpegError as error:
        raise InputError(
            f"{path} cannot be opened as a video: it is another kind of file, damaged, or truncated before its index. "
            "Copy it again, or convert it to .mp4 or to a folder of images."
        ) from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


class _DamageError(Exception):
    """A packet that cannot be read or decoded.

    Attributes:
      pts: display time of its picture, in the stream's time base; None if unknown.
    """

    def __init__(self, pts: int | None):
        super().__init__(pts)
        self.pts = pts


def _frames(
    path: pathlib.Path, container: Any, stream: Any, rate: Fraction, aspect: Fraction, colors: str
) -> Generator[ClipFrame, None, None]:
    with container:
        completeness = Completeness(path, container, stream, rate)
        index, rotation, matrix, is_interlaced = 0, None, None, False
        times = GivenTimes(path, container, stream)
        given = ((picture, times.of(picture)) for picture in _pictures(container, stream, completeness, times))
        try:
            for picture, time in RisingTimes(1 / rate).stamped(given):
                if picture.interlaced_frame and not is_interlaced:
                    is_interlaced = True
                    absl.logging.warning(
                        "%s is interlaced: moving edges look like combs; deinterlace it first (for example: ffmpeg -i "
                        "INPUT -vf bwdif OUTPUT).",
                        path,
                    )
                if rotation != picture.rotation:
                    rotation, matrix = picture.rotation, display_matrix(picture)
                label = f"Frame {index} of {path}"
                yield ClipFrame(index, time, label, functools.partial(_read, picture, matrix, aspect, colors, label))
                index += 1
        except _DamageError as error:
            rest = f", or read only the {index} frames before it (first)" if index else ""
            raise InputError(
                f"Frame {index} of {path} cannot be read: the file is truncated or damaged. Copy it again{rest}."
            ) from error
        completeness.check(index)


def _pictures(container: Any, stream: Any, completeness: Completeness, times: GivenTimes) -> Iterator[av.VideoFrame]:
    """Decodes up to the first damage, and yields every picture that is displayed before it.

    Args:
      container, stream: the open file and its video stream.
      completeness, times: they are shown the packets.
    """
    gaps = _Gaps(container, stream, has_order=times.are_display_times)
    try:
        for packet in _packets(container, stream, completeness):
            times.add(packet)
            try:
                pictures = packet.decode()
            except FFmpegError as error:
                raise _DamageError(packet.pts) from error
            gaps.given(packet)
            # Of a truncated file, yield only pictures that no lost picture precedes: packets are in order of decoding
            # time, and the display times of all lost pictures are later than the last decoding time.
            limit = None if packet.size or completeness.is_complete() else completeness.latest_decoding
            for picture in pictures:
                if limit is not None and picture.pts is not None and picture.pts > limit:
                    return
                if picture.is_corrupt:
                    raise _DamageError(picture.pts)
                gaps.shown(picture)
                yield picture
        gaps.end()
    except _DamageError as damage:
        # Packets are in decoding order, ahead of the display order: pictures that wait in the decoder are still good.
        for picture in _drained(stream):
            if damage.pts is None or picture.pts is None or picture.pts >= damage.pts or picture.is_corrupt:
                break
            yield picture
        raise


# Formats and codecs in which each packet is one picture. In others, packets may be fields, hidden frames or repeats.
_GAPLESS_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"})
_GAPLESS_CODECS = frozenset({"h264", "hevc", "vp9", "av1", "ffv1", "mjpeg", "prores"})


class _Gaps:
    """Detects pictures that a decoder drops without an error, because it takes damage for unknown data."""

    def __init__(self, container: Any, stream: Any, *, has_order: bool):
        known = has_order and stream.codec_context.codec.canonical_name in _GAPLESS_CODECS
        self._active = known and container.format.name in _GAPLESS_FORMATS
        self._context = stream.codec_context
        self._started = False
        self._waiting: list[int] = []  # heap of the display times of pictures that must still come

    def given(self, packet: Any) -> None:
        # With reordered frames, pts == dts at a keyframe means that the program that wrote the file confused the two:
        # then the order tells nothing.
        self._active &= not (self._context.has_b_frames and packet.is_keyframe and packet.pts == packet.dts)
        if self._active and packet.size and packet.pts is not None and not packet.is_discard:
            heapq.heappush(self._waiting, packet.pts)

    def shown(self, picture: av.VideoFrame) -> None:
        """Raises _DamageError if a picture before this one is missing.

        At the start of a recording pictures may be missing: they refer to pictures before it.
        """
        self._active &= picture.pts is not None and not picture.interlaced_frame
        if not self._active:
            self._waiting.clear()
        while self._waiting and self._waiting[0] <= (picture.pts or 0):
            time = heapq.heappop(self._waiting)
            if self._started and time < (picture.pts or 0):
                raise _DamageError(time)
        self._started = True

    def end(self) -> None:
        """Raises _DamageError if the last pictures are missing."""
        if self._waiting:
            raise _DamageError(self._waiting[0])


def _drained(stream: Any) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(None)
    except FFmpegError:
        return []


def _packets(container: Any, stream: Any, completeness: Completeness) -> Iterator[Any]:
    """Video packets from the first keyframe on, and the empty packet that flushes the decoder."""
    first_time, started = None, False
    demuxed = container.demux()  # all streams: they tell a truncation from a soundtrack longer than the video
    while True:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except FFmpegError as error:
            raise _DamageError(_after(completeness.latest_decoding)) from error
        if completeness.breaks_before(packet):
            raise _DamageError(_after(completeness.latest_decoding))
        completeness.add(packet)
        if packet.stream.index != stream.index:
            continue
        if packet.pts is None and packet.dts is None and not packet.size:
            yield packet
            continue
        # A recording may start within a group of pictures; pictures that refer to earlier ones cannot be decoded.
        if not started:
            # AVI marks keyframes in an index that may be wrong; it is not cut from the middle of a transmission.
            if not packet.is_keyframe and container.format.name != "avi":
                continue
            first_time, started = packet.pts, True
        if packet.pts is not None and first_time is not None and packet.pts < first_time:
            continue
        if packet.is_corrupt:
            raise _DamageError(packet.pts)
        if packet.size:
            yield packet


def _after(time: int | None) -> int | None:
    return None if time is None else time + 1


def _read(picture: av.VideoFrame, matrix: list[int] | None, aspect: Fraction, colors: str, label: str) -> Image.Image:
    try:
        return upright(picture, matrix, aspect, colors)
    except ValueError as error:
        raise InputError(f"{label} cannot be read: {error}.") from error
