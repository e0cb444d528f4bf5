"""Custom sequences: complete and partial clip folders, plain folders of frames, damaged files."""

import numpy as np
import pytest

from easi3r_jax.evaluation.datasets import find_test_set
from tests.evaluation.datasets.layouts import SHAPE, camera_path, depth_of, save_image, toy, write_clip

T = 4
INTRINSICS = np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]])


def arrays() -> dict[str, np.ndarray]:
    masks = np.zeros((T, *SHAPE), bool)
    masks[:, 2:4, 1:3] = True
    depth = np.stack([depth_of(frame) for frame in range(T)]).astype(np.float32)
    poses = camera_path(T).astype(np.float32)
    return {"masks": masks, "depth": depth, "world_from_cam": poses, "intrinsics": INTRINSICS.astype(np.float32)}


def find(root):
    return find_test_set("custom").find(root)


def test_a_clip_folder(tmp_path):
    write_clip(tmp_path / "walk", toy(T), **arrays(), instance=np.zeros((T, *SHAPE), np.int32))
    (sequence,) = find(tmp_path / "walk")
    assert sequence.name == "walk" and len(sequence.images) == T == sequence.num_source_frames
    truth = sequence.truth
    assert truth.masks(1).dtype == bool and np.array_equal(truth.masks(1), arrays()["masks"][1])
    assert truth.void is None
    assert np.array_equal(truth.depth(3), arrays()["depth"][3]) and truth.depth(3).dtype == np.float32
    assert truth.intrinsics.shape == (T, 3, 3) and np.array_equal(truth.intrinsics[2], INTRINSICS)
    assert np.allclose(truth.trajectory.world_from_cam, camera_path(T), atol=1e-6)
    assert truth.trajectory.world_from_cam.dtype == np.float64


def test_several_clips_and_their_motionless_twins(tmp_path):
    for name in ("a", "a_still", "alone_still"):
        write_clip(tmp_path / name, toy(T), **arrays())
    assert [s.name for s in find(tmp_path)] == ["a", "alone_still"]
    assert [s.name for s in find(tmp_path / "a_still")] == ["a_still"]


def test_an_image_beside_clip_folders(tmp_path):
    write_clip(tmp_path / "a", toy(T), **arrays())
    save_image(tmp_path / "b/0.png")
    save_image(tmp_path / "preview.png")
    assert [s.name for s in find(tmp_path)] == ["a", "b"]


def test_frames_without_ground_truth(tmp_path):
    for name in ("b", "a"):
        for frame in (0, 2, 10):
            save_image(tmp_path / name / f"{frame}.png")
    a, b = find(tmp_path)
    assert (a.name, b.name) == ("a", "b")
    assert [path.stem for path in a.images] == ["0", "2", "10"]
    assert a.truth.masks is a.truth.depth is a.truth.trajectory is a.truth.intrinsics is None
    assert [s.name for s in find(tmp_path / "b")] == ["b"]
    write_clip(tmp_path / "c", toy(T))
    assert find(tmp_path)[2].truth.masks is None


@pytest.mark.parametrize("name", ["masks", "depth", "world_from_cam", "intrinsics"])
def test_partial_ground_truth(tmp_path, name):
    write_clip(tmp_path / "walk", toy(T), **{name: arrays()[name]})
    truth = find(tmp_path)[0].truth
    known = {"trajectory" if name == "world_from_cam" else name}
    assert {key for key in ("masks", "depth", "trajectory", "intrinsics") if getattr(truth, key) is not None} == known


@pytest.mark.parametrize("name", ["masks", "depth", "world_from_cam"])
def test_array_lengths_must_equal_the_number_of_frames(tmp_path, message_of, name):
    write_clip(tmp_path / "walk", toy(T), **(arrays() | {name: arrays()[name][:-1]}))
    message = message_of(lambda: find(tmp_path))
    assert name in message and "for 4 frames" in message and "ground_truth.npz" in message


def test_invalid_ground_truth_is_refused(tmp_path, message_of):
    folder = tmp_path / "walk"
    write_clip(folder, toy(T), other=np.zeros(3))
    assert "none of masks" in message_of(lambda: find(tmp_path))
    poses = arrays()["world_from_cam"]
    poses[2, 0, 0] = np.nan
    write_clip(folder, toy(T), world_from_cam=poses)
    assert "pose 2 (from 0)" in message_of(lambda: find(tmp_path))
    write_clip(folder, toy(T), intrinsics=np.full((3, 3), np.inf))
    assert "not finite" in message_of(lambda: find(tmp_path))
    write_clip(folder, toy(T), intrinsics=np.stack([INTRINSICS, INTRINSICS, np.zeros((3, 3)), INTRINSICS]))
    assert "camera 2 (from 0)" in message_of(lambda: find(tmp_path))
    write_clip(folder, toy(T), depth=np.ones((T, 2, 2)))
    (sequence,) = find(tmp_path)
    assert "(4, 2, 2)" in message_of(lambda: sequence.truth.depth(0))
    write_clip(folder, toy(T), masks=np.array([None] * T))
    assert "pickled" in message_of(lambda: find(tmp_path))
    (folder / "ground_truth.npz").write_bytes(b"PK nothing")
    assert "ground_truth.npz" in message_of(lambda: find(tmp_path))


def test_a_clip_folder_without_frames(tmp_path, message_of):
    (tmp_path / "walk/frames").mkdir(parents=True)
    assert "no frames" in message_of(lambda: find(tmp_path))
