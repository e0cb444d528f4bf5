"""Generated videos, read against the numbers in their pictures: codec x container x rate mode x rotation x B-frames."""

import dataclasses
import itertools
import logging
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video import load_frames, structure
from easi3r_jax.io.video.times import RisingTimes
from tests.io.video.conftest import numbered_picture

LENGTH = 24
B_FRAMES = {"bf": "3", "g": "12"}

#: Codec -> arguments of `write_clip`, and the containers that take it.
CODECS: dict[str, tuple[dict[str, Any], str]] = {
    "h264": ({"codec": "libx264", "bf": "0"}, "mp4 mov mkv avi ts mts flv 3gp nut h264 mpg wmv"),
    "h264 with B-frames": ({"codec": "libx264", **B_FRAMES}, "mp4 mov mkv avi ts mts flv 3gp nut h264 mpg wmv"),
    "hevc": ({"codec": "libx265", "x265-params": "log-level=none"}, "mp4 mov mkv ts hevc"),
    "mpeg4": ({"codec": "mpeg4"}, "mp4 mov mkv avi ts mpg wmv"),
    "mpeg4 with B-frames": ({"codec": "mpeg4", "bf": "2"}, "mp4 mov mkv avi"),
    "mpeg2": ({"codec": "mpeg2video", "rate": 25, "bf": "2"}, "mp4 mkv avi ts mpg vob m2v mxf wmv"),
    "mpeg1": ({"codec": "mpeg1video", "rate": 25}, "mpg avi"),
    "mjpeg": ({"codec": "mjpeg", "pixels": "yuvj420p"}, "mp4 mov mkv avi nut"),
    "vp8": ({"codec": "libvpx", "deadline": "realtime"}, "webm mkv ivf avi"),
    "vp9": ({"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"}, "webm mkv mp4 ivf"),
    "av1": ({"codec": "libsvtav1", "preset": "11"}, "mp4 webm mkv ivf"),
    "prores": ({"codec": "prores_ks", "pixels": "yuv422p10le"}, "mov mkv"),
    "ffv1": ({"codec": "ffv1"}, "mkv avi"),
    "wmv2": ({"codec": "wmv2"}, "wmv avi"),
    "flv1": ({"codec": "flv"}, "flv"),
    "raw": ({"codec": "rawvideo"}, "avi nut"),
}
CASES = [(codec, suffix) for codec, (_, suffixes) in CODECS.items() for suffix in suffixes.split()]


@pytest.mark.parametrize(("codec", "suffix"), CASES)
def test_every_codec_in_every_container(tmp_path, write, config, numbers, codec, suffix):
    arguments, _ = CODECS[codec]
    path = write(tmp_path / f"clip.{suffix}", num_frames=LENGTH, **arguments)
    frames = load_frames(path, config)
    assert numbers(frames.rgb) == list(range(LENGTH))
    np.testing.assert_allclose(frames.time, np.arange(LENGTH) / arguments.get("rate", 24), atol=1.1e-3)
    third = dataclasses.replace(config, fps=arguments.get("rate", 24) / 3)
    assert load_frames(path, third).source_index.tolist() == list(range(0, LENGTH, 3))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts", "flv"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_variable_rates(tmp_path, write, config, numbers, suffix, b_frames, seed):
    rng = np.random.default_rng(seed)
    times = np.concatenate([[0], np.cumsum(rng.integers(1, 40, LENGTH - 1))])  # in 1/100 s
    arguments = {"times": times.tolist(), "time_base": Fraction(1, 100), "bf": str(b_frames), "g": "8"}
    frames = load_frames(write(tmp_path / f"a.{suffix}", num_frames=LENGTH, **arguments), config)
    assert numbers(frames.rgb) == list(range(LENGTH))
    np.testing.assert_allclose(frames.time, times / 100, atol=1.1e-3)


@pytest.mark.parametrize(("codec", "suffix"), [("h264 with B-frames", "mp4"), ("hevc", "mov"), ("mpeg4", "mp4")])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotations(tmp_path, clips, write, codec, suffix, degrees):
    plain = write(tmp_path / f"plain.{suffix}", num_frames=6, **CODECS[codec][0])
    turned = tmp_path / f"turned.{suffix}"
    with av.open(str(plain)) as old, av.open(str(turned), "w") as new:
        stream: Any = new.add_stream_from_template(old.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    size = FrameConfig(size=64, patch_size=16)
    upright, found = load_frames(plain, size).rgb, load_frames(turned, size).rgb
    np.testing.assert_array_equal(found, np.rot90(upright, degrees // 90, (1, 2)))  # anticlockwise, as FFmpeg counts


def copied(source, target, change=lambda packet, number: None, *, annex_b=False):
    """Copies the coded pictures to another container, as programs do; `change` may alter their times."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        is_h264 = old.streams.video[0].codec_context.name == "h264"
        begin, number = None, 0
        filtering = av.bitstream.BitStreamFilterContext("h264_mp4toannexb" if is_h264 and annex_b else "null", stream)
        packets = [q for p in old.demux(video=0) if p.dts is not None for q in filtering.filter(p)]
        for number, packet in enumerate([*packets, *filtering.filter(None)]):
            begin = packet.dts if begin is None else begin
            packet.pts, packet.dts = packet.pts - begin, packet.dts - begin
            change(packet, number)
            packet.stream = stream
            new.mux(packet)
    return target


def decoding_time(packet, number):
    packet.pts = packet.dts


@pytest.mark.parametrize("codec", ["h264 with B-frames", "mpeg4 with B-frames", "hevc"])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_decoding_times_in_place_of_display_times(tmp_path, write, config, numbers, codec, suffix):
    source = write(tmp_path / "source.mp4", num_frames=LENGTH, **CODECS[codec][0])
    frames = load_frames(copied(source, tmp_path / f"copy.{suffix}", decoding_time), config)
    assert numbers(frames.rgb) == list(range(LENGTH))
    np.testing.assert_allclose(frames.time, np.arange(LENGTH) / 24, atol=1.1e-3)


@pytest.mark.parametrize("codec", ["h264", "h264 with B-frames", "mpeg4 with B-frames"])
def test_copied_into_avi(tmp_path, write, config, numbers, codec):
    """AVI has no display times; FFmpeg fills the header's count with empty chunks if it does not know the rate."""
    source = write(tmp_path / "source.mp4", num_frames=LENGTH, **CODECS[codec][0])
    frames = load_frames(copied(source, tmp_path / "copy.avi", annex_b=True), config)
    assert numbers(frames.rgb) == list(range(LENGTH))
    np.testing.assert_allclose(frames.time, np.arange(LENGTH) / 24, atol=1.1e-3)


def with_dropped(path, dropped, target):
    """An AVI in which empty chunks stand for some pictures, as capture programs write them."""
    data = path.read_bytes()
    begin = data.index(b"movi")
    position, number, movie = begin + 4, 0, b""
    while data[position : position + 4] == b"00dc":
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        content = b"" if number in dropped else data[position + 8 : position + 8 + length]
        movie += b"00dc" + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)
        position += 8 + length + length % 2
        number += 1
    body = data[12 : begin - 8] + b"LIST" + (len(movie) + 4).to_bytes(4, "little") + b"movi" + movie
    places, offset = b"", 4
    while offset < len(movie) + 4:
        length = int.from_bytes(movie[offset : offset + 4], "little")
        places += b"00dc" + (16).to_bytes(4, "little") + offset.to_bytes(4, "little") + length.to_bytes(4, "little")
        offset += 8 + length + length % 2
    body += b"idx1" + len(places).to_bytes(4, "little") + places
    target.write_bytes(b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"AVI " + body)
    return target


@pytest.mark.parametrize("dropped", [{5, 6, 7, 15}, {22, 23}, {1}, set(range(10, 24))])
def test_dropped_pictures_of_an_avi_are_not_a_truncation(tmp_path, write, config, numbers, dropped):
    source = write(tmp_path / "a.avi", "mjpeg", pixels="yuvj420p", num_frames=LENGTH)
    path = with_dropped(source, dropped, tmp_path / "dropped.avi")
    kept = [number for number in range(LENGTH) if number not in dropped]
    frames = load_frames(path, config)
    assert numbers(frames.rgb) == kept
    np.testing.assert_allclose(frames.time, np.array(kept) / 24, atol=1e-6)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"idx1") - 40])
    with pytest.raises(InputError, match=r"truncated: it ends after frame \d+|Frame \d+ of"):
        load_frames(path, config)


def test_packed_pictures(tmp_path, write, config, numbers):
    """DivX and Xvid put a B-picture behind the next P-picture in one chunk, and an empty one in its place."""
    source = write(tmp_path / "a.avi", "mpeg4", num_frames=LENGTH, bf="1", g="100")
    with av.open(str(source)) as container:
        pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    marker = b"\0\0\1\xb2DivX503b1393p"
    start = pictures[0].index(b"\0\0\1\xb6")
    pictures[0] = pictures[0][:start] + marker + pictures[0][start:]
    is_b = [picture[picture.index(b"\0\0\1\xb6") + 4] >> 6 == 2 for picture in pictures]
    packed, k = [], 0
    while k < len(pictures):
        if k + 1 < len(pictures) and is_b[k + 1] and not is_b[k]:
            packed += [pictures[k] + pictures[k + 1], b"\0\0\1\xb6\x51\x90\x1f"]
            k += 2
        else:
            packed.append(pictures[k])
            k += 1
    assert len(packed) == LENGTH and sum(is_b) > 6
    with av.open(str(source)) as old, av.open(str(tmp_path / "packed.avi"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, content in enumerate(packed):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 24)
            packet.is_keyframe = number == 0
            new.mux(packet)
    frames = load_frames(tmp_path / "packed.avi", config)
    assert numbers(frames.rgb) == list(range(LENGTH))
    np.testing.assert_allclose(frames.time, np.arange(LENGTH) / 24, atol=1e-6)


def test_joined_recordings_go_on(tmp_path, write, config, numbers):
    """Two program streams one after the other: the second starts again at zero."""
    parts = [
        write(tmp_path / f"{k}.mpg", "mpeg2video", num_frames=40, rate=25, picture=lambda n, k=k: n + 40 * k)
        for k in range(2)
    ]
    (tmp_path / "both.mpg").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = load_frames(tmp_path / "both.mpg", config)
    assert numbers(frames.rgb) == list(range(80))
    np.testing.assert_allclose(frames.time, np.arange(80) / 25, atol=0.05)
    assert (np.diff(frames.time) > 0).all()


@pytest.mark.parametrize("seed", range(200))
def test_times_rise_whatever_a_file_gives(seed):
    """Right times are kept; otherwise they rise, and stay near the right ones."""
    rng = np.random.default_rng(seed)
    interval = Fraction(1, int(rng.integers(1, 121)))
    right = [interval * int(n) for n in np.cumsum(rng.integers(1, 4, 40))]
    given: list[Fraction | None] = list(right)
    kind = seed % 5
    if kind == 1:
        given = [None if rng.random() < 0.3 else time for time in right]
    elif kind == 2:
        given = [right[k - 1] if k and rng.random() < 0.3 else time for k, time in enumerate(right)]
    elif kind == 3:
        given = [right[max(0, k + int(rng.integers(-3, 4)))] if 3 < k < 36 else time for k, time in enumerate(right)]
    elif kind == 4:
        given = [time - right[20] + interval * 5 if k > 20 else time + 500 for k, time in enumerate(right)]
    found = list(RisingTimes(interval).stamped(iter(list(enumerate(given)))))
    assert [number for number, _ in found] == list(range(40))
    times = [time for _, time in found]
    assert times[0] == 0 and all(after > before for before, after in itertools.pairwise(times))
    expected = [time - right[0] for time in right]
    if kind == 0:
        assert times == expected
    else:
        assert max(abs(a - b) for a, b in zip(times, expected, strict=True)) <= 20 * interval


def test_an_error_of_the_next_picture_comes_after_the_picture_whose_time_it_would_have_told():
    def pictures():
        yield from [("a", Fraction(0)), ("b", Fraction(1)), ("c", None)]
        raise InputError("damaged")

    collected = []

    def collect():
        for name, _ in RisingTimes(Fraction(1)).stamped(pictures()):
            collected.append(name)

    with pytest.raises(InputError, match="damaged"):
        collect()
    assert collected == ["a", "b", "c"]


def test_the_default_track_is_read_and_others_are_named(tmp_path, config, numbers, caplog):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=24) for _ in range(2)]
        for stream, size in zip(streams, ((32, 32), (64, 48)), strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        streams[1].disposition, streams[0].disposition = av.stream.Disposition.default, av.stream.Disposition(0)
        for number in range(6):
            for stream in streams:
                picture = numbered_picture(number) if stream is streams[1] else np.zeros((32, 32, 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 24)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    with caplog.at_level(logging.WARNING, logger="absl"):
        frames = load_frames(path, config)
    assert numbers(frames.rgb) == list(range(6))
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} has 2 video tracks: track 1 (64x48) is read, as players choose; left out: 32x32"
    ]


def test_the_structure_counts_the_pictures(tmp_path, write):
    for suffix, name in (("mkv", "matroska,webm"), ("avi", "avi")):
        path = write(tmp_path / f"a.{suffix}", "mpeg4", num_frames=LENGTH)
        assert structure.packets_of_complete(path, name) == LENGTH
    path = write(tmp_path / "live.mkv", num_frames=LENGTH, muxer={"live": "1"})
    assert structure.packets_of_complete(path, "matroska,webm") is None
