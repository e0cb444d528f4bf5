"""The first view, distances between pressed points, what is omitted, and what is said where nothing is left."""

import dataclasses

import numpy as np
import pytest

from easi3r_jax import viewer
from easi3r_jax.core.geometry.camera import world_points
from easi3r_jax.io import export
from easi3r_jax.io.export.pointcloud import MAX_DEPTH_RATIO, empty_because, median_depth, point_cloud
from easi3r_jax.viewer.clouds import preview_cloud
from easi3r_jax.viewer.ruler import pressed_point
from easi3r_jax.viewer.server import scenes_shown
from easi3r_jax.viewer.surroundings import FirstView
from tests.viewer.conftest import H, T, W, make_scene, write_scene
from tests.viewer.test_server import nodes, soon


@pytest.mark.parametrize("aspect", [0.46, 1.0, 1.8])  # a phone, a square, a monitor
def test_the_first_view_frames_the_scene(saved, aspect):
    shown = scenes_shown([saved])
    view = FirstView(shown)
    position = view.position(aspect)
    forward = (view.target - position) / np.linalg.norm(view.target - position)
    right = np.cross(forward, [0.0, -1.0, 0.0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward])
    x, y, z = axes @ (preview_cloud(shown[0].scene, shown[0].placement).xyz - position).T
    assert (z > 0).all()
    up = np.tan(view.fov / 2)
    inside = (np.abs(y / z) <= up) & (np.abs(x / z) <= up * aspect)
    assert inside.mean() > 0.85
    assert max(np.abs(y / z).max() / up, np.abs(x / z).max() / (up * aspect)) > 0.4  # and is not far away


def test_the_nearest_point_of_a_ray():
    points = np.array([[0.0, 0, 5], [0, 0, 3], [0.01, 0, 4], [0, 0, -1], [2, 0, 3]], np.float32)
    origin, forward = np.zeros(3), np.array([0.0, 0, 2])
    np.testing.assert_array_equal(pressed_point(points, origin, forward), [0, 0, 3])
    assert pressed_point(points, origin, np.array([0.0, 1, 0])) is None
    assert pressed_point(points[:0], origin, forward) is None


def test_the_distance_between_two_pressed_points_is_that_of_the_world(saved):
    with viewer.Viewer([saved], port=0) as running:
        scene = saved.scene
        world = world_points(np.asarray(scene.depth[0]), scene.intrinsics[0], scene.world_from_cam[0])
        static = np.asarray(scene.static_mask[0])
        chosen = [world[y, x] for y, x in ((2, 3), (20, 28)) if static[y, x]]
        assert len(chosen) == 2
        soon(lambda: len(running._drawn()[0]) > 0.9 * static.sum())
        placement = running._shown[0].placement
        eye = placement.points(scene.world_from_cam[0, :3, 3])
        running.measure(True)
        distances = [running._ruler.press(eye, placement.points(point) - eye) for point in chosen]
        assert distances[0] is None
        expected = np.linalg.norm(chosen[1] - chosen[0])
        assert distances[1] == pytest.approx(expected, rel=0.05)  # one point of a voxel stands for all
        assert f"{distances[1]:.4g}" in nodes(running)["/ruler/distance"].text
        running.measure(False)
        assert not [name for name in nodes(running) if name.startswith("/ruler/")]


@pytest.mark.parametrize("far", [1e30, 3e38, np.inf])
def test_single_pixels_at_infinity_are_omitted_everywhere(tmp_path, far):
    scene = make_scene()
    depth = scene.depth.copy()
    depth[:, 3, 4:7] = far
    scene = dataclasses.replace(scene, depth=depth)
    farthest = MAX_DEPTH_RATIO * median_depth(scene)
    cloud = point_cloud(scene)
    assert len(cloud.background) > 100 and np.abs(cloud.background.xyz).max() < farthest
    saved = write_scene(tmp_path / "clip", scene)
    shown = scenes_shown([saved])[0]
    assert np.abs(preview_cloud(shown.scene, shown.placement).xyz).max() < 2 * MAX_DEPTH_RATIO
    assert np.isfinite(FirstView([shown]).position(1.0)).all()
    viewer.export_html([saved], tmp_path / "scene.html")
    assert "<title>clip</title>" in (tmp_path / "scene.html").read_text()


def test_why_nothing_is_shown(tmp_path):
    scene = make_scene()
    assert empty_because(scene, 1.0) == ""
    nothing = dataclasses.replace(scene, depth=np.full((T, H, W), np.nan, np.float32))
    assert empty_because(nothing, 1.0) == "no pixel has a depth"
    none = np.zeros((T, H, W), bool)
    doubtful = dataclasses.replace(scene, confidence=np.zeros((T, H, W), np.float32), dynamic_mask=none)
    assert "no pixel has a confidence of 1 or more" in empty_because(doubtful, 1.0)
    with viewer.Viewer([write_scene(tmp_path / "clip", doubtful)], port=0) as running:
        assert nodes(running)["/left/title"].text.startswith("nothing to show, because no pixel has a confidence")


def test_exports_keep_what_is_within_the_range():
    scene = make_scene()
    depth = scene.depth.copy()
    depth[0, 5, 5] = 500 * float(np.median(depth))
    within = point_cloud(dataclasses.replace(scene, depth=depth), min_confidence=0.0)
    assert np.abs(within.background.xyz).max() > 100
    assert export.MIN_CONFIDENCE > 1
