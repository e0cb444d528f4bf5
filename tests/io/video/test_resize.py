"""The network's resize and crop: against reference arrays, against its formulas, and for single pixels."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.io.video import frame_geometry, load_frames, resize_image

PREPROCESSED = {
    "size512_crop1_sq0": FrameConfig(),
    "size512_crop0_sq0": FrameConfig(crop=False),
    "size512_crop1_sq1": FrameConfig(square_ok=True),
    "size224_crop1_sq0": FrameConfig(size=224),
}
SIZES = [(640, 480), (480, 640), (517, 389), (389, 517), (1000, 300), (300, 1000), (100, 60), (33, 47), (513, 511)]
SIZES += [(512, 512), (500, 500), (77, 77), (1920, 1080), (1080, 1920), (511, 512), (3, 2), (4001, 2999)]


@pytest.mark.parametrize("name", PREPROCESSED)
def test_published_preprocessing(golden, name):
    with np.load(golden / "preprocess" / f"{name}.npz") as arrays:
        images = [key.removesuffix("_true_shape") for key in arrays if key.endswith("_true_shape")]
        assert images
        for image in images:
            frames = load_frames(golden / "preprocess" / "inputs" / f"{image}.png", PREPROCESSED[name])
            assert frames.rgb.shape[1:3] == tuple(arrays[f"{image}_true_shape"][0])
            difference = np.abs(frames.rgb[0, ::2, ::2].astype(int) - arrays[f"{image}_u8_stride2"])
            assert difference.max() <= 1, image  # another version of Pillow may round differently


def expected_size(width, height, size, patch, square_ok):
    """(width, height) of a frame by the method's formulas, the same for crop and no_crop."""
    long_side, short_side = max(width, height), min(width, height)
    if size == 224:
        side = 224 // patch * patch
        return side, side
    resized_short = round(short_side * size / long_side)
    long, short = size // patch * patch, resized_short // patch * patch
    if resized_short == size and not square_ok:
        return long, long * 3 // 4 // patch * patch
    return (long, short) if width >= height else (short, long)


@pytest.mark.parametrize("crop", [True, False], ids=["crop", "no_crop"])
@pytest.mark.parametrize("square_ok", [True, False], ids=["square", "four_thirds"])
@pytest.mark.parametrize(("size", "patch"), [(512, 16), (224, 16), (224, 14), (96, 8), (518, 14), (100, 7), (64, 32)])
def test_size_follows_the_formula(size, patch, crop, square_ok):
    config = FrameConfig(size=size, patch_size=patch, crop=crop, square_ok=square_ok)
    tried = 0
    for width, height in SIZES:
        expected = expected_size(width, height, size, patch, square_ok)
        if max(width, height) * 16 < size or min(expected) < 1 or (size == 224 and max(width, height) < 20):
            continue
        tried += 1
        geometry = frame_geometry(width, height, config)
        assert geometry.source == (width, height) and geometry.size == expected
        left, top, right, bottom = geometry.box
        assert 0 <= left < right <= geometry.resized[0] and 0 <= top < bottom <= geometry.resized[1]
        # Centred: what is cropped at the two ends differs by a pixel at most.
        assert abs(geometry.resized[0] - right - left) <= 1 and abs(geometry.resized[1] - bottom - top) <= 1
        if crop or size == 224:
            assert (right - left, bottom - top) == geometry.size
        elif geometry.resized[0] != geometry.resized[1] or square_ok:
            assert geometry.box == (0, 0, *geometry.resized)
    assert tried >= 8


@pytest.mark.parametrize(("width", "height"), [(480, 640), (389, 517), (1080, 1920), (300, 700), (60, 100)])
def test_portrait_is_transposed_landscape(width, height):
    for config in (FrameConfig(), FrameConfig(crop=False), FrameConfig(size=96, patch_size=8)):
        portrait = frame_geometry(width, height, config)
        landscape = frame_geometry(height, width, config)
        assert portrait.size == landscape.size[::-1] and portrait.size[0] < portrait.size[1]
        assert portrait.resized == landscape.resized[::-1]


@pytest.mark.parametrize(
    "config",
    [
        FrameConfig(),
        FrameConfig(crop=False),
        FrameConfig(size=224),
        FrameConfig(size=200, patch_size=14, crop=False),
        FrameConfig(size=512, square_ok=True),
    ],
    ids=str,
)
@pytest.mark.parametrize(("width", "height"), [(640, 480), (389, 517), (500, 500), (150, 97), (1000, 600)])
def test_a_marked_pixel_is_where_the_matrix_maps_it(tmp_path, config, width, height):
    y, x = np.mgrid[:height, :width]
    for u, v in ((0.5, 0.5), (0.4, 0.6), (0.63, 0.35)):
        centre = np.array([u * width, v * height]).round()
        # A soft blob: wide enough to survive shrinking, and symmetric, so that its centroid is its centre.
        sigma = max(width, height) / 60
        blob = 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))
        Image.fromarray(blob.round().astype(np.uint8)).save(tmp_path / "blob.png")
        frames = load_frames(tmp_path / "blob.png", config)
        light = frames.rgb[0, :, :, 0].astype(float)
        light[light < 3] = 0
        rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
        found = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
        mapped = frames.frame_from_source @ [*centre, 1.0]
        assert mapped[2] == 1
        np.testing.assert_allclose(found, mapped[:2], atol=0.06)
        assert frames.source_size.tolist() == [height, width]


def test_the_matrix_of_an_image_of_the_right_size_is_the_identity():
    geometry = frame_geometry(512, 384, FrameConfig())
    np.testing.assert_array_equal(geometry.frame_from_source, np.eye(3))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (384, 512, 3), np.uint8))
    np.testing.assert_array_equal(np.asarray(resize_image(picture, geometry)), np.asarray(picture))


def test_crop_keeps_pixels_square_and_no_crop_keeps_the_edges():
    for width, height in SIZES[:9]:
        scale = frame_geometry(width, height, FrameConfig()).frame_from_source
        assert scale[0, 0] == pytest.approx(scale[1, 1], rel=0.02)  # the sizes are rounded to whole pixels
        geometry = frame_geometry(width, height, FrameConfig(crop=False))
        corners = geometry.frame_from_source @ [[-0.5, width - 0.5], [-0.5, height - 0.5], [1, 1]]
        size = np.array(geometry.size)
        np.testing.assert_allclose(corners[:2], np.stack([[-0.5, -0.5], size - 0.5], 1), atol=1e-9)


def test_a_square_without_crop_becomes_four_thirds_with_square_pixels():
    geometry = frame_geometry(500, 500, FrameConfig(crop=False))
    assert geometry.size == (512, 384)
    matrix = geometry.frame_from_source
    assert matrix[0, 0] == pytest.approx(matrix[1, 1], rel=0.005)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 12), (31, 20), (2000, 20), (20, 2000), (0, 10)])
def test_images_too_small_or_narrow_are_refused(width, height):
    with pytest.raises(InputError, match=f"{width}x{height}"):
        frame_geometry(width, height, FrameConfig())


@pytest.mark.parametrize("change", [{"size": 8}, {"size": 0}, {"patch_size": 0}, {"patch_size": 1024}])
def test_invalid_sizes_are_refused(change):
    with pytest.raises(ConfigError, match="at least one patch"):
        frame_geometry(640, 480, dataclasses.replace(FrameConfig(), **change))
