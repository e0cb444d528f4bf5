"""Generated masks at realistic sizes: each is read as its rule says, or refused; never wrong without a word."""

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.priors.masks import load_masks
from tests.io.priors import generated_masks as made

R = Image.Resampling


@pytest.fixture
def read(tmp_path, clip):
    """`read(masks, suffix, **options)`: the masks of a folder of these images or arrays, at their own size."""
    frames = clip(3, width=made.WIDTH, height=made.HEIGHT, config=FrameConfig(size=made.WIDTH, crop=False))
    assert frames.rgb.shape[1:3] == (made.HEIGHT, made.WIDTH)

    def read(masks, suffix="png", **options):
        for number, mask in enumerate(masks):
            image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            image.save(tmp_path / f"{number}.{suffix}", **options)
        return load_masks(tmp_path, frames)

    return read


#: (inside, softness in pixels, value of full probability) -> (H, W) uint8.
SOFT = {
    "probabilities": lambda inside, soft, top: np.rint(made.sigmoid(inside, soft, top)),
    "blurred": lambda inside, soft, top: made.blurred(inside * 255, soft),
    "blurred, gray": lambda inside, soft, top: made.blurred(inside * top, soft),
    "smooth edges": lambda inside, soft, top: made.blurred(inside * 255, 0.7),
    "small map, enlarged in squares": lambda inside, soft, top: made.enlarged(inside * 255, 8, R.NEAREST),
    "small map, enlarged smoothly": lambda inside, soft, top: made.enlarged(inside * top, 8, R.BILINEAR),
    "probabilities, enlarged in squares": lambda inside, soft, top: made.enlarged(
        made.sigmoid(inside, soft, top), 4, R.NEAREST
    ),
    "JPEG, opened and saved as PNG": lambda inside, soft, top: made.saved_as_jpeg((inside * 255).astype(np.uint8), 60),
    "good JPEG, opened and saved as PNG": lambda inside, soft, top: made.saved_as_jpeg(
        (inside * 255).astype(np.uint8), 90
    ),
}


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("seed", range(6))
def test_soft_masks_mark_what_is_above_half_of_the_range(read, kind, seed):
    rng = np.random.default_rng(seed)
    soft, top = float(rng.uniform(1, 20)), int(rng.choice([170, 200, 230, 254, 255]))
    inside = made.objects(rng, int(rng.choice([1, 2, 5])), smallest=40) > 0
    values = np.stack([SOFT[kind](mask, soft, top) for mask in inside]).astype(np.uint8)
    np.testing.assert_array_equal(read(values), values > 127)
    if seed % 2:  # the same with 16 bits, and inverted
        np.testing.assert_array_equal(read(values.astype(np.uint16) * 257), values > 127)
        np.testing.assert_array_equal(read(255 - values), values < 128)


@pytest.mark.parametrize("quality", [25, 60, 95])
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("seed", range(3))
def test_masks_in_lossy_formats(read, suffix, quality, seed):
    """Black and white, or a soft one: edges move by a pixel at most."""
    rng = np.random.default_rng(seed)
    inside = made.objects(rng, 3, smallest=6) > 0
    for values in (inside * np.uint8(255), *(np.rint([made.sigmoid(mask, 8) for mask in inside]).astype(np.uint8),)):
        found = read(values, suffix, quality=quality)
        near = np.stack([np.abs(made.distance(mask)) < (2.5 if values.max() < 255 else 2) for mask in inside])
        assert (found == inside)[~near].all()


COLORS = {
    "numbers": lambda rng, count: np.arange(count + 1),
    "numbers of 16 bits": lambda rng, count: np.arange(count + 1) + 1000 * (np.arange(count + 1) > 0),
    "grays": lambda rng, count: np.append(0, rng.choice(np.arange(1, 255), count, replace=False)),
    "both sides of half": lambda rng, count: np.append(0, rng.permutation(np.append(3, 254 - np.arange(count - 1)))),
}


@pytest.mark.parametrize("kind", COLORS)
@pytest.mark.parametrize("count", [2, 3, 5, 7, 12, 30, 50])
@pytest.mark.parametrize("smallest", [2, 30])
def test_every_object_of_numbered_masks_is_marked(read, kind, count, smallest):
    rng = np.random.default_rng(count + smallest)
    table = COLORS[kind](rng, count).astype(np.uint16 if kind == "numbers of 16 bits" else np.uint8)
    numbers = made.objects(rng, count, smallest=smallest)
    np.testing.assert_array_equal(read(table[numbers]), numbers > 0)


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_numbers_in_other_exact_forms(read, options):
    numbers = made.objects(np.random.default_rng(1), 4)
    suffix = "webp" if options else "bmp"
    np.testing.assert_array_equal(
        read(np.array([0, 60, 200, 3, 90], np.uint8)[numbers], suffix, **options), numbers > 0
    )
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]], np.uint8)
    np.testing.assert_array_equal(read(colors[numbers], suffix, **options), numbers > 0)


def shapes():
    """Objects of a few pixels and thin ones, alone and beside a large one."""
    y, x = np.mgrid[: made.HEIGHT, : made.WIDTH]
    return {
        "one pixel": (y == 140) & (x == 250),
        "three by three": (abs(y - 140) < 2) & (abs(x - 250) < 2),
        "a line": (abs(y - 140) < 90) & (x == 256),
        "a rope": abs(y - x // 2) < 2,
        "a disc": np.hypot(y - 140, x - 250) < 40,
        "nearly all": np.hypot(y - 140, x - 250) > 20,
    }


@pytest.mark.parametrize("low_high", [(0, 1), (0, 255), (16, 235), (0, 7), (100, 101), (0, 128), (0, 65535), (0, 1000)])
@pytest.mark.parametrize("shape", shapes())
def test_of_two_values_the_larger_is_dynamic(read, low_high, shape):
    moving = shapes()[shape]
    values = np.where(moving, *low_high[::-1]).astype(np.uint16 if low_high[1] > 255 else np.uint8)
    empty = np.full_like(values, low_high[0])
    np.testing.assert_array_equal(read([values, empty, values]), np.stack([moving, empty > low_high[0], moving]))


@pytest.mark.parametrize("shape", ["one pixel", "a line", "a rope"])
def test_a_thin_object_beside_a_large_one_is_not_lost(read, shape):
    disc = np.roll(shapes()["a disc"], 120, 1)
    values = np.where(shapes()[shape], 3, np.where(disc, 200, 0)).astype(np.uint8)
    np.testing.assert_array_equal(read([values] * 3), np.stack([values > 0] * 3))


def jpeg(table, numbers, quality):
    return [made.saved_as_jpeg(table[number], quality) for number in numbers]


@pytest.mark.parametrize("levels", [[60, 200], [128], [100, 200], [40, 80, 120], [70, 255], "DAVIS"])
@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_numbers_of_objects_in_jpeg_are_refused(read, levels, quality, suffix):
    """Nested or apart, saved as JPEG, or as PNG afterwards: their values are no numbers any more."""
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128]], np.uint8)
    table = colors if levels == "DAVIS" else np.array([0, *levels], np.uint8)
    y, x = np.mgrid[: made.HEIGHT, : made.WIDTH]
    nested = (np.hypot(y - 140, x - 250) < 60).astype(int) + (np.hypot(y - 140, x - 250) < 25) * (len(table) > 2)
    for numbers in ([nested] * 3, np.minimum(made.objects(np.random.default_rng(2), 3, smallest=40), len(table) - 1)):
        values = jpeg(table, numbers, quality) if suffix == "png" else [table[number] for number in numbers]
        with pytest.raises(InputError, match=r"gray regions, as if|no mask is brighter than half|and also white"):
            read(values, suffix, **({} if suffix == "png" else {"quality": quality}))


def test_an_overlay_marks_its_filling_and_its_contour(read):
    """As demos of segmentation networks draw it: 35 % of a colour, and an opaque contour."""
    away = made.distance(shapes()["a disc"])
    overlay = np.zeros((made.HEIGHT, made.WIDTH, 4), np.uint8)
    overlay[away > 0], overlay[np.abs(away - 1) < 1] = (30, 144, 255, 89), (0, 0, 255, 255)
    np.testing.assert_array_equal(read([overlay] * 3), np.stack([overlay[..., 3] > 0] * 3))
    overlay[..., 3] = np.rint(made.sigmoid(shapes()["a disc"], 3))  # a matte: as soft masks are read
    np.testing.assert_array_equal(read([overlay] * 3), np.stack([overlay[..., 3] > 127] * 3))


def test_a_black_and_white_mask_with_a_transparent_corner_is_refused(read):
    mask = np.full((made.HEIGHT, made.WIDTH, 4), 255, np.uint8)
    mask[..., :3] = 255 * shapes()["a disc"][..., None]
    mask[5, :100, :3] = 100
    mask[:2, :2, 3] = 0
    with pytest.raises(InputError, match="black and white and also transparent"):
        read([mask] * 3)


@pytest.mark.parametrize("palette", [Image.Palette.WEB, Image.Palette.ADAPTIVE])
def test_gray_palettes_count_by_their_grays(read, palette):
    """Whichever colour a program has put first."""
    inside = shapes()["a disc"]
    white = Image.fromarray(np.repeat((inside * np.uint8(255))[..., None], 3, -1)).convert("P", palette=palette)
    np.testing.assert_array_equal(read([white] * 3), np.stack([inside] * 3))
    first = Image.frombytes("P", (made.WIDTH, made.HEIGHT), (~inside).astype(np.uint8).tobytes())
    first.putpalette([255, 255, 255, 0, 0, 0])
    np.testing.assert_array_equal(read([first] * 3), np.stack([inside] * 3))
    soft = np.rint(made.sigmoid(inside, 5)).astype(np.uint8)
    image = Image.frombytes("P", (made.WIDTH, made.HEIGHT), soft.tobytes())
    image.putpalette(np.arange(256).repeat(3).tolist())
    np.testing.assert_array_equal(read([image] * 3), np.stack([soft > 127] * 3))
    grays = Image.frombytes(
        "P", (made.WIDTH, made.HEIGHT), (inside + np.roll(inside, 200, 1) * 2).astype(np.uint8).tobytes()
    )
    grays.putpalette([0, 0, 0, 128, 128, 128, 255, 255, 255])
    np.testing.assert_array_equal(read([grays] * 3), np.stack([inside | np.roll(inside, 200, 1)] * 3))


@pytest.mark.parametrize("seed", range(3))
def test_real_numbers_are_never_taken_for_objects(read, seed):
    """Not even those of a small map enlarged in squares."""
    inside = made.objects(np.random.default_rng(seed), 2, smallest=30) > 0
    values = np.stack([np.kron(made.sigmoid(m, 6, 1)[::8, ::8], np.ones((8, 8))) for m in inside]).astype(np.float32)
    np.testing.assert_array_equal(read(values, "tif"), values > 0.5)
