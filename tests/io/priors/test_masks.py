"""A user's masks: matching of images to frames, image formats, and refused input."""

import numpy as np
import pytest
from PIL import Image

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
    levels[:, 10:20], levels[:, 30:40], levels[:, 50:] = half, half + 1, np.iinfo(dtype).max
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


def test_object_numbers_in_gray_are_not_taken_for_a_static_clip(tmp_path, clip):
    Image.fromarray(blobs(1)[0].astype(np.uint8) * 2).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="no mask is brighter than 2, so no pixel would be dynamic"):
        load_masks(tmp_path, clip(1))
    Image.fromarray(np.zeros((70, 100), np.uint8)).save(tmp_path / "0.png")
    assert not load_masks(tmp_path, clip(1)).any()


def test_folders_without_masks(tmp_path, clip):
    with pytest.raises(InputError, match="No images in"):
        load_masks(tmp_path, clip(1))
    with pytest.raises(InputError, match="Cannot read the folder"):
        load_masks(tmp_path / "nowhere", clip(1))
