"""Video files, by PyAV (FFmpeg). Strict: a file that is cut or damaged raises, it never gives a silent short clip.

FFmpeg's decoders hide damage by default (they patch broken pictures up from others) and its demuxers take a cut for the
end. Here decoders are told to refuse, and at the end of the file what came is compared with what the file declares.
Some damage stays unseen: bytes that still decode to pictures (most formats have no checksums), an index that is wrong
and still makes sense, and a cut between two packets, or fragments, of a file that declares no length (MPEG-TS, live
recordings, raw streams).
"""

from __future__ import annotations

import functools
import heapq
import pathlib
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video.clip import ASSUMED_RATE, Clip, ClipFrame
from easi3r_jax.io.video.completeness import Completeness

#: Width of a pixel by its height: what players show as it is (programs that round write such numbers), and the most.
_LEAST_ASPECT, _MOST_ASPECT = 1.01, 4.0


def open_video(path: pathlib.Path) -> Clip:
    """Opens a video file; its frames are upright (display matrix applied), of square pixels, in display order.

    Raises:
      InputError: no video, no picture stream, no permission. Damage further in is raised by the clip's frames.
    """
    container = _container(path)
    # Cover pictures of sound files are streams too.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams or container.format.name == "tty":  # FFmpeg draws any .txt file
        container.close()
        raise InputError(f"{path} has no pictures: give a video file or a folder of images.")
    stream = streams[0]
    if stream.codec_context is None:
        container.close()
        raise InputError(f"{path} is damaged, or its pictures are coded in an unknown way: convert it to H.264 .mp4.")
    stream.codec_context.options = {"err_detect": "explode+crccheck"}
    rate = stream.average_rate or stream.guessed_rate or ASSUMED_RATE
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT:
        container.close()
        raise InputError(f"{path} says that its pixels are {float(aspect):.3g} times as wide as high: mend its header.")
    return Clip(str(path), _frames(path, container, stream, rate, aspect), stream.frames or None, rate)


def _container(path: pathlib.Path) -> Any:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty: copy it again.")
        # "file:", or FFmpeg takes a colon in the name for a protocol; the whitelist, or a playlist may reach elsewhere.
        return av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except FFmpegError as error:
        raise InputError(
            f"{path} cannot be opened as a video: it is of another kind, damaged, or cut before its index. "
            "Copy it again, or convert it to .mp4 or to a folder of images."
        ) from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


class _DamageError(Exception):
    """A packet that cannot be read or decoded.

    Attributes:
      pts: when its picture would be shown, in the stream's time base; None where unknown.
    """

    def __init__(self, pts: int | None):
        super().__init__(pts)
        self.pts = pts


def _frames(
    path: pathlib.Path, container: Any, stream: Any, rate: Fraction, aspect: Fraction
) -> Generator[ClipFrame, None, None]:
    with container:
        completeness = Completeness(path, container, stream, rate)
        index, origin, rotation, matrix = 0, None, None, None
        try:
            for picture in _pictures(container, stream, completeness):
                time = index / rate if picture.pts is None else picture.pts * stream.time_base
                origin = time if origin is None else origin
                if rotation != picture.rotation:
                    rotation, matrix = picture.rotation, _display_matrix(picture)
                label = f"Frame {index} of {path}"
                yield ClipFrame(index, time - origin, label, functools.partial(_upright, picture, matrix, aspect))
                index += 1
        except _DamageError as error:
            rest = f", or read only the {index} frames before it (first)" if index else ""
            raise InputError(
                f"Frame {index} of {path} cannot be read: the file is cut or damaged. Copy it again{rest}."
            ) from error
        completeness.check(index)


def _pictures(container: Any, stream: Any, completeness: Completeness) -> Iterator[av.VideoFrame]:
    """Decodes up to the first damage, and gives every picture shown before it."""
    gaps = _Gaps(container, stream)
    try:
        for packet in _packets(container, stream, completeness):
            try:
                pictures = packet.decode()
            except FFmpegError as error:
                raise _DamageError(packet.pts) from error
            gaps.given(packet)
            # Of a cut file only those that nothing lost comes before: packets go by decoding time, which the times of
            # all later pictures exceed.
            limit = None if packet.size or completeness.is_whole() else completeness.latest_decoding
            for picture in pictures:
                if limit is not None and picture.pts is not None and picture.pts > limit:
                    return
                if picture.is_corrupt:
                    raise _DamageError(picture.pts)
                gaps.shown(picture)
                yield picture
        gaps.end()
    except _DamageError as damage:
        # Packets come in decoding order, some pictures ahead of what is shown: those that wait in the decoder are good.
        for picture in _drained(stream):
            if damage.pts is None or picture.pts is None or picture.pts >= damage.pts or picture.is_corrupt:
                break
            yield picture
        raise


#: Where one packet is one picture, by format and codec. Elsewhere some packets are fields, hidden or "as before".
_GAPLESS_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"})
_GAPLESS_CODECS = frozenset({"h264", "hevc", "vp9", "av1", "ffv1", "mjpeg", "prores"})


class _Gaps:
    """Notices pictures that a decoder drops without an error, because of damage it takes for something unknown."""

    def __init__(self, container: Any, stream: Any):
        known = stream.codec_context.codec.canonical_name in _GAPLESS_CODECS
        self._active = known and container.format.name in _GAPLESS_FORMATS
        self._context = stream.codec_context
        self._started = False
        self._waiting: list[int] = []  # a heap of the times at which pictures must still be shown

    def given(self, packet: Any) -> None:
        # Reordered, but shown when decoded: some programs write the one time for the other, and order tells nothing.
        self._active &= not (self._context.has_b_frames and packet.is_keyframe and packet.pts == packet.dts)
        if self._active and packet.size and packet.pts is not None and not packet.is_discard:
            heapq.heappush(self._waiting, packet.pts)

    def shown(self, picture: av.VideoFrame) -> None:
        """Raises _DamageError where one before it was not shown. The first ones may, they need what was before them."""
        self._active &= picture.pts is not None and not picture.interlaced_frame
        if not self._active:
            self._waiting.clear()
        while self._waiting and self._waiting[0] <= (picture.pts or 0):
            time = heapq.heappop(self._waiting)
            if self._started and time < (picture.pts or 0):
                raise _DamageError(time)
        self._started = True

    def end(self) -> None:
        """Raises _DamageError where the last pictures were not shown."""
        if self._waiting:
            raise _DamageError(self._waiting[0])


def _drained(stream: Any) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(None)
    except FFmpegError:
        return []


def _packets(container: Any, stream: Any, completeness: Completeness) -> Iterator[Any]:
    """Packets of the pictures, from the first that decodes by itself, and the empty one that flushes the decoder."""
    first_time, started = None, False
    demuxed = container.demux()  # all streams: sound tells a cut from a soundtrack that outlasts the pictures
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
        # A recording may begin amid a group of pictures; those that refer to what came before it cannot be decoded.
        if not started:
            if not packet.is_keyframe:
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


def _display_matrix(picture: av.VideoFrame) -> list[int] | None:
    """(a, b, _, c, d): a pixel (x, y) of the picture is shown at (a x + c y, b x + d y). None: as it is.

    To be asked once for each orientation, not for each picture: in PyAV a picture whose side data was looked at lives
    until the garbage collector comes by, and hundreds of 4K pictures are gigabytes.
    """
    side_data: Any = picture.side_data.get("DISPLAYMATRIX")
    return None if side_data is None else np.frombuffer(bytes(side_data), np.int32)[:5].tolist()


def _upright(picture: av.VideoFrame, matrix: list[int] | None, aspect: Fraction) -> Image.Image:
    """The picture as RGB, of square pixels, turned and mirrored as its display matrix says (phones film portrait)."""
    rgb = picture.to_ndarray(format="rgb24")
    if max(aspect, 1 / aspect) > _LEAST_ASPECT:  # enlarged, so that nothing is lost
        size = round(picture.width * max(aspect, 1)), round(picture.height * max(1 / aspect, 1))
        rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    if matrix is not None:
        a, b, _, c, d = matrix
        if abs(b) > abs(a):  # a quarter turn: a = d = 0
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        rgb = rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return Image.fromarray(np.ascontiguousarray(rgb))
