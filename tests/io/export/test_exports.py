"""Exports read back by their target tools, and reprojected: a world point must project to its own pixel.

COLMAP and nerfstudio: `test_colmap.py`, `test_nerfstudio.py`.
"""

import dataclasses
import json
import pathlib
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import plyfile
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import ConfigError, OutputError
from easi3r_jax.io import export
from easi3r_jax.io.export import formats
from easi3r_jax.io.export.exr import write_exr
from easi3r_jax.training.datasets.exr import read_exr
from tests.exact_scene import PIXELS, TIME, H, T, W, in_images, world_points, write


def test_images_and_masks_are_beside_the_models(exported, tmp_path):
    for kind in ("colmap", "nerfstudio"):
        folder = write(tmp_path, kind, exported)
        for t, name in enumerate(exported.views.names):
            with (
                PIL.Image.open(folder / "images" / name) as image,
                PIL.Image.open(folder / "masks" / f"{name}.png") as m,
            ):
                assert image.size == m.size == exported.views.size[::-1]
                assert m.mode == "L"
                pixels, mask = np.asarray(image), np.asarray(m)
            assert set(np.unique(mask)) <= {0, 255}
            if exported.views.size == (H, W):
                np.testing.assert_array_equal(pixels, exported.scene.rgb[t])
                np.testing.assert_array_equal(mask == 0, exported.scene.dynamic_mask[t])
            else:
                assert not mask[:6].any() and not mask[:, :12].any()  # what was cut off is not known
                np.testing.assert_array_equal(mask[7::3, 13::3][:H, :W] == 0, exported.scene.dynamic_mask[t])


# --- the released programs' files ------------------------------------------------------------------------------------


def test_the_released_programs_files(exported, tmp_path):
    folder = write(tmp_path, "easi3r", exported)
    scene, count = exported.scene, len(exported.numbers)
    rows = np.loadtxt(folder / "pred_traj.txt")
    np.testing.assert_array_equal(rows[:, 0], np.arange(count))
    intrinsics = np.loadtxt(folder / "pred_intrinsics.txt").reshape(-1, 3, 3)
    focal = np.loadtxt(folder / "pred_focal.txt")
    assert focal.shape == (count,)
    np.testing.assert_allclose(focal**2, intrinsics[:, 0, 0] * intrinsics[:, 1, 1], rtol=1e-6)
    for t, row in enumerate(rows):
        # qw first: as scipy's `scalar_first`, by hand.
        w, x, y, z = row[4:]
        rotation = Rotation.from_quat([x, y, z, w]).as_matrix()
        in_camera = (world_points(scene, t) - row[1:4]) @ rotation
        pixels = in_camera @ intrinsics[t].T
        np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], PIXELS, atol=1e-3)
        np.testing.assert_array_equal(np.load(folder / f"frame_{t:04d}.npy"), scene.depth[t])
        np.testing.assert_array_equal(np.load(folder / f"conf_{t}.npy"), scene.confidence[t])
        with (
            PIL.Image.open(folder / f"dynamic_mask_{t}.png") as mask,
            PIL.Image.open(folder / f"frame_{t:04d}.png") as rgb,
        ):
            np.testing.assert_array_equal(np.asarray(mask) == 255, scene.dynamic_mask[t])
            np.testing.assert_array_equal(np.asarray(rgb), scene.rgb[t])
    assert trimesh.load(folder / "scene.glb").geometry


# --- point clouds, depth, arrays -------------------------------------------------------------------------------------


def near(points: np.ndarray, cloud: np.ndarray) -> np.ndarray:
    return np.abs(points[:, None] - cloud[None]).max(axis=-1).min(axis=1)


def test_plys_of_frames_hold_the_points_of_their_pixels(exported, tmp_path):
    folder = write(tmp_path, "ply", exported)
    assert {p.name for p in folder.iterdir()} == {"scene.ply", "background.ply", "frames", "export.json"}
    assert sorted(p.stem for p in (folder / "frames").iterdir()) == [f"{n:05d}" for n in exported.numbers]
    inner = PIXELS[4:]
    for t, number in enumerate(exported.numbers):
        vertices = plyfile.PlyData.read(folder / "frames" / f"{number:05d}.ply")["vertex"]
        cloud = np.stack([vertices[axis] for axis in "xyz"], axis=1)
        assert near(world_points(exported.scene, t, inner), cloud).max() < 1e-4
        column, row = inner[0]
        index = np.abs(cloud - world_points(exported.scene, t, inner[:1])).max(axis=1).argmin()
        found = [vertices[c][index] for c in ("red", "green", "blue")]
        np.testing.assert_array_equal(found, exported.scene.rgb[t, row, column])


def test_plyfile_writes_the_same_bytes(room, tmp_path):
    folder = write(tmp_path, "ply", export.frames_of(room, TIME))
    paths = sorted(folder.rglob("*.ply"))
    assert len(paths) == T + 2
    for path in paths:
        plyfile.PlyData.read(path).write(tmp_path / "again.ply")
        assert (tmp_path / "again.ply").read_bytes() == path.read_bytes()


def test_static_points_of_frames_are_those_of_confidence(room, tmp_path):
    confidence = np.where(np.arange(W) < W // 2, 2.0, 3.0).astype(np.float32) + np.zeros_like(room.confidence)
    doubted = dataclasses.replace(room, confidence=confidence)
    folder = write(tmp_path, "ply", export.frames_of(doubted, TIME, min_confidence=2.5))
    for t, depth in enumerate(room.depth):
        kept = room.dynamic_mask[t] | (confidence[t] >= 2.5)
        count = len(plyfile.PlyData.read(folder / "frames" / f"{t:05d}.ply")["vertex"].data)
        assert 0.95 * kept.sum() < count <= kept.sum() < depth.size  # but for some at edges


def test_points_of_a_frame_are_bounded(room, tmp_path):
    folder = write(tmp_path, "ply", export.frames_of(room, TIME, max_points=100))
    for path in (folder / "frames").iterdir():
        assert len(plyfile.PlyData.read(path)["vertex"].data) == 100


def test_glbs_are_static_per_frame_and_animated(exported, tmp_path):
    folder = write(tmp_path, "glb", exported)
    paths = [folder / "animated.glb", folder / "background.glb"]
    paths += [folder / "frames" / f"{number:05d}.glb" for number in exported.numbers]
    assert sorted(p for p in folder.rglob("*.glb")) == sorted(paths)
    animated, background, *frames = (trimesh.load(path) for path in paths)
    assert {"background", "foreground_00000"} <= set(animated.graph.nodes)
    assert not any(name.startswith("foreground") for name in background.graph.nodes)
    gltf_from_world = export.gltf_from_world(exported.scene)
    for t, scene in enumerate(frames):
        transform, name = scene.graph["background"]
        cloud = trimesh.transform_points(scene.geometry[name].vertices, transform)
        expected = trimesh.transform_points(world_points(exported.scene, t, PIXELS[4:]), gltf_from_world)
        assert near(expected, cloud).max() < 1e-4


def test_the_ply_of_the_background_is_what_scene_ply_has_of_it(exported, tmp_path):
    folder = write(tmp_path, "ply", exported)
    scene, background = (plyfile.PlyData.read(folder / f"{name}.ply")["vertex"] for name in ("scene", "background"))
    static = scene["kind"] == 0
    assert static.any() and set(scene["frame"][~static]) == set(exported.numbers)
    for name in ("x", "y", "z", "red", "green", "blue"):
        np.testing.assert_array_equal(background[name], scene[name][static])


def test_cameras_of_a_glb_are_off_by_half_a_pixel(room, tmp_path):
    """In x and in y, for glTF's principal point is the middle, DUSt3R's (W / 2, H / 2) from the first pixel's centre.

    By trimesh's nodes, and the projection of glTF 2.0, section 3.10.3.
    """
    centred = room.intrinsics.copy()
    centred[:, :2, 2] = W / 2, H / 2
    scene = dataclasses.replace(room, intrinsics=centred)
    path = write(tmp_path, "glb", export.frames_of(scene, TIME, every=2)) / "animated.glb"
    read = trimesh.load(path)
    data = path.read_bytes()
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    cameras = {camera["name"]: camera["perspective"] for camera in document["cameras"]}
    world, _ = read.graph["background"]
    assert len(cameras) == T // 2
    for t in range(0, T, 2):
        camera, _ = read.graph[f"camera_{t:05d}"]
        x, y, z = trimesh.transform_points(world_points(scene, t), np.linalg.inv(camera) @ world).T
        assert (z < 0).all()
        half_height = np.tan(cameras[f"camera_{t:05d}"]["yfov"] / 2)
        half_width = half_height * cameras[f"camera_{t:05d}"]["aspectRatio"]
        found = np.column_stack([(1 + x / -z / half_width) / 2 * W, (1 - y / -z / half_height) / 2 * H])
        place = PIXELS + 0.5
        np.testing.assert_allclose(found, place - 0.5, atol=1e-3)


def openexr_by_hand(data: bytes) -> np.ndarray:
    """A file of one float channel Z in deflated blocks of 16 scan lines, by the format's description."""
    assert struct.unpack_from("<iI", data) == (20000630, 2)
    attributes, position = {}, 8
    while data[position]:
        name, kind, _ = data[position:].split(b"\0", 2)
        position += len(name) + len(kind) + 2
        size = int.from_bytes(data[position : position + 4], "little")
        attributes[name.decode()] = data[position + 4 : position + 4 + size]
        position += 4 + size
    assert attributes["channels"] == b"Z\0" + struct.pack("<iIii", 2, 0, 1, 1) + b"\0"
    assert attributes["compression"] == b"\3"
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
    assert (left, top) == (0, 0)
    image = np.empty((bottom + 1, right + 1), "<f4")
    for offset in np.frombuffer(data, "<u8", -(-len(image) // 16), position + 1).tolist():
        line, size = struct.unpack_from("<ii", data, offset)
        rows, block = image[line : line + 16], data[offset + 8 : offset + 8 + size]
        if size < rows.nbytes:
            differences = np.frombuffer(zlib.decompress(block), np.uint8).astype(int)
            split = (np.cumsum(differences - 128) + 128) % 256
            block = np.stack(np.split(split, 2), axis=1).astype(np.uint8).tobytes()  # even bytes, then the odd ones
        rows[:] = np.frombuffer(block, "<f4").reshape(rows.shape)
    return image


def test_depth_as_openexr_is_exact(exported, tmp_path):
    folder = write(tmp_path, "exr", exported)
    for t, number in enumerate(exported.numbers):
        path = folder / f"{number:05d}.exr"
        np.testing.assert_array_equal(openexr_by_hand(path.read_bytes()), exported.scene.depth[t])
        np.testing.assert_array_equal(read_exr(path, (H, W)), exported.scene.depth[t])


def test_a_full_disk_is_reported_with_its_reason(room, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "write_exr", lambda path, depth: write_exr(pathlib.Path("/dev/full"), depth))
    with pytest.raises(OutputError, match=r"Cannot write .*exr: No space left on device\.$"):
        write(tmp_path, "exr", export.frames_of(room, TIME))
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_reported_at_once(room, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    assert export.parse_formats("ply,png") == ("ply", "png")
    for attempt in (export.parse_formats, lambda name: write(tmp_path, name, export.frames_of(room, TIME))):
        with pytest.raises(ConfigError, match=r"needs OpenEXR: pip install 'easi3r_jax\[export\]'"):
            attempt("exr")
    assert not list(tmp_path.iterdir())


def test_depth_as_png_is_within_half_a_step(exported, tmp_path):
    folder = write(tmp_path, "png", exported)
    scale = float((folder / "scale.txt").read_text().splitlines()[0])
    for t, number in enumerate(exported.numbers):
        with PIL.Image.open(folder / f"{number:05d}.png") as image:
            assert image.mode == "I;16"
            np.testing.assert_allclose(np.asarray(image) * scale, exported.scene.depth[t], atol=0.51 * scale)


def test_no_depth_is_zero_in_both(room, tmp_path):
    depth = room.depth.copy()
    depth[0, :2, :2] = [[np.nan, np.inf], [0, -1]]
    holes = export.frames_of(dataclasses.replace(room, depth=depth), TIME)
    path = write(tmp_path, "exr", holes) / "00000.exr"
    assert (read_exr(path, (H, W)) == 0).sum() == 4
    with PIL.Image.open(write(tmp_path, "png", holes) / "00000.png") as image:
        assert (np.asarray(image) == 0).sum() == 4


def test_arrays_see_every_point_where_it_came_from(exported, tmp_path):
    with np.load(write(tmp_path, "npz", exported) / "arrays.npz") as arrays:
        assert tuple(arrays["image_size"]) == exported.views.size
        assert arrays["image_names"].tolist() == list(exported.views.names)
        np.testing.assert_array_equal(arrays["frame_number"], exported.numbers)
        np.testing.assert_array_equal(arrays["time"], TIME[exported.numbers])
        matrix = arrays["image_from_frame"]
        np.testing.assert_allclose(PIXELS @ matrix[:2, :2].T + matrix[:2, 2] + 0.5, in_images(exported))
        np.testing.assert_array_equal(arrays["depth"], exported.scene.depth)
        np.testing.assert_array_equal(arrays["images"], exported.scene.rgb)
        for t in range(len(exported.numbers)):
            pose = arrays["world_from_cam"][t].astype(np.float64)
            pixels = (world_points(exported.scene, t) - pose[:3, 3]) @ pose[:3, :3] @ arrays["image_intrinsics"][t].T
            np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:] + 0.5, in_images(exported), atol=1e-3)


# --- as a whole ------------------------------------------------------------------------------------------------------


def test_an_export_replaces_an_export_only(room, tmp_path):
    exported = export.frames_of(room, TIME)
    folder = write(tmp_path, "exr", exported)
    (folder / "left over").write_text("x")
    export.ensure_export_writable(folder)
    write(tmp_path, "exr", exported)
    assert not (folder / "left over").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for attempt in (export.ensure_export_writable, lambda path: export.write_export(path, "exr", exported)):
        with pytest.raises(OutputError, match="not empty"):
            attempt(tmp_path / "mine")


def test_formats_are_named_with_commas():
    assert export.parse_formats("colmap, ply,colmap") == ("colmap", "ply")
    assert export.parse_formats("") == ()
    for text in ("colmap,", "obj", "Colmap"):
        with pytest.raises(ConfigError, match="must be one of colmap, nerfstudio"):
            export.parse_formats(text)
