"""nerfstudio's `transforms.json`: by the documentation's conventions, by nerfstudio's own parser, by our own reader.

nerfstudio pins its own versions, so it runs in a separate environment, whose interpreter NERFSTUDIO_PYTHON names:

    NERFSTUDIO_PYTHON=path/to/env/bin/python pytest tests/io/export/test_nerfstudio.py
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import plyfile
import pytest

from easi3r_jax.core.types import Frames
from easi3r_jax.io import export
from easi3r_jax.io.priors.cameras import load_cameras
from tests.exact_scene import (
    FOCAL,
    FRAME_FROM_SOURCE,
    PIXELS,
    SOURCE_SIZE,
    TIME,
    T,
    in_images,
    originals,
    world_points,
    write,
)


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory):
    return write(tmp_path_factory.mktemp("nerfstudio"), "nerfstudio", exported)


def test_transforms_json_sees_every_point_where_it_came_from(exported, folder):
    """By the conventions at docs.nerf.studio: OpenGL axes, pixels counted from the corner."""
    meta = json.loads((folder / "transforms.json").read_text())
    assert (meta["h"], meta["w"]) == exported.views.size
    assert meta["camera_model"] == "OPENCV"
    assert [frame["file_path"] for frame in meta["frames"]] == [f"images/{name}" for name in exported.views.names]
    assert meta["frames"][0]["time"] == 0 and meta["frames"][-1]["time"] == 1
    for t, frame in enumerate(meta["frames"]):
        assert (folder / frame["mask_path"]).is_file()
        camera = meta | frame
        points = np.column_stack([world_points(exported.scene, t), np.ones(len(PIXELS))])
        x, y, z, _ = np.linalg.inv(frame["transform_matrix"]) @ points.T
        assert (z < 0).all()
        found = np.stack([camera["fl_x"] * x / -z + camera["cx"], camera["cy"] - camera["fl_y"] * y / -z], axis=1)
        np.testing.assert_allclose(found, in_images(exported), atol=1e-3)


# What nerfstudio makes of a folder. It takes pixels (x, y) on its standard input; the answer goes into a file, for
# nerfstudio prints.
READER = """
import json, pathlib, sys
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

folder, answer = map(pathlib.Path, sys.argv[1:])
config = NerfstudioDataParserConfig(data=folder, eval_mode="all", load_3D_points=False)
outputs = config.setup().get_dataparser_outputs("train")
x, y = torch.tensor(json.load(sys.stdin)).T
coords = outputs.cameras.get_image_coords()[y, x]
rays = [outputs.cameras.generate_rays(t, coords=coords) for t in range(len(outputs.cameras))]
answer.write_text(json.dumps({
    "images": [path.name for path in outputs.image_filenames],
    "masks": [path.name for path in outputs.mask_filenames],
    "origins": [ray.origins.tolist() for ray in rays],
    "directions": [ray.directions.tolist() for ray in rays],
    "nerfstudio_from_world": outputs.dataparser_transform.tolist(),
    "scale": outputs.dataparser_scale,
}))
"""
INTERPRETER = os.environ.get("NERFSTUDIO_PYTHON", sys.executable if importlib.util.find_spec("nerfstudio") else "")


@pytest.mark.skipif(not INTERPRETER, reason="nerfstudio is not installed, and NERFSTUDIO_PYTHON names no other Python")
def test_nerfstudio_itself_sees_every_point_where_it_came_from(exported, folder, tmp_path):
    """Its rays through the pixels hit the points that the pixels show, whatever it makes of the world."""
    asked, answer = json.dumps((in_images(exported) - 0.5).astype(int).tolist()), tmp_path / "answer.json"
    subprocess.run([INTERPRETER, "-c", READER, folder, answer], input=asked, text=True, check=True)
    found = json.loads(answer.read_text())
    assert found["images"] == list(exported.views.names)
    assert found["masks"] == [f"{name}.png" for name in exported.views.names]
    matrix, scale = np.array(found["nerfstudio_from_world"]), found["scale"]
    np.testing.assert_allclose(matrix[:, :3] @ matrix[:, :3].T, np.eye(3), atol=1e-5)
    for t, (origins, directions) in enumerate(zip(found["origins"], found["directions"], strict=True)):
        points = scale * (world_points(exported.scene, t) @ matrix[:, :3].T + matrix[:, 3])
        towards = points - origins
        along = (towards * directions).sum(axis=1)
        assert (along > 0).all()
        aside = np.linalg.norm(np.cross(towards, directions), axis=1) / along
        assert (aside * exported.views.intrinsics(exported.scene)[t].max() < 0.02).all()  # pixels


def test_the_points_of_transforms_json_are_the_static_surfaces(folder):
    meta = json.loads((folder / "transforms.json").read_text())
    vertices = plyfile.PlyData.read(folder / meta["ply_file_path"])["vertex"]
    assert [p.name for p in vertices.properties] == ["x", "y", "z", "red", "green", "blue"]
    x, z = np.asarray(vertices["x"]), np.asarray(vertices["z"])
    on_surface = np.isclose(z, 6 + 0.3 * x, atol=0.02) | np.isclose(z, 3.5, atol=0.02)
    assert len(z) > 500 and on_surface.mean() > 0.99


def test_our_own_reader_of_transforms_json_agrees(room, tmp_path):
    """What was exported in pixels of the originals can be given as known cameras."""
    exported = dataclasses.replace(export.frames_of(room, TIME), views=originals())
    path = write(tmp_path, "nerfstudio", exported) / "transforms.json"
    frames = Frames(room.rgb, np.arange(T, dtype=np.int32), TIME, FRAME_FROM_SOURCE, np.array(SOURCE_SIZE))
    cameras = load_cameras(frames, path, path, source_names=exported.views.names)
    np.testing.assert_allclose(cameras.world_from_cam, room.world_from_cam, atol=1e-6)
    np.testing.assert_allclose(cameras.principal_point, room.intrinsics[:, :2, 2], atol=1e-4)
    np.testing.assert_allclose(cameras.focal, FOCAL * np.sqrt(1.02), rtol=1e-6)
