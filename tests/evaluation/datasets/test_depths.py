"""Sintel, Bonn, KITTI, NYU Depth v2: frames, scale of depth, cameras, damaged files."""

import struct
import sys

import h5py
import numpy as np
import pytest

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.evaluation.datasets import bonn, find_test_set, kitti, sintel
from easi3r_jax.io.video import load_frames
from tests.evaluation.datasets import layouts
from tests.evaluation.datasets.layouts import SHAPE, depth_of, toy


def check_depth(sequence, frame: int, expected: np.ndarray, step: float = 0.0) -> None:
    depth = sequence.truth.depth(frame)
    assert depth.dtype == np.float32 and np.abs(depth - expected).max() <= step / 2 + 1e-6
    assert depth[0, 0] == 0


@pytest.fixture
def sintel_root(tmp_path):
    layouts.write_sintel(tmp_path / "training", dict.fromkeys(sintel.SEQUENCES, toy(3)))
    return tmp_path


def test_sintel(sintel_root):
    film = toy(3)
    sequences = {s.name: s for s in find_test_set("sintel").find(sintel_root)}
    assert tuple(sequences) == sintel.SEQUENCES and len(sequences) == 23
    assert sum(s.truth.trajectory is not None for s in sequences.values()) == 14
    sequence = sequences["alley_2"]
    assert [path.name for path in sequence.images] == [f"frame_000{n}.png" for n in (1, 2, 3)]
    assert np.array_equal(sequence.truth.intrinsics, np.tile(film.intrinsics, (3, 1, 1)))
    assert np.allclose(sequence.truth.trajectory.world_from_cam, film.world_from_cam)  # the files hold the inverse
    assert np.array_equal(sequence.truth.trajectory.times, sequence.times)
    check_depth(sequence, 2, depth_of(2))
    assert sequences["alley_1"].truth.trajectory is None and sequences["alley_1"].truth.depth is not None


def test_sintel_damage(sintel_root, message_of):
    base = sintel_root / "training"

    def message():
        return message_of(lambda: find_test_set("sintel").find(sintel_root))

    sequence = find_test_set("sintel").find(sintel_root)[0]
    path = base / "depth/alley_1/frame_0001.dpt"
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in message_of(lambda: sequence.truth.depth(0))
    path.write_bytes(struct.pack("<fii", 202021.25, 2, 2) + bytes(16))
    assert "(2, 2)" in message_of(lambda: sequence.truth.depth(0))
    path.write_bytes(b"")
    assert "not a .dpt" in message_of(lambda: sequence.truth.depth(0))
    path.unlink()
    assert str(path) in message() and "missing" in message()
    layouts.write_sintel(base, {"alley_1": toy(3)})
    path = base / "camdata_left/alley_1/frame_0002.cam"
    numbers = [*np.eye(3).ravel(), *np.full(12, np.nan)]
    path.write_bytes(struct.pack("<f21d", 202021.25, *numbers))
    assert str(path) in message() and "not finite" in message()
    path.write_bytes(struct.pack("<f21d", 202021.25, *np.zeros(9), *np.eye(4)[:3].ravel()))
    assert str(path) in message() and "not positive" in message()
    path.write_bytes(b"cut")
    assert "not a .cam" in message()
    (base / "camdata_left").rename(base / "away")
    assert str(base / "camdata_left") in message()
    (base / "away").rename(base / "camdata_left")
    (base / "final/temple_3").rename(base / "final/other")
    assert "1 of the protocol's 23 sequences: temple_3" in message()


def test_bonn_as_published(tmp_path):
    for number, name in enumerate(bonn.SEQUENCES):
        layouts.write_bonn(tmp_path / "rgbd_bonn_dataset" / name, toy(33 if number else 145))
    sequences = find_test_set("bonn").find(tmp_path)
    assert [s.name for s in sequences] == sorted(bonn.SEQUENCES) and len(sequences) == 5
    sequence = sequences[0]
    assert (len(sequence.images), sequence.num_source_frames) == (110, 145)
    assert np.allclose(sequence.times - 1548266486, np.arange(30, 140) / 30, atol=1e-4)
    check_depth(sequence, 2, depth_of(32))
    assert [len(s.images) for s in sequences[1:]] == [3, 3, 3, 3]


def test_bonn_as_prepared(tmp_path):
    folder = tmp_path / bonn.SEQUENCES[0]
    layouts.write_bonn_prepared(folder, toy(4))
    (sequence,) = find_test_set("bonn").find(folder)
    assert len(sequence.images) == 4 and np.allclose(sequence.times - 1548266486, np.arange(4) / 30, atol=1e-4)
    check_depth(sequence, 3, depth_of(3))


def test_bonn_damage(tmp_path, message_of):
    folder = tmp_path / bonn.SEQUENCES[0]
    layouts.write_bonn(folder, toy(36))

    def message():
        return message_of(lambda: find_test_set("bonn").find(folder))

    sequence = find_test_set("bonn").find(folder)[0]
    depths = sorted((folder / "depth").iterdir())
    layouts.save_image(depths[30])
    assert str(depths[30]) in message_of(lambda: sequence.truth.depth(0))
    layouts.save_gray16(depths[30], np.zeros((3, 3)))
    assert "(3, 3)" in message_of(lambda: sequence.truth.depth(0))
    index = (folder / "depth.txt").read_text()
    (folder / "depth.txt").write_text(index + f"\nnan depth/{depths[0].name}")
    assert "depth.txt, line 38" in message()
    (folder / "depth.txt").unlink()
    for path in depths[31:34]:
        path.unlink()
    assert "no depth map at the time of" in message()
    (folder / "rgb.txt").unlink()
    for path in sorted((folder / "rgb").iterdir())[20:]:
        path.unlink()
    assert "20 frames, but more than 30" in message()
    layouts.write_bonn_prepared(folder, toy(4))
    next((folder / "depth_110").iterdir()).unlink()
    assert "4 frames" in message() and "has 3" in message()


def test_kitti_as_published(tmp_path):
    layouts.write_kitti(tmp_path, dict.fromkeys(kitti.DRIVES, toy(9)))
    sequences = find_test_set("kitti").find(tmp_path)
    assert [s.name for s in sequences] == sorted(kitti.DRIVES) and len(sequences) == 13
    sequence = sequences[0]
    assert [int(path.stem) for path in sequence.images] == [2, 3, 4, 5, 6]
    assert sequence.num_source_frames == 9
    check_depth(sequence, 1, depth_of(3))


def test_kitti_as_prepared(tmp_path):
    layouts.write_kitti_prepared(tmp_path, dict.fromkeys(kitti.DRIVES, toy(3)))
    layouts.write_kitti_prepared(tmp_path, {kitti.DRIVES[0]: toy(120)})
    sequences = find_test_set("kitti").find(tmp_path)
    assert [s.name for s in sequences] == [f"{drive}_02" for drive in sorted(kitti.DRIVES)]
    assert [len(s.images) for s in sequences[:2]] == [110, 3]
    check_depth(sequences[1], 2, depth_of(2))


def test_kitti_damage(tmp_path, message_of):
    layouts.write_kitti(tmp_path, dict.fromkeys(kitti.DRIVES, toy(6)))
    drive = kitti.DRIVES[0]
    raw = tmp_path / "raw" / drive[:10] / drive / "image_02/data"

    def message():
        return message_of(lambda: find_test_set("kitti").find(tmp_path))

    (raw / "0000000003.png").unlink()
    assert "1 of the 2 depth maps have no frame" in message() and "0000000003.png" in message()
    raw.rename(tmp_path / "away")
    assert str(raw) in message()
    (tmp_path / "away").rename(tmp_path / "val" / drive / "data")  # not a place where it is searched for
    for path in (tmp_path / "val" / drive / "proj_depth/groundtruth/image_02").iterdir():
        path.unlink()
    assert "no depth maps" in message()
    (tmp_path / "val" / drive).rename(tmp_path / "val/other")
    assert f"1 of the protocol's 13 sequences: {drive}" in message()


def test_nyu_as_published(tmp_path):
    film = toy(5)
    layouts.write_nyu(tmp_path, film)
    (sequence,) = find_test_set("nyu").find(tmp_path)
    assert (len(sequence.images), sequence.num_source_frames) == (2, 5)
    check_depth(sequence, 1, depth_of(4))  # MATLAB counts from 1
    image = sequence.images[0].read()
    assert np.array_equal(np.asarray(image), film.rgb[1]) and sequence.images[0].shape == SHAPE
    assert "image 2" in str(sequence.images[0])


def test_images_within_a_file_can_be_frames(tmp_path):
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.tile(np.arange(3, dtype=np.uint8)[:, None, None, None] * 100, (1, 3, 128, 96))
        file["depths"] = np.ones((3, 128, 96), np.float32)
    layouts.savemat(tmp_path / "splits.mat", {"testNdxs": np.array([[2], [3]])})
    (sequence,) = find_test_set("nyu").find(tmp_path)
    frames = load_frames(sequence.images, FrameConfig(size=128, patch_size=16))
    assert frames.rgb.shape == (2, 96, 128, 3) and frames.source_size.tolist() == [96, 128]
    assert (frames.rgb[0] == 100).all() and (frames.rgb[1] == 200).all()


@pytest.mark.parametrize("names", [("nyu_images", "nyu_depths"), ("rgb", "depth")])
def test_nyu_extracted(tmp_path, names):
    for number in range(3):
        base = tmp_path if names[0] == "rgb" else tmp_path / "val"
        layouts.save_image(base / f"{names[0]}/{number:04}.png", number)
        (base / names[1]).mkdir(exist_ok=True)
        if names[0] == "rgb":
            layouts.save_gray16(base / f"depth/{number:04}.png", depth_of(number) * 1000)
        else:
            np.save(base / f"nyu_depths/{number:04}.npy", depth_of(number))
    (sequence,) = find_test_set("nyu").find(tmp_path)
    assert len(sequence.images) == 3
    check_depth(sequence, 2, depth_of(2))


def test_nyu_in_folders_of_scenes(tmp_path, message_of):
    for scene, number in (("bathroom", 45), ("bathroom", 46), ("office", 7)):
        layouts.save_image(tmp_path / f"official_splits/test/{scene}/rgb_{number:05}.jpg")
        layouts.save_gray16(
            tmp_path / f"official_splits/test/{scene}/sync_depth_{number:05}.png", depth_of(number % 5) * 1000
        )
    (sequence,) = find_test_set("nyu").find(tmp_path)
    assert len(sequence.images) == 3
    check_depth(sequence, 2, depth_of(2))
    (tmp_path / "official_splits/test/office/sync_depth_00007.png").unlink()
    assert "1 of 3 depth maps" in message_of(lambda: find_test_set("nyu").find(tmp_path))


def test_nyu_damage(tmp_path, message_of, monkeypatch):
    layouts.write_nyu(tmp_path, toy(5))
    splits, labelled = tmp_path / "splits.mat", tmp_path / "nyu_depth_v2_labeled.mat"

    def message():
        return message_of(lambda: find_test_set("nyu").find(tmp_path))

    layouts.savemat(splits, {"testNdxs": np.array([[6]])})
    assert "1 to 5" in message()
    splits.write_bytes(b"nonsense")
    assert str(splits) in message()
    splits.unlink()
    assert str(splits) in message()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        assert "easi3r_jax[datasets]" in message()
    with h5py.File(labelled, "w") as file:
        file["images"], file["depths"] = np.zeros((2, 3, 8, 6), np.uint8), np.zeros((3, 8, 6), np.float32)
    assert "(3, 8, 6)" in message()
    with h5py.File(labelled, "w") as file:
        file["images"] = np.zeros((2, 3, 8, 6), np.uint8)
    assert 'no data set "depths"' in message()
    labelled.write_bytes(labelled.read_bytes()[:100])
    assert str(labelled) in message()
    labelled.unlink()
    layouts.save_image(tmp_path / "images/0.png")
    assert str(tmp_path / "depths") in message()
    (tmp_path / "depths").mkdir()
    assert "no depth maps" in message()
    np.save(tmp_path / "depths/0.npy", depth_of(0))
    np.save(tmp_path / "depths/1.npy", depth_of(0))
    assert "has 1 frames" in message() and "has 2" in message()
