"""Flow and visibility in rooms where both are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.geometry import camera
from easi3r_jax.synthetic import render
from easi3r_jax.synthetic.flow import carried, exact_flow
from easi3r_jax.synthetic.scenes import BALL, PANEL
from tests.rooms import ROOM, at, intrinsics, room_with, turned

SIZE = (32, 48)
FOCAL = 40.0
GRID = np.asarray(camera.pixel_grid(*SIZE))


@pytest.fixture(scope="module")
def flow_between():
    """Flow between two times, each a scene and a camera: both views, flow and visibility, as host arrays."""

    @jax.jit
    def both(scene, pose, other_scene, other_pose):
        view, other_view = (
            render(jax.random.key(0), s, p, intrinsics(SIZE, FOCAL), SIZE)
            for s, p in ((scene, pose), (other_scene, other_pose))
        )
        return view, other_view, *exact_flow(view, scene, other_view, other_scene)

    def run(scene, pose, other_scene, other_pose):
        return jax.tree.map(np.asarray, both(scene, jnp.asarray(pose), other_scene, jnp.asarray(other_pose)))

    return run


def panel_at(x: float, z: float = 2.0):
    """A panel across the view, 2 wide, 1.2 high."""
    return room_with([PANEL], [[1.0, 0.6, 1.0]], [at(x, 0, z)])


EYE = at(0, 0, -1)


def test_a_panel_slides_in_front_of_a_wall(flow_between):
    """Its flow is f dx / z; the wall's is 0, visible exactly where the panel does not cover it in the other frame."""
    before, after, flow, visible = flow_between(panel_at(-0.3), EYE, panel_at(0.3), EYE)
    panel, wall = before.instance == 1, before.instance == 0
    np.testing.assert_allclose(flow[panel], np.tile([FOCAL * 0.6 / 3, 0], (panel.sum(), 1)), atol=1e-3)
    assert visible[panel].all()
    np.testing.assert_allclose(flow[wall], 0, atol=1e-4)
    np.testing.assert_array_equal(visible[wall], after.instance[wall] == 0)
    assert 20 < (~visible).sum() < 300


def test_points_that_leave_the_image_have_flow_but_are_not_visible(flow_between):
    before, _, flow, visible = flow_between(panel_at(0.5), EYE, panel_at(2.1), EYE)
    panel = before.instance == 1
    np.testing.assert_allclose(flow[panel], np.tile([FOCAL * 1.6 / 3, 0], (panel.sum(), 1)), atol=1e-3)
    inside = (GRID + flow)[..., 0] <= SIZE[1] - 0.5
    np.testing.assert_array_equal(visible[panel], inside[panel])
    assert 0.2 < visible[panel].mean() < 0.8


def test_a_rotating_ball_occludes_its_own_points(flow_between):
    """Points are visible if they face the camera after the rotation."""
    turning = at(0, 0, 2)
    scene = room_with([BALL], [[0.8] * 3], [turning])
    for angle in (0.2, 1.2, np.pi):
        pose = turning.copy()
        pose[:3, :3] = rotation = turned(np.array([0, 1.0, 0]), angle)
        before, _, flow, visible = flow_between(scene, EYE, room_with([BALL], [[0.8] * 3], [pose]), EYE)
        ball = before.instance == 1
        points = np.asarray(camera.unproject(before.depth, before.intrinsics), np.float64)[ball] + EYE[:3, 3]
        normal = (points - turning[:3, 3]) / 0.8 @ rotation.T
        sight = turning[:3, 3] + 0.8 * normal - EYE[:3, 3]
        facing = -np.sum(normal * sight, axis=1) / np.linalg.norm(sight, axis=1)
        clear = np.abs(facing) > 0.05
        np.testing.assert_array_equal(visible[ball][clear], facing[clear] > 0)
        projected = FOCAL * sight[:, :2] / sight[:, 2:] + (24, 16)
        np.testing.assert_allclose((GRID + flow)[ball], projected, atol=1e-3)
        assert {0.2: 0.95, 1.2: 0.3, np.pi: 0}[angle] <= visible[ball].mean() <= {0.2: 1, 1.2: 0.9, np.pi: 0.05}[angle]


def test_camera_motion_alone(flow_between):
    """Towards a wall: the flow leads away from the principal point, by the ratio of depths."""
    empty = room_with([BALL], [[0.01] * 3], [at(3, 2, -4)])
    *_, flow, visible = flow_between(empty, at(0, 0, 1), empty, at(0, 0, 2))
    expected = (GRID - (24, 16)) * ((ROOM[2] - 1) / (ROOM[2] - 2) - 1)
    np.testing.assert_allclose(flow, expected, atol=1e-3)
    from_edge = np.minimum(GRID + expected + 0.5, (47.5, 31.5) - (GRID + expected)).min(-1)
    clear = np.abs(from_edge) > 1e-3
    np.testing.assert_array_equal(visible[clear], from_edge[clear] > 0)
    assert 0.3 < visible.mean() < 0.8


def test_an_occluder_between_pixels_still_occludes(flow_between):
    """Visibility is tested with rays: a panel between two columns of pixels is not in a depth map."""
    sliver = [[0.004, 2.0, 1.0]]
    aside, before_point = (room_with([PANEL], sliver, [at(x, 0, 2)]) for x in (2.5, -0.25 * 3 / FOCAL))
    shift = at(-0.25 * 6 / FOCAL, 0, -1)  # the far wall's points move by a quarter of a pixel
    _, other_view, flow, visible = flow_between(aside, EYE, before_point, shift)
    assert (other_view.instance == 0).all()
    np.testing.assert_allclose(flow[10, 5], [0.25, 0], atol=1e-3)
    hidden = ~visible
    assert np.unique(np.nonzero(hidden)[1]).tolist() == [24]
    assert hidden[:, 24].mean() > 0.8


def test_behind_the_other_camera_there_is_no_flow(flow_between):
    around = at(0, 0, -1)
    around[:3, :3] = np.diag([-1, 1, -1])
    *_, flow, visible = flow_between(panel_at(0), EYE, panel_at(0), around)
    np.testing.assert_array_equal(flow, 0)
    assert not visible.any()


def test_points_move_with_their_own_object_only():
    rng = np.random.default_rng(0)
    poses = np.stack([at(*rng.normal(size=3)) for _ in range(3)])
    later = poses.copy()
    poses[:, :3, :3] = later[:, :3, :3] = [turned(rng.normal(size=3), a) for a in (0.3, 1.0, 2.0)]
    later[1, :3, :3] = turned(rng.normal(size=3), 0.7)
    later[1, :3, 3] += 0.4
    points, instance = rng.normal(size=(200, 3)).astype(np.float32), rng.integers(0, 4, 200)
    moved = np.asarray(carried(*(jnp.asarray(a) for a in (points, instance, poses, later))))
    np.testing.assert_array_equal(moved[instance != 2], points[instance != 2])
    local = (points[instance == 2] - poses[1, :3, 3]) @ poses[1, :3, :3].astype(np.float64)
    expected = local @ later[1, :3, :3].astype(np.float64).T + later[1, :3, 3]
    np.testing.assert_allclose(moved[instance == 2], expected, atol=1e-5)
