"""Video files, by PyAV (FFmpeg). Strict: a file that is cut or damaged raises, it never gives a silent short clip.

FFmpeg's decoders hide damage by default (they patch broken pictures up from others) and its demuxers take a cut for the
end. Here decoders are told to refuse, and at the end of the file what came is compared with what the file declares.
Some damage stays unseen: bytes that still decode to pictures (most formats have no checksums), pictures lost amid a
stream (its rate may vary), and a cut between two packets of a format that declares no length (MPEG-TS, raw streams).
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition
from PIL import Image

from easi3r_jax.errors import InputError
from easi3r_jax.video.clip import ASSUMED_RATE, Clip, ClipFrame
from easi3r_jax.video.completeness import Completeness


def open_video(path: pathlib.Path) -> Clip:
    """Opens a video file; its frames are upright (display matrix applied), in display order.

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
    return Clip(str(path), _frames(path, container, stream, rate), stream.frames or None, rate)


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


def _frames(path: pathlib.Path, container: Any, stream: Any, rate: Fraction) -> Generator[ClipFrame, None, None]:
    with container:
        completeness = Completeness(path, container, stream, rate)
        index, origin = 0, None
        try:
            for picture in _pictures(container, stream, completeness):
                time = index / rate if picture.pts is None else picture.pts * stream.time_base
                origin = time if origin is None else origin
                label = f"Frame {index} of {path}"
                yield ClipFrame(index, time - origin, label, functools.partial(_upright, picture))
                index += 1
        except _DamageError as error:
            rest = f", or read only the {index} frames before it (first)" if index else ""
            raise InputError(
                f"Frame {index} of {path} cannot be read: the file is cut or damaged. Copy it again{rest}."
            ) from error
        completeness.check(index)


def _pictures(container: Any, stream: Any, completeness: Completeness) -> Iterator[av.VideoFrame]:
    """Decodes up to the first damage, and gives every picture shown before it."""
    try:
        for packet in _packets(container, stream, completeness):
            try:
                pictures = packet.decode()
            except FFmpegError as error:
                raise _DamageError(packet.pts) from error
            for picture in pictures:
                if picture.is_corrupt:
                    raise _DamageError(picture.pts)
                yield picture
    except _DamageError as damage:
        # Packets come in decoding order, some pictures ahead of what is shown: those that wait in the decoder are good.
        for picture in _drained(stream):
            if damage.pts is None or picture.pts is None or picture.pts >= damage.pts or picture.is_corrupt:
                break
            yield picture
        raise


def _drained(stream: Any) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(None)
    except FFmpegError:
        return []


def _packets(container: Any, stream: Any, completeness: Completeness) -> Iterator[Any]:
    """Packets of the pictures, from the first that decodes by itself, and the empty one that flushes the decoder."""
    first_time, started, latest = None, False, None
    demuxed = container.demux()  # all streams: sound tells a cut from a soundtrack that outlasts the pictures
    while True:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except FFmpegError as error:
            raise _DamageError(None if latest is None else latest + 1) from error
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
            latest = packet.pts if latest is None else max(latest, packet.pts or latest)
            yield packet


def _upright(picture: av.VideoFrame) -> Image.Image:
    """The picture as RGB, turned and mirrored as its display matrix says (phones film portrait that way)."""
    rgb = picture.to_ndarray(format="rgb24")
    side_data: Any = picture.side_data.get("DISPLAYMATRIX")
    if side_data is not None:
        # Row vectors: (x', y') = (a x + c y, b x + d y), so quarter turns have a = d = 0.
        a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
        if abs(b) > abs(a):
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        rgb = rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return Image.fromarray(np.ascontiguousarray(rgb))
