"""What a folder of images holds beside its frames, files by their content, and files with something appended."""

import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.video import load_frames
from easi3r_jax.io.video.images import is_image
from tests.io.video.conftest import numbered_picture


def save(path, number, form=None):
    Image.fromarray(numbered_picture(number)).save(path, form)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("frame-{:06}.color.png", "frame-{:06}.depth.png"),
            r"frame-#\.color\.png and frame-#\.depth\.png \(# is",
        ),
        (("{:03}.jpg", "{:03}_mask.png"), r"two kinds of images, #\.jpg and #_mask\.png"),
        (("IMG_{}.jpg", "IMG_{}.png"), r"IMG_0\.(jpg|png) and IMG_0\.(jpg|png), one picture twice"),
        (("IMG_{}.JPG", "img_{}.webp"), r"one picture twice"),
        (("left_{}.png", "right_{}.png"), r"two kinds of images"),
    ],
)
def test_companions_of_the_frames_are_refused(tmp_path, config, names, message):
    for number in range(4):
        for name in names:
            save(tmp_path / name.format(number), number)
    with pytest.raises(InputError, match=message):
        load_frames(tmp_path, config)


@pytest.mark.parametrize(
    "names", [["img.png", "img (1).png", "img (2).png"], ["a1.png", "b7.png", "b8.png"], ["a1.png", "a2.png", "b1.png"]]
)
def test_other_folders_with_several_patterns_are_read(tmp_path, config, names):
    for number, name in enumerate(names):
        save(tmp_path / name, number)
    assert len(load_frames(tmp_path, config).rgb) == 3


def test_files_are_judged_by_content_where_the_name_does_not_tell(tmp_path, config, numbers, caplog):
    for number in range(3):
        save(tmp_path / f"frame{number}", number, "PNG")
    assert numbers(load_frames(tmp_path, config).rgb) == [0, 1, 2]
    (tmp_path / "README").write_text("no image")
    save(tmp_path / "3.png.bak", 9, "PNG")
    save(tmp_path / "frame3.png", 3)
    assert numbers(load_frames(tmp_path, config).rgb) == [0, 1, 2, 3]
    assert "2 of 6 entries are not images that are read, left out: 3.png.bak, README" in caplog.text


def test_a_photo_under_another_name_is_read_upright(tmp_path, config, numbers):
    exif = Image.Exif()
    exif[0x112] = 6
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(numbered_picture(5))))
    for name in ("photo", "photo.image"):
        turned.save(tmp_path / name, "JPEG", exif=exif, quality=95)
        assert is_image(tmp_path / name)
        assert numbers(load_frames(tmp_path / name, config).rgb) == [5]
    (tmp_path / "text").write_text("no image")
    assert not is_image(tmp_path / "text") and not is_image(tmp_path / "nothing")


def test_animations_are_no_images(tmp_path, clips):
    for name in ("plain.gif", "plain.apng", "plain.mp4"):
        assert not is_image(clips(name))


@pytest.fixture
def avif(tmp_path):
    if not features.check("avif"):
        pytest.fail("Pillow of this project reads and writes AVIF")
    path = tmp_path / "a.avif"
    Image.fromarray(numbered_picture(6)).save(path, quality=90)
    return path


@pytest.mark.parametrize("rest", [bytes(5000), b"SEFH garbage trailer 12345", b"SEFT", b"\0\0\1\0sefd1234"])
def test_what_is_appended_to_an_avif_is_ignored(tmp_path, avif, config, numbers, rest):
    avif.write_bytes(avif.read_bytes() + rest)
    assert numbers(load_frames(avif, config).rgb) == [6]
    for number in range(2):
        shutil.copy(avif, tmp_path / f"{number}.HIF")
    avif.unlink()
    assert numbers(load_frames(tmp_path, config).rgb) == [6, 6]


@pytest.mark.parametrize("name", ["a.avif", "a.hif", "photo"])
def test_a_cut_avif_is_refused_in_a_line(tmp_path, avif, config, name):
    data, path = avif.read_bytes(), tmp_path / name
    for length in range(20, len(data), 37):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"Cannot read the image|cannot be opened as a video|has no pictures"):
            load_frames(path, config)


def shifted_profile():
    """A profile that is not sRGB's: Display P3 as its standard has it, built from sRGB's by other columns."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    columns = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.2920, 0.6922, 0.0419), b"bXYZ": (0.1571, 0.0666, 0.7841)}
    for entry in range(int.from_bytes(data[128:132])):
        tag = bytes(data[132 + 12 * entry : 136 + 12 * entry])
        offset, size = (int.from_bytes(data[136 + 12 * entry + k : 140 + 12 * entry + k]) for k in (0, 4))
        if tag in columns:
            for k, value in enumerate(columns[tag]):
                data[offset + 8 + 4 * k : offset + 12 + 4 * k] = round(value * 65536).to_bytes(4, signed=True)
        elif tag == b"desc":
            old, new = ("sRGB".encode("utf-16-be"), "xP3x".encode("utf-16-be"))
            data[offset : offset + size] = data[offset : offset + size].replace(old, new)
    return bytes(data)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_colour_profiles_are_converted_to_srgb(tmp_path, config, caplog, suffix):
    """Of Display P3, a red that sRGB has: its numbers by the equations of both standards."""
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"quality": 98} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    image = Image.new("RGB", (64, 48), (200, 110, 90))
    image.save(path, icc_profile=shifted_profile(), **options)
    found = load_frames(path, config).rgb[0, 20, 20].astype(int)
    values = np.array([200, 110, 90]) / 255
    light = np.where(values < 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    srgb_from_p3 = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    light = srgb_from_p3 @ light
    expected = 255 * np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert abs(expected - 255 * values).max() > 12
    np.testing.assert_allclose(found, expected, atol=3)
    image.save(path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), **options)
    np.testing.assert_allclose(load_frames(path, config).rgb[0, 20, 20], [200, 110, 90], atol=2)
    assert not caplog.records


def test_a_broken_profile_is_said(tmp_path, config, caplog):
    Image.new("RGB", (64, 48), (200, 110, 90)).save(tmp_path / "a.png", icc_profile=b"broken" * 40)
    assert load_frames(tmp_path / "a.png", config).rgb[0, 20, 20].tolist() == [200, 110, 90]
    (record,) = caplog.records
    assert "a.png: its colour profile is damaged or of another kind: colours are read as stored" in record.getMessage()
