"""Point clouds: positions, density, and files read back by other libraries."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import trimesh

from easi3r_jax.core.geometry.camera import world_points
from easi3r_jax.io.export import gltf_from_world, point_cloud, write_glb, write_ply
from easi3r_jax.io.export.pointcloud import camera_lines


def project(xyz, intrinsics, world_from_cam):
    camera = (xyz - world_from_cam[:3, 3]) @ world_from_cam[:3, :3]
    pixel = camera @ intrinsics.T
    return pixel[:, :2] / pixel[:, 2:], camera[:, 2]


def test_unprojection_inverts_projection(scene):
    depth, intrinsics, world_from_cam = scene.depth[1], scene.intrinsics[1], scene.world_from_cam[1]
    xyz = world_points(depth, intrinsics, world_from_cam).reshape(-1, 3)
    pixel, z = project(xyz, intrinsics, world_from_cam)
    height, width = depth.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    np.testing.assert_allclose(pixel, np.stack([x, y], -1).reshape(-1, 2), atol=1e-4)
    np.testing.assert_allclose(z, depth.ravel(), rtol=1e-5)


def test_the_principal_point_lies_on_the_axis(scene):
    height, width = scene.depth.shape[1:]
    centre = world_points(scene.depth[0], scene.intrinsics[0], np.eye(4))[height // 2, width // 2]
    np.testing.assert_allclose(centre, [0, 0, scene.depth[0, height // 2, width // 2]], atol=1e-6)


def static_camera(scene, num_frames):
    """The first frame again and again: every static point is seen `num_frames` times."""
    return type(scene)(**{k: np.repeat(v[:1], num_frames, axis=0) for k, v in vars(scene).items()})


def test_the_background_is_there_once(scene):
    once = point_cloud(static_camera(scene, 1), foreground="none").background
    often = point_cloud(static_camera(scene, 20), foreground="none").background
    np.testing.assert_allclose(often.xyz, once.xyz, atol=1e-5)
    np.testing.assert_array_equal(often.rgb, once.rgb)


def test_background_and_foreground_part_at_the_mask(scene):
    cloud = point_cloud(scene)
    assert sorted(cloud.foreground) == [0, 1, 2]
    for t, points in cloud.foreground.items():
        xyz = world_points(scene.depth[t], scene.intrinsics[t], scene.world_from_cam[t])
        np.testing.assert_allclose(points.xyz, xyz[scene.dynamic_mask[t]], atol=1e-6)
        np.testing.assert_array_equal(points.rgb, scene.rgb[t][scene.dynamic_mask[t]])
    # No background point where only the moving square is: at half its depth.
    _, z = project(cloud.background.xyz.astype(np.float64), scene.intrinsics[0], scene.world_from_cam[0])
    assert z.min() > 3


@pytest.mark.parametrize(("choice", "frames"), [("all", [0, 1, 2]), ("none", []), (1, [1]), ("2", [2])])
def test_foreground_choice(scene, choice, frames):
    assert sorted(point_cloud(scene, foreground=choice).foreground) == frames


def test_untrusted_and_unknown_pixels_are_left_out(scene):
    confidence, depth = scene.confidence.copy(), scene.depth.copy()
    confidence[:, :10] = 0
    confidence[:, 10] = 1.05
    depth[:, :, 20:24], depth[:, :, 24:28], depth[:, :, 28:] = np.nan, 0, -depth[:, :, 28:]
    scene = dataclasses.replace(scene, confidence=confidence, depth=depth)
    cloud = point_cloud(scene, voxel=1e-4)
    known = depth > 0
    assert len(cloud.background) == (known & (confidence >= 1.1) & ~scene.dynamic_mask).sum()
    # Confidence says nothing of what moves: the clean-up takes it for floating points.
    assert sum(map(len, cloud.foreground.values())) == (known & scene.dynamic_mask).sum()
    assert np.isfinite(cloud.background.xyz).all()


def nothing_moves(scene):
    still = np.zeros_like(scene.dynamic_mask)
    return {"dynamic_mask": still, "static_mask": ~still}


def test_pixels_in_the_air_between_two_surfaces_are_left_out(scene):
    frame = static_camera(scene, 1)
    depth = np.full_like(frame.depth, 4.0)
    depth[:, :, :10], depth[:, :, 10] = 2.0, 2.9  # near surface, one mixed pixel, far surface
    frame = dataclasses.replace(frame, depth=depth, **nothing_moves(frame))
    z = project(point_cloud(frame, voxel=1e-4).background.xyz, frame.intrinsics[0], frame.world_from_cam[0])[1]
    assert not (np.abs(z - 2.9) < 0.1).any()
    assert (np.abs(z - 2.0) < 1e-4).sum() == 10 * depth.shape[1]
    assert (np.abs(z - 4.0) < 1e-4).sum() == 21 * depth.shape[1]


def test_a_voxel_holds_the_mean_of_its_points(scene):
    frame = static_camera(scene, 2)
    depth = np.full_like(frame.depth, 4.0)
    frame = dataclasses.replace(frame, depth=depth, **nothing_moves(frame))
    frame.rgb[0], frame.rgb[1] = 100, 51
    background = point_cloud(frame).background
    np.testing.assert_array_equal(background.rgb, 76)  # rounded, not cut


def test_camera_lines_lead_to_the_corners_of_the_image(scene):
    height, width = scene.depth.shape[1:]
    corners = {(x, y) for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)}
    for lines, intrinsics, pose in zip(camera_lines(scene, 0.5), scene.intrinsics, scene.world_from_cam, strict=True):
        edges, frame = lines[:4].astype(np.float64), lines[4:].astype(np.float64)
        np.testing.assert_allclose(edges[:, 0], np.tile(pose[:3, 3], (4, 1)), atol=1e-6)
        pixels, z = project(edges[:, 1], intrinsics, pose)
        assert {tuple(pixel) for pixel in np.round(pixels, 3).tolist()} == corners
        np.testing.assert_allclose(z, 0.5, atol=1e-5)
        begin, end = (project(points, intrinsics, pose)[0] for points in (frame[:, 0], frame[:, 1]))
        sides = np.abs(np.round(end - begin, 3))
        assert sorted(sides.tolist()) == [[0, height], [0, height], [width, 0], [width, 0]]  # none along a diagonal
        np.testing.assert_allclose(np.roll(begin, -1, axis=0), end, atol=1e-3)  # once round


def test_the_number_of_points_is_bounded_and_the_choice_repeats(scene):
    most = 300
    cloud = point_cloud(scene, max_points=most)
    total = len(cloud.background) + sum(map(len, cloud.foreground.values()))
    assert most - 4 <= total <= most  # every group is rounded down
    assert min(map(len, cloud.foreground.values())) > 0
    again = point_cloud(scene, max_points=most)
    np.testing.assert_array_equal(cloud.background.xyz, again.background.xyz)


def test_extreme_depths_affect_no_other_points(scene):
    depth = scene.depth.copy()
    depth[0, 0, 0] = 1e12
    wild = point_cloud(dataclasses.replace(scene, depth=depth))
    tame = point_cloud(scene)
    assert abs(len(wild.background) - len(tame.background)) <= 1


def test_a_scene_without_a_single_good_point(scene, time, tmp_path):
    nothing = np.zeros_like(scene.confidence)
    empty = dataclasses.replace(scene, confidence=nothing, dynamic_mask=nothing.astype(bool))
    cloud = point_cloud(empty)
    assert len(cloud.background) == 0
    assert sum(map(len, cloud.foreground.values())) == 0
    write_ply(tmp_path / "x.ply", cloud, empty)
    write_glb(tmp_path / "x.glb", cloud, empty, time)
    assert "frusta" in trimesh.load(tmp_path / "x.glb").geometry


# --- scene.ply ------------------------------------------------------------------------------------------------------


def read_ply(path):
    """Own reader, driven by the file's header."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    types = {"float": "<f4", "uchar": "u1", "int": "<i4"}
    properties = [line.split() for line in lines if line.startswith("property")]
    vertices = np.frombuffer(body, np.dtype([(name, types[kind]) for _, kind, name in properties]))
    assert f"element vertex {len(vertices)}" in lines
    return vertices


def test_ply_holds_every_point(scene, tmp_path):
    cloud = point_cloud(scene)
    write_ply(tmp_path / "scene.ply", cloud, scene)
    vertices = read_ply(tmp_path / "scene.ply")
    xyz = np.stack([vertices[c] for c in "xyz"], axis=1)
    rgb = np.stack([vertices[c] for c in ("red", "green", "blue")], axis=1)
    static = vertices["kind"] == 0
    np.testing.assert_array_equal(xyz[static], cloud.background.xyz)
    np.testing.assert_array_equal(rgb[static], cloud.background.rgb)
    assert set(vertices["frame"][static]) == {-1}
    for t, points in cloud.foreground.items():
        chosen = (vertices["kind"] == 1) & (vertices["frame"] == t)
        np.testing.assert_array_equal(xyz[chosen], points.xyz)
        camera = xyz[(vertices["kind"] == 2) & (vertices["frame"] == t)]
        np.testing.assert_allclose(camera[0], scene.world_from_cam[t, :3, 3], atol=1e-6)


def test_ply_is_read_by_others(scene, tmp_path):
    cloud = point_cloud(scene)
    write_ply(tmp_path / "scene.ply", cloud, scene)
    loaded = trimesh.load(tmp_path / "scene.ply")
    count = len(cloud.background)
    np.testing.assert_allclose(loaded.vertices[:count], cloud.background.xyz, atol=1e-6)
    np.testing.assert_array_equal(loaded.colors[:count, :3], cloud.background.rgb)


# --- scene.glb ------------------------------------------------------------------------------------------------------


def read_glb(path):
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    document = json.loads(data[20 : 20 + json_length])
    binary_length, kind = struct.unpack_from("<I4s", data, 20 + json_length)
    assert kind == b"BIN\0"
    binary = data[28 + json_length :]
    assert len(binary) == binary_length == document["buffers"][0]["byteLength"]
    assert json_length % 4 == 0
    assert binary_length % 4 == 0
    return document, binary


def accessor(document, binary, index):
    entry = document["accessors"][index]
    view = document["bufferViews"][entry["bufferView"]]
    dtype = {5126: "<f4", 5123: "<u2"}[entry["componentType"]]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[entry["type"]]
    array = np.frombuffer(binary, dtype, entry["count"] * width, view["byteOffset"])
    return array.reshape(entry["count"], width)


@pytest.fixture
def glb(scene, time, tmp_path):
    cloud = point_cloud(scene)
    write_glb(tmp_path / "scene.glb", cloud, scene, time)
    return cloud, tmp_path / "scene.glb"


def test_glb_is_read_by_others_in_gltf_axes(scene, glb):
    cloud, path = glb
    loaded = trimesh.load(path)
    expected = {"background", "frusta", "path", "foreground_00000", "foreground_00001", "foreground_00002"}
    assert set(loaded.geometry) == expected
    matrix, name = loaded.graph["background"]
    found = trimesh.transform_points(loaded.geometry[name].vertices, matrix)
    # By hand: into the first camera, then y and z turned round.
    first = scene.world_from_cam[0].astype(np.float64)
    in_camera = (cloud.background.xyz - first[:3, 3]) @ first[:3, :3]
    np.testing.assert_allclose(found, in_camera * [1, -1, -1], atol=1e-5)
    assert (found[:, 2] < 0).all()  # before a camera that looks along -z


def test_glb_cameras_stand_where_the_cameras_stood(scene, glb):
    document, _ = read_glb(glb[1])
    nodes = {node["name"]: node for node in document["nodes"]}
    for t, world_from_cam in enumerate(scene.world_from_cam):
        matrix = np.reshape(nodes[f"camera_{t:05d}"]["matrix"], (4, 4)).T
        first_from_cam = np.linalg.inv(scene.world_from_cam[0].astype(np.float64)) @ world_from_cam
        flip = np.diag([1.0, -1.0, -1.0, 1.0])
        np.testing.assert_allclose(matrix, flip @ first_from_cam @ flip, atol=1e-6)
    np.testing.assert_allclose(nodes["camera_00000"]["matrix"], np.eye(4).ravel(), atol=1e-6)
    in_scene = document["scenes"][0]["nodes"]
    assert {document["nodes"][n]["name"] for n in in_scene} == {
        "scene", "camera_00000", "camera_00001", "camera_00002",
    }  # fmt: skip


def test_glb_path_and_frusta_pass_through_the_camera_centres(scene, glb):
    loaded = trimesh.load(glb[1])
    expected = trimesh.transform_points(scene.world_from_cam[:, :3, 3], gltf_from_world(scene))
    for node in ("path", "frusta"):
        matrix, name = loaded.graph[node]
        found = trimesh.transform_points(loaded.geometry[name].vertices, matrix)
        assert all(np.linalg.norm(found - centre, axis=1).min() < 1e-5 for centre in expected)


def test_glb_perspective(scene, glb):
    document, _ = read_glb(glb[1])
    perspective = document["cameras"][0]["perspective"]
    height, width = scene.depth.shape[1:]
    assert np.tan(perspective["yfov"] / 2) == pytest.approx(height / 2 / 42)
    assert np.tan(perspective["yfov"] / 2) * perspective["aspectRatio"] == pytest.approx(width / 2 / 40)


def test_exports_use_the_given_frame_numbers(scene, time, tmp_path):
    write_glb(tmp_path / "x.glb", point_cloud(scene), scene, time, numbers=[4, 6, 8])
    names = {node["name"] for node in read_glb(tmp_path / "x.glb")[0]["nodes"]}
    assert names == {"scene", "background", "frusta", "path"} | {
        f"{kind}_{number:05d}" for kind in ("foreground", "camera") for number in (4, 6, 8)
    }
    write_ply(tmp_path / "x.ply", point_cloud(scene), scene, numbers=[4, 6, 8])
    vertices = read_ply(tmp_path / "x.ply")
    assert [set(vertices["frame"][vertices["kind"] == kind]) for kind in (0, 1, 2)] == [{-1}, {4, 6, 8}, {4, 6, 8}]


def test_glb_bounds_and_alignment(glb):
    document, binary = read_glb(glb[1])
    for mesh in document["meshes"]:
        attributes = mesh["primitives"][0]["attributes"]
        entry = document["accessors"][attributes["POSITION"]]
        positions = accessor(document, binary, attributes["POSITION"])
        np.testing.assert_allclose(entry["min"], positions.min(0))
        np.testing.assert_allclose(entry["max"], positions.max(0))
        assert len(accessor(document, binary, attributes["COLOR_0"])) == len(positions)
        for index in attributes.values():
            view = document["bufferViews"][document["accessors"][index]["bufferView"]]
            assert view["target"] == 34962  # ARRAY_BUFFER: glTF 2.0, section 3.6.2.1
    assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])


def test_glb_colors_are_linear_light(glb):
    cloud, path = glb
    document, binary = read_glb(path)
    mesh = next(m for m in document["meshes"] if m["name"] == "foreground_00000")
    linear = accessor(document, binary, mesh["primitives"][0]["attributes"]["COLOR_0"]) / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_array_equal(np.rint(255 * srgb[:, :3]), cloud.foreground[0].rgb)
    assert (linear[:, 3] == 1).all()


def shown(document, binary, moment):
    """Names of the foreground nodes that the animation shows at a moment."""
    animation = document["animations"][0]
    names = set()
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        assert sampler["interpolation"] == "STEP"
        times = accessor(document, binary, sampler["input"])[:, 0]
        assert (np.diff(times) > 0).all()
        scales = accessor(document, binary, sampler["output"])
        scale = scales[max(0, np.searchsorted(times, moment, side="right") - 1)]
        assert scale.tolist() in ([0, 0, 0], [1, 1, 1])
        if scale[0]:
            names.add(document["nodes"][channel["target"]["node"]]["name"])
    return names


@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0], [7.0, 7.5, 8.0], [0.0, 0.0, 0.0]])
def test_glb_animation_shows_one_foreground_at_a_time(scene, tmp_path, times):
    write_glb(tmp_path / "x.glb", point_cloud(scene), scene, np.array(times))
    document, binary = read_glb(tmp_path / "x.glb")
    step = 0.5 if times[2] else 0.1
    for t in range(3):
        for inside in (0.01, 0.5, 0.99):
            assert shown(document, binary, (t + inside) * step) == {f"foreground_{t:05d}"}
    assert shown(document, binary, 3 * step) == {"foreground_00002"}  # what stays when it has ended


def test_glb_of_one_chosen_frame_stands_still(scene, time, tmp_path):
    write_glb(tmp_path / "x.glb", point_cloud(scene, foreground=1), scene, time)
    document, _ = read_glb(tmp_path / "x.glb")
    assert "animations" not in document
    assert [n["name"] for n in document["nodes"] if n["name"].startswith("fore")] == ["foreground_00001"]


def test_glb_of_one_frame(scene, tmp_path):
    frame = static_camera(scene, 1)
    write_glb(tmp_path / "x.glb", point_cloud(frame), frame, np.zeros(1))
    assert set(trimesh.load(tmp_path / "x.glb").geometry) == {"background", "foreground_00000", "frusta"}
