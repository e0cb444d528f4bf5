"""Dialects of text files: encodings, line ends, separators, comments, headers; matrices; orders of quaternions."""

import codecs
import itertools
import json
import logging

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import InputError
from easi3r_jax.io.files import read_table
from easi3r_jax.io.priors.cameras import load_intrinsics, load_poses
from tests.camera_files import K, path_of_cameras, save

ENCODINGS = {
    "UTF-8": ("utf-8", b""),
    "UTF-8 with a mark": ("utf-8", codecs.BOM_UTF8),
    "UTF-16 of Windows": ("utf-16-le", codecs.BOM_UTF16_LE),
    "UTF-16, big": ("utf-16-be", codecs.BOM_UTF16_BE),
}
ENDS = ["\n", "\r\n", "\r"]
SEPARATORS = [" ", "\t", ",", ", ", ";", " ; ", ",\t"]
TRAILERS = ["", " ", ",", ";", " # comment", " // comment", " % comment"]
COMBINATIONS = list(itertools.product(ENCODINGS, ENDS, SEPARATORS, TRAILERS))


def written(path, table, seed, *, header="timestamp tx ty tz qx qy qz qw"):
    """Writes a table in one of the dialects, chosen by the seed."""
    rng = np.random.default_rng(seed)
    encoding, end, separator, trailer = COMBINATIONS[int(rng.integers(len(COMBINATIONS)))]
    name, mark = ENCODINGS[encoding]
    lines = [separator.join(f"{value:.9g}" for value in row) + trailer for row in table]
    if rng.random() < 0.5:
        lines.insert(0, ("# " if rng.random() < 0.5 else "") + header.replace(" ", separator))
    for place in rng.integers(0, len(lines) + 1, 3):
        lines.insert(int(place), str(rng.choice(["", "  ", "# a note, with 3 numbers: 1 2 3"])))
    path.write_bytes(mark + (end.join(lines) + end * int(rng.integers(2))).encode(name))
    return path


def table_of(poses, stamps, order=(0, 1, 2, 3)):
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat()[:, order]
    return np.column_stack([stamps, poses[:, :3, 3], quaternions])


@pytest.mark.parametrize("seed", range(60))
def test_dialects_of_trajectories(tmp_path, clip, seed):
    poses = path_of_cameras(5, seed)
    path = written(tmp_path / "path.txt", table_of(poses, np.arange(5) / 24), seed)
    found, known = load_poses(path, clip(5))
    assert known.all()
    np.testing.assert_allclose(found, poses, atol=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_dialects_of_intrinsics(tmp_path, clip, seed):
    frames = clip(4)
    wide = np.eye(4)
    wide[:3, :3] = K
    table = [
        [[80, 81, 47, 33]],
        [K.ravel()],
        K,
        wide,
        wide[:3],
        [wide.ravel()],
        [wide[:3].ravel()] * 4,
        [[80, 81, 47, 33]] * 4,
    ][seed % 8]
    found, known = load_intrinsics(written(tmp_path / "k.txt", table, seed, header="fx fy cx cy"), frames)
    assert known.all()
    np.testing.assert_allclose(found, np.tile(frames.frame_from_source @ K, (4, 1, 1)), rtol=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_dialects_of_tables_of_data_sets(tmp_path, seed):
    table = np.random.default_rng(seed).normal(size=(6, 4))
    path = tmp_path / "table.txt"
    written(path, table, seed, header="# a b c d")
    np.testing.assert_allclose(read_table(path, 4), table, rtol=1e-8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("80,5 81,5 47,5 33,5", "line 1 has commas within words, which may be decimal commas"),
        ("80,5;81,5", "which may be decimal commas or separate numbers: write points, or a space"),
        ("80 0 47 1\n0 81 33 0\n0 0 1 0\n0 0 0 1", "its fourth column or row is not that of the identity"),
        ("80 81 47 33\n" * 3 + "0 0 0 1", "line 4: focal lengths 0 and 0"),
        ("fx fy cx cy", "has no numbers"),
        ("fx fy cx cy\nfx fy cx cy\n80 81 47 33", "line 2 is not a list of numbers"),
    ],
)
def test_intrinsics_that_would_be_misread_are_refused(tmp_path, clip, text, message):
    with pytest.raises(InputError, match=message):
        load_intrinsics(save(tmp_path / "k.txt", text), clip(4))


def test_a_matrix_printed_by_numpy(tmp_path, clip):
    frames = clip(1)
    found, _ = load_intrinsics(save(tmp_path / "k.txt", str(K)), frames)
    np.testing.assert_allclose(found[0], frames.frame_from_source @ K)


SCALAR_FIRST = (3, 0, 1, 2)


def test_the_released_programs_trajectory_has_the_scalar_first(tmp_path, clip, caplog):
    poses = path_of_cameras(5)
    path = tmp_path / "pred_traj.txt"
    np.savetxt(path, table_of(poses, np.arange(5), SCALAR_FIRST))
    with caplog.at_level(logging.WARNING, logger="absl"):
        found, _ = load_poses(path, clip(5))
    np.testing.assert_allclose(found, poses, atol=1e-9)
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: quaternions are read as qw qx qy qz, as the released programs write them."
    ]
    np.savetxt(path, table_of(poses, np.arange(5)))
    np.testing.assert_allclose(load_poses(path, clip(5), quaternion="xyzw")[0], poses, atol=1e-9)


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("# timestamp tx ty tz qx qy qz qw", (0, 1, 2, 3)),
        ("# timestamp tx ty tz qw qx qy qz", SCALAR_FIRST),
        ("#timestamp [ns], p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y []", SCALAR_FIRST),
        ("timestamp,tx,ty,tz,qw,qx,qy,qz", SCALAR_FIRST),
        ("# a path", (0, 1, 2, 3)),
    ],
)
def test_a_header_tells_the_order_of_quaternions(tmp_path, clip, header, order):
    poses = path_of_cameras(5)
    rows = "\n".join(" ".join(f"{v:.12g}" for v in row) for row in table_of(poses, np.arange(5), order))
    path = save(tmp_path / "path.txt", f"{header}\n{rows}\n")
    np.testing.assert_allclose(load_poses(path, clip(5))[0], poses, atol=1e-9)
    np.savetxt(path, table_of(poses, np.arange(5), SCALAR_FIRST))
    np.testing.assert_allclose(load_poses(path, clip(5), quaternion="wxyz")[0], poses, atol=1e-9)
    with pytest.raises(InputError, match="order of quaternions 'wxzy' is unknown: choose one of"):
        load_poses(path, clip(5), quaternion="wxzy")


def test_columns_after_the_eighth(tmp_path, clip, caplog):
    poses = path_of_cameras(5)
    table = table_of(poses, np.arange(5))
    path = tmp_path / "path.txt"
    for extra in (1, 2, 3, 9):
        caplog.clear()
        np.savetxt(path, np.column_stack([table, np.full((5, extra), 7.0)]))
        np.testing.assert_allclose(load_poses(path, clip(5))[0], poses, atol=1e-9)
        assert "the numbers after the eighth of each line are ignored" in caplog.text
    for shape in (12, 16):  # rows of matrices, as KITTI's
        np.savetxt(path, poses.reshape(5, 16)[:, :shape])
        with pytest.raises(InputError, match=r"line 1 is a matrix, not a pose: give matrices as world_from_cam"):
            load_poses(path, clip(5))
    path.write_text("0 1 2 3 0 0 0 1 5\n1 1 2 3 0 0 0 1\n")
    with pytest.raises(InputError, match="line 2 is not a pose"):
        load_poses(path, clip(2))


def test_two_trajectories_in_a_file_are_refused(tmp_path, clip):
    table = table_of(path_of_cameras(40), np.arange(40) / 48)
    path = tmp_path / "path.txt"
    np.savetxt(path, np.concatenate([table[::2], table[1::2]]))
    with pytest.raises(InputError, match="line 21: the time goes back, as where a second trajectory begins"):
        load_poses(path, clip(20))
    np.savetxt(path, np.concatenate([table[20:], table[:20]]))  # two halves, exchanged
    assert load_poses(path, clip(20))[1].all()


@pytest.mark.parametrize("seed", range(10))
def test_what_people_write_in_json(tmp_path, clip, seed):
    poses = path_of_cameras(3, seed)
    frames = [{"file_path": f"a//b,]/{k}.png", "transform_matrix": pose.tolist()} for k, pose in enumerate(poses)]
    text = json.dumps({"frames": frames}, indent=seed % 3 or None)
    expected = load_poses(save(tmp_path / "plain.json", text), clip(3))[0]
    lenient = text.replace("]", ",]").replace("}", ", }") if seed % 2 else text
    lenient = lenient.replace("a//b,,]", "a//b,]")
    lenient = lenient.replace("{", "{ /* a note, ] */ ", 1) + "\n// the end\n"
    path = tmp_path / "t.json"
    path.write_bytes([codecs.BOM_UTF8 + lenient.encode(), lenient.replace("\n", "\r\n").encode()][seed % 2])
    np.testing.assert_array_equal(load_poses(path, clip(3))[0], expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "# Camera list\n#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n1 PINHOLE 640 480 500 500 320 240\n",
            "cameras.txt",
        ),
        ("1 SIMPLE_RADIAL 640 480 500 320 240 0.1\n", "COLMAP's cameras.txt: write fx fy cx cy"),
        ("# IMAGE_ID, QW, ...\n1 1 0 0 0 1.5 -2 3e-1 1 a b.png\n\n", "COLMAP's images.txt"),
        (
            "1 1 0 0 0 1.5 -2 3e-1 1 frames/a.png\n10.5 20.1 -1\n",
            "COLMAP's images.txt, whose poses are world to camera",
        ),
        ("P0: 7.2e2 0 6.1e2 0 0 7.2e2 1.7e2 0 0 0 1 0\nP1: 1 2 3\n", "KITTI's calibration: write fx fy cx cy"),
        ("S_00: 1 2\nK_00: 1 2 3\nP_rect_00: 7.2e2 0\n", "KITTI's calibration"),
    ],
)
@pytest.mark.parametrize("load", [load_intrinsics, load_poses])
def test_known_formats_that_are_not_read_are_named(tmp_path, clip, load, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load(save(tmp_path / "k.txt", text), clip(4))
    assert "\n" not in str(caught.value)


def test_a_comment_in_another_encoding(tmp_path, clip):
    path = tmp_path / "k.txt"
    path.write_bytes("# caméra du 3 août\n80 81 47 33  # réglée\n".encode("cp1252"))
    plain = tmp_path / "plain.txt"
    plain.write_text("80 81 47 33\n")
    np.testing.assert_array_equal(load_intrinsics(path, clip(4))[0], load_intrinsics(plain, clip(4))[0])
    for data in ("80 81 47 33 é".encode("cp1252"), "80 81 47 33".encode("utf-16-le"), bytes(range(256))):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"k\.txt"):
            load_intrinsics(path, clip(4))
