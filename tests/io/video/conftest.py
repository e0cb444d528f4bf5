"""Clips whose frames show their number as a pattern of bright and dark squares."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from easi3r_jax.core.config import FrameConfig

WIDTH, HEIGHT, SQUARE = 64, 48, 16
BITS = 8


def numbered_picture(number: int) -> np.ndarray:
    """(48, 64, 3) uint8: two rows of squares are the bits of the number, the third has red on its left, blue right."""
    picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    for bit in range(BITS):
        y, x = SQUARE * (bit // 4), SQUARE * (bit % 4)
        picture[y : y + SQUARE, x : x + SQUARE] = 215 if number >> bit & 1 else 40
    picture[32:, :16] = [215, 40, 40]
    picture[32:, 48:] = [40, 40, 215]
    return picture


def numbers_of(rgb: np.ndarray) -> list[int]:
    """Reads the numbers back; fails for a blend of two pictures, or a rotated or mirrored one."""
    numbers = []
    for picture in np.asarray(rgb, float):
        cells = picture.reshape(HEIGHT // SQUARE, SQUARE, WIDTH // SQUARE, SQUARE, 3)[:, 3:13, :, 3:13].mean((1, 3))
        levels = cells[:2].mean(-1).reshape(BITS)
        assert np.minimum(abs(levels - 40), abs(levels - 215)).max() < 40, levels
        assert cells[2, 0, 0] > cells[2, 0, 2] + 80 and cells[2, 3, 2] > cells[2, 3, 0] + 80, cells[2]
        numbers.append(sum(int(level > 128) << bit for bit, level in enumerate(levels)))
    return numbers


def write_clip(
    path: pathlib.Path,
    codec: str = "libx264",
    *,
    num_frames: int = 30,
    rate: int = 24,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    pixels: str = "yuv420p",
    aspect: Fraction | None = None,
    muxer: dict[str, str] | None = None,
    sound: bool = False,
    picture: Callable[[int], int] = lambda number: number % 256,
    **options: str,
) -> pathlib.Path:
    """Writes a video whose frames show numbers.

    Args:
      path: its suffix selects the format.
      codec, pixels: codec and pixel format.
      num_frames, rate: length, frames per second.
      times: display time of each frame in `time_base`; by default consecutive.
      time_base: seconds; by default one frame.
      aspect: width of a pixel over its height.
      muxer: options of the format.
      sound: add a silent soundtrack.
      picture: the number that a frame shows, by its index.
      options: of the codec.
    """
    time_base = time_base or Fraction(1, rate)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.codec_context.time_base = time_base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        track: Any = container.add_stream("aac", rate=48000) if sound else None
        container.start_encoding()
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(picture(number)), format="rgb24")
            frame.pts, frame.time_base = (number if times is None else times[number]), time_base
            container.mux(stream.encode(frame))
            if track is not None:
                samples = 48000 // rate
                silence = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 48000, number * samples
                container.mux(track.encode(silence))
        container.mux(stream.encode())
        if track is not None:
            container.mux(track.encode())
    return path


#: A clip in each of the formats that cameras, phones, browsers and programs write: file name -> arguments of
#: `write_clip`. Groups of pictures are small and have B-frames, so that frames are reordered and most truncations fall
#: within a group.
KINDS: dict[str, dict[str, Any]] = {
    "plain.mp4": {"bf": "3", "g": "12"},
    "index_first.mp4": {"bf": "3", "g": "12", "muxer": {"movflags": "faststart"}},
    "fragments.mp4": {"bf": "3", "g": "12", "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "sound.mp4": {"bf": "3", "g": "12", "muxer": {"movflags": "faststart"}, "sound": True},
    "plain.mov": {"bf": "3", "g": "12"},
    "plain.mkv": {"bf": "3", "g": "12"},
    "sound.mkv": {"bf": "3", "g": "12", "sound": True},
    "live.mkv": {"bf": "3", "g": "12", "muxer": {"live": "1"}},
    "plain.webm": {"codec": "libvpx-vp9"},
    "live.webm": {"codec": "libvpx-vp9", "muxer": {"live": "1"}},
    "mpeg4.avi": {"codec": "mpeg4", "g": "12"},
    "motion_jpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "plain.wmv": {"codec": "wmv2"},
    "plain.flv": {"bf": "3", "g": "12"},
    "plain.ts": {"bf": "3", "g": "12"},
    "plain.gif": {"codec": "gif", "pixels": "rgb8"},
    "plain.apng": {"codec": "apng", "pixels": "rgb24"},
}


@pytest.fixture(scope="session")
def config() -> FrameConfig:
    """Frames of the clips' own size: nothing is resized or cropped."""
    return FrameConfig(size=WIDTH)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Callable[[str], pathlib.Path]:
    """A function from a name in KINDS to its clip, 30 frames at 24 per second, written on first use."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name: str) -> pathlib.Path:
        path = folder / name
        return path if path.exists() else write_clip(path, **KINDS[name])

    return get


@pytest.fixture(scope="session")
def write() -> Callable[..., pathlib.Path]:
    """`write_clip`."""
    return write_clip


@pytest.fixture(scope="session")
def numbers() -> Callable[[np.ndarray], list[int]]:
    """`numbers_of`."""
    return numbers_of


def pytest_generate_tests(metafunc):
    """A test with an argument `kind` runs for each kind of clip."""
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS)
