"""The viewer on a real viser server, without a browser: it serves, shows the view, and refuses invalid input."""

import dataclasses
import socket
import sys
import time
import urllib.request

import numpy as np
import pytest

from easi3r_jax import viewer
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.viewer import server
from easi3r_jax.viewer.clouds import Placement, static_cloud
from easi3r_jax.viewer.paths import look_at_pose
from easi3r_jax.viewer.pictures import frame_picture
from easi3r_jax.viewer.playback import Look
from tests.viewer.conftest import make_scene, write_scene


@pytest.fixture
def running(saved):
    with viewer.Viewer([saved], port=0) as running:
        yield running


def soon(condition) -> None:
    """Waits for another thread to make the condition true."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nodes(running) -> dict:
    """By name; a copy, for another thread adds to them."""
    return dict(running._server.scene._handle_from_node_name)


def pictured(running, result, t: int) -> None:
    """Waits until the panel has the picture of frame t, which comes when there is nothing more urgent."""
    expected = frame_picture(result.scene, t, running._shown[0].ranges, running._shown[0].placement.scale)
    shown = running._panel._pictures  # empty until the first one comes
    soon(lambda: shown and np.array_equal(shown[0].image, expected))


def moving(running) -> list[str]:
    """Names of the moving points that are to be seen."""
    return [name for name, node in nodes(running).items() if "/moving/" in name and node.visible]


def test_it_serves_this_machine(running):
    with urllib.request.urlopen(f"http://127.0.0.1:{running.port}") as page:
        assert b"<html" in page.read(1000)
    assert running._server.get_host() == "127.0.0.1"


def test_it_plays_and_the_time_line_follows(running):
    running.update(lambda view: dataclasses.replace(view, playback=view.playback.toggled()))
    seen = set()
    soon(lambda: seen.add(running._panel._frame.value) or len(seen) == 6)
    assert running._panel._play.label == "Pause"


def test_when_show_frame_returns_the_frame_is_shown(running):
    for t in (4, 1, 5):
        running.show_frame(t)
        assert running.view.playback.frame == t
        assert moving(running) == [f"/left/moving/{t:05d}"]


def test_the_panel_shows_the_pictures_of_the_current_frame(running, saved):
    for t in (4, 1):
        running.show_frame(t)
        pictured(running, saved, t)


def test_the_legend_follows_the_colour(running):
    running.update(lambda view: dataclasses.replace(view, look=Look(color="depth")))
    soon(lambda: "linear-gradient" in running._panel._legend.content)


def test_the_whole_background_arrives(running):
    def static() -> list:
        return [node for name, node in nodes(running).items() if name.startswith("/left/static/2/")]

    soon(lambda: sum(len(node.points) for node in static() if hasattr(node, "points")) > 500)


def test_an_exception_in_a_thread_is_not_lost(saved, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(server, "static_cloud", broken)
    with viewer.Viewer([saved], port=0) as running, pytest.raises(ZeroDivisionError, match="a bug"):
        running.wait()


def test_a_result_of_an_older_version_is_shown(saved):
    """Its source is not known (see `Reconstruction`); nothing of what is seen needs it."""
    frames = dataclasses.replace(saved.frames, source_index=None, frame_from_source=None, source_size=None)
    older = dataclasses.replace(saved, frames=frames, motion=None, record={})
    with viewer.Viewer([older], port=0) as running, viewer.Viewer([saved], port=0) as newer:
        for viewing in (running, newer):
            viewing.show_frame(3)
            pictured(viewing, saved, 3)
        assert moving(running) == moving(newer) == ["/left/moving/00003"]
        assert running.view == newer.view
        np.testing.assert_array_equal(running.poses(), newer.poses())


def test_two_results_of_one_clip(tmp_path, saved, scene):
    other = write_scene(tmp_path / "plain", dataclasses.replace(scene, dynamic_mask=np.zeros_like(scene.dynamic_mask)))
    with viewer.Viewer([saved, other], port=0) as running:
        running.show_frame(2)
        names = set(nodes(running))
        assert {"/left/title", "/right/title", "/left/camera/00002", "/right/camera/00002"} <= names
        assert "/left/moving/00002" in names and "/right/moving/00002" not in names  # nothing moves there


def test_the_initial_view_shows_one_or_two_results(tmp_path, saved, scene):
    """Most points of both lie within a square, and they fill part of it."""
    for several in ([saved], [saved, write_scene(tmp_path / "b" / "clip", scene)]):
        with viewer.Viewer(several, port=0) as running:
            start = running._server.initial_camera
            assert start.up is not None
            pose = look_at_pose(start.position, start.look_at, start.up)
            for shown in running._shown:
                xyz = static_cloud(shown.scene, shown.placement, 10**4).xyz
                x, y, z = ((xyz - pose[:3, 3]) @ pose[:3, :3]).T
                x, y = (side / z / np.tan(start.fov / 2) for side in (x, y))
                assert ((z > 0) & (np.abs(x) < (1 if len(several) > 1 else 4 / 3)) & (np.abs(y) < 1)).mean() > 0.95
                assert x.std() > 0.15


def test_worlds_of_any_unit_are_shown_at_the_same_size(tmp_path, scene):
    """The page renders images only up to a depth of 1000 units."""
    far = dataclasses.replace(
        scene, depth=10_000 * scene.depth, world_from_cam=Placement(scale=1e4).poses(scene.world_from_cam)
    )
    far = dataclasses.replace(far, world_from_cam=far.world_from_cam.astype(np.float32))
    for shown in server.scenes_shown([write_scene(tmp_path / "far", far), write_scene(tmp_path / "near", scene)]):
        cloud = static_cloud(shown.scene, shown.placement, 1000)
        assert np.median(cloud.depth) == pytest.approx(1, rel=0.2)


def test_results_of_the_same_name_get_distinct_titles(tmp_path, scene):
    pair = [write_scene(tmp_path / name / "clip", scene) for name in ("plain", "full")]
    assert [shown.title for shown in server.scenes_shown(pair)] == ["plain/clip", "full/clip"]
    other = write_scene(tmp_path / "other", scene)
    assert [shown.title for shown in server.scenes_shown([pair[0], other])] == ["clip", "other"]


def test_results_of_different_clips_are_refused(tmp_path, saved):
    with pytest.raises(InputError, match=r"has 4 frames and .*clip 6"):
        viewer.Viewer([saved, write_scene(tmp_path / "other", make_scene(4))], port=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_refused(saved, host):
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} is in use: choose another,"):
            viewer.Viewer([saved], port=port)
    with viewer.Viewer([saved], port=port):  # free again
        pass


@pytest.mark.parametrize("count", [1, 2])
def test_the_shortest_clips(tmp_path, count):
    with viewer.Viewer([write_scene(tmp_path / "short", make_scene(count))], port=0) as running:
        running.update(lambda view: dataclasses.replace(view, moving="trail", playback=view.playback.toggled()))
        for t in range(count):
            running.show_frame(t)
        assert running._failure is None


def test_without_viser_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[viewer\]'"):
        viewer.import_viser()


@pytest.mark.parametrize(
    ("time", "rate"), [([0, 0.05, 0.1], 20), ([0.0], 10), ([0, 0, 0], 10), ([0, 60], 1), ([0, 1e-5], 60)]
)
def test_the_frame_rate_is_the_clips_own(time, rate):
    assert server.frame_rate(np.array(time, np.float64)) == pytest.approx(rate)
