"""Every export, read back by the tool it is for, and reprojected: a point of the world lands where it came from.

The scene is exact: a slanted wall, a panel in front of it, and a square that moves, all cast by rays.
"""

import dataclasses
import json
import pathlib

import numpy as np
import OpenEXR
import PIL.Image
import plyfile
import pycolmap
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from easi3r_jax import export
from easi3r_jax.datasets.exr import read_exr
from easi3r_jax.errors import ConfigError, OutputError
from easi3r_jax.export import colmap
from easi3r_jax.export.tracks import project, tracked_points
from easi3r_jax.priors.cameras import load_cameras
from easi3r_jax.types import Frames, Scene4D

T, H, W = 6, 32, 48
FOCAL = 40.0
# The originals are three times as large, and their upper and left border is cut off.
FRAME_FROM_SOURCE = np.array([[1 / 3, 0, -1 / 3 - 4], [0, 1 / 3, -1 / 3 - 2], [0, 0, 1]])
SOURCE_SIZE = (108, 168)
#: Pixels (x, y) of a frame, on the wall, on the panel, and at the corners.
PIXELS = np.array([[0, 0], [47, 0], [0, 31], [47, 31], [24, 16], [20, 14], [7, 29], [41, 3]])


def cast(world_from_cam, intrinsics, t):
    """(H, W) depth, and whether it is the square that moves."""
    y, x = np.mgrid[:H, :W]
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T
    origin, rays = world_from_cam[:3, 3], rays @ world_from_cam[:3, :3].T
    depth = (6 + 0.3 * origin[0] - origin[2]) / (rays[..., 2] - 0.3 * rays[..., 0])
    moving = np.zeros((H, W), bool)
    for z, left, right, moves in ((3.5, -0.8, 0.8, False), (3.0, -2 + 0.3 * t, -1.2 + 0.3 * t, True)):
        distance = (z - origin[2]) / rays[..., 2]
        points = origin + distance[..., None] * rays
        hit = (points[..., 0] > left) & (points[..., 0] < right) & (np.abs(points[..., 1]) < 0.6) & (distance < depth)
        depth = np.where(hit, distance, depth)
        moving = np.where(hit, moves, moving)
    return depth, moving


def made(focals):
    rng = np.random.default_rng(0)
    world_from_cam = np.tile(np.eye(4), (T, 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_rotvec([[0.02 * t, 0.03 * t, -0.04 * t] for t in range(T)]).as_matrix()
    world_from_cam[:, :3, 3] = [[-0.1 * t, 0.05 * t, 0.1 * t] for t in range(T)]
    world_from_cam = world_from_cam.astype(np.float32).astype(np.float64)
    intrinsics = np.stack([[[f, 0, W / 2], [0, f * 1.02, H / 2 + 1], [0, 0, 1]] for f in focals])
    depth, moving = zip(
        *(cast(pose, k, t) for t, (pose, k) in enumerate(zip(world_from_cam, intrinsics, strict=True))), strict=True
    )
    return Scene4D(
        world_from_cam=world_from_cam.astype(np.float32),
        intrinsics=intrinsics.astype(np.float32),
        depth=np.array(depth, np.float32),
        confidence=np.full((T, H, W), 3.0, np.float32),
        dynamic_mask=np.array(moving),
        dynamic_score=np.array(moving).astype(np.float32),
        static_mask=~np.array(moving),
        rgb=rng.integers(0, 256, (T, H, W, 3), np.uint8),
    )


@pytest.fixture(scope="module")
def room():
    return made([FOCAL] * T)


@pytest.fixture(scope="module")
def time():
    return np.arange(T) / 8


def originals(scene, every=1):
    """As if the clip's images were at hand."""

    def write(t, path):
        PIL.Image.new("RGB", SOURCE_SIZE[::-1], (t, 0, 0)).save(path)

    names = [f"IMG_{number:03d}.jpg" for number in range(0, T, every)]
    return export.Views(names, SOURCE_SIZE, np.linalg.inv(FRAME_FROM_SOURCE), write)


@pytest.fixture(scope="module", params=["frames", "originals", "per-frame focal", "every second"])
def exported(request, time):
    """What is exported, in pixels of the frames or of the originals."""
    scene = made(FOCAL + np.arange(T)) if request.param == "per-frame focal" else made([FOCAL] * T)
    every = 2 if request.param == "every second" else 1
    chosen = export.frames_of(scene, time, every, max_points=3000)
    if request.param == "originals":
        chosen = dataclasses.replace(chosen, views=originals(scene))
    return chosen


def write(folder: pathlib.Path, name: str, exported: export.Exported) -> pathlib.Path:
    written, size = export.write_export(folder / name, name, exported, {"made": "here"})
    assert size == sum(p.stat().st_size for p in written.rglob("*") if p.is_file())
    assert json.loads((written / "export.json").read_text())["format"] == name
    return written


@pytest.fixture(scope="module")
def colmap_folder(exported, tmp_path_factory):
    return write(tmp_path_factory.mktemp("colmap"), "colmap", exported)


@pytest.fixture(scope="module")
def nerfstudio_folder(exported, tmp_path_factory):
    return write(tmp_path_factory.mktemp("nerfstudio"), "nerfstudio", exported)


def world_points(scene: Scene4D, t: int, pixels: np.ndarray = PIXELS) -> np.ndarray:
    """(P, 3) points of a frame's pixels."""
    pose, intrinsics = (np.asarray(a[t], np.float64) for a in (scene.world_from_cam, scene.intrinsics))
    rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(intrinsics).T
    depth = scene.depth[t][pixels[:, 1], pixels[:, 0]].astype(np.float64)
    return rays * depth[:, None] @ pose[:3, :3].T + pose[:3, 3]


def in_images(exported: export.Exported, pixels: np.ndarray = PIXELS) -> np.ndarray:
    """The same pixels, counted from the corner of the images that cameras are for."""
    if exported.views.size == SOURCE_SIZE:
        pixels = (pixels + np.array([4, 2])) * 3 + 1  # a frame's pixel is the middle one of three
    return pixels + 0.5


# --- COLMAP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sparse/0", "sparse_text"])
def test_colmap_sees_every_point_where_it_came_from(exported, colmap_folder, model):
    read = pycolmap.Reconstruction(colmap_folder / model)
    assert {image.name for image in read.images.values()} == set(exported.views.names)
    images = sorted(read.images.values(), key=lambda image: image.name)
    for t, image in enumerate(images):
        camera = read.cameras[image.camera_id]
        assert camera.model == pycolmap.CameraModelId.PINHOLE
        assert (camera.height, camera.width) == exported.views.size
        found = np.array([image.project_point(point) for point in world_points(exported.scene, t)])
        np.testing.assert_allclose(found, in_images(exported), atol=1e-3)


def test_colmap_has_one_camera_for_equal_intrinsics(exported, colmap_folder):
    read = pycolmap.Reconstruction(colmap_folder / "sparse" / "0")
    assert len(read.cameras) == len(np.unique(exported.scene.intrinsics, axis=0))


@pytest.mark.parametrize("model", ["sparse/0", "sparse_text"])
def test_colmap_tracks_are_whole_and_true(exported, colmap_folder, model):
    read = pycolmap.Reconstruction(colmap_folder / model)
    assert len(read.points3D) > 1000
    scene, index = exported.scene, {name: t for t, name in enumerate(exported.views.names)}
    longest = 0
    for number, point in list(read.points3D.items())[::7]:
        assert np.isclose(point.xyz[2], 6 + 0.3 * point.xyz[0], atol=1e-3) or np.isclose(point.xyz[2], 3.5, atol=1e-3)
        elements = point.track.elements
        assert len({element.image_id for element in elements}) == len(elements)
        longest = max(longest, len(elements))
        for element in elements:
            image = read.images[element.image_id]
            keypoint = image.points2D[element.point2D_idx]
            assert keypoint.point3D_id == number
            np.testing.assert_allclose(image.project_point(point.xyz), keypoint.xy, atol=1e-3)
            # The frame shows that surface there, and it stands still.
            t = index[image.name]
            (xy,), (z,) = project(scene, t, point.xyz[None])
            column, row = np.rint(xy).astype(int)
            assert abs(scene.depth[t, row, column] - z) <= 0.02 * z
            assert scene.static_mask[t, row, column]
    assert longest == len(index)


def test_colmap_models_agree(colmap_folder):
    binary, text = (pycolmap.Reconstruction(colmap_folder / model) for model in ("sparse/0", "sparse_text"))
    assert set(binary.points3D) == set(text.points3D)
    assert binary.compute_num_observations() == text.compute_num_observations() > 2000
    for number in binary.points3D:
        np.testing.assert_array_equal(binary.points3D[number].color, text.points3D[number].color)


def test_images_and_masks_lie_beside_the_models(exported, colmap_folder, nerfstudio_folder):
    for folder in (colmap_folder, nerfstudio_folder):
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


# --- tracks ----------------------------------------------------------------------------------------------------------


def test_a_surface_that_all_frames_see_is_there_once(room):
    points = tracked_points(room, min_confidence=1.1, max_points=100_000)
    first = np.count_nonzero(points.frame == 0)
    assert first > 0.9 * np.count_nonzero(room.static_mask[0]) and first > 0.6 * len(points)
    assert np.median(points.seen.sum(axis=1)) >= T - 2
    assert points.seen[np.arange(len(points)), points.frame].all()


def test_what_is_hidden_is_not_seen(room):
    """Of the wall right behind the panel in frame 0, other frames see what their own panel leaves free."""
    points = tracked_points(room, min_confidence=1.1, max_points=100_000)
    for t in range(T):
        xy, _ = project(room, t, points.xyz)
        column, row = np.clip(np.rint(xy), 0, [W - 1, H - 1]).astype(int).T
        pose = room.world_from_cam[t].astype(np.float64)
        on_panel = world_points(room, t, np.column_stack([column, row]))[:, 2] < 4
        behind = on_panel & (points.xyz[:, 2] > 4.5)
        assert pose.shape == (4, 4) and behind.any()
        assert not points.seen[behind, t].any()


def test_points_of_little_confidence_are_left_out(room):
    doubted = dataclasses.replace(room, confidence=np.where(np.arange(W) < W // 2, 1.0, 3.0) + np.zeros((T, H, 1)))
    points = tracked_points(doubted, min_confidence=1.1, max_points=100_000)
    for t in range(T):
        xy, _ = project(room, t, points.xyz[points.seen[:, t]])
        assert len(xy) and (xy[:, 0] > W // 2 - 0.51).all()


def test_the_number_of_points_is_bounded_and_they_are_spread(room):
    points = tracked_points(room, min_confidence=1.1, max_points=200)
    assert 100 < len(points) <= 200
    xy, _ = project(room, 0, points.xyz)
    cells = np.unique(np.floor(xy[points.seen[:, 0]] / 8), axis=0)
    assert len(cells) > 0.6 * (H // 8) * (W // 8)
    again = tracked_points(room, min_confidence=1.1, max_points=200)
    np.testing.assert_array_equal(points.xyz, again.xyz)


def test_nothing_static_gives_no_points(room, time, tmp_path):
    nothing = dataclasses.replace(
        room, static_mask=np.zeros_like(room.static_mask), dynamic_mask=np.ones_like(room.dynamic_mask)
    )
    for name in export.FORMATS:
        write(tmp_path, name, export.frames_of(nothing, time))
    for model in ("sparse/0", "sparse_text"):
        read = pycolmap.Reconstruction(tmp_path / "colmap" / model)
        assert (len(read.images), len(read.points3D)) == (T, 0)


def test_a_single_frame_can_be_exported(room, tmp_path):
    alone = Scene4D(**{name: array[:1] for name, array in vars(room).items()})
    for name in export.FORMATS:
        write(tmp_path, name, export.frames_of(alone, np.zeros(1)))
    read = pycolmap.Reconstruction(tmp_path / "colmap" / "sparse" / "0")
    assert len(read.points3D) == np.count_nonzero(room.static_mask[0])


def test_long_tracks_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(colmap, "LONGEST_TRACK", 4)
    seen = np.array([[True] * 12, [True, False] * 6, [False] * 9 + [True] * 3])
    short = colmap._shortened(seen, np.array([0, 2, 11]))
    assert not (short & ~seen).any()
    assert short[0].sum() == 5 and short[0, 0]
    assert np.diff(np.flatnonzero(short[0])).max() <= 3
    np.testing.assert_array_equal(short[2], seen[2])


# --- nerfstudio ------------------------------------------------------------------------------------------------------


def test_transforms_json_sees_every_point_where_it_came_from(exported, nerfstudio_folder):
    """By the conventions at docs.nerf.studio: OpenGL axes, pixels counted from the corner."""
    meta = json.loads((nerfstudio_folder / "transforms.json").read_text())
    assert (meta["h"], meta["w"]) == exported.views.size
    assert meta["camera_model"] == "OPENCV"
    assert [frame["file_path"] for frame in meta["frames"]] == [f"images/{name}" for name in exported.views.names]
    assert meta["frames"][0]["time"] == 0 and meta["frames"][-1]["time"] == 1
    for t, frame in enumerate(meta["frames"]):
        assert (nerfstudio_folder / frame["mask_path"]).is_file()
        camera = meta | frame
        points = np.column_stack([world_points(exported.scene, t), np.ones(len(PIXELS))])
        x, y, z, _ = np.linalg.inv(frame["transform_matrix"]) @ points.T
        assert (z < 0).all()
        found = np.stack([camera["fl_x"] * x / -z + camera["cx"], camera["cy"] - camera["fl_y"] * y / -z], axis=1)
        np.testing.assert_allclose(found, in_images(exported), atol=1e-3)


def test_the_points_of_transforms_json_are_the_static_surfaces(nerfstudio_folder):
    meta = json.loads((nerfstudio_folder / "transforms.json").read_text())
    vertices = plyfile.PlyData.read(nerfstudio_folder / meta["ply_file_path"])["vertex"]
    assert [p.name for p in vertices.properties] == ["x", "y", "z", "red", "green", "blue"]
    x, z = np.asarray(vertices["x"]), np.asarray(vertices["z"])
    on_surface = np.isclose(z, 6 + 0.3 * x, atol=0.02) | np.isclose(z, 3.5, atol=0.02)
    assert len(z) > 500 and on_surface.mean() > 0.99


def test_our_own_reader_of_transforms_json_agrees(room, time, tmp_path):
    """What was exported in pixels of the originals can be given as known cameras."""
    exported = dataclasses.replace(export.frames_of(room, time), views=originals(room))
    path = write(tmp_path, "nerfstudio", exported) / "transforms.json"
    frames = Frames(room.rgb, np.arange(T, dtype=np.int32), time, FRAME_FROM_SOURCE, np.array(SOURCE_SIZE))
    cameras = load_cameras(frames, path, path, source_names=exported.views.names)
    np.testing.assert_allclose(cameras.world_from_cam, room.world_from_cam, atol=1e-6)
    np.testing.assert_allclose(cameras.principal_point, room.intrinsics[:, :2, 2], atol=1e-4)
    np.testing.assert_allclose(cameras.focal, FOCAL * np.sqrt(1.02), rtol=1e-6)


# --- the released programs' files ------------------------------------------------------------------------------------


def test_the_released_programs_files(exported, tmp_path):
    folder = write(tmp_path, "easi3r", exported)
    scene, count = exported.scene, len(exported.numbers)
    rows = np.loadtxt(folder / "pred_traj.txt")
    np.testing.assert_array_equal(rows[:, 0], np.arange(count))
    intrinsics = np.loadtxt(folder / "pred_intrinsics.txt").reshape(-1, 3, 3)
    assert np.loadtxt(folder / "pred_focal.txt").shape == (count,)
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_depth_as_openexr_is_exact(exported, tmp_path):
    folder = write(tmp_path, "exr", exported)
    for t, number in enumerate(exported.numbers):
        path = folder / f"{number:05d}.exr"
        with OpenEXR.File(str(path)) as file:
            assert list(file.channels()) == ["Z"]
            np.testing.assert_array_equal(file.channels()["Z"].pixels, exported.scene.depth[t])
        np.testing.assert_array_equal(read_exr(path, (H, W)), exported.scene.depth[t])


def test_depth_as_png_is_within_half_a_step(exported, tmp_path):
    folder = write(tmp_path, "png", exported)
    scale = float((folder / "scale.txt").read_text().splitlines()[0])
    for t, number in enumerate(exported.numbers):
        with PIL.Image.open(folder / f"{number:05d}.png") as image:
            assert image.mode == "I;16"
            np.testing.assert_allclose(np.asarray(image) * scale, exported.scene.depth[t], atol=0.51 * scale)


def test_no_depth_is_zero_in_both(room, time, tmp_path):
    depth = room.depth.copy()
    depth[0, :2, :2] = [[np.nan, np.inf], [0, -1]]
    holes = export.frames_of(dataclasses.replace(room, depth=depth), time)
    path = write(tmp_path, "exr", holes) / "00000.exr"
    assert (read_exr(path, (H, W)) == 0).sum() == 4
    with PIL.Image.open(write(tmp_path, "png", holes) / "00000.png") as image:
        assert (np.asarray(image) == 0).sum() == 4


def test_arrays_see_every_point_where_it_came_from(exported, tmp_path):
    with np.load(write(tmp_path, "npz", exported) / "arrays.npz") as arrays:
        assert tuple(arrays["image_size"]) == exported.views.size
        assert arrays["image_names"].tolist() == list(exported.views.names)
        np.testing.assert_array_equal(arrays["frame_number"], exported.numbers)
        np.testing.assert_array_equal(arrays["depth"], exported.scene.depth)
        np.testing.assert_array_equal(arrays["images"], exported.scene.rgb)
        for t in range(len(exported.numbers)):
            pose = arrays["world_from_cam"][t].astype(np.float64)
            pixels = (world_points(exported.scene, t) - pose[:3, 3]) @ pose[:3, :3] @ arrays["image_intrinsics"][t].T
            np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:] + 0.5, in_images(exported), atol=1e-3)


# --- as a whole ------------------------------------------------------------------------------------------------------


def test_an_export_replaces_an_export_only(room, time, tmp_path):
    exported = export.frames_of(room, time)
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
