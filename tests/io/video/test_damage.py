"""Truncated and damaged videos, and files that are not videos: an error, and never a silently shorter clip."""

import dataclasses
import re

import av
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video import load_frames

#: Formats in which packets without a picture are legal, or in which any bytes decode to a picture.
LENIENT = {"mpeg4.avi", "plain.wmv", "plain.ts", "plain.gif"}
ADVICE = re.compile(r"[Cc]opy (it|the clip)|convert|[Gg]ive|check the path|Replace|take larger")


def error_of(path, config):
    with pytest.raises(InputError) as caught:
        load_frames(path, config)
    message = str(caught.value)
    assert str(path) in message and ADVICE.search(message), message
    assert "\n" not in message
    return message


def cut(path, folder, length):
    target = folder / path.name
    target.write_bytes(path.read_bytes()[:length])
    return target


def is_last_byte_needed(path):
    """Some writers put padding for tags, or an optional index, after the last frame."""
    return path.suffix not in {".avi", ".flv", ".ts"}


def outcome(path, config):
    """(frames, "") or (None, error message)."""
    try:
        return load_frames(path, config), ""
    except InputError as error:
        return None, str(error)


def test_truncated_anywhere(clips, config, numbers, tmp_path, kind):
    """A truncated file raises, unless only bytes after the last frame are missing."""
    path = clips(kind)
    size = path.stat().st_size
    for length in np.linspace(1, size - 1, 25).astype(int).tolist():
        if kind == "plain.ts" and length % 188 == 0:  # whole packets of a format that declares no length
            continue
        target = cut(path, tmp_path, length)
        frames, message = outcome(target, config)
        if frames is not None:
            assert not is_last_byte_needed(path) and length > size * 0.9
            assert numbers(frames.rgb) == list(range(30))
        else:
            assert str(target) in message and ADVICE.search(message), message


@pytest.mark.parametrize(
    "name", ["index_first.mp4", "sound.mp4", "plain.mkv", "live.mkv", "plain.webm", "motion_jpeg.avi", "plain.flv"]
)
def test_the_error_of_a_truncated_file_names_the_frame_and_what_is_left(clips, config, numbers, tmp_path, name):
    path = clips(name)
    positions = sorted(position for position, _ in packets_of(path))
    # Within the packet of the 20th picture: in display order, a few more or fewer are left.
    target = cut(path, tmp_path, positions[20] + 5)
    message = error_of(target, config)
    named = re.search(r"after frame (\d+)|Frame (\d+) of", message)
    assert named, message
    left = int(named[1]) + 1 if named[1] else int(named[2])
    assert 16 <= left <= 20
    # The advice works: that many frames can be read, and they are the right ones.
    assert f"only the {left} frames" in message
    frames = load_frames(target, dataclasses.replace(config, first=left))
    assert numbers(frames.rgb) == list(range(left))


def test_without_its_index_at_the_end_an_mp4_cannot_be_read(clips, config, tmp_path):
    path = clips("plain.mp4")
    assert path.read_bytes().index(b"moov") > path.read_bytes().index(b"mdat")
    assert "truncated before its index" in error_of(cut(path, tmp_path, path.stat().st_size // 2), config)


def test_a_truncated_fragment_or_block_is_not_taken_for_the_end(clips, config, tmp_path):
    """Neither file declares a length, and FFmpeg's demuxers report no error for an incomplete element."""
    fragmented = clips("fragments.mp4")
    last = fragmented.read_bytes().rindex(b"moof")
    for length in range(last + 1, last + 300, 30):
        message = error_of(cut(fragmented, tmp_path, length), config)
        assert re.search(r"ends after frame 2[0-3] |Frame 2\d of|truncated before its index", message)
    live = clips("live.webm")
    assert re.search(r"ends after frame 28 ", error_of(cut(live, tmp_path, live.stat().st_size - 3), config))


def packets_of(path):
    with av.open(str(path)) as container:
        return [(packet.pos or 0, bytes(packet)) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("name", ["plain.mkv", "live.mkv", "plain.webm", "plain.gif", "fragments.mp4"])
def test_an_element_with_a_damaged_header(clips, config, numbers, tmp_path, name):
    """Demuxers skip to the next element they know; later frames must not take the place of the lost ones."""
    data = bytearray(clips(name).read_bytes())
    if name == "plain.gif":
        place = [m.start() for m in re.finditer(b"\x21\xf9\x04", data)][16]
    elif name == "fragments.mp4":
        place = data.rindex(b"moof")
    else:
        place = packets_of(clips(name))[16][0]
    data[place] = 5
    path = tmp_path / name
    path.write_bytes(data)
    message = error_of(path, config)
    named = re.search(r"Frame (\d+) of|after frame (\d+)", message)
    assert named, message
    left = int(named[1]) if named[1] else int(named[2]) + 1
    assert 13 <= left <= 24
    assert numbers(load_frames(path, dataclasses.replace(config, first=left)).rgb) == list(range(left))
    with pytest.raises(InputError):
        load_frames(path, dataclasses.replace(config, first=left + 1))


def test_flipped_bytes_never_shorten_a_clip(clips, config, tmp_path, kind):
    """Bytes of pictures (not of the index, whose errors may be consistent): an error, or all frames."""
    data = clips(kind).read_bytes()
    places = [(data.find(content), len(content)) for _, content in packets_of(clips(kind))[5:25]]
    places = [(begin, length) for begin, length in places if begin >= 0]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(16 if places else 0):
        begin, length = places[rng.integers(len(places))]
        flipped = bytearray(data)
        for place in begin + rng.integers(0, length, 4):
            flipped[place] ^= int(rng.integers(1, 256))
        (tmp_path / kind).write_bytes(flipped)
        frames, message = outcome(tmp_path / kind, config)
        if frames is not None:
            assert kind in LENIENT or len(frames.rgb) == 30
        else:
            assert re.search(r"[Ff]rame \d+|first frame", message) and str(tmp_path / kind) in message, message
            refused += 1
    assert refused or kind in LENIENT


def test_a_damaged_picture_names_its_frame(clips, config, numbers, tmp_path):
    data = bytearray(clips("motion_jpeg.avi").read_bytes())
    _, content = packets_of(clips("motion_jpeg.avi"))[17]
    place = data.index(content)
    data[place : place + len(content)] = bytes(len(content))
    path = tmp_path / "motion_jpeg.avi"
    path.write_bytes(data)
    message = error_of(path, config)
    assert (
        message.startswith(f"Frame 17 of {path} cannot be read") and "only the 17 frames before it (first)" in message
    )
    assert numbers(load_frames(path, dataclasses.replace(config, first=17)).rgb) == list(range(17))


def test_a_file_of_another_kind(tmp_path, config):
    (tmp_path / "text.mp4").write_text("This is a text file, not a video.\n" * 100)
    assert "cannot be opened as a video" in error_of(tmp_path / "text.mp4", config)
    (tmp_path / "notes.txt").write_text("FFmpeg would draw this.\n")
    error_of(tmp_path / "notes.txt", config)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    error_of(tmp_path / "noise.mp4", config)
    (tmp_path / "zeros.mp4").write_bytes(bytes(5000))
    error_of(tmp_path / "zeros.mp4", config)
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "is empty" in error_of(tmp_path / "empty.mp4", config)
    (tmp_path / "empty.png").write_bytes(b"")
    error_of(tmp_path / "empty.png", config)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "wav"])
def test_sound_without_pictures(tmp_path, config, suffix):
    path = tmp_path / f"sound.{suffix}"
    with av.open(str(path), "w") as container:
        track = container.add_stream("pcm_s16le" if suffix == "wav" else "aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux([*track.encode(frame), *track.encode()])
    assert "has no pictures: give a video file or a folder" in error_of(path, config)


@pytest.mark.parametrize("name", ["none.mkv", "none.avi", "none.mov"])
def test_a_video_without_frames(tmp_path, write, config, name):
    path = write(tmp_path / name, "mpeg4", num_frames=0)
    message = error_of(path, config)
    assert re.search("no frames|before its first frame|no pictures|cannot be opened|codec is unknown", message)


def test_a_playlist_cannot_reach_other_files(tmp_path, clips, config):
    target = clips("plain.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{target}'\n")
    error_of(tmp_path / "list.mp4", config)


def test_a_video_too_small_or_among_images(tmp_path, clips, config):
    message = error_of(clips("plain.mp4"), dataclasses.replace(config, size=64 * 17))
    assert re.search(r"Frame 0 of .*64x48 pixels is too small", message)
    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"Cannot read the image .*plain\.mp4"):
        load_frames([tmp_path / "0.png", clips("plain.mp4")], config)


@pytest.mark.parametrize(
    "rest", [bytes(100), b"\0\0\0\x10sefd12345678", b"\0\0\0\x0bsefdabc" + bytes(7), b"\0\0\0\x10sefd12345678" * 3]
)
@pytest.mark.parametrize("name", ["fragments.mp4", "plain.mp4"])
def test_what_is_appended_to_a_complete_file_is_ignored(clips, config, numbers, tmp_path, name, rest):
    """Padding, and the boxes of some phones, which players skip."""
    target = tmp_path / name
    target.write_bytes(clips(name).read_bytes() + rest)
    assert numbers(load_frames(target, config).rgb) == list(range(30))


def test_a_fragment_whose_name_is_damaged_is_no_appended_box(clips, config, tmp_path):
    """The demuxer would skip it, and its pictures."""
    data = bytearray(clips("fragments.mp4").read_bytes())
    starts = [k for k in range(len(data)) if data[k : k + 4] == b"moof"]
    assert len(starts) > 1
    for start in starts[1:]:
        damaged = data.copy()
        damaged[start : start + 4] = b"moog"
        target = tmp_path / "fragments.mp4"
        target.write_bytes(damaged)
        error_of(target, config)
    target.write_bytes(data + bytes(100_000))  # more than padding: what was to come is missing
    error_of(target, config)
