"""Files that hold several pictures, or one in tiles: the whole picture, all of them, or an error; never the first."""

import struct
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.files import read_gray16
from easi3r_jax.io.video import load_frames
from easi3r_jax.io.video.images import image_shape, read_image
from tests.io.video.conftest import numbered_picture

TILE = 64


def smooth(height, width, seed=0):
    """(height, width, 3) uint8 that compresses well and is different in every corner and under every turn."""
    y, x = np.mgrid[:height, :width] / (height + width)
    phase = np.random.default_rng(seed).random(3)
    return (127 + 90 * np.stack([np.sin(9 * x + 5 * y + p) for p in phase], -1) * (0.4 + x[..., None])).astype(np.uint8)


def box(kind, *parts):
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, kind) + content


def full_box(kind, version, flags, *parts):
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def coded_picture(rgb):
    """(hvcC, sample) of one picture by x265: through an MP4, whose boxes are taken apart."""
    import io

    memory: Any = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        options = {"x265-params": "log-level=none:keyint=1:crf=6:info=0", "tag": "hvc1"}
        stream: Any = container.add_stream("libx265", rate=1, options=options)
        stream.height, stream.width, stream.pix_fmt = *rgb.shape[:2], "yuv420p"
        stream.codec_context.codec_tag = "hvc1"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    data = memory.getvalue()
    at = data.index(b"hvcC")
    configuration = data[at + 4 : at - 4 + int.from_bytes(data[at - 4 : at])]
    at = data.index(b"mdat")
    return configuration, data[at + 4 : at - 4 + int.from_bytes(data[at - 4 : at])]


def write_heic(path, rgb, *, tiles=None, properties=(), others=(), size=None, grid_in_idat=False, hidden=False):
    """A HEIC file.

    Args:
      rgb: the picture.
      tiles: (rows, columns) of a grid of 64x64 tiles; None: one coded picture.
      properties: further boxes of the primary item, in order: turns and crops.
      others: kinds of further coded pictures: "picture", "thumbnail", "auxiliary".
      size: (height, width) that is declared; else that of the picture.
    """
    height, width = size or rgb.shape[:2]
    pieces = [rgb]
    if tiles:
        pieces = [
            np.pad(p, ((0, TILE - p.shape[0]), (0, TILE - p.shape[1]), (0, 0)), mode="edge")
            for r in range(tiles[0])
            for p in [rgb[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE] for c in range(tiles[1])]
        ]
    pieces += [np.ascontiguousarray(smooth(64, 64, 5 + k)) for k in range(len(others))]
    coded = [coded_picture(np.ascontiguousarray(piece)) for piece in pieces]
    count = len(pieces) - len(others)
    primary = len(pieces) + 1 if tiles else 1
    grid = struct.pack(">BBBBHH", 0, 0, tiles[0] - 1, tiles[1] - 1, width, height) if tiles else b""
    items = [(k + 1, b"hvc1", 1 if (tiles and k < count) or hidden else 0) for k in range(len(pieces))]
    items += [(primary, b"grid", 0)] if tiles else []
    references = [(b"dimg", primary, [k + 1 for k in range(count)])] if tiles else []
    for k, kind in enumerate(others):
        if kind != "picture":
            references.append(({"thumbnail": b"thmb", "auxiliary": b"auxl"}[kind], count + k + 1, [primary]))
    stored = [box(b"hvcC", configuration) for configuration, _ in coded]
    stored += [full_box(b"ispe", 0, 0, struct.pack(">II", *p.shape[1::-1])) for p in pieces]
    stored += [full_box(b"ispe", 0, 0, struct.pack(">II", width, height)), *properties]
    n = len(pieces)
    own = [2 * n + 2 + k for k in range(len(properties))]
    uses = {k + 1: [k + 1, n + k + 1] for k in range(n)}
    uses[primary] = [*([1] if not tiles else []), 2 * n + 1, *own]

    def meta(base):
        places, at = [], base
        for item, content in [*((k + 1, c[1]) for k, c in enumerate(coded)), *([(primary, grid)] if tiles else [])]:
            if item == primary and grid_in_idat:
                places.append(struct.pack(">HHHHII", item, 1, 0, 1, 0, len(content)))
            else:
                places.append(struct.pack(">HHHHII", item, 0, 0, 1, at, len(content)))
                at += len(content)
        return full_box(
            b"meta",
            0,
            0,
            full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", primary)),
            full_box(b"iloc", 1, 0, struct.pack(">BBH", 0x44, 0, len(places)), *places),
            full_box(
                b"iinf",
                0,
                0,
                struct.pack(">H", len(items)),
                *(
                    full_box(b"infe", 2, flags, struct.pack(">HH4s", item, 0, kind), b"\0")
                    for item, kind, flags in items
                ),
            ),
            full_box(b"iref", 0, 0, *(box(k, struct.pack(f">HH{len(t)}H", i, len(t), *t)) for k, i, t in references)),
            box(
                b"iprp",
                box(b"ipco", *stored),
                full_box(
                    b"ipma",
                    0,
                    0,
                    struct.pack(">I", len(uses)),
                    *(struct.pack(f">HB{len(u)}B", item, len(u), *u) for item, u in sorted(uses.items())),
                ),
            ),
            box(b"idat", grid),
        )

    head = box(b"ftyp", b"heic", bytes(4), b"mif1", b"heic")
    base = len(head) + len(meta(0)) + 8
    samples = b"".join(sample for _, sample in coded) + (b"" if grid_in_idat else grid)
    path.write_bytes(head + meta(base) + box(b"mdat", samples))
    return path


def assert_close(image, expected):
    found = np.asarray(image)
    assert found.shape == expected.shape
    assert abs(found.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("size", [(128, 192), (100, 150), (64, 64)])
@pytest.mark.parametrize("grid_in_idat", [False, True])
def test_a_photograph_in_tiles_is_read_whole(tmp_path, size, grid_in_idat):
    rgb = smooth(*size)
    tiles = -(-size[0] // TILE), -(-size[1] // TILE)
    path = write_heic(tmp_path / "IMG_1.HEIC", rgb, tiles=tiles, grid_in_idat=grid_in_idat)
    assert image_shape(path) == size
    assert_close(read_image(path), rgb)
    assert load_frames(path, FrameConfig(size=64, patch_size=8)).source_size.tolist() == list(size)


TURNS = {
    "none": ([], lambda p: p),
    **{f"irot {k}": ([box(b"irot", bytes([k]))], lambda p, k=k: np.rot90(p, k)) for k in range(4)},
    "imir 0": ([box(b"imir", b"\0")], lambda p: p[::-1]),
    "imir 1": ([box(b"imir", b"\1")], lambda p: p[:, ::-1]),
    "irot then imir": ([box(b"irot", b"\1"), box(b"imir", b"\1")], lambda p: np.rot90(p)[:, ::-1]),
    # 90 x 60 of 96 x 64, its centre 1 right of and 1 above the picture's
    "clap": (
        [box(b"clap", struct.pack(">IIIIiIiI", 90, 1, 60, 1, 1, 1, -1, 1))],
        lambda p: p[1:61, 4:94],
    ),
    "clap then irot": (
        [box(b"clap", struct.pack(">IIIIiIiI", 90, 1, 60, 1, 1, 1, -1, 1)), box(b"irot", b"\3")],
        lambda p: np.rot90(p[1:61, 4:94], 3),
    ),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("tiles", [None, (1, 2)])
def test_header_and_pixels_of_a_turned_photograph_agree(tmp_path, turn, tiles):
    properties, apply = TURNS[turn]
    rgb = smooth(64, 96)
    path = write_heic(tmp_path / "a.heic", rgb, tiles=tiles, properties=properties)
    expected = apply(rgb)
    assert image_shape(path) == expected.shape[:2]
    assert_close(read_image(path), expected)


def test_previews_beside_a_photograph_do_not_count_and_other_photographs_do(tmp_path):
    rgb = smooth(64, 128)
    for tiles in (None, (1, 2)):
        path = write_heic(tmp_path / "a.heic", rgb, tiles=tiles, others=("thumbnail", "auxiliary"))
        assert_close(read_image(path), rgb)
        write_heic(path, rgb, tiles=tiles, others=("picture", "thumbnail"))
        with pytest.raises(InputError, match=r"a\.heic has 2 pictures: save each as a file of its own"):
            read_image(path)


def test_a_photograph_whose_suffix_says_jpeg(tmp_path):
    rgb = smooth(64, 128)
    write_heic(tmp_path / "IMG_1.jpg", rgb, tiles=(1, 2))
    assert_close(read_image(tmp_path / "IMG_1.jpg"), rgb)


def test_damaged_photographs_are_refused_in_a_line(tmp_path):
    path = write_heic(tmp_path / "a.heic", smooth(128, 128), tiles=(2, 2))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(150):
        damaged = bytearray(data)
        if trial % 3:
            for place in rng.integers(0, 600, 3):
                damaged[place] ^= int(rng.integers(1, 256))
        else:
            damaged = damaged[: rng.integers(20, len(data))]
        path.write_bytes(damaged)
        message = ""
        try:
            read_image(path)
        except InputError as error:
            message = str(error)
        assert not message or (str(path) in message and "\n" not in message)
        refused += bool(message)
    assert refused > 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_upright(tmp_path, orientation):
    rgb = smooth(48, 80)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(rgb).save(tmp_path / "a.avif", quality=95, exif=exif)
    with Image.open(tmp_path / "a.avif") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert image_shape(tmp_path / "a.avif") == expected.shape[:2]
    assert_close(read_image(tmp_path / "a.avif"), expected)


def test_an_animated_avif_is_all_its_frames_or_refused_among_images(tmp_path, config, numbers):
    images = [Image.fromarray(numbered_picture(number)) for number in range(6)]
    images[0].save(tmp_path / "a.avif", save_all=True, append_images=images[1:], duration=100, quality=95)
    frames = load_frames(tmp_path / "a.avif", config)
    assert numbers(frames.rgb) == list(range(6))
    np.testing.assert_allclose(frames.time, np.arange(6) / 10, atol=1e-3)
    for source in (tmp_path, [tmp_path / "a.avif"]):
        with pytest.raises(InputError, match=r"a\.avif is an animation: convert"):
            load_frames(source, config)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_of_several_pages_is_refused_and_one_with_a_preview_is_not(tmp_path, dtype):
    pages = [Image.fromarray(np.full((48, 64), 50 * k, dtype)) for k in range(1, 4)]
    path = tmp_path / "stack.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    for read in (read_image, read_gray16):
        with pytest.raises(InputError, match=r"stack\.tif has 3 pictures: save each as a file of its own"):
            read(path)
    from PIL.TiffImagePlugin import AppendingTiffWriter

    for tags in ({254: 1}, {254: 4}, {255: 2}):
        with AppendingTiffWriter(str(path), True) as writer:
            pages[2].save(writer, format="TIFF")
            writer.newFrame()
            pages[0].resize((16, 12)).save(writer, format="TIFF", tiffinfo=tags)
        assert np.asarray(read_image(path))[0, 0, 0] == (150 if dtype == np.uint8 else 0)
        assert dtype == np.uint8 or read_gray16(path)[0, 0] == 150


@pytest.mark.parametrize("head", [b"P5\n64 48\n255\n", b"P6\n# a comment 3\n64 48 255\n", b"P5\n64 48\n65535\n"])
def test_pnm_files_that_follow_each_other(tmp_path, head):
    length = 64 * 48 * (3 if head.startswith(b"P6") else 2 if b"65535" in head else 1)
    path = tmp_path / "a.ppm"
    path.write_bytes((head + bytes(length)) * 3)
    with pytest.raises(InputError, match=r"a\.ppm has 3 pictures"):
        read_image(path)
    path.write_bytes(head + bytes(length) + b"\n")
    assert read_image(path).size == (64, 48)


def test_the_second_picture_of_a_camera_s_jpeg_is_its_preview(tmp_path):
    first, second = Image.fromarray(smooth(48, 64)), Image.fromarray(smooth(24, 32, 1))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    assert_close(read_image(tmp_path / "a.jpg"), smooth(48, 64))
