"""OpenEXR depth maps: written by another program, built from the format's specification, and damaged."""

import sys
from fractions import Fraction

import av
import numpy as np
import OpenEXR
import pytest

from easi3r_jax.core.errors import InputError
from easi3r_jax.training.datasets.exr import read_exr


def sparse_depth(shape=(37, 53), dtype=np.float32):
    rng = np.random.default_rng(0)
    return np.where(rng.random(shape) < 0.2, rng.uniform(1, 80, shape), 0).astype(dtype)


def written_by_ffmpeg(depth, compression):
    codec = av.CodecContext.create("exr", "w")
    codec.height, codec.width = depth.shape
    codec.pix_fmt, codec.time_base, codec.options = "grayf32le", Fraction(1), {"compression": compression}
    frame = av.VideoFrame.from_ndarray(depth, format="grayf32le")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


@pytest.mark.parametrize("compression", ["none", "rle", "zip1", "zip16"])
def test_files_of_another_program(tmp_path, compression):
    depth = sparse_depth()
    path = tmp_path / "depth.exr"
    path.write_bytes(written_by_ffmpeg(depth, compression))
    found = read_exr(path, depth.shape)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, depth)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint32])
@pytest.mark.parametrize("compression", [0, 2, 3])
def test_pixel_types_and_windows(tmp_path, exr, dtype, compression):
    depth = sparse_depth(dtype=dtype)
    path = tmp_path / "depth.exr"
    for corner in ((0, 0), (-5, 12)):
        path.write_bytes(exr(depth, compression=compression, corner=corner))
        found = read_exr(path, depth.shape)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, depth)


@pytest.mark.parametrize("compression", ["RLE", "PIZ", "PXR24"])
@pytest.mark.parametrize("tiled", [False, True])
def test_compressions_and_tiles(tmp_path, compression, tiled):
    depth = np.round(sparse_depth() * 64) / 64  # PXR24 keeps 24 bits
    header = {"compression": getattr(OpenEXR, f"{compression}_COMPRESSION"), "type": OpenEXR.scanlineimage}
    if tiled:
        header |= {"type": OpenEXR.tiledimage, "tiles": OpenEXR.TileDescription()}
    OpenEXR.File(header, {"Z": depth.astype(np.float32)}).write(str(tmp_path / "depth.exr"))
    np.testing.assert_array_equal(read_exr(tmp_path / "depth.exr", depth.shape), depth)


@pytest.mark.parametrize("compression", [0, 2, 3])
def test_every_cut_is_detected(tmp_path, exr, capfd, compression):
    depth = sparse_depth((20, 9))
    data = exr(depth, compression=compression)
    path = tmp_path / "depth.exr"
    for length in [*range(0, len(data), 11), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"depth\.exr") as error:
            read_exr(path, depth.shape)
        assert "\n" not in str(error.value)
    assert not capfd.readouterr().out


def test_a_flipped_byte_is_an_error_or_harmless(tmp_path, exr):
    """Deflated blocks have checksums: depth never changes silently. Other values in the header may change."""
    depth = sparse_depth((20, 9))
    data = exr(depth, compression=3)
    path = tmp_path / "depth.exr"
    refused = 0
    for place in range(0, len(data), 2):
        flipped = bytearray(data)
        flipped[place] ^= 0x41
        path.write_bytes(flipped)
        try:
            found = read_exr(path, depth.shape)
        except InputError:
            refused += 1
        else:
            assert found.shape == depth.shape
            if place > data.index(b"screenWindowWidth") + 40:
                np.testing.assert_array_equal(found, depth)
    assert refused > len(data) / 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda exr, depth: exr(depth[1:]), r"shape \(36, 53\)"),
        (lambda exr, depth: exr(depth).replace(b"dataWindow", b"dateWindow"), "shape"),
        (lambda exr, depth: exr(depth, channels=("B", "G", "R")), "several channels"),
        # What the library says of these, its versions word differently.
        (lambda exr, depth: b"", "Cannot read"),
        (lambda exr, depth: b"\x89PNG\r\n\x1a\n" + bytes(40), "Cannot read"),
        (
            lambda exr, depth: exr(depth, compression=0).replace(b"n\0\1\0\0\0\0data", b"n\0\1\0\0\0\4data"),
            "Cannot read",
        ),
        (lambda exr, depth: b"v/1\1\2\2\0\0" + exr(depth)[8:], "Cannot read"),
        (lambda exr, depth: exr(depth).replace(b"\1\0\0\0\1\0\0\0", b"\2\0\0\0\1\0\0\0", 1), "Cannot read"),
        (lambda exr, depth: exr(depth)[:-2] + b"??", "Cannot read"),
    ],
)
def test_unsupported_files(tmp_path, exr, change, reason):
    depth = sparse_depth()
    path = tmp_path / "depth.exr"
    path.write_bytes(change(exr, depth))
    with pytest.raises(InputError, match=reason) as error:
        read_exr(path, depth.shape)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"No file .*gone\.exr"):
        read_exr(tmp_path / "gone.exr", (2, 2))


def test_a_missing_library_is_reported_with_its_remedy(tmp_path, exr, monkeypatch):
    (tmp_path / "depth.exr").write_bytes(exr(sparse_depth()))
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(InputError, match=r"pip install 'easi3r_jax\[datasets\]'"):
        read_exr(tmp_path / "depth.exr", (37, 53))
