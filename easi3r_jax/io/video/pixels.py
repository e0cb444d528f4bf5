"""Pixels of a decoded video frame: upright, square, with the colours of BT.709 (sRGB's primaries)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph, filters_available
from PIL import Image

# Pixel aspect ratios (width over height) up to this are taken as square, as players do: rounding in programs leads to
# such numbers.
_MIN_ASPECT = 1.01
# Numbers of ITU-T H.273. Primaries whose colours differ visibly from BT.709's.
_WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_UNUSUAL = {4: "BT.470 M", 8: "film", 10: "XYZ"} | _WIDE
# Transfer characteristics of high dynamic range, and those that FFmpeg's filter knows; 2: not specified.
_HIGH_RANGE = {16: "HDR (PQ)", 18: "HDR (HLG)"}
_TRANSFERS = {1: "bt709", 2: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear"} | {
    11: "iec61966-2-4",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
}
_UNSPECIFIED = 2
# Numbers of side data that FFmpeg has and PyAV may not know yet.
_NEWER_SIDE_DATA = range(28, 48)


def conversion(primaries: int, transfer: int, matrix: int) -> tuple[str, str]:
    """How the colours of a video become BT.709's.

    Args:
      primaries, transfer, matrix: as the decoder declares them, numbers of ITU-T H.273.

    Returns:
      arguments of FFmpeg's filter `colorspace`, empty if nothing is converted; and why colours are not converted
      although they should be, empty if there is no reason.
    """
    if transfer in _HIGH_RANGE:
        return "", f"is {_HIGH_RANGE[transfer]} video: its colours are not converted and look pale"
    if primaries not in _UNUSUAL:
        return "", ""
    if primaries not in _WIDE or transfer not in _TRANSFERS or "colorspace" not in filters_available:
        return "", f"has {_UNUSUAL[primaries]} colours: they are not converted and look pale"
    curve = _TRANSFERS[transfer]  # it stays, or a screen would show other brightness
    name = "bt2020" if primaries == 9 else f"smpte{420 + primaries}"
    given = f"iprimaries={name}:itrc={curve}"
    if matrix == _UNSPECIFIED:
        given += ":ispace=bt2020ncl" if primaries == 9 else ":ispace=bt709"
    return f"{given}:primaries=bt709:trc={curve}:space=bt709:format=yuv444p10", ""


def display_matrix(picture: av.VideoFrame) -> list[int] | None:
    """(a, b, _, c, d): a pixel (x, y) of the picture is displayed at (a x + c y, b x + d y). None: unchanged.

    Call it once per orientation and not once per picture: in PyAV a picture whose side data was accessed lives until
    the garbage collector runs, and hundreds of 4K pictures are gigabytes.
    """
    try:
        side_data = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that PyAV does not know yet, for example EXIF
        kinds = [("sidedata", f"mode=delete:type={number}") for number in _NEWER_SIDE_DATA]
        side_data = filtered(picture, kinds).side_data.get("DISPLAYMATRIX")
    return None if side_data is None else np.frombuffer(memoryview(side_data), np.int32)[:5].tolist()


def filtered(picture: av.VideoFrame, filters: Sequence[tuple[str, str]]) -> av.VideoFrame:
    """A picture after some of FFmpeg's filters, pairs of name and arguments."""
    graph = Graph()
    last = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        time_base=picture.time_base or Fraction(1, 1000),
    )
    for name, arguments in filters:
        node = graph.add(name, arguments)
        last.link_to(node)
        last = node
    sink = graph.add("buffersink")
    last.link_to(sink)
    graph.configure()
    graph.push(picture)
    result = graph.pull()
    assert isinstance(result, av.VideoFrame)
    return result


def upright(picture: av.VideoFrame, matrix: list[int] | None, aspect: Fraction, colors: str = "") -> Image.Image:
    """The picture as RGB with square pixels, rotated and mirrored as its display matrix says (phones film portrait).

    Args:
      picture: decoded.
      matrix: of `display_matrix`.
      aspect: width of a pixel over its height.
      colors: the first value of `conversion`.

    Raises:
      ValueError: its colours cannot be converted.
    """
    if colors:
        try:
            picture = filtered(picture, [("colorspace", colors)])
        except FFmpegError as error:
            raise ValueError("its wide-gamut colours cannot be converted; convert it to BT.709 first") from error
    rgb = picture.to_ndarray(format="rgb24")
    if max(aspect, 1 / aspect) > _MIN_ASPECT:  # enlarged along one axis, so that no detail is lost
        size = round(picture.width * max(aspect, 1)), round(picture.height * max(1 / aspect, 1))
        rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    if matrix is not None:
        a, b, _, c, d = matrix
        if abs(b) > abs(a):  # a quarter turn: a = d = 0
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        rgb = rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return Image.fromarray(np.ascontiguousarray(rgb))
