"""Known intrinsics: file formats, conventions, and matching to frames."""

import json
import logging

import numpy as np
import pytest

from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.errors import InputError
from easi3r_jax.io.export import write_intrinsics
from easi3r_jax.io.priors.cameras import load_intrinsics, load_poses, single_focal
from easi3r_jax.io.priors.files import MAX_BYTES
from tests.camera_files import K, nerf, rows, save

GEOMETRIES = [
    {"config": FrameConfig(size=64)},
    {"config": FrameConfig(size=160)},
    {"config": FrameConfig(size=64, crop=False)},
    {"config": FrameConfig(size=224)},
    {"config": FrameConfig(size=64), "width": 70, "height": 100},
]


def several_intrinsics(length):
    return K + np.arange(length)[:, None, None] * np.diag([1.0, 1.0, 0])


def project(intrinsics, points):
    pixels = points @ intrinsics.T
    return pixels[:, :2] / pixels[:, 2:]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_projection_with_mapped_intrinsics_equals_mapping_the_projection(tmp_path, clip, geometry):
    frames = clip(2, **geometry)
    intrinsics = K[[1, 0, 2]][:, [1, 0, 2]] if geometry.get("width") == 70 else K
    points = np.random.default_rng(0).normal([0, 0, 9], size=(50, 3))
    found, known = load_intrinsics(save(tmp_path / "k.txt", rows([intrinsics])), frames)
    assert found.dtype == np.float64 and found.shape == (2, 3, 3) and known.tolist() == [True, True]
    pixels = np.column_stack([project(intrinsics, points), np.ones(50)])
    np.testing.assert_allclose(project(found[0], points), (pixels @ frames.frame_from_source.T)[:, :2], rtol=1e-12)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_crop_moves_the_principal_point_only(tmp_path, clip):
    """100x70 is resized to 64x45, edges to edges, and cropped to 32 rows from row 6 on."""
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


def test_intrinsics_may_be_known_for_some_frames(tmp_path, clip):
    frames = clip(4)
    found, known = load_intrinsics(save(tmp_path / "k.txt", "80 81 47 33\n-\nnan nan nan nan\n80 81 47 33"), frames)
    assert known.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(found[1:3], np.tile(np.eye(3), (2, 1, 1)))
    np.testing.assert_allclose(found[3], frames.frame_from_source @ K)


def test_a_skew_within_calibration_noise_is_dropped(tmp_path, clip):
    found, _ = load_intrinsics(save(tmp_path / "k.txt", "80 0.01 47 0 81 33 0 0 1"), clip(1))
    np.testing.assert_allclose(found[0], clip(1).frame_from_source @ K, rtol=1e-14)


def test_a_result_s_intrinsics_are_in_pixels_of_its_frames(tmp_path, clip):
    frames = clip(5, every=2)
    intrinsics = np.array([[60.0, 0, 32], [0, 60, 16], [0, 0, 1]]) + np.arange(5)[:, None, None] * np.diag([1, 1, 0])
    write_intrinsics(tmp_path / "intrinsics.txt", intrinsics)
    found, known = load_intrinsics(tmp_path / "intrinsics.txt", frames)
    np.testing.assert_allclose(found, intrinsics, rtol=1e-8)
    assert known.all()
    with pytest.raises(
        InputError, match=r"belongs to a result.*not have 160x112 pixels: reconstruct with the same size"
    ):
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
    for names in (
        [],
        ["a/0.png", "a/1.png", "a/2.png"],
        ["1.png"],
    ):  # shared values apply to images that are not listed
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


def test_lens_distortion_is_ignored_with_a_warning(tmp_path, clip, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        load_intrinsics(nerf(tmp_path / "t.json", ["0"], fl_x=80, k1=0.05, k2=0.0), clip(1))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/t.json: lens distortion (k1 = 0.05) is ignored."
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"k\.txt is empty"),
        ("# only a comment", "has no numbers"),
        ("80 81 47 33\n" * 12, r"k\.txt: intrinsics for 12 frames, the clip has 8: give one per frame"),
        ("80 81 47 33\n" * 7, "intrinsics for 7 frames, the clip has 8"),
        ("80 81 47", "line 1 has 3 numbers: fx fy cx cy"),
        ("80 81 47 33\n" * 2 + "80 81", "line 3 has 2 numbers"),
        ("80 81 47 33 wide", r"line 1 is not a list of numbers: '80 81 47 33 wide'"),
        ("-80 81 47 33", r"line 1: focal lengths -80 and 81 .* plausible focal lengths"),
        ("0.8 0.81 0.47 0.33", "line 1: focal lengths 0.8 and 0.81 .* plausible focal lengths in pixels"),
        ("1e300 1e300 47 33", "line 1: focal lengths 1e.300"),
        ("80 inf 47 33", "line 1: the intrinsics are not finite"),
        ("80 81 nan 33", "line 1: the intrinsics are not finite"),
        ("160 162 94 133", r"line 1: the principal point \(94, 133\) is outside the image of 100x70 pixels"),
        ("80 3 47 0 81 33 0 0 1", "line 1: not a camera matrix"),
        ("80 0 47 0 81 33 0 1 0", "line 1: not a camera matrix"),
        ("80 0 0 0 81 0 47 33 1", "line 1: not a camera matrix"),  # transposed
        ("-", "has nothing for any of the clip's 8 frames"),
    ],
)
def test_wrong_intrinsics_are_refused_in_one_line(tmp_path, clip, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_intrinsics(save(tmp_path / "k.txt", text), clip(8))
    assert "\n" not in str(caught.value) and str(tmp_path / "k.txt") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", r"is not a transforms\.json"),
        ('{"frames": 3}', r"is not a transforms\.json"),
        ('{"frames": [{"fl_x": 80}]}', "entry 0 .* has no 'file_path'"),
        ({}, "has nothing for any"),
        ({"fl_x": -80}, "'fl_x' is -80, but a focal length in pixels is positive"),
        ({"fl_x": "80"}, "'fl_x' is 80, not a finite number"),
        ({"fl_x": float("nan")}, "'fl_x' is nan, not a finite number"),
        ({"fl_x": 10**400}, "'fl_x' is 1000.*, not a finite number"),
        ({"fl_x": 80, "cx": None}, "'cx' is None, not a finite number"),
        ({"camera_angle_x": 60}, "'camera_angle_x' is 60, not an angle in radians"),
        ({"fl_x": 80, "w": 200, "h": 140}, "is for images of 200x140 pixels, but the video has 100x70: scale"),
        ({"fl_x": 80, "camera_model": "OPENCV_FISHEYE"}, r"not a perspective camera \(OPENCV_FISHEYE\): undistort"),
        (
            {"frames": [{"file_path": "1", "fl_x": 80}, {"file_path": "9", "fl_x": 80}]},
            "an image number 9.*ends with 7",
        ),
        ({"frames": [{"file_path": "a", "fl_x": 80}]}, "for 1 images, the clip has 8.*the number of its frame"),
        ({"frames": [{"file_path": "a/1", "fl_x": 80}, {"file_path": "b/1.png", "fl_x": 80}]}, "with '1' twice"),
        ({"frames": [{"file_path": "3", "fl_x": 80}, {"file_path": "4", "fl_x": 0.8}]}, "image 4: focal lengths 0.8"),
    ],
)
def test_wrong_transforms_are_refused_in_one_line(tmp_path, clip, content, message):
    path = save(tmp_path / "t.json", content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        load_intrinsics(path, clip(8))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("load", [load_intrinsics, load_poses])
def test_files_that_cannot_be_read(tmp_path, clip, load):
    with pytest.raises(InputError, match="There is no file"):
        load(tmp_path / "nowhere.txt", clip(1))
    with pytest.raises(InputError, match="is not a file"):
        load(tmp_path, clip(1))
    (tmp_path / "bytes.txt").write_bytes(b"80 81 47 33 \xff\xfe")
    with pytest.raises(InputError, match="is not a text file: save it as UTF-8"):
        load(tmp_path / "bytes.txt", clip(1))
    for name in ("huge.txt", "huge.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(MAX_BYTES + 1)
        with pytest.raises(InputError, match="is larger than 64 MB"):
            load(tmp_path / name, clip(1))


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


def test_stretched_frames_are_detected(tmp_path, clip):
    path = save(tmp_path / "k.txt", "80 80 49.5 34.5")
    single_focal(load_intrinsics(path, clip(1))[0])
    stretched, _ = load_intrinsics(path, clip(1, config=FrameConfig(size=64, crop=False)))
    with pytest.raises(InputError, match="crop the frames"):
        single_focal(stretched)
