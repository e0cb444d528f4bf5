"""Flow from a folder: both formats, both sizes, and damaged files."""

import dataclasses
import struct

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames, frames_at
from easi3r_jax.io.priors.flow import FlowFolder, check_flow, load_flow
from easi3r_jax.io.video import frame_geometry, load_frames

SIZE, ORIGINAL = (16, 32), (20, 30)  # frames are enlarged and cropped at top and bottom
EDGES = np.array([[0, 1], [1, 0]])


@pytest.fixture
def frames() -> Frames:
    geometry = frame_geometry(ORIGINAL[1], ORIGINAL[0], FrameConfig(size=SIZE[1]))
    return Frames(
        rgb=np.zeros((2, *SIZE, 3), np.uint8),
        source_index=np.arange(2),
        time=np.arange(2.0),
        frame_from_source=geometry.frame_from_source,
        source_size=np.array(ORIGINAL, np.int32),
    )


def flo(flow, tag=202021.25, size=None):
    height, width = size or flow.shape[:2]
    return struct.pack("<fii", tag, width, height) + np.asarray(flow, "<f4").tobytes()


def flow_of(seed, size=SIZE):
    return np.random.default_rng(seed).normal(size=(*size, 2)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "00000_00001.flo").write_bytes(flo(flow_of(0)))
    np.savez(tmp_path / "00001_00000.npz", flow=flow_of(1), other=np.zeros(3))
    (tmp_path / "notes.txt").write_text("other files are ignored")
    return tmp_path


def test_both_formats_are_read(folder, frames):
    flow, known = load_flow(folder, frames, EDGES)
    assert flow.dtype == np.float32 and known.dtype == bool and known.all()
    np.testing.assert_array_equal(flow, np.stack([flow_of(0), flow_of(1)]))
    np.testing.assert_array_equal(load_flow(str(folder), frames, EDGES[::-1])[0], flow[::-1])


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int16, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_real_type_and_order(folder, frames, kind, order):
    given = np.asarray(10 * flow_of(2), dtype=kind, order=order)
    np.savez_compressed(folder / "00001_00000.npz", flow=given)
    flow, known = load_flow(folder, frames, EDGES[1:])
    np.testing.assert_array_equal(flow[0], given.astype(np.float32))
    assert known.all()


def test_of_two_files_for_a_pair_the_flo_is_used(folder, frames):
    np.savez(folder / "00000_00001.npz", flow=np.ones((*SIZE, 2)))
    np.testing.assert_array_equal(load_flow(folder, frames, EDGES)[0][0], flow_of(0))


@pytest.mark.parametrize("config", [FrameConfig(size=32), FrameConfig(size=80), FrameConfig(size=64, crop=False)])
def test_flow_of_the_original_images_is_resampled_to_the_frames(tmp_path, config):
    """A linear field is sampled without error: a point and its target are both mapped to the frame."""
    width, height = 75, 52
    for name in "ab":
        Image.new("RGB", (width, height)).save(tmp_path / f"{name}.png")
    frames = load_frames(tmp_path, config)
    stretch, shift = np.array([[0.03, -0.02], [0.05, 0.04]]), np.array([2.0, -3.0])

    def pixels(size):
        return np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), axis=-1).astype(float)

    (tmp_path / "00000_00001.flo").write_bytes(flo(pixels((height, width)) @ stretch.T + shift))
    flow, known = load_flow(tmp_path, frames, EDGES[:1])

    matrix = frames.frame_from_source
    size = frames.rgb.shape[1:3]
    here = (pixels(size) - matrix[:2, 2]) / matrix.diagonal()[:2]
    there = here + here @ stretch.T + shift
    expected = there * matrix.diagonal()[:2] + matrix[:2, 2] - pixels(size)
    inside = ((here >= 0) & (here <= (width - 1, height - 1))).all(-1)
    assert known.all() and inside.mean() > 0.8
    np.testing.assert_allclose(flow[0][inside], expected[inside], atol=1e-4)
    # outside the outermost pixel centres, the original's edge pixels are repeated
    assert np.abs(flow[0] - expected).max() < 0.1 * matrix.diagonal()[:2].max()


def test_unknown_flow_is_zero_and_marked(folder, frames):
    flow = flow_of(0)
    flow[3, 4] = 1.666666752e9
    flow[5, 6, 1] = -2e9
    (folder / "00000_00001.flo").write_bytes(flo(flow))
    found, known = load_flow(folder, frames, EDGES)
    assert np.argwhere(~known).tolist() == [[0, 3, 4], [0, 5, 6]]
    np.testing.assert_array_equal(found[~known], 0)
    np.testing.assert_array_equal(found[0][known[0]], flow[known[0]])


def test_flow_sampled_from_unknown_pixels_is_unknown(tmp_path, frames):
    flow = np.ones((*ORIGINAL, 2), np.float32)
    flow[9, 10] = 1e10
    (tmp_path / "00000_00001.flo").write_bytes(flo(flow))
    found, known = load_flow(tmp_path, frames, EDGES[:1])
    x, y = frames.frame_from_source[:2] @ (10, 9, 1)
    scale = frames.frame_from_source.diagonal()[:2]
    rows, columns = np.indices(SIZE)
    near = (np.abs(columns - x) < scale[0]) & (np.abs(rows - y) < scale[1])
    np.testing.assert_array_equal(known[0], ~near)
    np.testing.assert_array_equal(found[0][near], 0)
    np.testing.assert_allclose(found[0][~near], np.broadcast_to(scale, (SIZE[0] * SIZE[1] - near.sum(), 2)), rtol=1e-6)


def test_missing_pairs_are_counted_and_the_first_is_named(folder, frames):
    with pytest.raises(InputError, match=r"lacks the flow of 2 of 4 pairs \(the first: 00001_00002\.flo or \.npz\)"):
        load_flow(folder, frames, np.array([[0, 1], [1, 2], [2, 1], [1, 0]]))


def test_an_unreadable_folder_is_refused(folder, frames):
    for path in (folder / "nowhere", folder / "notes.txt"):
        with pytest.raises(InputError, match="Cannot read the folder of optical flow"):
            load_flow(path, frames, EDGES)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "made.npz", **arrays)
    return (tmp_path / "made.npz").read_bytes()


def with_value(value):
    flow = flow_of(0)
    flow[2, 3, 0] = value
    return flow


def assert_refused_early(folder, frames, words):
    """Errors in names and headers are found early; numbers are not examined."""
    if words == "NaN or infinite":
        check_flow(folder, frames, EDGES)
    else:
        with pytest.raises(InputError, match=words):
            check_flow(folder, frames, EDGES)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "tag"),
        (flo(flow_of(0))[:11], "tag"),
        (flo(flow_of(0), tag=202021.0), "tag"),
        (struct.pack(">fii", 202021.25, 32, 16) + flow_of(0).tobytes(), "tag"),  # big endian
        (flo(flow_of(0))[:-1], "4107 bytes, but 4108 are needed for 32 x 16"),
        (flo(flow_of(0)) + b"\0", "4109 bytes, but 4108 are needed"),
        (flo(flow_of(0), size=(17, 32)), r"shape \(17, 32, 2\): the size of the frames \(16, 32, 2\)"),
        (flo(flow_of(0), size=(32, 16)), r"shape \(32, 16, 2\)"),
        (flo(flow_of(0), size=(-16, -32)), r"shape \(-16, -32, 2\)"),
        (flo(flow_of(0), size=(2**31 - 1, 2**31 - 1)), "or of the original images"),
        (flo(with_value(np.nan)), "NaN or infinite"),
        (flo(with_value(-np.inf)), "NaN or infinite"),
    ],
)
def test_a_damaged_flo_is_refused_in_one_line(folder, frames, data, words):
    (folder / "00000_00001.flo").write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        load_flow(folder, frames, EDGES)
    assert "00000_00001.flo" in str(caught.value) and "\n" not in str(caught.value)
    assert_refused_early(folder, frames, words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: b"", "zip"),
        (lambda t: npz(t, flow=flow_of(1))[:-30], "zip"),
        (lambda t: npz(t, flows=flow_of(1)), "no array 'flow'"),
        (lambda t: npz(t, flow=flow_of(1)[..., :1]), r"shape \(16, 32, 1\)"),
        (lambda t: npz(t, flow=np.moveaxis(flow_of(1), -1, 0)), r"shape \(2, 16, 32\)"),
        (lambda t: npz(t, flow=np.float32(1)), r"shape \(\)"),
        (lambda t: npz(t, flow=flow_of(1).astype(complex)), "complex128, not real numbers"),
        (lambda t: npz(t, flow=flow_of(1).astype(str)), "not real numbers"),
        (lambda t: npz(t, flow=np.full((*SIZE, 2), None)), "object, not real numbers"),
        (lambda t: npz(t, flow=with_value(np.nan)), "NaN or infinite"),
    ],
)
def test_a_damaged_npz_is_refused_in_one_line(folder, frames, make, words):
    (folder / "00001_00000.npz").write_bytes(make(folder.parent))
    with pytest.raises(InputError, match=words) as caught:
        load_flow(folder, frames, EDGES)
    assert "00001_00000.npz" in str(caught.value) and "\n" not in str(caught.value)
    assert_refused_early(folder, frames, words)


def test_a_flipped_byte_is_read_or_refused_but_never_a_crash(folder, frames):
    rng = np.random.default_rng(0)
    path = folder / "00001_00000.npz"
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.integers(0, 200)] = rng.integers(256)  # the headers of the archive and of the array
        path.write_bytes(damaged.tobytes())
        try:
            flow, _ = load_flow(folder, frames, EDGES)
            assert np.isfinite(flow).all()
        except InputError:
            refused += 1
    assert refused > 50


def test_names_cannot_leave_the_folder(folder, frames):
    """Names are made of numbers, and only the member `flow.npy` of an archive is opened."""
    with pytest.raises(ValueError, match="format code 'd'"):
        load_flow(folder, frames, np.array([["../0", "1"]]))
    np.savez(folder / "00001_00000.npz", **{"../flow": flow_of(5)})
    with pytest.raises(InputError, match="no array 'flow'"):
        load_flow(folder, frames, EDGES)


def test_files_are_numbered_by_the_clip_not_by_its_windows(folder, frames):
    """Frames 4 and 6 of a source are frames 0 and 1 of the clip."""
    clip = dataclasses.replace(frames, source_index=np.array([4, 6]))
    heard = []
    source = FlowFolder(folder, clip)
    flow, _ = source(clip, EDGES, progress=lambda *told: heard.append(told))
    np.testing.assert_array_equal(flow, np.stack([flow_of(0), flow_of(1)]))
    assert heard == [("flow", 0, 2, ""), ("flow", 1, 2, ""), ("flow", 2, 2, "")]
    (folder / "00001_00001.flo").write_bytes(flo(flow_of(5)))
    flow, _ = source(frames_at(clip, slice(1, 2)), np.array([[0, 0]]))
    np.testing.assert_array_equal(flow[0], flow_of(5))
