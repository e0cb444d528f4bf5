"""Videos and GIFs, read back by independent readers."""

import errno
import os
import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import OutputError
from easi3r_jax.io.pictures import movies as video
from easi3r_jax.io.pictures.movies import frame_rate, write_gif, write_mp4
from easi3r_jax.io.video import load_frames

RATE = Fraction(12)


def pictures(count=5, height=64, width=96):
    """Smooth colourful pictures, all different."""
    y, x = np.mgrid[:height, :width]
    waves = [[np.sin(0.05 * (c + 1) * x + 0.03 * y + t + c) for c in range(3)] for t in range(count)]
    return list((128 + 110 * np.array(waves)).astype(np.uint8).transpose(0, 2, 3, 1))


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream, np.stack(frames)


def test_a_video_is_read_back(tmp_path):
    write_mp4(tmp_path / "clip.mp4", pictures(), RATE)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (RATE, 5)
        frames = list(container.decode(stream))
    assert [round(frame.time * 12) for frame in frames] == list(range(5))  # constant, from 0
    found = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    assert np.abs(found.astype(int) - pictures()).mean() < 5
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def boxes(data):
    """Names of an MP4 file's top-level boxes, in order: ISO/IEC 14496-12, section 4.2."""
    names, at = [], 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        names.append(name.decode())
        at += size
    return names


def test_the_index_comes_first_and_the_colour_space_is_declared(tmp_path):
    write_mp4(tmp_path / "clip.mp4", pictures(), RATE)
    data = (tmp_path / "clip.mp4").read_bytes()
    assert boxes(data).index("moov") < boxes(data).index("mdat")
    # In the sample entry: primaries, transfer and matrix, all BT.709, and limited range (section 12.1.5).
    assert data.count(b"colrnclx" + struct.pack(">HHHB", 1, 1, 1, 0)) == 1


def test_other_readers_see_the_same_colours(tmp_path):
    """OpenCV's and this project's own, on large areas of pure colours: a wrong matrix or range would change them."""
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [90, 160, 40]], np.uint8)
    picture = np.ascontiguousarray(np.broadcast_to(colors.repeat(32, 0)[None], (64, 192, 3)))
    write_mp4(tmp_path / "clip.mp4", [picture] * 3, RATE)
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    _, bgr = capture.read()
    capture.release()
    own = load_frames(tmp_path / "clip.mp4", FrameConfig(size=192, patch_size=16)).rgb
    for found in (bgr[..., ::-1], own[0]):
        np.testing.assert_allclose(found[32, 16::32].astype(int), colors.astype(int), atol=6)


def test_odd_sides_become_even(tmp_path):
    write_mp4(tmp_path / "clip.mp4", pictures(3, 63, 95), RATE)
    found = decoded(tmp_path / "clip.mp4")[1]
    assert found.shape == (3, 64, 96, 3)
    assert np.abs(found[:, :63, :95].astype(int) - pictures(3, 63, 95)).mean() < 4


def test_a_video_of_one_frame(tmp_path):
    write_mp4(tmp_path / "clip.mp4", pictures(1), RATE)
    write_gif(tmp_path / "clip.gif", pictures(1), RATE)
    assert len(decoded(tmp_path / "clip.mp4")[1]) == 1
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.n_frames == 1


def test_same_pictures_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_mp4(tmp_path / f"{name}.mp4", pictures(), RATE)
        write_gif(tmp_path / f"{name}.gif", pictures(), RATE)
    for suffix in ("mp4", "gif"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_gif_is_never_faster_than_browsers_can_show(tmp_path):
    write_gif(tmp_path / "clip.gif", pictures(2), Fraction(200))
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.info["duration"] == 20


@pytest.mark.parametrize(
    ("time", "rate"),
    [
        (np.arange(9) / 24, 24),
        (np.arange(9) * 1001 / 30000, Fraction(30000, 1001)),
        (np.array([0, 0.1, 0.2, 3.0, 3.1]), 10),  # a gap
        (np.arange(4) * 60.0, 1),
        (np.arange(4) / 1000, 60),
        (np.zeros(1), 10),
        (np.zeros(4), 10),
        (np.array([0, np.nan, 1]), 10),
    ],
)
def test_the_rate_is_that_of_the_times(time, rate):
    assert frame_rate(time) == rate


def test_a_gif_is_read_back(tmp_path):
    write_gif(tmp_path / "clip.gif", pictures(), RATE)
    with Image.open(tmp_path / "clip.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.size) == (5, 0, (96, 64))
        frames = []
        for frame in ImageSequence.Iterator(gif):
            assert frame.info["duration"] == 80  # of 1/12 s, in steps of 1/100
            frames.append(np.asarray(frame.convert("RGB")))
    assert np.abs(np.stack(frames).astype(int) - pictures()).mean() < 8
    assert [p.name for p in tmp_path.iterdir()] == ["clip.gif"]


def test_a_missing_encoder_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_ENCODER", "none_such")
    with pytest.raises(OutputError, match="Cannot write videos") as error:
        write_mp4(tmp_path / "clip.mp4", pictures(), RATE)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("write", [write_mp4, write_gif])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_keeps_the_existing_video(tmp_path, write, error):
    class Failing(list):
        """Fails at the fourth picture, when the encoder has already started."""

        def __iter__(self):
            yield from self[:3]
            raise error

    (tmp_path / "clip").write_bytes(b"older")
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write(tmp_path / "clip", Failing(pictures()), RATE)
    assert (tmp_path / "clip").read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["clip"]


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_an_unwritable_path_is_refused(tmp_path, write):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="Cannot write"):
        write(tmp_path / "file" / "clip.mp4", pictures(), RATE)
