"""Known intrinsics and poses: what is read from which file, for which frame, in which convention."""

import json
import logging

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.config import FrameConfig
from easi3r_jax.errors import InputError
from easi3r_jax.export import write_intrinsics, write_tum
from easi3r_jax.priors.cameras import load_cameras, load_intrinsics, load_poses, single_focal
from easi3r_jax.priors.files import MAX_BYTES

K = np.array([[80.0, 0, 47], [0, 81, 33], [0, 0, 1]])
GEOMETRIES = [
    {"config": FrameConfig(size=64)},
    {"config": FrameConfig(size=160)},
    {"config": FrameConfig(size=64, crop=False)},
    {"config": FrameConfig(size=224)},
    {"config": FrameConfig(size=64), "width": 70, "height": 100},
]


def path_of_cameras(length, seed=0):
    poses = np.tile(np.eye(4), (length, 1, 1))
    random = np.random.default_rng(seed)
    poses[:, :3, :3] = Rotation.random(length, rng=random).as_matrix()
    poses[:, :3, 3] = random.normal(size=(length, 3))
    return poses


def several_intrinsics(length):
    return K + np.arange(length)[:, None, None] * np.diag([1.0, 1.0, 0])


def project(intrinsics, points):
    pixels = points @ intrinsics.T
    return pixels[:, :2] / pixels[:, 2:]


def save(path, text):
    path.write_text(text)
    return path


def rows(matrices):
    return "\n".join(" ".join(f"{value:.17g}" for value in np.ravel(matrix)) for matrix in matrices)


def tum(stamps, poses):
    lines = zip(stamps, poses[:, :3, 3], Rotation.from_matrix(poses[:, :3, :3]).as_quat(), strict=True)
    return rows([[stamp, *centre, *quaternion] for stamp, centre, quaternion in lines])


def nerf(path, names=(), poses=None, **shared):
    """A transforms.json; poses (OpenCV) are written with OpenGL axes."""
    poses = path_of_cameras(len(names)) if poses is None else poses
    images = [
        {"file_path": name, "transform_matrix": np.column_stack([*pose[:, :1].T, -pose[:, 1], -pose[:, 2], pose[:, 3]])}
        for name, pose in zip(names, poses, strict=True)
    ]
    return save(path, json.dumps({**shared, "frames": images}, default=np.ndarray.tolist))


# --- intrinsics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_projecting_with_mapped_intrinsics_is_mapping_the_projected(tmp_path, clip, geometry):
    frames = clip(2, **geometry)
    intrinsics = K[[1, 0, 2]][:, [1, 0, 2]] if geometry.get("width") == 70 else K
    points = np.random.default_rng(0).normal([0, 0, 9], size=(50, 3))
    found, known = load_intrinsics(save(tmp_path / "k.txt", rows([intrinsics])), frames)
    assert found.dtype == np.float64 and found.shape == (2, 3, 3) and known.tolist() == [True, True]
    pixels = np.column_stack([project(intrinsics, points), np.ones(50)])
    np.testing.assert_allclose(project(found[0], points), (pixels @ frames.frame_from_source.T)[:, :2], rtol=1e-12)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_crop_moves_the_principal_point_only(tmp_path, clip):
    """100x70 becomes 64x45, of which 32 rows are kept from row 6 on; a resize maps edges to edges."""
    found, _ = load_intrinsics(save(tmp_path / "k.txt", "80 81 49.5 34.5"), clip(1))
    scale = [64 / 100, 45 / 70]
    expected = [[80 * scale[0], 0, 31.5], [0, 81 * scale[1], 22 - 6], [0, 0, 1]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "80 81 47 33",
        "80, 81,47 ,33\n\n",
        "# fx fy cx cy\n80;81;47;33 # for all",
        "80 0 47 0 81 33 0 0 1",
        "80 0 47\n0 81 33\n0 0 1",
        "80,0,47\r\n0,81,33\r\n0,0,1\r\n",
        "\ufeff80 81 47 33",
        "\n".join(["80 81 47 33"] * 8),
        "\n".join(["80 0 47 0 81 33 0 0 1"] * 8),
    ],
)
def test_forms_of_the_same_intrinsics(tmp_path, clip, text):
    frames = clip(8)
    found, known = load_intrinsics(save(tmp_path / "k.txt", text), frames)
    np.testing.assert_allclose(found, np.tile(frames.frame_from_source @ K, (8, 1, 1)), rtol=1e-14)
    assert known.all()


@pytest.mark.parametrize(("every", "lines"), [(1, 4), (3, 4), (3, 10), (3, 12)])
def test_a_line_for_each_frame_of_the_clip_or_of_its_source(tmp_path, clip, every, lines):
    frames = clip(4, every=every)
    found, _ = load_intrinsics(save(tmp_path / "k.txt", rows(several_intrinsics(lines))), frames)
    chosen = np.arange(4) if lines == 4 else frames.source_index
    expected = (several_intrinsics(lines)[chosen])[:, 0, 0]
    np.testing.assert_allclose(found[:, 0, 0], expected * frames.frame_from_source[0, 0])


def test_some_frames_are_known(tmp_path, clip):
    frames = clip(4)
    found, known = load_intrinsics(save(tmp_path / "k.txt", "80 81 47 33\n-\nnan nan nan nan\n80 81 47 33"), frames)
    assert known.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(found[1:3], np.tile(np.eye(3), (2, 1, 1)))
    np.testing.assert_allclose(found[3], frames.frame_from_source @ K)


def test_the_skew_of_a_calibration_s_noise_is_dropped(tmp_path, clip):
    found, _ = load_intrinsics(save(tmp_path / "k.txt", "80 0.01 47 0 81 33 0 0 1"), clip(1))
    np.testing.assert_allclose(found[0], clip(1).frame_from_source @ K, rtol=1e-14)


def test_a_result_s_intrinsics_are_the_frames_own(tmp_path, clip):
    frames = clip(5, every=2)
    intrinsics = np.array([[60.0, 0, 32], [0, 60, 16], [0, 0, 1]]) + np.arange(5)[:, None, None] * np.diag([1, 1, 0])
    write_intrinsics(tmp_path / "intrinsics.txt", intrinsics)
    found, known = load_intrinsics(tmp_path / "intrinsics.txt", frames)
    np.testing.assert_allclose(found, intrinsics, rtol=1e-8)
    assert known.all()
    with pytest.raises(InputError, match=r"is a result's.*not of 160x112 pixels: reconstruct with the same size"):
        load_intrinsics(tmp_path / "intrinsics.txt", clip(5, config=FrameConfig(size=160)))


@pytest.mark.parametrize(
    "shared",
    [
        {"fl_x": 80.0, "fl_y": 81.0, "cx": 47.5, "cy": 33.5, "w": 100, "h": 70.0, "camera_model": "OPENCV", "k1": 0},
        {
            "camera_angle_x": 2 * np.arctan(50 / 80),
            "camera_angle_y": 2 * np.arctan(35 / 81),
            "cx": 47.5,
            "cy": 33.5,
        },
        {"fl_x": 80.0, "camera_angle_x": 0.1, "fl_y": 81.0, "cx": 47.5, "cy": 33.5},
    ],
)
def test_transforms_count_from_the_corner(tmp_path, clip, shared):
    frames = clip(3)
    expected = np.tile(frames.frame_from_source @ K, (3, 1, 1))
    for names in ([], ["a/0.png", "a/1.png", "a/2.png"], ["1.png"]):  # what holds for all holds for those not listed
        found, known = load_intrinsics(nerf(tmp_path / "transforms.json", names, **shared), frames)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert known.all()


def test_what_a_transforms_file_leaves_out(tmp_path, clip):
    frames = clip(1, width=64, height=48)  # neither scaled nor cropped
    found, _ = load_intrinsics(nerf(tmp_path / "t.json", fl_x=60), frames)
    np.testing.assert_array_equal(found[0], [[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
    found, _ = load_intrinsics(nerf(tmp_path / "t.json", camera_angle_x=np.pi / 2), frames)
    np.testing.assert_allclose(found[0], [[32, 0, 31.5], [0, 32, 23.5], [0, 0, 1]])


def test_images_of_a_transforms_file_may_have_their_own(tmp_path, clip):
    frames = clip(4, width=64, height=48)
    images = [{"file_path": "2", "fl_x": 70.0}, {"file_path": "1", "camera_angle_x": np.pi / 2}]
    path = save(tmp_path / "t.json", json.dumps({"frames": images}))
    found, known = load_intrinsics(path, frames)
    assert known.tolist() == [False, True, True, False]
    np.testing.assert_allclose(found[:, 0, 0], [1, 32, 70, 1])
    path = save(tmp_path / "t.json", json.dumps({"frames": images, "fl_x": 60, "fl_y": 61}))
    found, known = load_intrinsics(path, frames)
    assert known.all()
    np.testing.assert_allclose(found[:, 0, 0], [60, 32, 70, 60])
    np.testing.assert_allclose(found[:, 1, 1], [61, 32, 70, 61])


def test_lens_distortion_is_left_out_with_a_warning(tmp_path, clip, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        load_intrinsics(nerf(tmp_path / "t.json", ["0"], fl_x=80, k1=0.05, k2=0.0), clip(1))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/t.json: lens distortion (k1 = 0.05) is left out."
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"k\.txt is empty"),
        ("# only a comment", "has no numbers"),
        ("80 81 47 33\n" * 12, r"k\.txt: intrinsics for 12 frames, the clip has 8: give one for each"),
        ("80 81 47 33\n" * 7, "intrinsics for 7 frames, the clip has 8"),
        ("80 81 47", "line 1 has 3 numbers: fx fy cx cy"),
        ("80 81 47 33\n" * 2 + "80 81", "line 3 has 2 numbers"),
        ("80 81 47 33 wide", r"line 1 is no list of numbers: '80 81 47 33 wide'"),
        ("-80 81 47 33", r"line 1: focal lengths -80 and 81 .* positive"),
        ("0.8 0.81 0.47 0.33", "line 1: focal lengths 0.8 and 0.81 .* positive numbers of pixels"),
        ("1e300 1e300 47 33", "line 1: focal lengths 1e.300"),
        ("80 inf 47 33", "line 1: intrinsics that are not finite"),
        ("80 81 nan 33", "line 1: intrinsics that are not finite"),
        ("160 162 94 133", r"line 1: the principal point \(94, 133\) is not in the image of 100x70 pixels"),
        ("80 3 47 0 81 33 0 0 1", "line 1: not a camera matrix"),
        ("80 0 47 0 81 33 0 1 0", "line 1: not a camera matrix"),
        ("80 0 0 0 81 0 47 33 1", "line 1: not a camera matrix"),  # transposed
        ("-", "tells nothing of any of the clip's 8 frames"),
    ],
)
def test_wrong_intrinsics_are_told_in_one_line(tmp_path, clip, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_intrinsics(save(tmp_path / "k.txt", text), clip(8))
    assert "\n" not in str(caught.value) and str(tmp_path / "k.txt") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no valid JSON"),
        ("[" * 100_000, "is no valid JSON"),
        ("[]", r"is no transforms\.json"),
        ('{"frames": 3}', r"is no transforms\.json"),
        ('{"frames": [{"fl_x": 80}]}', "entry 0 .* has no 'file_path'"),
        ({}, "tells nothing of any"),
        ({"fl_x": -80}, "'fl_x' is -80, a focal length in pixels is positive"),
        ({"fl_x": "80"}, "'fl_x' is 80, no finite number"),
        ({"fl_x": float("nan")}, "'fl_x' is nan, no finite number"),
        ({"fl_x": 10**400}, "'fl_x' is 1000.*, no finite number"),
        ({"fl_x": 80, "cx": None}, "'cx' is None, no finite number"),
        ({"camera_angle_x": 60}, "'camera_angle_x' is 60, no angle in radians"),
        ({"fl_x": 80, "w": 200, "h": 140}, "is for images of 200x140 pixels, the video has 100x70: scale"),
        ({"fl_x": 80, "camera_model": "OPENCV_FISHEYE"}, r"no perspective one \(OPENCV_FISHEYE\): undistort"),
        (
            {"frames": [{"file_path": "1", "fl_x": 80}, {"file_path": "9", "fl_x": 80}]},
            "an image number 9.*ends with 7",
        ),
        ({"frames": [{"file_path": "a", "fl_x": 80}]}, "for 1 images, the clip has 8.*a number of its own"),
        ({"frames": [{"file_path": "a/1", "fl_x": 80}, {"file_path": "b/1.png", "fl_x": 80}]}, "with '1' twice"),
        ({"frames": [{"file_path": "3", "fl_x": 80}, {"file_path": "4", "fl_x": 0.8}]}, "image 4: focal lengths 0.8"),
    ],
)
def test_wrong_transforms_are_told_in_one_line(tmp_path, clip, content, message):
    path = save(tmp_path / "t.json", content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        load_intrinsics(path, clip(8))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("load", [load_intrinsics, load_poses])
def test_files_that_cannot_be_read(tmp_path, clip, load):
    with pytest.raises(InputError, match="There is no file"):
        load(tmp_path / "nowhere.txt", clip(1))
    with pytest.raises(InputError, match="is no file"):
        load(tmp_path, clip(1))
    (tmp_path / "utf16.txt").write_text("80 81 47 33", encoding="utf-16")
    with pytest.raises(InputError, match="is no text file: save it as UTF-8"):
        load(tmp_path / "utf16.txt", clip(1))
    for name in ("huge.txt", "huge.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(MAX_BYTES + 1)
        with pytest.raises(InputError, match="is larger than 64 MB"):
            load(tmp_path / name, clip(1))


# --- poses ----------------------------------------------------------------------------------------------------------


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
        ([0, 1, 2, 3], [0, 1, 2, 3]),  # one for each frame of the clip, whatever the stamps are
        ([1e9, 1e9 + 1, 1e9 + 5, 1e9 + 7], [0, 1, 2, 3]),
        ([3, 2, 1, 0], [3, 2, 1, 0]),
        (range(8), [0, 2, 4, 6]),  # one for each frame of the source
        (np.arange(7) / 30 + 1e9, [0, 2, 4, 6]),
        ([0, 1, 2, 4, 5, 6, 7], [0, 2, 3, 5]),  # frame numbers: the one left out is seen
        ([2, 3], [None, 0, None, None]),
        ([6.0, 0.0, 5.0], [1, None, None, 0]),
        ([0.0, 4 / 24 + 0.02, 5 / 24], [0, None, 1, None]),  # seconds; half a frame is 0.0208
        ([4 / 24 - 0.02], [None, None, 0, None]),
        ([7.4 / 24, -0.01], [1, None, None, None]),
        (np.arange(0, 1, 0.001), [0, 83, 167, 250]),  # at another rate
    ],
)
def test_stamps_of_a_trajectory(tmp_path, clip, stamps, entries):
    """Every other frame of 8, at 24 frames per second: frames 0, 2, 4 and 6."""
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
        ([f"images/frame_{n:05}.png" for n in range(1, 9)], range(8)),  # nerfstudio's numbers begin with 1
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
        # Every other frame of 7 or 8: a gap tells that one is left out, no gap that all of 7 are there.
        ({"length": 4, "every": 2}, False, (0, 1, 2, 4, 5, 6, 7), [0, 2, 3, 5]),
        ({"length": 4, "every": 2}, False, (1, 2, 3, 4, 5, 6, 7), [0, 2, 4, 6]),
        # The first 4 frames of any number: all of them are listed, or some from the third on.
        ({"length": 4}, True, (1, 2, 3, 4, 5, 6), [0, 1, 2, 3]),
        ({"length": 4}, True, (2, 3, 4, 5, 6), [None, None, 0, 1]),
    ],
)
def test_numbers_in_names_tell_a_part_from_the_whole(tmp_path, clip, clip_options, stopped_early, numbers, entries):
    poses = path_of_cameras(len(numbers))
    path = nerf(tmp_path / "t.json", [f"{number}.png" for number in numbers], poses)
    found, known = load_poses(path, clip(**clip_options), stopped_early)
    which = [frame for frame, entry in enumerate(entries) if entry is not None]
    check_poses(found, known, poses[[entry for entry in entries if entry is not None]], which)


def test_the_source_s_own_names_go_first(tmp_path, clip):
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
    """What lies right of, above and before an OpenGL camera lies at (x, -y, -z) of ours."""
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


def test_rotations_are_brought_to_the_nearest_rotation(tmp_path, clip):
    poses = path_of_cameras(3)
    poses[:, :3, :3] += np.random.default_rng(1).uniform(-2e-4, 2e-4, (3, 3, 3))
    np.savez(tmp_path / "p.npz", world_from_cam=poses)
    found, _ = load_poses(tmp_path / "p.npz", clip(3))
    rotations = found[:, :3, :3]
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, 1, 2), np.tile(np.eye(3), (3, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    np.testing.assert_allclose(found, poses, atol=1e-3)
    # Nearest: what is left to the given one is symmetric in the rotation's own axes.
    left = np.swapaxes(rotations, 1, 2) @ poses[:, :3, :3]
    np.testing.assert_allclose(left, np.swapaxes(left, 1, 2), atol=1e-12)


GOOD = "0 1 2 3 0 0 0 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing", "has no poses"),
        (GOOD + "1 1 2 3 0 0 0", "line 2 is no pose: 'timestamp tx ty tz qx qy qz qw'"),
        (GOOD + "x 1 2 3 0 0 0 1", "line 2 is no list of numbers"),
        ("nan 1 2 3 0 0 0 1", "line 1 is no pose"),
        (GOOD + "1 1 2 3 0 0 0 0", "line 2: not a rotation, the quaternion .* has length 0"),
        (GOOD + "1 1 2 3 0 0 0 1.1", "line 2: not a rotation, the quaternion .* has length 1.1"),
        (GOOD + "1 1 2 3 1e300 0 0 1", "line 2: not a rotation"),
        (GOOD + "1 1 2 3 0 nan 0 1", "line 2: not a rotation"),
        (GOOD + "1 1 inf 3 0 0 0 1", "line 2: a pose that is not finite"),
        (GOOD + GOOD, "with the stamp 0 twice"),
        (GOOD.replace("0 1", "1305031102.1758 1", 1), "none within half a frame of the clip's 8, .*count seconds from"),
        ("3 " + "nan " * 7, "tells nothing of any of the clip's 8 frames"),
    ],
)
def test_wrong_trajectories_are_told_in_one_line(tmp_path, clip, text, message):
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
def test_wrong_poses_are_named(tmp_path, clip, wrong, message):
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
    with pytest.raises(InputError, match=r"has shape \(4, 4\), \(frames, 4, 4\) is needed"):
        load_poses(path, clip(2))
    np.savez(path, world_from_cam=path_of_cameras(5))
    with pytest.raises(InputError, match="poses for 5 frames, the clip has 2"):
        load_poses(path, clip(2))
    np.savez(path, world_from_cam=np.array([{}], object))
    with pytest.raises(InputError, match="Cannot read"):
        load_poses(path, clip(2))
    np.savez(path, world_from_cam=np.full((2, 4, 4), "x"))
    with pytest.raises(InputError, match="no real numbers"):
        load_poses(path, clip(2))
    np.savez_compressed(path, world_from_cam=np.zeros(MAX_BYTES // 4, np.float32))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="is larger than 64 MB"):
        load_poses(path, clip(2))


# --- both -----------------------------------------------------------------------------------------------------------


def test_cameras_of_a_clip(tmp_path, clip):
    frames, poses = clip(4), path_of_cameras(1)
    nothing = load_cameras(frames)
    assert not (nothing.intrinsics_known | nothing.poses_known).any()
    np.testing.assert_array_equal(nothing.focal, np.ones(4))
    np.testing.assert_array_equal(nothing.principal_point, np.zeros((4, 2)))
    np.testing.assert_array_equal(nothing.world_from_cam, np.tile(np.eye(4), (4, 1, 1)))
    known = load_cameras(frames, save(tmp_path / "k.txt", rows([K])), save(tmp_path / "p.txt", tum([2], poses)))
    assert known.intrinsics_known.all() and known.poses_known.tolist() == [False, False, True, False]
    np.testing.assert_allclose(known.world_from_cam[2], poses[0], atol=1e-12)


def test_one_focal_length(tmp_path, clip):
    found, _ = load_intrinsics(save(tmp_path / "k.txt", "80 81 47 33\n-\n80 80 47 33"), clip(3))
    focal = single_focal(found)
    assert focal.dtype == np.float64 and focal.shape == (3,)
    np.testing.assert_allclose(focal**2, found[:, 0, 0] * found[:, 1, 1])
    assert focal[1] == 1  # unknown
    single_focal(np.tile(np.diag([100, 101.9, 1]), (2, 1, 1)))
    for pixels in ([100, 102.1, 1], [102.1, 100, 1]):
        with pytest.raises(InputError, match=r"frame 1, .* differ by more than 2%: pixels must be square; crop"):
            single_focal(np.stack([np.eye(3), np.diag(pixels)]))


def test_a_stretch_of_the_frames_is_noticed(tmp_path, clip):
    path = save(tmp_path / "k.txt", "80 80 49.5 34.5")
    single_focal(load_intrinsics(path, clip(1))[0])
    stretched, _ = load_intrinsics(path, clip(1, config=FrameConfig(size=64, crop=False)))
    with pytest.raises(InputError, match="crop the frames"):
        single_focal(stretched)
