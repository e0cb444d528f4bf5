"""Known poses: file formats, conventions, and matching to frames; and the known cameras of a clip."""

import json

import numpy as np
import pytest

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.export import write_tum
from easi3r_jax.io.priors.cameras import load_cameras, load_poses
from easi3r_jax.io.priors.files import MAX_BYTES
from tests.camera_files import K, nerf, path_of_cameras, rows, save, tum


def check_poses(found, known, expected, which):
    assert np.flatnonzero(known).tolist() == list(which)
    np.testing.assert_allclose(found[known], expected, atol=1e-12)
    np.testing.assert_array_equal(found[~known], np.tile(np.eye(4), (np.sum(~known), 1, 1)))


def test_a_result_s_trajectory_is_read_back(tmp_path, clip):
    frames, poses = clip(6, every=3), path_of_cameras(6)
    write_tum(tmp_path / "trajectory.txt", frames.time, poses)
    found, known = load_poses(tmp_path / "trajectory.txt", frames)
    assert known.all() and found.dtype == np.float64
    np.testing.assert_allclose(found, poses, atol=1e-7)
    np.testing.assert_allclose(
        np.swapaxes(found[:, :3, :3], 1, 2) @ found[:, :3, :3], np.tile(np.eye(3), (6, 1, 1)), atol=1e-14
    )


@pytest.mark.parametrize(
    ("stamps", "entries"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3]),  # one per frame of the clip, whatever the stamps
        ([1e9, 1e9 + 1, 1e9 + 5, 1e9 + 7], [0, 1, 2, 3]),
        ([3, 2, 1, 0], [3, 2, 1, 0]),
        (range(8), [0, 2, 4, 6]),  # one per frame of the source
        (np.arange(7) / 30 + 1e9, [0, 2, 4, 6]),
        ([0, 1, 2, 4, 5, 6, 7], [0, 2, 3, 5]),  # frame numbers: the gap shows it
        ([2, 3], [None, 0, None, None]),
        ([6.0, 0.0, 5.0], [1, None, None, 0]),
        ([0.0, 4 / 24 + 0.02, 5 / 24], [0, None, 1, None]),  # seconds; half a frame is 0.0208 s
        ([4 / 24 - 0.02], [None, None, 0, None]),
        ([7.4 / 24, -0.01], [1, None, None, None]),
        (np.arange(0, 1, 0.001), [0, 83, 167, 250]),  # at another rate
    ],
)
def test_stamps_of_a_trajectory(tmp_path, clip, stamps, entries):
    """Every second frame of 8, at 24 frames per second: frames 0, 2, 4 and 6."""
    poses = path_of_cameras(len(stamps))
    found, known = load_poses(save(tmp_path / "t.txt", tum(stamps, poses)), clip(4, every=2))
    which = [frame for frame, entry in enumerate(entries) if entry is not None]
    check_poses(found, known, poses[[entry for entry in entries if entry is not None]], which)


def test_a_source_of_unknown_length_is_matched_by_time(tmp_path, clip):
    poses = path_of_cameras(50)
    path = save(tmp_path / "t.txt", tum(np.arange(50) / 48 + 0.001, poses))
    found, known = load_poses(path, clip(4), stopped_early=True)
    check_poses(found, known, poses[[0, 2, 4, 6]], range(4))
    found, known = load_poses(path, clip(4), stopped_early=True, source_names=[f"{n}.png" for n in range(50)])
    check_poses(found, known, poses[:4], range(4))  # the source has as many frames as the file has poses


def test_comments_and_commas_in_a_trajectory(tmp_path, clip):
    text = "# timestamp tx ty tz qx qy qz qw\n\n0, 1, 2, 3, 0, 0, 0.7071, 0.7071 # turned about z\n"
    found, _ = load_poses(save(tmp_path / "t.txt", text), clip(1))
    np.testing.assert_allclose(found[0], [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], atol=1e-15)


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        ([f"images/frame_{n:05}.png" for n in range(1, 9)], range(8)),  # nerfstudio's numbers start at 1
        ([f"images\\{n}.png" for n in range(8)], range(8)),
        ([f"./train/r_{n}" for n in (9, 10, 3, 1, 2, 5, 6, 8)], [3, 4, 2, 5, 6, 7, 0, 1]),
        (["h", "b", "a", "c", "d", "e", "f", "g"], [2, 1, 3, 4, 5, 6, 7, 0]),
        (["x/2.png", "x/5.png", "x/0.png"], [2, None, 0, None, None, 1, None, None]),
        ([f"{n}.png" for n in (0, 1, 2, 4, 5, 6, 7)], [0, 1, 2, None, 3, 4, 5, 6]),
    ],
)
def test_images_of_a_transforms_file_are_matched_by_name(tmp_path, clip, names, entries):
    poses = path_of_cameras(len(names))
    found, known = load_poses(nerf(tmp_path / "t.json", names, poses), clip(8))
    which = [frame for frame, entry in enumerate(entries) if entry is not None]
    check_poses(found, known, poses[[entry for entry in entries if entry is not None]], which)


@pytest.mark.parametrize(
    ("clip_options", "stopped_early", "numbers", "entries"),
    [
        # Every second frame of 7 or 8: a gap shows that one is missing; without a gap, all 7 are there.
        ({"length": 4, "every": 2}, False, (0, 1, 2, 4, 5, 6, 7), [0, 2, 3, 5]),
        ({"length": 4, "every": 2}, False, (1, 2, 3, 4, 5, 6, 7), [0, 2, 4, 6]),
        # The first 4 frames of a source of any length: all frames are listed, or some from the third on.
        ({"length": 4}, True, (1, 2, 3, 4, 5, 6), [0, 1, 2, 3]),
        ({"length": 4}, True, (2, 3, 4, 5, 6), [None, None, 0, 1]),
    ],
)
def test_numbers_in_names_distinguish_partial_from_complete_lists(
    tmp_path, clip, clip_options, stopped_early, numbers, entries
):
    poses = path_of_cameras(len(numbers))
    path = nerf(tmp_path / "t.json", [f"{number}.png" for number in numbers], poses)
    found, known = load_poses(path, clip(**clip_options), stopped_early)
    which = [frame for frame, entry in enumerate(entries) if entry is not None]
    check_poses(found, known, poses[[entry for entry in entries if entry is not None]], which)


def test_the_source_s_own_names_take_precedence(tmp_path, clip):
    names = [f"frame_{n:05}.jpg" for n in range(1, 9)]
    poses = path_of_cameras(3)
    path = nerf(
        tmp_path / "t.json", ["images/frame_00008.png", "images/frame_00003.png", "images/frame_00099.png"], poses
    )
    found, known = load_poses(path, clip(4, every=2), source_names=names)
    check_poses(found, known, poses[[1]], [1])  # frame 2 of the source
    found, known = load_poses(path, clip(8), source_names=names)
    check_poses(found, known, poses[[1, 0]], [2, 7])


def test_transforms_have_opengl_axes(tmp_path, clip):
    """A point (x, y, z) in an OpenGL camera's axes is (x, -y, -z) in ours."""
    world_from_gl = path_of_cameras(1)[0]
    content = {"frames": [{"file_path": "0", "transform_matrix": world_from_gl.tolist()}]}
    found, _ = load_poses(save(tmp_path / "t.json", json.dumps(content)), clip(1))
    in_gl = np.array([0.3, 0.2, -4, 1])
    np.testing.assert_allclose(np.linalg.inv(found[0]) @ world_from_gl @ in_gl, [0.3, -0.2, 4, 1], atol=1e-12)


@pytest.mark.parametrize(("every", "count"), [(1, 4), (3, 4), (3, 12)])
def test_arrays_of_poses(tmp_path, clip, every, count):
    frames, poses = clip(4, every=every), path_of_cameras(count)
    poses[0] = np.nan
    np.savez_compressed(tmp_path / "p.npz", world_from_cam=poses.astype(np.float32), depth=np.zeros(3))
    found, known = load_poses(tmp_path / "p.npz", frames)
    chosen = poses[np.arange(4) if count == 4 else frames.source_index]
    assert known.tolist() == [False, True, True, True]
    np.testing.assert_allclose(found[1:], chosen[1:], atol=1e-6)


def test_rotations_are_replaced_by_the_nearest_rotation(tmp_path, clip):
    poses = path_of_cameras(3)
    poses[:, :3, :3] += np.random.default_rng(1).uniform(-2e-4, 2e-4, (3, 3, 3))
    np.savez(tmp_path / "p.npz", world_from_cam=poses)
    found, _ = load_poses(tmp_path / "p.npz", clip(3))
    rotations = found[:, :3, :3]
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, 1, 2), np.tile(np.eye(3), (3, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    np.testing.assert_allclose(found, poses, atol=1e-3)
    # It is the nearest if the remainder to the given matrix is symmetric (polar decomposition).
    left = np.swapaxes(rotations, 1, 2) @ poses[:, :3, :3]
    np.testing.assert_allclose(left, np.swapaxes(left, 1, 2), atol=1e-12)


GOOD = "0 1 2 3 0 0 0 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing", "has no poses"),
        (GOOD + "1 1 2 3 0 0 0", "line 2 is not a pose: 'timestamp tx ty tz qx qy qz qw'"),
        (GOOD + "x 1 2 3 0 0 0 1", "line 2 is not a list of numbers"),
        ("nan 1 2 3 0 0 0 1", "line 1 is not a pose"),
        (GOOD + "1 1 2 3 0 0 0 0", "line 2: not a rotation, the quaternion .* has length 0"),
        (GOOD + "1 1 2 3 0 0 0 1.1", "line 2: not a rotation, the quaternion .* has length 1.1"),
        (GOOD + "1 1 2 3 1e300 0 0 1", "line 2: not a rotation"),
        (GOOD + "1 1 2 3 0 nan 0 1", "line 2: not a rotation"),
        (GOOD + "1 1 inf 3 0 0 0 1", "line 2: a pose that is not finite"),
        (GOOD + GOOD, "with the stamp 0 twice"),
        (GOOD.replace("0 1", "1305031102.1758 1", 1), "none within half a frame of the clip's 8, .*count seconds from"),
        ("3 " + "nan " * 7, "has nothing for any of the clip's 8 frames"),
    ],
)
def test_wrong_trajectories_are_refused_in_one_line(tmp_path, clip, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_poses(save(tmp_path / "t.txt", text), clip(8))
    assert "\n" not in str(caught.value) and str(tmp_path / "t.txt") in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.diag([1.01, 1, 1, 1]), "not a rotation, its columns are not orthonormal"),
        (np.diag([0.0, 0, 0, 1]), "not a rotation"),
        (np.diag([1e300, 1, 1, 1]), "not a rotation"),
        (np.diag([1.0, 1, -1, 1]), "not a rotation but a reflection"),
        (np.diag([1.0, 1, 1, 2]), "not a rigid motion, its last row"),
        (np.where(np.eye(4) > 0, 1, np.nan), "a pose that is not finite"),
    ],
)
def test_wrong_poses_are_named_in_the_message(tmp_path, clip, wrong, message):
    poses = path_of_cameras(3)
    poses[1] = wrong
    np.savez(tmp_path / "p.npz", world_from_cam=poses)
    with pytest.raises(InputError, match=rf"p\.npz, pose 1 \(from 0\): {message}"):
        load_poses(tmp_path / "p.npz", clip(3))
    nerf(tmp_path / "t.json", ["a/4", "a/5", "a/6"], poses)
    with pytest.raises(InputError, match=rf"t\.json, image a/5: {message}"):
        load_poses(tmp_path / "t.json", clip(8))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (None, "4 rows"),
        ("eye", "4 rows"),
        ([[1, 2], [3]], "4 rows"),
        ([[10**400] * 4] * 4, "4 rows"),
        ([1] * 16, "4 rows"),
    ],
)
def test_transforms_without_poses(tmp_path, clip, matrix, message):
    path = save(tmp_path / "t.json", json.dumps({"frames": [{"file_path": "0.png", "transform_matrix": matrix}]}))
    with pytest.raises(InputError, match=rf"image 0\.png: 'transform_matrix' is not {message}"):
        load_poses(path, clip(1))
    with pytest.raises(InputError, match="its list 'frames' is empty"):
        load_poses(nerf(path, fl_x=80), clip(1))


def test_wrong_archives(tmp_path, clip):
    path = tmp_path / "p.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"Cannot read .*p\.npz"):
        load_poses(path, clip(2))
    np.savez(path, poses=path_of_cameras(2))
    with pytest.raises(InputError, match="has no array 'world_from_cam'"):
        load_poses(path, clip(2))
    np.savez(path, world_from_cam=path_of_cameras(2)[0])
    with pytest.raises(InputError, match=r"has shape \(4, 4\), but \(frames, 4, 4\) is needed"):
        load_poses(path, clip(2))
    np.savez(path, world_from_cam=path_of_cameras(5))
    with pytest.raises(InputError, match="poses for 5 frames, the clip has 2"):
        load_poses(path, clip(2))
    np.savez(path, world_from_cam=np.array([{}], object))
    with pytest.raises(InputError, match="Cannot read"):
        load_poses(path, clip(2))
    np.savez(path, world_from_cam=np.full((2, 4, 4), "x"))
    with pytest.raises(InputError, match="not real numbers"):
        load_poses(path, clip(2))
    np.savez_compressed(path, world_from_cam=np.zeros(MAX_BYTES // 4, np.float32))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="is larger than 64 MB"):
        load_poses(path, clip(2))


def test_the_known_cameras_of_a_clip(tmp_path, clip):
    frames, poses = clip(4), path_of_cameras(1)
    nothing = load_cameras(frames)
    assert not (nothing.intrinsics_known | nothing.poses_known).any()
    np.testing.assert_array_equal(nothing.focal, np.ones(4))
    np.testing.assert_array_equal(nothing.principal_point, np.zeros((4, 2)))
    np.testing.assert_array_equal(nothing.world_from_cam, np.tile(np.eye(4), (4, 1, 1)))
    known = load_cameras(frames, save(tmp_path / "k.txt", rows([K])), save(tmp_path / "p.txt", tum([2], poses)))
    assert known.intrinsics_known.all() and known.poses_known.tolist() == [False, False, True, False]
    np.testing.assert_allclose(known.world_from_cam[2], poses[0], atol=1e-12)
