"""Colours and orientation that a file declares in its side data and profiles."""

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.io.video import load_frames
from tests.io.video.conftest import HEIGHT, WIDTH, numbered_picture
from tests.io.video.test_pixels import ORIENT


def jpeg(pixels, orientation):
    exif = Image.Exif()
    exif[0x10F], exif[0x112] = "a camera", orientation
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["avi", "mov", "mkv"])
@pytest.mark.parametrize("orientation", ORIENT)
def test_a_video_of_camera_jpegs(tmp_path, numbers, config, suffix, orientation):
    """Copied, with their EXIF: the installed FFmpeg has kinds of side data that PyAV does not know."""
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=10)
        stored = ORIENT[orientation](numbered_picture(0)).shape
        stream.width, stream.height, stream.pix_fmt = stored[1], stored[0], "yuvj420p"
        for number in range(4):
            packet = av.Packet(jpeg(ORIENT[orientation](numbered_picture(number)), orientation))
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 10), stream, True
            container.mux(packet)
    assert numbers(load_frames(path, config).rgb) == [0, 1, 2, 3]


def test_an_animated_png_with_exif(tmp_path, numbers, config):
    exif = Image.Exif()
    exif[0x10F] = "a camera"
    pictures = [Image.fromarray(numbered_picture(number)) for number in range(4)]
    path = tmp_path / "a.apng"
    pictures[0].save(path, "PNG", save_all=True, append_images=pictures[1:], exif=exif, duration=100)
    assert numbers(load_frames(path, config).rgb) == [0, 1, 2, 3]


def colored(path, colors, *, primaries, transfer, matrix, declared=None):
    """A video of four flat squares, with these colours as its declared primaries have them."""
    pixels = np.asarray(colors, np.uint8).reshape(2, 2, 3).repeat(HEIGHT // 2, 0).repeat(WIDTH // 2, 1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            "libx265", rate=10, options={"x265-params": "log-level=none", "crf": "1", "preset": "ultrafast"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = primaries, transfer, declared or matrix
        context.color_range = 1 if declared is None else 0
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=matrix, src_color_range=2, dst_color_range=1)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


#: (x, y) of red, green and blue, all with D65 (ITU-R BT.2020, BT.709; SMPTE EG 432-1).
PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}


def xyz_from_rgb(primaries):
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES[primaries]]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def as_bt709(colors, primaries):
    """By the standards' equations: linear light, another basis, clipped, the curve again."""
    values = np.asarray(colors) / 255
    light = np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))
    light = np.clip(light @ np.linalg.solve(xyz_from_rgb(1), xyz_from_rgb(primaries)).T, 0, 1)
    return 255 * np.where(light < 0.018, light * 4.5, 1.099 * light**0.45 - 0.099)


COLORS = ((190, 110, 90), (80, 160, 90), (90, 90, 180), (128, 128, 128))


@pytest.mark.parametrize(("primaries", "transfer", "matrix"), [(9, 14, 9), (9, 1, 9), (12, 1, 1), (1, 1, 1)])
def test_wide_gamut_is_converted(tmp_path, config, caplog, primaries, transfer, matrix):
    path = colored(tmp_path / "a.mp4", COLORS, primaries=primaries, transfer=transfer, matrix=matrix)
    found = load_frames(path, config).rgb[:, HEIGHT // 4 :: HEIGHT // 2, WIDTH // 4 :: WIDTH // 2].reshape(2, 4, 3)
    expected = as_bt709(COLORS, primaries)
    assert (np.abs(expected - COLORS).max() > 20) == (primaries != 1)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=5)
    assert not caplog.records


def test_wide_gamut_without_a_matrix(tmp_path, config):
    """Of BT.2020's own matrix, then; the range is video's."""
    path = colored(tmp_path / "a.mp4", COLORS, primaries=9, transfer=2, matrix=9, declared=2)
    found = load_frames(path, config).rgb[:, HEIGHT // 4 :: HEIGHT // 2, WIDTH // 4 :: WIDTH // 2].reshape(2, 4, 3)
    np.testing.assert_allclose(found[0], as_bt709(COLORS, 9), atol=6)


def test_colours_that_are_not_converted_are_said_to_be(tmp_path, config, caplog):
    load_frames(colored(tmp_path / "a.mp4", COLORS, primaries=9, transfer=9, matrix=9), config)
    (record,) = caplog.records
    assert "a.mp4 has BT.2020 colours: they are not converted and look pale; convert it" in record.getMessage()
