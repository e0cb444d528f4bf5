"""Which frames of a video are selected: the number drawn into each frame, `source_index` and `time` must agree."""

import dataclasses
import gc
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video import decode, load_frames


def test_every_frame_of_every_kind_in_display_order(clips, config, numbers, kind):
    frames = load_frames(clips(kind), config)
    assert numbers(frames.rgb) == list(range(30))
    assert frames.source_index.tolist() == list(range(30))
    # Matroska and Flash round to milliseconds, GIF to hundredths of a second.
    tolerance = {"mkv": 1.1e-3, "webm": 1.1e-3, "flv": 1.1e-3, "wmv": 1.1e-3, "gif": 1.1e-2, "apng": 1e-4}
    atol = tolerance.get(kind.split(".")[1], 1e-6)
    np.testing.assert_allclose(frames.time, np.arange(30) / 24, atol=atol)
    assert frames.rgb.dtype == np.uint8 and frames.source_size.tolist() == [48, 64]
    np.testing.assert_array_equal(frames.frame_from_source, np.eye(3))


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "motion_jpeg.avi", "plain.gif"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"every": 1, "first": 4}, [0, 1, 2, 3]),
        ({"every": 7}, [0, 7, 14, 21, 28]),
        ({"every": 7, "first": 3}, [0, 7, 14]),
        ({"every": 29}, [0, 29]),
        ({"every": 30}, [0]),
        ({"first": 99}, list(range(30))),
        ({"fps": 12.0}, list(range(0, 30, 2))),
        ({"fps": 8.0, "first": 5}, [0, 3, 6, 9, 12]),
        ({"fps": 1.0}, [0, 24]),
        ({"fps": 24.0}, list(range(30))),
        ({"fps": 60.0}, list(range(30))),
        ({"fps": 0.1}, [0]),
    ],
    ids=str,
)
def test_selection_and_progress(clips, config, numbers, name, change, expected):
    calls = []
    config = dataclasses.replace(config, **change)
    frames = load_frames(clips(name), config, lambda stage, done, total, note: calls.append((done, total)))
    assert numbers(frames.rgb) == expected
    assert frames.source_index.tolist() == expected
    np.testing.assert_allclose(frames.time, np.array(expected) / 24, atol=1.1e-2)
    done = [call[0] for call in calls]
    assert sorted(set(done)) == list(range(len(expected) + 1)) and done == sorted(done)
    assert calls[-1] == (len(expected), len(expected))
    assert all(now < total or total == 0 for now, total in calls[:-1])


def test_progress_knows_the_total_from_the_start(clips, config):
    calls = []
    load_frames(clips("plain.mp4"), dataclasses.replace(config, every=4), lambda *call: calls.append(call))
    assert calls == [("read", done, 8, "") for done in range(9)]


def test_progress_has_no_total_if_the_length_is_undeclared(clips, config):
    calls = []
    load_frames(clips("plain.mp4"), dataclasses.replace(config, fps=8.0), lambda *call: calls.append(call))
    assert calls == [*(("read", done, 0, "") for done in range(11)), ("read", 10, 10, "")]


def assert_one_per_slot(times, selected, fps):
    """The first frame of each slot of 1/fps seconds is selected, if the slot has one."""
    slot, times = 1 / fps, np.asarray(times, float)
    assert selected[0] == 0 and (np.diff(selected) > 0).all()
    # Three selected frames span a whole slot; a frame is skipped only for one selected less than a slot before it.
    assert (times[selected[2:]] - times[selected[:-2]] > slot - 2e-3).all()
    for number in set(range(len(times))) - set(selected.tolist()):
        assert times[number] - times[selected[selected < number].max()] < slot + 2e-3


@pytest.mark.parametrize("fps", [23.0, 10.0, 7.0, 5.5, 29.97 / 4])
def test_rates_that_do_not_divide_the_clips_rate(clips, config, numbers, fps):
    frames = load_frames(clips("plain.mp4"), dataclasses.replace(config, fps=fps))
    assert numbers(frames.rgb) == frames.source_index.tolist()
    assert_one_per_slot(np.arange(30) / 24, frames.source_index, fps)
    assert len(frames.time) == pytest.approx(30 / 24 * fps, abs=1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate(tmp_path, write, config, numbers, suffix):
    steps = np.resize([1, 1, 5, 2, 12, 1], 39)  # in 1/60 s
    times = np.concatenate([[0], np.cumsum(steps)])
    path = write(
        tmp_path / f"phone.{suffix}", num_frames=40, times=times.tolist(), time_base=Fraction(1, 60), bf="3", g="10"
    )
    every = load_frames(path, config)
    assert numbers(every.rgb) == list(range(40))
    np.testing.assert_allclose(every.time, times / 60, atol=1.1e-3)
    for fps in (2.0, 5.0, 9.0):
        frames = load_frames(path, dataclasses.replace(config, fps=fps))
        assert numbers(frames.rgb) == frames.source_index.tolist()
        np.testing.assert_allclose(frames.time, times[frames.source_index] / 60, atol=1.1e-3)
        assert_one_per_slot(times / 60, frames.source_index, fps)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_clip_that_starts_late_starts_at_time_zero(tmp_path, write, config, numbers, suffix):
    path = write(tmp_path / f"late.{suffix}", times=range(50, 80), bf="2")
    frames = load_frames(path, config)
    assert numbers(frames.rgb) == list(range(30))
    np.testing.assert_allclose(frames.time, np.arange(30) / 24, atol=1.1e-3)


def test_frames_removed_by_the_edit_list_do_not_count(tmp_path, write, config, numbers):
    path = write(tmp_path / "trimmed.mp4", times=range(-5, 25), bf="2")
    frames = load_frames(path, config)
    assert numbers(frames.rgb) == list(range(5, 30))
    assert frames.source_index.tolist() == list(range(25))
    np.testing.assert_allclose(frames.time, np.arange(25) / 24, atol=1e-9)


def remux(source, target, keep):
    """Copies the encoded pictures for whose number in the file `keep` is true."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            if keep(number):
                packet.stream = stream
                new.mux(packet)
    return target


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_a_recording_that_starts_within_a_group_is_read_from_the_next(tmp_path, clips, config, numbers, suffix):
    path = remux(clips("plain.ts"), tmp_path / f"tail.{suffix}", lambda number: number >= 5)
    frames = load_frames(path, config)
    found = numbers(frames.rgb)
    assert found == list(range(found[0], 30)) and found[0] in (12, 24)
    assert frames.source_index.tolist() == list(range(len(found))) and frames.time[0] == 0


def test_decoding_times_written_as_display_times(tmp_path, clips, config, numbers):
    """Frames still come in display order, and none is considered lost."""
    with av.open(str(clips("plain.mp4"))) as old, av.open(str(tmp_path / "times.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [p for p in old.demux(video=0) if p.dts is not None]
        begin = packets[0].dts or 0
        for packet in packets:
            time = (packet.dts or 0) - begin
            packet.stream, packet.pts, packet.dts = stream, time, time
            new.mux(packet)
    assert numbers(load_frames(tmp_path / "times.mp4", config).rgb) == list(range(30))


@pytest.mark.parametrize(
    ("rotation", "flip", "turn"),
    [
        (0, False, lambda p: p),
        (90, False, lambda p: np.rot90(p, 1)),
        (180, False, lambda p: np.rot90(p, 2)),
        (270, False, lambda p: np.rot90(p, 3)),
        (0, True, lambda p: p[:, ::-1]),
    ],
)
def test_display_matrix(tmp_path, clips, rotation, flip, turn):
    """Phones store frames as the sensor sees them, and the rotation in the track's header."""
    plain = load_frames(clips("plain.mp4"), FrameConfig(size=64, patch_size=16)).rgb
    data = bytearray(clips("plain.mp4").read_bytes())
    one = 1 << 16
    cos, sin = {0: (one, 0), 90: (0, -one), 180: (-one, 0), 270: (0, one)}[rotation]
    matrix = [-cos if flip else cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30]
    begin = data.index(b"tkhd") + 4 + 40
    assert data[begin : begin + 36] == b"".join(
        v.to_bytes(4, signed=True) for v in [one, 0, 0, 0, one, 0, 0, 0, 1 << 30]
    )
    data[begin : begin + 36] = b"".join(v.to_bytes(4, signed=True) for v in matrix)
    (tmp_path / "phone.mp4").write_bytes(data)
    frames = load_frames(tmp_path / "phone.mp4", FrameConfig(size=64, patch_size=16))
    expected = np.stack([turn(p) for p in plain])
    np.testing.assert_array_equal(frames.rgb, expected)
    assert frames.source_size.tolist() == list(expected.shape[1:3])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(
    ("aspect", "size"),
    [(Fraction(3, 2), (48, 96)), (Fraction(1, 2), (96, 64)), (Fraction(1009, 1000), (48, 64)), (None, (48, 64))],
)
def test_pixels_that_are_not_square(tmp_path, write, config, numbers, suffix, aspect, size):
    """DV and old cameras store pictures narrower than displayed. One focal length for both axes needs square pixels."""
    path = write(tmp_path / f"clip.{suffix}", num_frames=4, aspect=aspect)
    frames = load_frames(path, dataclasses.replace(config, size=max(size)))
    assert tuple(frames.source_size) == size
    narrow = [Image.fromarray(picture).resize((64, 48), Image.Resampling.BOX) for picture in frames.rgb]
    assert numbers(np.stack([np.asarray(picture) for picture in narrow])) == list(range(4))


def test_an_implausible_pixel_aspect_is_refused(tmp_path, write, config):
    path = write(tmp_path / "clip.mp4", num_frames=2, aspect=Fraction(5))
    with pytest.raises(InputError, match="5 times as wide as high"):
        load_frames(path, config)


def test_one_frame(tmp_path, write, config, numbers):
    for name, codec in (("one.mp4", "libx264"), ("one.mkv", "libx264"), ("one.webm", "libvpx-vp9")):
        frames = load_frames(write(tmp_path / name, codec, num_frames=1), config)
        assert numbers(frames.rgb) == [0] and frames.time.tolist() == [0.0]


def test_identical_frames(tmp_path, write, config, numbers):
    frames = load_frames(write(tmp_path / "still.mp4", picture=lambda number: 77), config)
    assert numbers(frames.rgb) == [77] * 30
    assert frames.source_index.tolist() == list(range(30))


def test_only_selected_frames_are_converted_and_no_decoded_frame_is_kept(tmp_path, write, config, numbers, monkeypatch):
    """Memory grows with the selected frames, not with the file."""
    path = write(tmp_path / "long.mp4", num_frames=500)
    count, alive = itertools.count(), []
    upright = decode.upright
    monkeypatch.setattr(decode, "upright", lambda *args: next(count) >= 0 and upright(*args))

    def progress(stage, done, total, note):
        alive.append(sum(issubclass(type(o), av.VideoFrame) for o in gc.get_objects()))

    gc.collect()
    gc.disable()  # so that frames in reference cycles count as kept
    try:
        frames = load_frames(path, dataclasses.replace(config, every=10), progress)
    finally:
        gc.enable()
    assert numbers(frames.rgb) == [10 * k % 256 for k in range(50)]
    assert next(count) == 50
    # The decoder's threads hold some frames, more or fewer: what counts is that they do not become more, 25 here.
    middle = alive[len(alive) // 4 : -len(alive) // 4]
    assert len(middle) >= 20 and middle[-1] - middle[0] <= 8 and max(alive) < 40


def test_reading_stops_at_the_last_selected_frame(tmp_path, clips, config, numbers):
    data = clips("index_first.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    frames = load_frames(tmp_path / "cut.mp4", dataclasses.replace(config, first=3))
    assert numbers(frames.rgb) == [0, 1, 2]
