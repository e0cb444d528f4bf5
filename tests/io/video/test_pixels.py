"""Header and pixels: every pixel format x orientation x depth against the numbers that were written."""

import logging
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.files import read_gray16
from easi3r_jax.io.video import load_frames
from easi3r_jax.io.video.images import image_shape, read_image
from tests.io.video.conftest import HEIGHT, WIDTH, numbered_picture

ORIENT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (20, 32, 3), np.uint8)


#: Format -> suffix, whether it is exact, and the image that is saved, from (20, 32, 3) uint8; gray ones take channel 0.
KINDS = {
    "RGB png": ("png", lambda p: Image.fromarray(p)),
    "RGB tif": ("tif", lambda p: Image.fromarray(p)),
    "gray tif": ("tif", lambda p: Image.fromarray(np.ascontiguousarray(p[..., 0]))),
    "gray16 tif": ("tif", lambda p: Image.fromarray(p[..., 0].astype(np.uint16) * 257)),
    "gray16 png": ("png", lambda p: Image.fromarray(p[..., 0].astype(np.uint16) * 257)),
    "RGBA png": ("png", lambda p: Image.fromarray(np.dstack([p, p[..., :1]]))),
    "RGBA tif": ("tif", lambda p: Image.fromarray(np.dstack([p, p[..., :1]]))),
    "RGB webp": ("webp", lambda p: Image.fromarray(p)),
}


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("orientation", ORIENT)
def test_every_format_in_every_orientation(tmp_path, form, orientation):
    suffix, encode = KINDS[form]
    upright = picture(orientation)
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {"tiffinfo": {274: orientation}} if suffix == "tif" else {"exif": exif}
    if suffix == "webp":
        options |= {"lossless": True}
    path = tmp_path / f"a.{suffix}"
    encode(np.ascontiguousarray(ORIENT[orientation](upright))).save(path, **options)
    expected = upright if "gray" not in form else np.repeat(upright[..., :1], 3, -1)
    assert image_shape(path) == (20, 32)
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)


@pytest.mark.parametrize("maximum", [1, 15, 255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("form", ["P5", "P2"])
def test_gray_of_any_range(tmp_path, maximum, form):
    """Pictures use the whole range that the header names; numbers, such as depth, are as stored."""
    values = np.random.default_rng(0).integers(0, maximum + 1, (20, 32))
    head = f"{form}\n# range\n32 20\n{maximum}\n".encode()
    depth = ">u2" if maximum > 255 else "u1"
    body = values.astype(depth).tobytes() if form == "P5" else " ".join(map(str, values.ravel())).encode() + b"\n"
    path = tmp_path / "a.pgm"
    path.write_bytes(head + body)
    expected = values / maximum * 255
    assert abs(np.asarray(read_image(path))[..., 0] - expected).max() <= 1
    if maximum > 255:
        np.testing.assert_array_equal(read_gray16(path), values)
    else:
        with pytest.raises(InputError, match="16-bit gray image is needed"):
            read_gray16(path)


def write_12_bits(path, values):
    """A TIFF of 12 bits a pixel, two pixels in three bytes."""
    height, width = values.shape
    pairs = values.reshape(-1, 2).astype(int)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    data = packed.astype(np.uint8).tobytes()
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(data)))
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    offset = 8 + len(data)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, offset) + data + directory)


def test_12_bits_are_the_whole_range(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (20, 32))
    write_12_bits(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif"))[..., 0], values >> 4)
    np.testing.assert_array_equal(read_gray16(tmp_path / "a.tif"), values)


def test_12_bits_in_16_are_said_to_be_dark(tmp_path, config, caplog):
    values = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "0.png")
    load_frames(tmp_path, config)
    assert f"{tmp_path}: no pixel is brighter than 15 of 255" in caplog.text
    caplog.clear()
    Image.fromarray(values * 16).save(tmp_path / "0.png")
    load_frames(tmp_path, config)
    assert not caplog.records


def written(path, *, trc=None, **options):
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if trc is not None:
            stream.codec_context.color_trc = trc
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("trc", "name"), [(16, "PQ"), (18, "HLG"), (1, None)])
def test_video_of_high_dynamic_range_is_said_to_be_pale(tmp_path, config, numbers, caplog, trc, name):
    with caplog.at_level(logging.WARNING, logger="absl"):
        frames = load_frames(written(tmp_path / "a.mp4", trc=trc), config)
    assert numbers(frames.rgb) == list(range(4))
    assert [f"is HDR ({name}) video" in r.getMessage() for r in caplog.records] == ([True] if name else [])


@pytest.mark.parametrize("interlaced", [False, True])
def test_interlaced_video_is_said_to_be(tmp_path, config, numbers, caplog, interlaced):
    options = {"x264-params": "tff=1"} if interlaced else {}
    with caplog.at_level(logging.WARNING, logger="absl"):
        frames = load_frames(written(tmp_path / "a.mkv", **options), config)
    assert numbers(frames.rgb) == list(range(4))
    assert ["is interlaced: moving edges" in r.getMessage() for r in caplog.records] == ([True] if interlaced else [])
