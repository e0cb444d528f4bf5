"""A user's masks: matching of images to frames, image formats, and refused input."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.export.images import write_masks
from easi3r_jax.io.priors.masks import load_masks
from easi3r_jax.io.sequences import load_arrays
from easi3r_jax.io.video import load_frames

BRIGHT = {"L": 255, "1": True, "RGB": (0, 200, 0), "LA": (255, 0), "RGBA": (200, 0, 0, 0)}


def blobs(length, height=70, width=100, seed=0):
    """(T, H, W) bool, rough and different in every frame."""
    coarse = np.random.default_rng(seed).random((length, -(-height // 7), -(-width // 7))) > 0.6
    return coarse.repeat(7, 1).repeat(7, 2)[:, :height, :width]


def save(path, mask, mode="L"):
    image = Image.new(mode, mask.shape[::-1])
    image.paste(BRIGHT[mode], mask=Image.fromarray(mask))
    image.save(path)


def write(folder, masks, mode="L"):
    folder.mkdir()
    for number, mask in enumerate(masks):
        save(folder / f"{number}.png", mask, mode)  # no zeros: as text, 10.png would precede 2.png
    return folder


@pytest.mark.parametrize(
    "config", [FrameConfig(size=64), FrameConfig(size=64, crop=False), FrameConfig(size=160), FrameConfig(size=224)]
)
@pytest.mark.parametrize("every", [1, 3])
def test_masks_are_mapped_to_frames_like_ground_truth(tmp_path, clip, config, every):
    frames = clip(4, every=every, config=config)
    truth = blobs(12)
    count = 4 if every == 1 else 12
    np.savez(tmp_path / "truth.npz", masks=truth)
    found = load_masks(write(tmp_path / "masks", truth[:count]), frames)
    assert found.shape == frames.rgb.shape[:3] and found.dtype == bool
    np.testing.assert_array_equal(found, load_arrays(tmp_path / "truth.npz", frames, ("masks",))["masks"])


def test_masks_align_with_the_video(tmp_path):
    """The video shows its own masks in white: white pixels are masked, except where resizing blends at the edges."""
    truth = blobs(3, 280, 400).repeat(2, 1).repeat(2, 2)
    folder = write(tmp_path / "frames", truth)
    frames = load_frames(folder, FrameConfig(size=160))
    unblended = np.abs(frames.rgb[..., 0].astype(int) - 127.5) > 120
    assert unblended.mean() > 0.6
    np.testing.assert_array_equal(load_masks(folder, frames)[unblended], (frames.rgb[..., 0] > 127)[unblended])


@pytest.mark.parametrize("mode", BRIGHT)
def test_all_image_modes_are_read(tmp_path, clip, mode):
    truth = blobs(2)
    expected = load_masks(write(tmp_path / "gray", truth), clip(2))
    assert 0.2 < expected.mean() < 0.8
    np.testing.assert_array_equal(load_masks(write(tmp_path / "masks", truth, mode), clip(2)), expected)


def identity(clip, length=1):
    return clip(length, width=64, height=48)


@pytest.mark.parametrize(("dtype", "half"), [(np.uint8, 127), (np.uint16, 32767)])
def test_pixels_up_to_half_of_the_range_are_static(tmp_path, clip, dtype, half):
    levels = np.zeros((48, 64), dtype)
    levels[:, 10], levels[:, 11], levels[:, 12:50], levels[:, 50] = half, half + 1, np.iinfo(dtype).max, half
    Image.fromarray(levels).save(tmp_path / "0.png")
    np.testing.assert_array_equal(load_masks(tmp_path, identity(clip))[0], levels > half)


def test_in_a_palette_image_the_index_counts_and_not_the_colour(tmp_path, clip):
    index = np.zeros((48, 64), np.uint8)
    index[10:20], index[30:40] = 1, 7
    image = Image.fromarray(index).convert("P")
    image.putpalette([0, 0, 0, *[20, 10, 0] * 255])
    image.save(tmp_path / "0.png")
    with Image.open(tmp_path / "0.png") as saved:
        assert saved.mode == "P"
    np.testing.assert_array_equal(load_masks(tmp_path, identity(clip))[0], index > 0)
    image.putpalette([255, 255, 255, *[0, 0, 0] * 255])
    image.save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"0\.png has a palette whose index 0.*is bright: save it as a gray"):
        load_masks(tmp_path, identity(clip))


def test_the_exif_orientation_of_a_mask_is_applied(tmp_path, clip):
    upright = blobs(1, 48, 64)[0]
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "0.png", exif=exif)
    np.testing.assert_array_equal(load_masks(tmp_path, identity(clip))[0], upright)


def test_a_result_s_masks_are_read_back(tmp_path, clip):
    frames = clip(12, every=5)
    truth = blobs(12, *frames.rgb.shape[1:3])
    write_masks(tmp_path / "masks", truth)
    np.testing.assert_array_equal(load_masks(tmp_path / "masks", frames), truth)


@pytest.mark.parametrize(("every", "good"), [(1, [4]), (3, [4, 10, 11, 12])])
def test_the_number_of_masks_is_the_clip_s_or_its_source_s(tmp_path, clip, every, good):
    frames = clip(4, every=every)
    folder = write(tmp_path / "masks", blobs(16))
    for count in range(16, 0, -1):
        if count in good:
            assert load_masks(folder, frames).any()
        else:
            with pytest.raises(
                InputError, match=rf"masks: masks for {count} frames, the clip has 4.*give one per frame"
            ):
                load_masks(folder, frames)
        (folder / f"{count - 1}.png").unlink()


def test_a_longer_source(tmp_path, clip):
    folder = write(tmp_path / "masks", blobs(9))
    whole = load_masks(folder, clip(9))
    np.testing.assert_array_equal(load_masks(folder, clip(4), stopped_early=True), whole[:4])
    names = [f"{number}.jpg" for number in range(9)]
    np.testing.assert_array_equal(load_masks(folder, clip(4), source_names=names), whole[:4])
    with pytest.raises(InputError, match="for 9 frames, the clip has 4"):
        load_masks(folder, clip(4), source_names=names[:8])


def test_only_masks_of_selected_frames_are_opened(tmp_path, clip):
    folder = write(tmp_path / "masks", blobs(12))
    (folder / "4.png").write_bytes(b"damaged")
    assert len(load_masks(folder, clip(4, every=3))) == 4
    with pytest.raises(InputError, match=r"Cannot read the image .*4\.png"):
        load_masks(folder, clip(12))


def test_a_wrong_size_is_named(tmp_path, clip):
    folder = write(tmp_path / "masks", blobs(3))
    save(folder / "1.png", np.ones((70, 90), bool))
    with pytest.raises(InputError, match=r"1\.png is 90x70 pixels, the video 100x70 and its frames 64x32: resize it"):
        load_masks(folder, clip(3))


def objects(length, height=48, width=64, count=5, seed=0):
    """(T, H, W) int numbers 0..count of rectangles that move; object `count` is absent from some frames."""
    rng = np.random.default_rng(seed)
    found = np.zeros((length, height, width), int)
    for t in range(length):
        for number in range(1, count + 1 - (t % 2)):
            y, x = rng.integers(0, height - 12), rng.integers(0, width - 12)
            found[t, y : y + 12, x : x + 12] = number
    return found


def davis_palette():
    """DAVIS' colours: bits of a number, from the highest, spread over the channels."""
    numbers = np.arange(256)
    bits = [(numbers >> (3 * k + c) & 1) << (7 - k) for k in range(8) for c in range(3)]
    return np.stack([sum(bits[c::3]) for c in range(3)], axis=-1).astype(np.uint8)


PALETTE = davis_palette()
SPREAD = np.array([0, 20, 60, 90, 160, 220])


def with_palette(numbers):
    image = Image.fromarray(numbers.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(PALETTE.ravel().tolist())
    return image


def cutout(numbers, seed):
    rgba = np.random.default_rng(seed).integers(0, 256, (*numbers.shape, 4), np.uint8)
    rgba[..., 3] = np.where(numbers > 0, 255, 0)
    return Image.fromarray(rgba)


def constant(numbers, level):
    return Image.fromarray(np.dstack([np.full((*numbers.shape, 3), level, np.uint8), (numbers > 0) * np.uint8(255)]))


#: How programs write masks, and numbers of objects as masks: name -> (suffix, function from numbers to an image).
ENCODINGS = {
    "gray 0/255": ("png", lambda n: Image.fromarray(((n > 0) * 255).astype(np.uint8))),
    "gray 0/1": ("png", lambda n: Image.fromarray((n > 0).astype(np.uint8))),
    "gray numbers": ("png", lambda n: Image.fromarray(n.astype(np.uint8))),
    "gray numbers on both sides of half": ("png", lambda n: Image.fromarray(SPREAD[n].astype(np.uint8))),
    "gray numbers above half": ("png", lambda n: Image.fromarray((n + 130 * (n > 0)).astype(np.uint8))),
    "one bit": ("png", lambda n: Image.fromarray(n > 0)),
    "one bit, TIFF": ("tif", lambda n: Image.fromarray(n > 0)),
    "16 bits, 0/255": ("png", lambda n: Image.fromarray(((n > 0) * 255).astype(np.uint16))),
    "16 bits, 0/65535": ("png", lambda n: Image.fromarray(((n > 0) * 65535).astype(np.uint16))),
    "16 bits, 0/1": ("tif", lambda n: Image.fromarray((n > 0).astype(np.uint16))),
    "16 bits, KITTI's numbers": ("png", lambda n: Image.fromarray(((n > 0) * 1000 + n).astype(np.uint16))),
    "32 bits": ("tif", lambda n: Image.fromarray(n.astype(np.int32))),
    "real numbers": ("tif", lambda n: Image.fromarray((n > 0).astype(np.float32))),
    "palette": ("png", with_palette),
    "palette to gray": ("png", lambda n: with_palette(n).convert("L")),
    "palette to RGB": ("png", lambda n: with_palette(n).convert("RGB")),
    "palette to RGB, dark objects": ("png", lambda n: with_palette(n + 7 * (n > 0)).convert("RGB")),
    "alpha, cut out": ("png", lambda n: cutout(n, 0)),
    "alpha, white": ("png", lambda n: constant(n, 255)),
    "alpha, black": ("webp", lambda n: constant(n, 0)),
    "gray and alpha": ("png", lambda n: constant(n, 90).convert("LA")),
    "opaque alpha": ("png", lambda n: Image.fromarray(((n > 0) * 255).astype(np.uint8)).convert("RGBA")),
    "smooth edges": ("png", lambda n: Image.fromarray(((n > 0) * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(1))),
    "JPEG": ("jpg", lambda n: Image.fromarray(((n > 0) * 255).astype(np.uint8))),
    "PGM": ("pgm", lambda n: Image.fromarray(((n > 0) * 255).astype(np.uint8))),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("seed", range(4))
def test_every_encoding_marks_the_same_pixels(tmp_path, clip, encoding, seed):
    suffix, encode = ENCODINGS[encoding]
    numbers = objects(4, seed=seed)
    for t, frame in enumerate(numbers):
        options = {"quality": 95} if suffix == "jpg" else {"lossless": True, "exact": True} if suffix == "webp" else {}
        encode(frame).save(tmp_path / f"{t}.{suffix}", **options)
    found = load_masks(tmp_path, clip(4, width=64, height=48))
    edges = np.zeros_like(found)
    if encoding in ("smooth edges", "JPEG"):  # there a pixel at an edge may fall on either side
        inside = numbers > 0
        edges[:, 1:] |= inside[:, 1:] != inside[:, :-1]
        edges[:, :-1] |= inside[:, 1:] != inside[:, :-1]
        edges[:, :, 1:] |= inside[:, :, 1:] != inside[:, :, :-1]
        edges[:, :, :-1] |= inside[:, :, 1:] != inside[:, :, :-1]
    np.testing.assert_array_equal(found | edges, (numbers > 0) | edges)


def test_a_heat_map_marks_what_is_above_half_of_the_range(tmp_path, clip):
    y, x = np.mgrid[:48, :64]
    heat = (255 * np.exp(-((x - 30) ** 2 + (y - 20) ** 2) / 200)).astype(np.uint8)
    Image.fromarray(heat).save(tmp_path / "0.png")
    np.testing.assert_array_equal(load_masks(tmp_path, identity(clip))[0], heat > 127)
    Image.fromarray(heat // 3).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"no mask is brighter than half of the range.*save dynamic pixels as 255"):
        load_masks(tmp_path, identity(clip))


def test_values_that_may_mean_one_thing_or_another_are_refused(tmp_path, clip):
    numbers = objects(1)[0]

    def refused(values, message):
        Image.fromarray(values).save(tmp_path / "0.png")
        with pytest.raises(InputError, match=message):
            load_masks(tmp_path, identity(clip))

    void = numbers.astype(np.uint8)
    void[:3] = 255
    refused(void, "numbers or colours of objects, and also white, which may be to ignore")
    refused(numbers.astype(np.uint8) + 1, "no pixel of any mask is 0: save static pixels as 0")
    both = np.zeros((48, 64, 4), np.uint8)
    both[..., :3], both[4:, :, 3] = ((numbers > 2) * 255)[..., None], 255
    refused(both, "black and white and also transparent: save them without alpha")
    index = np.where(numbers > 0, 0, 1).astype(np.uint8)  # a program has sorted the palette
    image = Image.frombytes("P", (64, 48), index.tobytes())
    image.putpalette([100, 0, 0, 0, 0, 0])
    image.save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"palette whose index 0, the background, is not black: save it as a gray"):
        load_masks(tmp_path, identity(clip))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((0, 0), "all 2 masks are empty: no pixel is marked as dynamic"),
        ((255, 255), "2 of 2 masks mark every pixel, the others none"),
        ((0, 255), "1 of 2 masks mark every pixel, the others none"),
    ],
)
def test_masks_that_mark_nothing_or_everything_are_said_to(tmp_path, clip, caplog, levels, message):
    for t, level in enumerate(levels):
        Image.fromarray(np.full((48, 64), level, np.uint8)).save(tmp_path / f"{t}.png")
    load_masks(tmp_path, identity(clip, 2))
    assert [record.getMessage().removeprefix(f"{tmp_path}: ").rstrip(".") for record in caplog.records] == [message]


def test_masks_that_mark_most_pixels_may_be_inverted(tmp_path, clip, caplog):
    values = np.full((48, 64), 255, np.uint8)
    values[10:20, 10:30] = 0
    Image.fromarray(values).save(tmp_path / "0.png")
    np.testing.assert_array_equal(load_masks(tmp_path, identity(clip))[0], values > 0)
    (record,) = caplog.records
    assert "mark 93% of all pixels as dynamic; are they inverted?" in record.getMessage()


def test_folders_without_masks(tmp_path, clip):
    with pytest.raises(InputError, match="No images in"):
        load_masks(tmp_path, clip(1))
    with pytest.raises(InputError, match="Cannot read the folder"):
        load_masks(tmp_path / "nowhere", clip(1))


def test_masks_with_the_names_of_the_source_s_images_belong_to_these(tmp_path, clip):
    truth = blobs(8)
    frames, names = clip(4, every=2), [f"{number:05d}.jpg" for number in range(8)]
    whole = load_masks(write(tmp_path / "masks", truth), frames)
    folder = tmp_path / "named"
    folder.mkdir()
    for number in (0, 2, 4, 6):
        save(folder / f"{number:05d}.png", truth[number])
    np.testing.assert_array_equal(load_masks(folder, frames, source_names=names), whole)
    for number in (4, 6):  # as many as the clip has frames, but of other ones
        (folder / f"{number:05d}.png").rename(folder / f"{number - 3:05d}.png")
    with pytest.raises(InputError, match=r"named: masks for 4 frames with the names .* but none for 00004\.jpg"):
        load_masks(folder, frames, source_names=names)
    for path in folder.iterdir():
        path.unlink()
    for number in range(8):  # one per image, numbered from 1
        save(folder / f"{number + 1:05d}.png", truth[number])
    np.testing.assert_array_equal(load_masks(folder, frames, source_names=names), whole)


def test_masks_beside_their_overlays_are_refused(tmp_path, clip):
    for number in range(2):
        save(tmp_path / f"{number}.png", blobs(1)[0])
        save(tmp_path / f"{number}_overlay.png", blobs(1)[0])
    with pytest.raises(InputError, match=r"two kinds of images, #\.png and #_overlay\.png"):
        load_masks(tmp_path, clip(4))
