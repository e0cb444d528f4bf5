"""DyCheck's captures: cameras at another resolution than the frames, depth in the same world, damaged files."""

import json
import pathlib

import numpy as np
import pytest

from easi3r_jax.core.geometry.camera import world_points
from easi3r_jax.evaluation.datasets import find_test_set
from tests.evaluation.datasets.layouts import SHAPE, camera_path, depth_of, save_image, toy, write_iphone


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    write_iphone(tmp_path / "iphone/apple", toy(4))
    return tmp_path / "iphone/apple"


def test_frames_cameras_and_depth(folder):
    (sequence,) = find_test_set("iphone").find(folder.parents[1])
    assert sequence.name == "apple"
    assert [path.name for path in sequence.images] == [f"0_0000{n}.png" for n in range(4)]  # of the moving camera
    poses = camera_path(4)
    assert np.allclose(sequence.truth.trajectory.world_from_cam, poses, atol=1e-9)
    assert np.array_equal(sequence.truth.trajectory.times, sequence.times)
    # Half of the camera's resolution: its corner-based 8.4 and 6.2 become 4.2 and 3.1, and half a pixel less from
    # pixel centres.
    expected = np.array([[10, 0, 3.7], [0, 11, 2.6], [0, 0, 1]])
    assert np.allclose(sequence.truth.intrinsics, expected)
    depth = sequence.truth.depth(2)
    assert depth.shape == SHAPE and depth.dtype == np.float32 and np.allclose(depth, depth_of(2))


def test_points_project_to_their_pixels(folder):
    """A pixel's point, projected with the capture's own camera, falls on the pixel's centre."""
    (sequence,) = find_test_set("iphone").find(folder)
    frame, truth = 1, sequence.truth
    depth = truth.depth(frame)
    points = world_points(depth, truth.intrinsics[frame], truth.trajectory.world_from_cam[frame]).reshape(-1, 3)
    camera = json.loads((folder / "camera/0_00001.json").read_text())
    local = (points - camera["position"]) @ np.array(camera["orientation"]).T
    known = local[:, 2] > 0
    u = camera["focal_length"] * local[known, 0] / local[known, 2] + camera["principal_point"][0]
    rows, columns = np.divmod(np.flatnonzero(known), SHAPE[1])
    assert np.allclose(u / 2, columns + 0.5) and np.allclose(local[known, 2], depth[rows, columns])


def test_without_lists(folder):
    (folder / "dataset.json").unlink()
    (folder / "extra.json").unlink()
    (sequence,) = find_test_set("iphone").find(folder)
    assert len(sequence.images) == 4


def test_another_resolution(folder):
    (folder / "extra.json").write_text(json.dumps({"factor": 1}))
    for kind, suffix in (("rgb", "png"), ("depth", "npy")):
        (folder / kind / "1x").mkdir()
        for frame in range(4):
            path = folder / kind / f"1x/0_0000{frame}.{suffix}"
            if kind == "rgb":
                save_image(path, frame, (12, 16))
            else:
                np.save(path, np.ones((12, 16), np.float32))
    (sequence,) = find_test_set("iphone").find(folder)
    assert np.allclose(sequence.truth.intrinsics[0], [[20, 0, 7.9], [0, 22, 5.7], [0, 0, 1]])
    assert sequence.truth.depth(0).shape == (12, 16)


@pytest.mark.parametrize("path", ["camera/0_00002.json", "depth/2x/0_00002.npy", "rgb/2x/0_00002.png"])
def test_an_incomplete_download(folder, path, message_of):
    (folder / path).unlink()
    message = message_of(lambda: find_test_set("iphone").find(folder))
    assert "1 of 4 frames" in message and pathlib.Path(path).name in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"orientation": (2 * np.eye(3)).tolist()}, "not a rotation"),
        ({"position": [0, float("nan"), 0]}, "not finite"),
        ({"position": [0, 1]}, "not a DyCheck camera"),
        ({"focal_length": None}, "not a DyCheck camera"),
        ({"focal_length": -3}, "positive"),
        ({"radial_distortion": [0.1, 0, 0]}, "distortion"),
        ({"image_size": [16, 16]}, "shape"),
        ({"image_size": [0, 0]}, "shape"),
        ({"image_size": [float("inf"), float("inf")]}, "shape"),
        ({"principal_point": [8, float("nan")]}, "not finite"),
    ],
)
def test_invalid_cameras_are_refused(folder, message_of, change, words):
    path = folder / "camera/0_00002.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    message = message_of(lambda: find_test_set("iphone").find(folder))
    assert words in message and str(path) in message


@pytest.mark.parametrize("name", ["camera/0_00000.json", "dataset.json", "extra.json"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"factor": "x", "train_ids": []}'])
def test_invalid_json_is_refused(folder, message_of, name, text):
    (folder / name).write_text(text)
    assert str(folder / name) in message_of(lambda: find_test_set("iphone").find(folder))


def test_a_frame_listed_twice_is_refused(folder, message_of):
    (folder / "dataset.json").write_text(json.dumps({"train_ids": ["0_00001", "0_00000", "0_00001"]}))
    assert "twice" in message_of(lambda: find_test_set("iphone").find(folder))


def test_invalid_depth_is_refused(folder, message_of):
    path = folder / "depth/2x/0_00001.npy"
    (sequence,) = find_test_set("iphone").find(folder)
    np.save(path, np.ones((3, 3)))
    assert str(path) in message_of(lambda: sequence.truth.depth(1))
    whole = path.read_bytes()
    for old, new in ((b"(3, 3)", b"(3, 3]"), (b"descr", b"des'r"), (b"order", b"orde\n")):
        path.write_bytes(whole.replace(old, new))
        assert str(path) in message_of(lambda: sequence.truth.depth(1))
    path.write_bytes(whole[:90])
    assert str(path) in message_of(lambda: sequence.truth.depth(1))
