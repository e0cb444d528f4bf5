"""Folders, lists and single images: what is read, in which order, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Frames
from easi3r_jax.io.video import load_frames


def picture(level=0):
    """(48, 64, 3) uint8: four quadrants of different colours, one of them gray of the given level."""
    rgb = np.empty((48, 64, 3), np.uint8)
    rgb[:24, :32], rgb[:24, 32:], rgb[24:, :32], rgb[24:, 32:] = [200, 30, 40], [30, 180, 60], [20, 50, 220], level
    return rgb


def save(path, level=0, **options):
    Image.fromarray(picture(level)).save(path, **options)
    return path


def levels(frames):
    return frames.rgb[:, -1, -1, 0].tolist()


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        save(tmp_path / f"{number:03}.png", 40 * number)
    return tmp_path


def test_fields(folder, config):
    frames = load_frames(folder, config)
    assert isinstance(frames, Frames)
    assert all(isinstance(value, np.ndarray) for value in jax.tree.leaves(frames))
    assert frames.valid is None and frames.names is not None and len(frames.names) == 5
    assert frames.rgb.dtype == np.uint8 and frames.rgb.shape == (5, 48, 64, 3)
    assert frames.source_index.dtype == np.int32 and frames.source_index.tolist() == [0, 1, 2, 3, 4]
    assert frames.time.dtype == np.float64
    np.testing.assert_allclose(frames.time, np.arange(5) / 24, rtol=1e-15)
    assert frames.frame_from_source.dtype == np.float64 and frames.frame_from_source.shape == (3, 3)
    assert frames.source_size.dtype == np.int32 and frames.source_size.tolist() == [48, 64]
    np.testing.assert_array_equal(frames.rgb, [picture(40 * number) for number in range(5)])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10.png", "2.png", "1.png"], ["1.png", "2.png", "10.png"]),
        (["frame_10.jpg", "frame_9.jpg", "frame_100.png"], ["frame_9.jpg", "frame_10.jpg", "frame_100.png"]),
        (["00010.png", "00002.png"], ["00002.png", "00010.png"]),
        (["b.png", "a.png", "C.PNG"], ["a.png", "b.png", "C.PNG"]),
        (["1700.25.png", "1699.5.png"], ["1699.5.png", "1700.25.png"]),  # times are not frame numbers
    ],
)
def test_a_folder_is_sorted_by_name_and_number(tmp_path, config, names, expected):
    for name in names:
        save(tmp_path / name, 10 + 30 * expected.index(name))
    found = np.array(levels(load_frames(tmp_path, config)))
    np.testing.assert_allclose(found, 10 + 30 * np.arange(len(names)), atol=6)  # .jpg


def test_other_files_in_a_folder_are_skipped(folder, config):
    (folder / "notes.txt").write_text("none of it an image")
    (folder / "poses.npz").write_bytes(b"\0" * 10)
    save(folder / ".hidden.png", 255)
    (folder / "more.png").mkdir()
    save(folder / "more.png" / "0.png", 255)
    assert levels(load_frames(folder, config)) == [0, 40, 80, 120, 160]


def test_a_list_keeps_its_order_and_may_repeat(folder, config):
    paths = [folder / "004.png", str(folder / "000.png"), folder / "004.png"]
    frames = load_frames(paths, config)
    assert levels(frames) == [160, 0, 160]
    assert frames.source_index.tolist() == [0, 1, 2]


def test_one_image_and_identical_images(folder, config):
    assert load_frames(folder / "002.png", config).rgb.shape[0] == 1
    frames = load_frames([folder / "002.png"] * 4, config)
    np.testing.assert_array_equal(frames.rgb, np.tile(picture(80), (4, 1, 1, 1)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"every": 2}, [0, 2, 4]),
        ({"every": 3, "first": 1}, [0]),
        ({"every": 100}, [0]),
        ({"first": 2}, [0, 1]),
        ({"first": 9}, [0, 1, 2, 3, 4]),
        ({"fps": 12.0}, [0, 2, 4]),
        ({"fps": 24.0, "first": 3}, [0, 1, 2]),
        ({"fps": 1000.0}, [0, 1, 2, 3, 4]),
    ],
)
def test_selection_of_images(folder, config, change, expected):
    calls = []
    config = dataclasses.replace(config, **change)
    frames = load_frames(folder, config, lambda stage, done, total, note: calls.append((done, total)))
    assert frames.source_index.tolist() == expected
    assert levels(frames) == [40 * number for number in expected]
    np.testing.assert_allclose(frames.time, np.array(expected) / 24)
    assert [done for done, _ in calls] == list(range(len(expected) + 1)) or "fps" in change
    assert calls[-1] == (len(expected), len(expected))
    assert all(done < total or total == 0 for done, total in calls[:-1])


@pytest.mark.parametrize(
    "change", [{"every": 0}, {"first": -1}, {"fps": -1.0}, {"fps": float("nan")}, {"fps": 5.0, "every": 2}]
)
def test_invalid_selections_are_refused(folder, config, change):
    with pytest.raises(ConfigError, match=r"\d|not both"):
        load_frames(folder, dataclasses.replace(config, **change))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, config, orientation):
    upright = picture(120)
    # What a camera in that orientation stores; the tag says how to undo it.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    frames = load_frames(tmp_path / "turned.png", config)
    np.testing.assert_array_equal(frames.rgb[0], upright)
    assert frames.source_size.tolist() == [48, 64]


def gray(rgb):
    return np.asarray(Image.fromarray(rgb).convert("L"))


def test_gray_is_replicated(tmp_path, config):
    level = gray(picture(90))
    Image.fromarray(level).save(tmp_path / "8.png")
    Image.fromarray(level.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(level.astype(np.uint16) * 257).save(tmp_path / "16.tif")
    Image.fromarray(level.astype(">u2") * np.array(257, ">u2")).save(tmp_path / "16_other_way_round.tif")
    frames = load_frames([tmp_path / n for n in ("8.png", "16.png", "16.tif", "16_other_way_round.tif")], config)
    np.testing.assert_array_equal(frames.rgb, np.broadcast_to(level[..., None], frames.rgb.shape))


def test_a_bilevel_image(tmp_path, config):
    bits = picture(0)[..., 0] > 100
    Image.fromarray(bits).save(tmp_path / "1.png")
    frames = load_frames(tmp_path / "1.png", config)
    np.testing.assert_array_equal(frames.rgb[0], np.repeat(np.where(bits, 255, 0)[..., None], 3, -1))


def test_alpha_is_dropped_not_blended(tmp_path, config):
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    Image.fromarray(np.dstack([picture(90), alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([gray(picture(90)), alpha])).save(tmp_path / "la.png")
    frames = load_frames([tmp_path / "rgba.png", tmp_path / "la.png"], config)
    np.testing.assert_array_equal(frames.rgb[0], picture(90))
    np.testing.assert_array_equal(frames.rgb[1], np.repeat(gray(picture(90))[..., None], 3, -1))


def test_palette_with_and_without_a_transparent_colour(tmp_path, config):
    image = Image.fromarray(picture(90)).quantize(8)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "transparent.png", transparency=0)
    frames = load_frames([tmp_path / "opaque.png", tmp_path / "transparent.png"], config)
    np.testing.assert_allclose(frames.rgb.astype(int), np.tile(picture(90).astype(int), (2, 1, 1, 1)), atol=1)


def test_cmyk(tmp_path, config):
    Image.fromarray(picture(90)).convert("CMYK").save(tmp_path / "print.tif")
    Image.fromarray(picture(90)).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    frames = load_frames([tmp_path / "print.tif", tmp_path / "print.jpg"], config)
    np.testing.assert_allclose(frames.rgb[0].astype(int), picture(90), atol=1)
    np.testing.assert_allclose(frames.rgb[1, 4:20, 4:28].astype(int).mean((0, 1)), picture(90)[0, 0], atol=6)


@pytest.mark.parametrize("mode", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(tmp_path, config, mode):
    Image.fromarray(gray(picture()).astype(mode)).save(tmp_path / "depth.tif")
    with pytest.raises(InputError, match=r"depth\.tif.*save it with 8 bits"):
        load_frames(tmp_path / "depth.tif", config)


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_an_animation_is_not_read_as_its_first_picture(tmp_path, config, suffix):
    path = tmp_path / f"moving.{suffix}"
    save(path, save_all=True, append_images=[Image.fromarray(picture(200))])
    with pytest.raises(InputError, match=rf"moving\.{suffix} is an animation: convert"):
        load_frames(path, config)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "bytes"])
def test_an_unreadable_image_among_good_ones_is_named(folder, config, damage):
    path = folder / "003.png"
    data = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": data[: len(data) // 2], "text": b"not an image", "bytes": data[:45] + data[60:]}[damage]
    )
    with pytest.raises(InputError, match=r"Cannot read the image .*003\.png: .+\. Replace it or remove it\.$"):
        load_frames(folder, config)
    assert len(load_frames(folder, dataclasses.replace(config, first=3)).rgb) == 3  # it is not examined


def test_a_postscript_file_with_another_suffix_starts_no_program(tmp_path, config, monkeypatch):
    Image.fromarray(picture(0)).save(tmp_path / "page.png", format="EPS")
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: started.append(args))
    with pytest.raises(InputError, match=r"Cannot read the image .*page\.png"):
        load_frames(tmp_path / "page.png", config)
    assert not started


def test_a_truncated_jpeg_is_refused(tmp_path, config):
    save(tmp_path / "whole.jpg", 90)
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(InputError, match=r"cut\.jpg"):
        load_frames(tmp_path / "cut.jpg", config)


def test_images_of_different_sizes(folder, config):
    Image.fromarray(np.zeros((48, 63, 3), np.uint8)).save(folder / "002.png")
    with pytest.raises(InputError, match=r"002\.png is 63x48 pixels, the frames before it 64x48: resize all"):
        load_frames(folder, config)


def test_a_tiny_image_is_named(tmp_path, config):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(InputError, match=r"dot\.png: an image of 1x1 pixels is too small.*take larger"):
        load_frames(tmp_path, config)


def test_folders_without_images(tmp_path, config):
    with pytest.raises(InputError, match=r"No images in .*it has no files\. Give a folder of avif, bmp"):
        load_frames(tmp_path, config)
    (tmp_path / "readme.md").write_text("text")
    with pytest.raises(InputError, match="its 1 files are not images"):
        load_frames(tmp_path, config)


def test_missing_paths(folder, config):
    with pytest.raises(InputError, match=r"did you mean 001\.png"):
        load_frames(folder / "01.png", config)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        load_frames(folder / "nowhere" / "clip.mp4", config)
    with pytest.raises(InputError, match="check the path"):
        load_frames(folder / "something else altogether", config)
    with pytest.raises(InputError, match=r"There is no image .*absent\.png: correct the list"):
        load_frames([folder / "000.png", folder / "absent.png"], config)
    with pytest.raises(InputError, match="list of images is empty"):
        load_frames([], config)
    with pytest.raises(InputError, match="Cannot read"):
        load_frames(folder / ("x" * 400), config)
