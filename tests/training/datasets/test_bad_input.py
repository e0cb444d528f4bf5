"""Incomplete and damaged data sets: one line that names the file and the remedy, at the start where possible."""

import sys
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.training.datasets import READERS, Mixture, SamplingConfig, open_dataset

CONFIG = SamplingConfig(sizes=((48, 32),))


def message_of(action):
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 400
    return message


def opening(layout, truth):
    return message_of(lambda: open_dataset(layout, truth.root))


def reading(layout, truth, frame=2):
    """The data set opens, but the frame cannot be read, neither alone nor in a batch."""
    dataset = open_dataset(layout, truth.root)
    message = message_of(lambda: dataset.sequences[0].read(frame))
    mixture = Mixture([(dataset, 1.0)], CONFIG)
    assert message_of(lambda: [mixture.batch(0, step, 1) for step in range(30)]) == message
    return message


IMAGES = {
    "pairs": "frames/00002.png",
    "pointodyssey": "rgbs/rgb_00002.jpg",
    "spring": "frame_left/frame_left_0003.png",
    "tartanair": "image_left/000002_left.png",
    "waymo": "00002_1.jpg",
}
DEPTHS = {
    "pairs": "ground_truth.npz",
    "pointodyssey": "depths/depth_00002.png",
    "spring": "disp1_left/disp1_left_0003.dsp5",
    "tartanair": "depth_left/000002_left_depth.npy",
    "waymo": "00002_1.exr",
}
CAMERAS = {
    "pairs": "ground_truth.npz",
    "pointodyssey": "anno.npz",
    "spring": "cam_data/extrinsics.txt",
    "tartanair": "pose_left.txt",
    "waymo": "00002_1.npz",
}


def test_every_layout_is_tested():
    assert set(READERS) == set(IMAGES) == set(DEPTHS) == set(CAMERAS)


def test_unknown_layout_and_missing_root(tmp_path):
    with pytest.raises(ConfigError, match=r"'kitti'.*pointodyssey"):
        open_dataset("kitti", tmp_path)
    assert "nowhere" in message_of(lambda: open_dataset("spring", tmp_path / "nowhere"))


def test_an_empty_root(tmp_path, layout):
    (tmp_path / "other").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.txt").write_text("nothing here")
    message = message_of(lambda: open_dataset(layout, tmp_path))
    assert str(tmp_path) in message and layout in message


def test_a_missing_image(write, layout):
    truth = write(layout)
    path = truth.folder / IMAGES[layout]
    path.unlink()
    if layout == "waymo":  # missing times are skipped
        (sequence,) = open_dataset(layout, truth.root).sequences
        assert sequence.num_frames == len(truth.world_from_cam) - 1
        assert sequence.image_path(2).name == "00003_1.jpg"
    else:  # the project's own layout has no frame numbers, but fewer images than depth maps
        assert ("6, 54, 96" if layout == "pairs" else str(path)) in opening(layout, truth)


def test_missing_depth(write, layout):
    truth = write(layout)
    (truth.folder / DEPTHS[layout]).unlink()
    message = opening(layout, truth)
    assert str(truth.folder / DEPTHS[layout]) in message and "restore" in message


def test_missing_cameras(write, layout):
    truth = write(layout)
    (truth.folder / CAMERAS[layout]).unlink()
    assert str(truth.folder / CAMERAS[layout]) in opening(layout, truth)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_truncated_image(write, layout, share):
    truth = write(layout)
    path = truth.folder / IMAGES[layout]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in reading(layout, truth)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_truncated_depth(write, layout, share):
    truth = write(layout)
    path = truth.folder / DEPTHS[layout]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    # An .npz file has its directory at the end, and the cameras are in the same file.
    message = opening(layout, truth) if layout == "pairs" else reading(layout, truth)
    assert str(path) in message


def test_an_image_and_depth_of_different_sizes(write, layout):
    truth = write(layout)
    path = truth.folder / IMAGES[layout]
    with Image.open(path) as image:
        smaller = image.convert("RGB").resize((image.width - 2, image.height))
    smaller.save(path)
    message = reading(layout, truth)
    assert "shape" in message and str(truth.folder) in message


@pytest.mark.parametrize("layout", ["pointodyssey", "pairs", "waymo"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda poses: None, "no array"),
        (lambda poses: poses[..., :3, :], "shape"),
        (lambda poses: poses[..., None], "shape"),
        (lambda poses: poses.astype(object), "pickled"),
        (lambda poses: poses.astype("U8"), "real numbers"),
    ],
)
def test_invalid_poses(write, layout, change, reason):
    truth = write(layout)
    name = {"pointodyssey": "extrinsics", "pairs": "world_from_cam", "waymo": "cam2world"}[layout]
    path = truth.folder / CAMERAS[layout]
    with np.load(path, allow_pickle=True) as file:
        arrays = dict(file)
    changed = change(arrays.pop(name))
    np.savez(path, **arrays, **({} if changed is None else {name: changed}))
    message = reading(layout, truth) if layout == "waymo" else opening(layout, truth)
    assert str(path) in message and reason in message and name in message


@pytest.mark.parametrize("layout", ["pointodyssey", "pairs"])
def test_fewer_poses_than_frames(write, layout):
    truth = write(layout)
    path = truth.folder / CAMERAS[layout]
    with np.load(path, allow_pickle=True) as file:
        arrays = dict(file)
    name = "extrinsics" if layout == "pointodyssey" else "world_from_cam"
    arrays[name] = arrays[name][:-1]
    np.savez(path, **arrays)
    message = opening(layout, truth)
    assert str(path) in message and "(5, 4, 4)" in message and "(6, 4, 4)" in message


@pytest.mark.parametrize(
    ("layout", "name"),
    [("tartanair", "pose_left.txt"), ("spring", "cam_data/intrinsics.txt"), ("spring", "cam_data/extrinsics.txt")],
)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[:-1], "5 entries for 6 frames"),
        (lambda lines: [*lines, lines[0]], "7 entries for 6 frames"),
        (lambda lines: [], "0 entries"),
        (lambda lines: [*lines[:3], lines[3].rsplit(" ", 1)[0], *lines[4:]], "Line 4"),
        (lambda lines: [*lines[:2], "x" + lines[2], *lines[3:]], "Line 3"),
        (lambda lines: ["\udcff\x00", *lines[1:]], "Line 1"),
    ],
)
def test_invalid_camera_tables(write, layout, name, change, reason):
    truth = write(layout)
    path = truth.folder / name
    lines = path.read_text().splitlines()
    path.write_bytes("\n".join(change(lines)).encode("utf-8", "surrogateescape"))
    message = opening(layout, truth)
    assert str(path) in message and reason in message


@pytest.mark.parametrize(
    "intrinsics",
    [
        [[70, 0, 47], [0, 70, 28], [0, 0, 0]],
        [[70, 9, 47], [0, 70, 28], [0, 0, 1]],
        [[-70, 0, 47], [0, 70, 28], [0, 0, 1]],
        [[70, 0, np.nan], [0, 70, 28], [0, 0, 1]],
        [[0.7, 0, 0.5], [0, 0.7, 0.5], [0, 0, 1]],  # in units of the image's size
    ],
)
def test_invalid_intrinsics(write, change_truth, intrinsics):
    truth = write("pairs")
    change_truth(truth, intrinsics=np.array(intrinsics, np.float64))
    mixture = Mixture([(open_dataset("pairs", truth.root), 1.0)], CONFIG)
    message = message_of(lambda: mixture.batch(0, 0, 1))
    assert "frames/0000" in message and "correct" in message


def test_a_zero_quaternion_is_not_a_pose(write):
    truth = write("tartanair")
    (truth.folder / "pose_left.txt").write_text("0 0 0 0 0 0 0\n" * 5 + "nan 0 0 0 0 0 1\n")
    mixture = Mixture([(open_dataset("tartanair", truth.root), 1.0)], CONFIG)
    assert "32 times a pose" in message_of(lambda: mixture.batch(0, 0, 1))


def test_a_sequence_of_one_frame(write):
    truth = write("waymo")
    for frame in range(1, 6):
        (truth.folder / f"{frame:05}_1.jpg").unlink()
    assert "camera 1" in opening("waymo", truth)


# --- PointOdyssey ---------------------------------------------------------------------------------------------------


def test_8_bit_depth_images(write):
    truth = write("pointodyssey")
    path = truth.folder / DEPTHS["pointodyssey"]
    Image.fromarray(np.ones(truth.shape, np.uint8)).save(path)
    assert "16-bit" in reading("pointodyssey", truth) and str(path) in reading("pointodyssey", truth)


def test_the_ends_of_the_range_are_unknown(write):
    truth = write("pointodyssey")
    values = np.full(truth.shape, 300, np.uint16)
    values[0], values[1] = 0, 65535
    Image.fromarray(values).save(truth.folder / DEPTHS["pointodyssey"])
    depth = open_dataset("pointodyssey", truth.root).sequences[0].read(2).depth
    assert not depth[:2].any()
    np.testing.assert_allclose(depth[2:], 300 / 65535 * 1000, rtol=1e-6)


def test_splits_and_both_names_of_the_annotations(write, tmp_path):
    truth = write("pointodyssey")
    (truth.folder / "anno.npz").rename(truth.folder / "annot.npz")
    (tmp_path / "val").mkdir()
    (truth.folder.parent / "unpacked.tar").touch()
    truth.folder.rename(tmp_path / "val" / "robot")
    # An empty train split: no other split is used instead.
    assert "no sequence" in opening("pointodyssey", truth)
    assert len(open_dataset("pointodyssey", tmp_path / "val").sequences) == 1
    assert len(open_dataset("pointodyssey", tmp_path / "val" / "robot").sequences) == 1


# --- TartanAir ------------------------------------------------------------------------------------------------------


def test_sky_is_unknown(write):
    truth = write("tartanair")
    path = truth.folder / DEPTHS["tartanair"]
    depth = np.load(path)
    depth[:7], depth[7], depth[8] = 10_000, np.inf, -3
    np.save(path, depth)
    found = open_dataset("tartanair", truth.root).sequences[0].read(2).depth
    assert not found[:9].any()
    np.testing.assert_array_equal(found[9:], depth[9:])


def test_a_resized_copy_has_another_camera(write):
    truth = write("tartanair")
    path = truth.folder / IMAGES["tartanair"]
    Image.new("RGB", (320, 240)).save(path)
    np.save(truth.folder / DEPTHS["tartanair"], np.ones((240, 320), np.float32))
    assert "(480, 640)" in reading("tartanair", truth)


@pytest.mark.parametrize("levels", [("office", "office", "Easy"), ("office", "Hard"), ("Easy",), ()])
def test_scenes_are_found_on_every_level(write, tmp_path, levels):
    truth = write("tartanair")
    root = tmp_path / "elsewhere"
    folder = root.joinpath(*levels, "P000")
    folder.parent.mkdir(parents=True)
    truth.folder.rename(folder)
    (sequence,) = open_dataset("tartanair", root).sequences
    assert sequence.name == str(folder)


# --- Spring ---------------------------------------------------------------------------------------------------------


def test_without_h5py(write, monkeypatch):
    truth = write("spring")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install" in reading("spring", truth) and "[datasets]" in reading("spring", truth)


def test_external_disparities(write, tmp_path):
    """HDF5 can refer to other files: external links and external data are not followed."""
    truth = write("spring")
    path = truth.folder / DEPTHS["spring"]
    shape = tuple(2 * side for side in truth.shape)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["disparity"] = np.ones(shape, np.float32)
    raw = tmp_path / "raw"
    raw.write_bytes(np.ones(shape, np.float32).tobytes())

    def external_link(file):
        file["disparity"] = h5py.ExternalLink(str(other), "disparity")

    def external_storage(file):
        file.create_dataset("disparity", shape, np.float32, external=[(str(raw), 0, h5py.h5f.UNLIMITED)])

    def virtual(file):
        sources = h5py.VirtualLayout(shape, np.float32)
        sources[:] = h5py.VirtualSource(str(other), "disparity", shape)
        file.create_virtual_dataset("disparity", sources)

    for make in (external_link, external_storage, virtual, lambda file: file.create_group("disparity")):
        with h5py.File(path, "w") as file:
            make(file)
        assert "of its own" in reading("spring", truth)


def test_disparities_of_the_images_size(write):
    truth = write("spring")
    path = truth.folder / DEPTHS["spring"]
    with h5py.File(path, "w") as file:
        file["disparity"] = np.ones(truth.shape, np.float32)
    assert "twice" in reading("spring", truth)


def test_unknown_disparity_is_unknown_depth(write):
    truth = write("spring")
    disparity = np.ones([2 * side for side in truth.shape], np.float32)
    disparity[0], disparity[2], disparity[4], disparity[6] = 0, np.nan, -1, 1e-6
    with h5py.File(truth.folder / DEPTHS["spring"], "w") as file:
        file["disparity"] = disparity
    depth = open_dataset("spring", truth.root).sequences[0].read(2).depth
    assert not depth[:4].any()
    np.testing.assert_allclose(depth[4:], 80 * 0.065, rtol=1e-6)


# --- Waymo ----------------------------------------------------------------------------------------------------------


def test_each_camera_is_a_sequence(write):
    truth = write("waymo")
    for suffix in (".jpg", ".exr", ".npz"):
        for frame in range(3):
            data = (truth.folder / f"{frame:05}_1{suffix}").read_bytes()
            (truth.folder / f"{frame:05}_4{suffix}").write_bytes(data)
    sequences = open_dataset("waymo", truth.root).sequences
    assert [(s.name[-10:], s.num_frames) for s in sequences] == [("(camera 1)", 6), ("(camera 4)", 3)]
    assert open_dataset("waymo", truth.folder).sequences[1].image_path(2).name == "00002_4.jpg"


# --- the project's own layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 6\n", "0 to 5"),
        ("-1 2\n", "0 to 5"),
        ("2 2\n", "2 2"),
        ("0 1\n1.5 2\n", "1.5 2"),
        ("nan 2\n", "nan"),
        ("1e300 2\n", "0 to 5"),
        ("0 1 2\n", "Line 1"),
        ("0 1\na b\n", "Line 2"),
        ("# none\n", "no pairs"),
        ("", "no pairs"),
    ],
)
def test_invalid_lists_of_pairs(write, text, reason):
    truth = write("pairs")
    (truth.folder / "pairs.txt").write_text(text)
    message = opening("pairs", truth)
    assert str(truth.folder / "pairs.txt") in message and reason in message


@pytest.mark.parametrize(
    ("depth", "reason"),
    [
        (None, "no array 'depth'"),
        (np.ones((5, 54, 96), np.float32), "(5, 54, 96)"),
        (np.ones((6, 54, 96, 1), np.float32), "(6, 54, 96, 1)"),
        (np.full((6, 54, 96), None), "pickled"),
        (np.ones((6, 54, 96), complex), "real numbers"),
    ],
)
def test_invalid_depth_arrays(write, change_truth, depth, reason):
    truth = write("pairs")
    change_truth(truth, depth=depth)
    assert reason in opening("pairs", truth)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_one_frame_of_a_depth_array(write, save, order):
    truth = write("pairs")
    with np.load(truth.folder / "ground_truth.npz") as file:
        arrays = dict(file)
    depth = np.random.default_rng(0).random(arrays["depth"].shape) + 1
    for dtype in (np.float64, np.float16, ">f4"):
        arrays["depth"] = np.asarray(depth.astype(dtype), order=order)
        save(truth.folder / "ground_truth.npz", **arrays)
        sequence = open_dataset("pairs", truth.root).sequences[0]
        for frame in (0, 3, 5):
            np.testing.assert_array_equal(sequence.read(frame).depth, depth[frame].astype(dtype).astype(np.float32))


def test_a_depth_array_with_a_false_shape(write):
    """Shapes are compared and reads are bounded: a header that declares terabytes costs nothing."""
    truth = write("pairs")
    path = truth.folder / "ground_truth.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for shape in ((6, 10**7, 10**6), (6, 54, 96)):
        np.savez(path, **{name: array for name, array in arrays.items() if name != "depth"})
        with zipfile.ZipFile(path, "a") as archive, archive.open("depth.npy", "w") as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            member.write(bytes(54 * 96 * 4 * 2 + 1))
        message = reading("pairs", truth)
        assert "truncated" in message or "shape" in message


def test_a_root_that_is_one_scene(write):
    truth = write("pairs")
    (sequence,) = open_dataset("pairs", truth.folder).sequences
    assert sequence.name == str(truth.folder)
