"""The order of a folder's files: one function, natural order."""

import pathlib
import random
import unicodedata

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.files.names import natural_order, stem_of
from easi3r_jax.io.video import load_frames


def shuffled(names, seed=0):
    return random.Random(seed).sample(list(names), len(names))


def ordered(names):
    return [path.name for path in natural_order(map(pathlib.PurePosixPath, names))]


#: Names of the n-th of many frames, as cameras and programs write them.
FORMS = {
    "copies of Windows": lambda n: f"img ({n}).png",
    "word after the number": lambda n: f"{n}_rgb.png",
    "not padded": lambda n: f"{n}.png",
    "padded": lambda n: f"frame_{n:05d}.jpg",
    "padding that changes": lambda n: f"f{n:0{1 + n % 4}d}.png",
    "two numbers": lambda n: f"cam{n // 7}_{n % 7}.png",
    "seconds": lambda n: f"{round(n / 24, 3)}.png",
    "seconds after a word": lambda n: f"t_{round(n / 30, 6)}.png",
    "seconds and whole ones": lambda n: f"{n / 4:g}.png",
    "stamps of TUM": lambda n: f"{1305031102.175304 + n / 30:.6f}.png",
    "nanoseconds": lambda n: f"{1305031102175304000 + n * 33333333}.png",
    "counters of two levels": lambda n: f"{1 + n // 15}.{n % 15}.png",
    "dots": lambda n: f"shot.v2.{n}.exr.png",
    "case": lambda n: ("IMG_%d.JPG", "img_%d.jpg", "Img_%d.PNG")[n % 3] % n,
    "accents": lambda n: unicodedata.normalize(("NFC", "NFD")[n % 2], f"Vidéo {n}.png"),
    "no suffix": lambda n: f"r.{n}",
    "date": lambda n: f"2024-05-01 12.{n // 60:02d}.{n % 60:02d}.jpg",
    "negative": lambda n: f"{n - 50}.png",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_names_are_sorted_as_a_person_counts(form, seed):
    names = [FORMS[form](n) for n in range(120)]
    assert ordered(shuffled(names, seed)) == names


@pytest.mark.parametrize(
    "names",
    [
        [f"take1.{n}.png" for n in range(1, 20, 2)],
        ["1.8.jpg", "1.9.jpg", "1.11.jpg", "1.12.jpg"],
        [f"{whole}.{n}.png" for whole in (1, 2) for n in (1, 2, 8, 9, 11)],
        ["0.5.png", "0.75.png", "1.png", "1.25.png"],
        [f"{n / 20:g}.png" for n in range(2, 40)],
        ["t0.1.png", "t0.2.png", "t0.25.png", "t0.3.png"],
        ["0.0417.png", "0.0833.png", "0.125.png", "0.1667.png"],
    ],
)
def test_counters_of_two_levels_and_seconds(names):
    """Even if no counter ends in 0."""
    assert ordered(shuffled(names)) == names


@pytest.mark.parametrize("seed", range(20))
def test_any_text_around_any_numbers(seed):
    """Templates of random text with numbers in random places: the order of the tuples of numbers."""
    rng = np.random.default_rng(seed)
    alphabet = list("abcXYZ_- ()+äß中")
    texts = ["".join(rng.choice(alphabet, rng.integers(1, 6))) for _ in range(4)]
    tuples = sorted({tuple(rng.integers(0, 10 ** int(rng.integers(1, 6)), 3).tolist()) for _ in range(60)})
    pads = [int(pad) for pad in rng.integers(0, 5, 3)]
    names = [
        "".join(f"{text}{number:0{pad}d}" for text, number, pad in zip(texts, numbers, pads, strict=False))
        + f"{texts[3]}.png"
        for numbers in tuples
    ]
    assert ordered(shuffled(names, seed)) == names


def test_the_order_is_total_and_does_not_depend_on_the_input_s():
    """A part of the names is in the order of all, unless names are seconds or a minus, which all names decide."""
    rng = np.random.default_rng(0)
    names = list({"x" + "".join(rng.choice(list("a1-B é"), rng.integers(1, 7))) + ".png" for _ in range(500)})
    expected = ordered(names)
    for seed in range(5):
        assert ordered(shuffled(names, seed)) == expected
        subset = shuffled(names, seed)[:40]
        assert ordered(subset) == [name for name in expected if name in subset]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/b/1.png", "1"),
        ("a\\b\\1.JPG", "1"),
        ("./rgb/1305031102.175304", "1305031102.175304"),
        ("1305031102.175304.png", "1305031102.175304"),
        ("shot.0001", "shot.0001"),
        ("shot.0001.heic", "shot.0001"),
        ("v1.2.final", "v1.2.final"),
        ("noname", "noname"),
    ],
)
def test_only_the_suffix_of_an_image_is_no_part_of_the_name(name, stem):
    assert stem_of(name) == stem


@pytest.mark.parametrize("form", ["copies of Windows", "word after the number", "seconds", "case", "accents"])
def test_frames_come_in_that_order(tmp_path, write, config, numbers, form):
    from tests.io.video.conftest import numbered_picture

    names = [FORMS[form](n) for n in range(14)]
    for number in shuffled(range(14)):
        Image.fromarray(numbered_picture(number)).save(
            tmp_path / names[number], quality=95, format="JPEG" if names[number].lower().endswith("jpg") else "PNG"
        )
    frames = load_frames(tmp_path, config)
    assert numbers(frames.rgb) == list(range(14))


def test_a_name_that_is_not_utf8_is_refused_before_the_work(tmp_path, config):
    picture = Image.new("RGB", (64, 48))
    folder = tmp_path / "frames"
    folder.mkdir()
    path = folder / "caf\udce9.png"
    picture.save(folder / "0.png")
    (folder / "0.png").rename(path)
    for source in (folder, path, [path]):
        with pytest.raises(InputError, match=r"The name of .*caf\\xe9\.png is not UTF-8: rename it\.$") as caught:
            load_frames(source, config)
        str(caught.value).encode()  # it can be printed


def test_what_a_folder_has_beside_its_images_is_named_in_one_line(tmp_path, config, caplog):
    for number in range(3):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{number}.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (tmp_path / name).write_bytes(b"x")
    load_frames(tmp_path, config)
    assert not caplog.records
    for name in ("b.mov", "IMG_2.CR2", "IMG_10.CR2", "notes\n.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "old").mkdir()
    load_frames(tmp_path, config)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: 5 of 8 entries are not images that are read, left out: b.mov, IMG_2.CR2, IMG_10.CR2, ..."
    )
