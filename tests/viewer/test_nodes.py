"""Which parts of a scene are sent, and when, using a counting stand-in for viser's scene."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from easi3r_jax.viewer.clouds import Placement, moving_cloud, static_cloud
from easi3r_jax.viewer.colors import measure, point_colors
from easi3r_jax.viewer.nodes import SceneNodes, Shown
from easi3r_jax.viewer.playback import Look, Playback, View
from tests.viewer.conftest import T


class Node:
    """A node's handle: an assignment counts as sent."""

    def __init__(self, api: SceneApi, name: str, fields: dict):
        object.__setattr__(self, "api", api)
        object.__setattr__(self, "name", name)
        for field, value in {"visible": True, **fields}.items():
            object.__setattr__(self, field, value)

    def __setattr__(self, field, value):
        old = getattr(self, field)
        object.__setattr__(self, field, value)
        if not np.array_equal(old, value):  # viser does not send an unchanged value
            self.api.sent[field] += 1

    def remove(self):
        del self.api.nodes[self.name]


class SceneApi:
    """Has the methods of viser's scene that are used."""

    def __init__(self):
        self.nodes: dict[str, Node] = {}
        self.sent = collections.Counter()

    def _add(self, name: str, **fields) -> Node:
        self.sent["nodes"] += 1
        self.nodes[name] = Node(self, name, fields)
        return self.nodes[name]

    def add_point_cloud(self, name, points, colors, **fields):
        assert points.dtype == np.float32 and colors.shape == points.shape and len(points)
        self.sent["points"] += len(points)
        return self._add(name, points=points, colors=colors, **fields)

    def add_camera_frustum(self, name, **fields):
        return self._add(name, **fields)

    def add_line_segments(self, name, points, colors, **fields):
        assert points.shape == colors.shape
        return self._add(name, points=points, colors=colors, **fields)

    def visible(self, part: str) -> list[str]:
        return sorted(name for name, node in self.nodes.items() if f"/{part}/" in name and node.visible)

    def points(self, part: str) -> np.ndarray:
        return np.concatenate([np.zeros((0, 3), np.float32), *(self.nodes[name].points for name in self.visible(part))])


@pytest.fixture
def shown(scene) -> Shown:
    return Shown("clip", scene, Placement(), measure(scene, np.arange(T) / 20))


@pytest.fixture
def api() -> SceneApi:
    return SceneApi()


@pytest.fixture
def nodes(api, shown) -> SceneNodes:
    nodes = SceneNodes(api, "/left", shown, 1000)
    nodes.set_background(static_cloud(shown.scene, Placement(), 1000))
    return nodes


def at(frame: int, **fields) -> View:
    return View(Playback(T, frame=frame), **fields)


def refined(nodes: SceneNodes, view: View) -> None:
    while nodes.refine(view):
        pass


def test_nothing_is_sent_before_it_is_shown(api, nodes):
    assert not api.visible("moving") and not api.visible("static")
    nodes.show(at(2))
    assert api.visible("moving") == ["/left/moving/00002"]
    assert api.visible("camera") == ["/left/camera/00002"]
    assert len(api.points("moving")) == 48


def test_the_size_of_points_is_in_pixels_of_the_clip(api, nodes, shown):
    nodes.show(at(0, look=Look(size=1.0)))
    diameter = 2 * api.nodes["/left/moving/00000"].point_size  # a radius in viser
    depth = np.median(shown.scene.depth)
    assert diameter * shown.scene.intrinsics[0, 0, 0] / depth == pytest.approx(1, rel=0.1)


def test_showing_a_frame_again_only_switches_visibility(api, nodes):
    for t in (0, 1, 2):
        nodes.show(at(t))
    api.sent.clear()
    for t in (0, 1, 2):
        nodes.show(at(t))
        assert api.visible("moving") == [f"/left/moving/{t:05d}"]
        assert api.visible("camera") == [f"/left/camera/{t:05d}"]
    assert set(api.sent) == {"visible"}
    assert api.sent["visible"] == 12  # each time, one camera and one cloud are hidden and one of each is shown


def test_a_prepared_frame_is_sent_but_hidden(api, nodes):
    nodes.show(at(0))
    assert nodes.prepare(1, Look()) and not nodes.prepare(1, Look())
    assert api.visible("moving") == ["/left/moving/00000"]
    before = api.sent["points"]
    nodes.show(at(1))
    assert api.sent["points"] == before


def test_a_trail_shows_the_last_frames_and_its_end_hides_them(api, nodes):
    nodes.show(at(4, moving="trail", trail=2))
    assert [name[-1] for name in api.visible("moving")] == ["2", "3", "4"]
    nodes.show(at(4))
    assert [name[-1] for name in api.visible("moving")] == ["4"]
    nodes.show(at(4, moving="hidden"))
    assert not api.visible("moving")


def test_another_colour_sends_only_colours_of_visible_points(api, nodes, shown):
    for t in range(T):
        nodes.show(at(t))
    refined(nodes, at(0))
    api.sent.clear()
    view = at(0, look=Look(color="depth"))
    nodes.show(view)
    refined(nodes, view)
    assert not api.sent["points"]
    assert api.sent["colors"] == 1 + len(api.visible("static"))
    for name in api.visible("static"):
        assert len(np.unique(api.nodes[name].colors)) > 3
    nodes.show(at(3, look=Look(color="depth")))  # is updated when it is shown
    cloud = api.nodes["/left/moving/00003"]
    np.testing.assert_array_equal(np.unique(cloud.colors, axis=0), [point_colors_of(shown, "depth")])


def point_colors_of(shown: Shown, choice: str) -> np.ndarray:
    return point_colors(moving_cloud(shown.scene, 3, Placement(), 1), choice, shown.ranges)[0]


def test_another_size_sends_no_points(api, nodes):
    nodes.show(at(0, look=Look(size=2.0)))
    refined(nodes, at(0, look=Look(size=2.0)))
    sent, width = api.sent["points"], api.nodes["/left/moving/00000"].point_size
    view = at(0, look=Look(size=3.0))
    nodes.show(view)
    refined(nodes, view)
    assert api.sent["points"] == sent
    assert {node.point_size for name, node in api.nodes.items() if "static" in name or "moving" in name} == {
        1.5 * width
    }


def test_confidence_filters_static_points_only(api, nodes, shown):
    for least in (1.1, 3.0, 4.2, 99.0, 2.0):
        view = at(0, look=Look(confidence=least))
        nodes.show(view)
        refined(nodes, view)
        cloud = static_cloud(shown.scene, Placement(), 1000)
        assert len(api.points("static")) == (cloud.confidence >= least).sum()
        assert len(api.points("moving")) == 48


@pytest.mark.parametrize("fraction", [0.05, 0.5, 1.0])
def test_a_fraction_of_the_points(api, nodes, shown, fraction):
    view = at(0, look=Look(fraction=fraction))
    nodes.show(view)
    refined(nodes, view)
    assert len(api.points("static")) == pytest.approx(fraction * 1000, abs=1)
    assert len(api.points("moving")) == pytest.approx(fraction * 48, abs=1)
    sent = api.sent["points"]
    refined(nodes, at(0, look=Look(fraction=fraction / 2)))
    assert api.sent["points"] == sent  # static points already sent are only hidden


def test_a_preview_stays_until_the_whole_background_is_sent(api, shown, monkeypatch):
    monkeypatch.setattr("easi3r_jax.viewer.nodes._POINTS_PER_STEP", 1)
    nodes = SceneNodes(api, "/left", shown, 1000)
    nodes.set_background(static_cloud(shown.scene, Placement(), 60))
    refined(nodes, at(0))
    preview = api.points("static")
    assert len(preview) == 60
    nodes.set_background(static_cloud(shown.scene, Placement(), 1000))
    while nodes.refine(at(0)):
        assert len(api.points("static")) > 60
    assert len(api.points("static")) == 1000
    assert not [name for name in api.nodes if name.startswith("/left/static/1/")]


def test_what_is_switched_off_is_hidden(api, nodes):
    view = at(1)
    nodes.show(view)
    refined(nodes, view)
    nodes.show(at(1, follow=True))
    assert not api.visible("camera")
    off = at(1, background=False, cameras=False, image=False)
    nodes.show(off)
    refined(nodes, off)
    assert not api.visible("static") and not api.visible("camera")
    assert not api.nodes["/left/cameras"].visible and not api.nodes["/left/path"].visible
    nodes.show(view)
    refined(nodes, view)
    assert len(api.points("static")) == 1000


def test_cameras_are_at_their_poses(api, nodes, shown):
    nodes.show(at(5))
    camera = api.nodes["/left/camera/00005"]
    np.testing.assert_allclose(camera.position, shown.scene.world_from_cam[5, :3, 3], atol=1e-6)
    np.testing.assert_array_equal(camera.image, shown.scene.rgb[5])  # frames differ: the square moves
    assert camera.fov == pytest.approx(2 * np.arctan(24 / 2 / 40)) and camera.aspect == pytest.approx(32 / 24)
    np.testing.assert_allclose(api.nodes["/left/path"].points[:, 0], shown.scene.world_from_cam[:-1, :3, 3], atol=1e-6)


def test_pixels_need_not_be_square(shown):
    shown.scene.intrinsics[2, 0, 0] *= 2
    wide, high = np.tan(shown.fov(2) / 2) * shown.aspect(2), np.tan(shown.fov(2) / 2)
    np.testing.assert_allclose([wide, high], [32 / 2 / 80, 24 / 2 / 40], rtol=1e-6)


@pytest.mark.parametrize("count", [1, T])
def test_a_scene_without_points_or_with_one_frame(api, shown, count):
    scene = dataclasses.replace(
        shown.scene, **{f.name: getattr(shown.scene, f.name)[:count] for f in dataclasses.fields(shown.scene)}
    )
    scene.depth[:] = np.nan
    nodes = SceneNodes(api, "/left", dataclasses.replace(shown, scene=scene), 10)
    nodes.set_background(static_cloud(scene, Placement(), 10))
    nodes.show(at(0))
    refined(nodes, at(0))
    assert not api.visible("static") and not api.visible("moving") and api.visible("camera")
