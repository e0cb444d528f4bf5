"""Writes videos: MP4 (H.264) by PyAV, GIF by Pillow. Equal pictures give equal bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction

import av
import av.codec
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from easi3r_jax.core.atomic import atomic_file
from easi3r_jax.core.errors import OutputError

_ENCODER = "libx264"
# Frames per second if the times do not determine it, and the range that players support.
_ASSUMED_RATE, _MIN_RATE, _MAX_RATE = 10, 1, 60
# One thread: with more, the bytes depend on the number of processors. Without x264's macroblock tree: with it, core 165
# wrote two or three different files for the same pictures in ten runs.
_OPTIONS = {"crf": "18", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
# The index comes first, so that players need not wait for the end; and the writer's version is not stored.
_CONTAINER = {"movflags": "faststart", "fflags": "bitexact"}
_PALETTE_FRAMES = 16
# FFmpeg's number for BT.709, for the primaries and the transfer characteristic.
_BT709 = 1


def frame_rate(time: np.ndarray) -> Fraction:
    """Frames per second of a clip from its (T,) times in seconds: by the median step, within 1..60; 10 if unknown."""
    steps = np.diff(np.asarray(time, np.float64))
    step = float(np.median(steps)) if steps.size else 0.0
    if not np.isfinite(step) or step <= 0:
        return Fraction(_ASSUMED_RATE)
    return Fraction(min(max(1 / step, _MIN_RATE), _MAX_RATE)).limit_denominator(1001)


def ensure_encoder() -> None:
    """Fails early if `write_mp4` would fail later.

    Raises:
      OutputError: there is no encoder for H.264.
    """
    try:
        av.codec.Codec(_ENCODER, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise OutputError(
            f"Cannot write videos: PyAV was built without {_ENCODER}. Install the package av from PyPI, or omit the "
            "videos."
        ) from error


def write_mp4(path: str | os.PathLike, pictures: Sequence[np.ndarray], rate: Fraction) -> None:
    """Writes H.264 in yuv420p, which all players support. The file is written atomically.

    Args:
      path: the file.
      pictures: T >= 1 of (H, W, 3) uint8, all of one size. An odd side is made even by repeating the last row or
        column.
      rate: frames per second, constant.

    Raises:
      OutputError: the file cannot be written, or there is no encoder for H.264.
    """
    ensure_encoder()
    height, width = (side + side % 2 for side in pictures[0].shape[:2])
    with (
        atomic_file(path) as new,
        av.open(f"file:{new}", "w", format="mp4", container_options=_CONTAINER) as container,
    ):
        stream = container.add_stream(_ENCODER, rate, options=_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries = context.color_trc = _BT709
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(_even(picture, height, width), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_gif(path: str | os.PathLike, pictures: Sequence[np.ndarray], rate: Fraction) -> None:
    """Writes an endless GIF with one palette for the clip. The file is written atomically.

    Args:
      path: the file.
      pictures: T >= 1 of (H, W, 3) uint8, all of one size.
      rate: frames per second. GIF has steps of 1/100 s, and browsers show no frame for less than 2 of them.

    Raises:
      OutputError: the file cannot be written.
    """
    palette = _palette(pictures)
    frames = (Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    duration = 10 * max(2, round(100 / rate))
    with atomic_file(path) as new:
        next(frames).save(new, "GIF", save_all=True, append_images=frames, duration=duration, loop=0, optimize=False)


def _palette(pictures: Sequence[np.ndarray]) -> Image.Image:
    """256 colours for all pictures, computed from some of them."""
    chosen = np.unique(np.linspace(0, len(pictures) - 1, _PALETTE_FRAMES).round().astype(int))
    rows = np.concatenate([np.asarray(pictures[int(t)])[::2, ::2] for t in chosen])
    return Image.fromarray(rows).quantize(256, method=Image.Quantize.MEDIANCUT)


def _even(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    down, right = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, ((0, down), (0, right), (0, 0)), mode="edge") if down or right else picture
