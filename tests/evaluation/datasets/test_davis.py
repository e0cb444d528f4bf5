"""DAVIS: sequences, masks, void pixels, damaged files."""

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.evaluation.datasets import davis, find_test_set
from tests.evaluation.datasets.layouts import SHAPE, save_image, save_palette, write_davis


@pytest.fixture
def root(tmp_path):
    return write_davis(tmp_path / "DAVIS")


def find(name, root):
    return find_test_set(name).find(root)


def test_the_sequences_of_each_protocol(root):
    assert [s.name for s in find("davis", root)] == ["bear", "dog"]
    assert [s.name for s in find("davis2017", root)] == ["dog"] == [s.name for s in find("davis2016", root)]
    assert [s.name for s in find("davis", root.parent)] == ["bear", "dog"]  # one folder above


def test_frames_objects_and_void(root):
    sequence = find("davis", root)[0]
    assert [path.name for path in sequence.images] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert sequence.num_source_frames == 3 and sequence.times.tolist() == [0, 1, 2]
    masks, void = sequence.truth.masks(1), sequence.truth.void(1)
    expected = np.zeros(SHAPE, bool)
    expected[1, 1:4], expected[2, 1] = True, True
    assert masks.dtype == void.dtype == bool
    assert np.array_equal(masks, expected)
    assert void[5].all() and not void[:5].any()
    assert sequence.truth.depth is None and sequence.truth.trajectory is None


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGB", "RGBA"])
def test_black_and_white_masks(root, mode):
    """As in 2016: 255 is dynamic, and no pixel is void."""
    path = root / "Annotations/480p/bear/00000.png"
    values = np.zeros(SHAPE, np.uint8)
    values[2:4, 3:6] = 255
    Image.fromarray(values).convert(mode).save(path)
    truth = find("davis", root)[0].truth
    assert np.array_equal(truth.masks(0), values == 255) and not truth.void(0).any()


def test_a_palette_image_that_was_converted_to_rgb(root):
    path = root / "Annotations/480p/bear/00000.png"
    values = np.zeros((*SHAPE, 3), np.uint8)
    values[0], values[1], values[2] = (128, 0, 0), (64, 0, 0), (224, 224, 192)
    Image.fromarray(values).save(path)
    truth = find("davis", root)[0].truth
    assert truth.masks(0)[:2].all() and not truth.masks(0)[2:].any()
    assert truth.void(0)[2].all() and truth.void(0).sum() == SHAPE[1]


@pytest.mark.parametrize("text", ["\ufeffbear\r\ndog\r\n", "bear\n\ndog"])
def test_lists_as_windows_writes_them(root, text):
    (root / "ImageSets/2017/val.txt").write_bytes(text.encode())
    assert [s.name for s in find("davis2017", root)] == ["bear", "dog"]


def test_object_numbers_in_a_gray_image(root):
    path = root / "Annotations/480p/bear/00000.png"
    values = np.zeros(SHAPE, np.uint8)
    values[0], values[1], values[2] = 1, 2, 255
    Image.fromarray(values).save(path)
    truth = find("davis", root)[0].truth
    assert np.array_equal(truth.masks(0), (values == 1) | (values == 2))
    assert np.array_equal(truth.void(0), values == 255)


def test_lists_of_2016_and_missing_lists(tmp_path, message_of):
    root = write_davis(tmp_path)
    (root / "ImageSets/2016/val.txt").unlink()
    (root / "ImageSets/480p").mkdir()
    (root / "ImageSets/480p/val.txt").write_text(
        "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n" * 2
    )
    assert [s.name for s in find("davis2016", root)] == ["bear"]
    for path in root.rglob("*.txt"):
        path.unlink()
    assert [s.name for s in find("davis", root)] == ["bear", "dog"]
    assert "19 of the protocol's 20 sequences: blackswan" in message_of(lambda: find("davis2016", root))
    assert len(davis.VAL_2016) == 20 and len(davis.VAL_2017) == 30 and set(davis.VAL_2016) < set(davis.VAL_2017)


def test_an_incomplete_download(root, message_of):
    folder = root / "Annotations/480p/bear"
    (folder / "00001.png").unlink()
    message = message_of(lambda: find("davis", root))
    assert str(folder) in message and "3 frames" in message and "00001.png" in message
    (root / "JPEGImages/480p/bear/00001.jpg").unlink()
    save_image(folder / "00007.png")
    assert "has 3 masks" in message_of(lambda: find("davis", root))
    for path in folder.iterdir():
        path.unlink()
    assert f"{folder} has no masks" in message_of(lambda: find("davis", root))
    folder.rmdir()
    assert str(folder) in message_of(lambda: find("davis", root))


def test_a_sequence_without_frames(root, message_of):
    for path in (root / "JPEGImages/480p/bear").iterdir():
        path.unlink()
    assert "no frames" in message_of(lambda: find("davis", root))


def test_a_list_that_names_a_missing_sequence_or_none(root, message_of):
    (root / "ImageSets/2017/val.txt").write_text("dog\ncat\n")
    assert "1 of the protocol's 2 sequences: cat" in message_of(lambda: find("davis2017", root))
    (root / "ImageSets/2017/val.txt").write_text("\n")
    assert "does not name any sequence" in message_of(lambda: find("davis2017", root))


def test_invalid_masks_are_refused(root, message_of):
    path = root / "Annotations/480p/bear/00000.png"
    sequence = find("davis", root)[0]
    save_palette(path, np.zeros((5, 5)))
    assert str(path) in message_of(lambda: sequence.truth.masks(0))
    Image.fromarray(np.zeros(SHAPE, np.uint16)).save(path)
    assert "I;16" in message_of(lambda: sequence.truth.masks(0))
    path.write_bytes(path.read_bytes()[:40])
    assert str(path) in message_of(lambda: sequence.truth.void(0))
