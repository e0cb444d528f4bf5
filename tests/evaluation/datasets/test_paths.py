"""TUM-dynamics, ScanNet, Aria Digital Twin: frames, times, direction and axes of poses, damaged files."""

import shutil

import numpy as np
import pytest

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common, find_test_set, tum
from easi3r_jax.evaluation.metrics import associate, pose_metrics
from tests.evaluation.datasets import layouts
from tests.evaluation.datasets.layouts import toy


def at_frames(sequence) -> np.ndarray:
    """The true poses of the frames, by the metrics' association; all frames must have one."""
    trajectory = sequence.truth.trajectory
    index, true_index = associate(sequence.times, trajectory.times)
    assert len(index) == len(sequence.images)
    return trajectory.world_from_cam[true_index]


@pytest.fixture
def tum_root(tmp_path):
    for number, name in enumerate(tum.SEQUENCES):
        layouts.write_tum(tmp_path / name, toy(12 if number else 300))
    return tmp_path


def test_tum_as_published(tum_root):
    sequences = find_test_set("tum").find(tum_root)
    assert [s.name for s in sequences] == sorted(tum.SEQUENCES) and len(sequences) == 8
    first, second = sequences[:2]
    assert (len(first.images), first.num_source_frames) == (90, 300)  # every third frame, 90 in all
    assert (len(second.images), second.num_source_frames) == (4, 12)
    assert [float(path.stem) for path in second.images] == second.times.tolist()
    assert np.allclose(np.diff(second.times), 0.1, atol=1e-6)
    assert np.allclose(at_frames(second), layouts.camera_path(12)[::3], atol=1e-6)
    found = pose_metrics(
        at_frames(second),
        second.truth.trajectory.world_from_cam,
        times=second.times,
        true_times=second.truth.trajectory.times,
    )
    assert found["ate"] < 1e-9


def test_tum_without_lists_and_a_single_sequence(tmp_path):
    folder = tmp_path / tum.SEQUENCES[3]
    layouts.write_tum(folder, toy(12))
    (listed,) = find_test_set("tum").find(folder)
    (folder / "rgb.txt").unlink()
    (by_name,) = find_test_set("tum").find(folder)
    assert by_name.images == listed.images and np.array_equal(by_name.times, listed.times)


def test_tum_as_prepared(tmp_path):
    folder = tmp_path / tum.SEQUENCES[0]
    layouts.write_tum_prepared(folder, toy(5))
    (sequence,) = find_test_set("tum").find(folder)
    assert len(sequence.images) == 5 and np.allclose(at_frames(sequence), layouts.camera_path(5), atol=1e-6)
    assert np.allclose(np.diff(sequence.times), 0.1)


def test_missing_tum_sequences(tmp_path, message_of):
    layouts.write_tum(tmp_path / tum.SEQUENCES[0], toy(12))
    message = message_of(lambda: find_test_set("tum").find(tmp_path))
    assert "7 of the protocol's 8 sequences" in message and str(tmp_path) in message


def test_an_incomplete_tum_download(tmp_path, message_of):
    folder = tmp_path / tum.SEQUENCES[0]
    layouts.write_tum(folder, toy(12))

    def find():
        return find_test_set("tum").find(folder)

    image = next((folder / "rgb").iterdir())
    image.rename(tmp_path / "away.png")
    message = message_of(find)
    assert "1 of the 12 files" in message and str(image) in message
    (tmp_path / "away.png").rename(image)
    (folder / "rgb.txt").write_text("one two three\n")
    assert "rgb.txt, line 1" in message_of(find)
    (folder / "rgb.txt").write_text("# nothing\n")
    assert "lists no files" in message_of(find)
    (folder / "rgb.txt").unlink()
    layouts.save_image(folder / "rgb/cover.png")
    assert "cover.png" in message_of(find)
    shutil.rmtree(folder / "rgb")
    assert str(folder / "rgb") in message_of(find)


def test_invalid_tum_ground_truth_is_refused(tmp_path, message_of):
    folder = tmp_path / tum.SEQUENCES[0]
    layouts.write_tum(folder, toy(12))
    path = folder / "groundtruth.txt"
    whole = path.read_text().splitlines()

    def message(lines):
        path.write_text("\n".join(lines) + "\n")
        return message_of(lambda: find_test_set("tum").find(folder))

    assert "a pose for 2 of the 4 frames" in message(whole[:12])
    assert "for 0 of the 4 frames" in message([line.replace("13418", "13518") for line in whole])
    assert "line 3" in message([*whole[:2], whole[2].rsplit(" ", 1)[0], *whole[3:]])
    assert "not a rotation" in message([*whole[:2], "1341846314 0 0 0 1 1 1 1", *whole[3:]])
    assert "not finite" in message([*whole[:2], "1341846314 nan nan nan nan nan nan nan", *whole[3:]])
    assert "no poses" in message(whole[:1])
    path.unlink()
    assert str(path) in message_of(lambda: find_test_set("tum").find(folder))


def test_prepared_frames_and_poses_must_have_the_same_number(tmp_path, message_of):
    folder = tmp_path / tum.SEQUENCES[0]
    layouts.write_tum_prepared(folder, toy(5))
    layouts.save_image(folder / "rgb_90/1341846400.0.png")
    message = message_of(lambda: find_test_set("tum").find(folder))
    assert "6 frames" in message and "groundtruth_90.txt has 5" in message


def test_scannet_as_exported(tmp_path):
    layouts.write_scannet(tmp_path / "scans_test/scene0707_00", toy(300), lost=(3, 4))
    layouts.write_scannet(tmp_path / "scans_test/scene0708_00", toy(12))
    first, second = find_test_set("scannet").find(tmp_path)
    assert [first.name, second.name] == ["scene0707_00", "scene0708_00"]
    assert (len(first.images), first.num_source_frames) == (90, 300)
    assert [path.name for path in second.images] == ["0.jpg", "3.jpg", "6.jpg", "9.jpg"]  # in numerical order
    assert second.times.tolist() == [0, 3, 6, 9]
    trajectory = first.truth.trajectory
    assert len(trajectory.times) == 89 and 3 not in trajectory.times
    assert np.allclose(trajectory.world_from_cam[1], layouts.camera_path(300)[6], atol=1e-5)


def test_scannet_as_prepared(tmp_path):
    layouts.write_scannet_prepared(tmp_path / "scene0707_00", toy(5))
    layouts.write_scannet(tmp_path / "scene0707_00", toy(12))  # the original beside it
    (sequence,) = find_test_set("scannet").find(tmp_path)
    assert len(sequence.images) == 5 and np.allclose(at_frames(sequence), layouts.camera_path(5))
    (tmp_path / "scene0707_00/pose_90.txt").write_text(layouts.tum_lines(np.arange(5) / 10, layouts.camera_path(5)))
    (sequence,) = find_test_set("scannet").find(tmp_path)
    assert np.allclose(at_frames(sequence), layouts.camera_path(5), atol=1e-6)


def test_scannet_damage(tmp_path, message_of):
    folder = tmp_path / "scene0707_00"
    layouts.write_scannet(folder, toy(12), lost=(0, 6))

    def message():
        return message_of(lambda: find_test_set("scannet").find(tmp_path))

    assert "for 2 of the 4 frames" in message()
    np.savetxt(folder / "pose/0.txt", np.diag([2.0, 1, 1, 1]))
    assert "pose/0.txt" in message() and "not a rotation" in message()
    np.savetxt(folder / "pose/0.txt", np.eye(4)[:3])
    assert "3 entries" in message()
    np.savetxt(folder / "pose/0.txt", np.full((4, 4), np.nan))
    assert "not finite" in message()
    (folder / "pose/0.txt").unlink()
    assert "11 poses" in message() and "0.txt" in message()
    layouts.write_scannet_prepared(folder, toy(5))
    with (folder / "pose_90.txt").open("a") as file:
        file.write("1 2 3\n")
    assert "Line 6" in message() and "16 are needed" in message()


def test_adt_from_the_device(tmp_path):
    layouts.write_adt(tmp_path / "Apartment_seq131", toy(5))
    (sequence,) = find_test_set("adt").find(tmp_path)
    assert sequence.name == "Apartment_seq131" and len(sequence.images) == 5
    assert np.allclose(sequence.times, 87551.1709103 + np.arange(5) / 30, atol=1e-5)
    assert np.allclose(at_frames(sequence), layouts.camera_path(5), atol=1e-6)


def test_adt_as_prepared(tmp_path):
    layouts.write_adt_prepared(tmp_path / "Apartment_seq131", toy(5))
    (sequence,) = find_test_set("adt").find(tmp_path / "Apartment_seq131")
    assert np.allclose(at_frames(sequence), layouts.camera_path(5), atol=1e-6)
    assert [path.name for path in sequence.images][:2] == ["frame_0.jpg", "frame_1.jpg"]


def test_adt_damage(tmp_path, message_of):
    folder = tmp_path / "Apartment_seq131"
    layouts.write_adt(folder, toy(5))
    path = folder / "aria_trajectory.csv"
    whole = path.read_text()

    def message():
        return message_of(lambda: find_test_set("adt").find(tmp_path))

    path.write_text(whole.replace("tx_world_device", "x"))
    assert "no column tx_world_device" in message()
    path.write_text("\n".join([*whole.splitlines()[:2], "uid,1,2"]))
    assert "Line 3" in message()
    path.write_text("\n".join([*whole.splitlines()[:2], "uid,9,-1,0,0,0,0,0,0,0,1"]))
    assert "pose 1 (from 0)" in message()
    path.write_text(whole.splitlines()[0])
    assert "no poses" in message()
    path.write_text(whole)
    layouts.save_image(folder / "rgb/frame.png")
    assert "5 poses for 6 frames" in message() and "not increasing time stamps" in message()
    (folder / "rgb/frame.png").unlink()
    (folder / "device_from_camera.txt").unlink()
    assert "device_from_camera.txt" in message()
    path.unlink()
    assert "neither groundtruth.txt nor aria_trajectory.csv" in message()


def path_at(times, offset=0.0):
    """Poses on a line, 1 cm apart for each 10 ms."""
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    poses[:, 0, 3] = np.asarray(times) + offset
    return poses


def test_single_stamps_that_are_early_are_sorted_and_said(caplog):
    times = np.arange(40) / 100
    early = times.copy()
    early[8] = times[7] - 0.005
    found = common.make_trajectory(early, path_at(early), [f"g.txt, line {k}" for k in range(40)])
    np.testing.assert_array_equal(found.times, np.sort(early))
    np.testing.assert_array_equal(found.world_from_cam[:, 0, 3], found.times)
    assert "line 8: 1 poses are earlier than those above them, by less than a step: sorted" in caplog.text
    for back in (0.02, 0.3):
        far = times.copy()
        far[8] = times[7] - back
        with pytest.raises(InputError, match=r"line 8: its time .* is before"):
            common.make_trajectory(far, path_at(far), [f"g.txt, line {k}" for k in range(40)])
    many = times + np.where(np.arange(40) % 2, 0, 0.015)
    with pytest.raises(InputError, match="is before"):
        common.make_trajectory(many, path_at(many), list(map(str, range(40))))


def test_stamps_that_rounding_made_equal_lose_a_pose_and_that_is_said(caplog):
    exact = np.arange(40) / 200
    times = np.floor(exact * 100) / 100
    found = common.make_trajectory(times, path_at(exact), [f"g.txt, line {k}" for k in range(40)])
    np.testing.assert_array_equal(found.times, np.unique(times))
    np.testing.assert_array_equal(found.world_from_cam, path_at(exact)[::2])
    assert "20 poses have the time of those above them, as if it were rounded: left out" in caplog.text
    other = path_at(exact)
    other[9, 1, 3] = 1.0
    with pytest.raises(InputError, match=r"line 9: another pose at the time 0\.04 of the one above"):
        common.make_trajectory(times, other, [f"g.txt, line {k}" for k in range(40)])
