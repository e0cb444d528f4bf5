"""The viewer's points: where they are, which are kept, and in what order."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.io.export.pointcloud import frame_points
from easi3r_jax.viewer import clouds
from easi3r_jax.viewer.clouds import Placement, moving_cloud, side_by_side, static_cloud

PLACED = Placement(Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix(), np.array([1.0, 2.0, 3.0]), 2.5)


def rows(array: np.ndarray) -> list:
    return sorted(map(tuple, array.round(5).tolist()))


def test_static_and_moving_points_are_those_of_the_export(scene):
    cloud = moving_cloud(scene, 2, Placement(), 10**6)
    static = static_cloud(dataclasses.replace(scene, confidence=np.full_like(scene.confidence, 3)), Placement(), 10**6)
    exported = frame_points(scene, 2, 0.0)
    assert len(cloud) == scene.dynamic_mask[2].sum() and cloud.moving.all() and not static.moving.any()
    everything = set(rows(exported.xyz))
    assert set(rows(cloud.xyz)) <= everything
    assert set(rows(static.xyz[static.frame == 2])) <= everything


def test_attributes_belong_to_their_points(scene):
    """Each point, projected into the frame it comes from, falls on the pixel whose values it has."""
    cloud = static_cloud(scene, PLACED, 10**6)
    back = (cloud.xyz - PLACED.translation) @ PLACED.rotation / PLACED.scale
    cam_from_world = np.linalg.inv(scene.world_from_cam.astype(np.float64))[cloud.frame]
    seen = np.einsum("pij,pj->pi", cam_from_world[:, :3, :3], back) + cam_from_world[:, :3, 3]
    pixel = np.einsum("pij,pj->pi", scene.intrinsics[cloud.frame].astype(np.float64), seen)
    x, y = np.rint(pixel[:, :2] / pixel[:, 2:]).astype(int).T
    at = (cloud.frame, y, x)
    np.testing.assert_allclose(cloud.depth, PLACED.scale * scene.depth[at], rtol=1e-5)
    np.testing.assert_allclose(seen[:, 2], scene.depth[at], rtol=1e-4)
    np.testing.assert_array_equal(cloud.rgb, scene.rgb[at])
    np.testing.assert_array_equal(cloud.confidence, scene.confidence[at])
    np.testing.assert_array_equal(cloud.score, scene.dynamic_score[at])


def test_the_most_confident_pixel_of_a_voxel_is_kept(scene):
    """A static camera sees the same wall in each frame: the background is that of the most confident frame alone."""
    still = dataclasses.replace(
        scene,
        world_from_cam=np.tile(scene.world_from_cam[:1], (len(scene.depth), 1, 1)),
        dynamic_mask=np.zeros_like(scene.dynamic_mask),
        static_mask=np.ones_like(scene.static_mask),
        depth=np.full_like(scene.depth, 4.0),
        confidence=np.full_like(scene.confidence, 2.0),
    )
    still.confidence[3] = 5.0
    cloud = static_cloud(still, Placement(), 10**6)
    assert (cloud.frame == 3).all()
    assert len(cloud) <= scene.depth[0].size


def test_floating_points_are_omitted(scene):
    scene.confidence[:, :, ::2] = 0.0
    assert static_cloud(scene, Placement(), 10**6).confidence.min() >= 1.0


@pytest.mark.parametrize("most", [1, 50, 300])
def test_above_the_limit_a_uniform_sample_is_kept(scene, most):
    whole, some = static_cloud(scene, Placement(), 10**6), static_cloud(scene, Placement(), most)
    assert len(some) == most < len(whole)
    if most == 300:  # no side of the wall is preferred
        assert abs(some.xyz.mean(0) - whole.xyz.mean(0)).max() < 0.2


def test_any_prefix_of_a_cloud_is_spread_over_it(scene):
    cloud = static_cloud(scene, Placement(), 10**6)
    tenth = cloud[: len(cloud) // 10]
    assert abs(tenth.xyz.mean(0) - cloud.xyz.mean(0)).max() < 0.3
    np.testing.assert_array_less(0.5 * cloud.xyz.std(0), tenth.xyz.std(0) + 1e-6)


def test_parts_add_up_to_the_cloud(scene):
    cloud = static_cloud(scene, Placement(), 103)
    pieces = clouds.parts(cloud, 20)
    assert [len(piece) for piece in pieces].count(5) + [len(piece) for piece in pieces].count(6) == 20
    np.testing.assert_array_equal(np.concatenate([piece.xyz for piece in pieces]), cloud.xyz)
    assert sum(map(len, clouds.parts(cloud[:3], 20))) == 3


def test_a_scene_without_depth_is_empty(scene):
    nothing = dataclasses.replace(scene, depth=np.full_like(scene.depth, np.nan))
    assert len(static_cloud(nothing, Placement(), 100)) == 0
    assert len(moving_cloud(nothing, 0, Placement(), 100)) == 0
    assert clouds.median_depth(nothing) == 1.0


def test_the_preview_shows_the_same_wall(scene):
    preview, whole = clouds.preview_cloud(scene, PLACED), static_cloud(scene, PLACED, 10**6)
    np.testing.assert_allclose(preview.xyz.mean(0), whole.xyz.mean(0), atol=0.3 * PLACED.scale)


def test_a_placement_moves_points_and_cameras_alike(scene):
    """In its camera's frame a point keeps its direction, and its distance is scaled."""
    poses = PLACED.poses(scene.world_from_cam)
    np.testing.assert_allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].swapaxes(1, 2), np.tile(np.eye(3), (6, 1, 1)), atol=1e-6
    )
    world = np.array([0.3, 0.1, 5.0])
    before = np.linalg.inv(scene.world_from_cam[1].astype(np.float64)) @ np.append(world, 1)
    after = np.linalg.inv(poses[1]) @ np.append(PLACED.points(world), 1)
    np.testing.assert_allclose(after[:3], PLACED.scale * before[:3], rtol=1e-5)


def test_any_world_is_shown_at_the_same_size(scene):
    metres = dataclasses.replace(scene, depth=1000 * scene.depth)
    for some in (scene, metres):
        assert clouds.unit_depth_placement(some).scale * clouds.median_depth(some) == pytest.approx(1)


@pytest.mark.parametrize("first", [Placement(), PLACED])
def test_two_scenes_of_a_clip_are_placed_side_by_side_at_the_same_size(scene, first):
    """The second is the first in another world frame, twelve times as large."""
    other_world = Placement(Rotation.from_rotvec([1.0, 0.4, -2.0]).as_matrix(), np.array([5.0, -7.0, 2.0]), 12.0)
    other = dataclasses.replace(
        scene,
        world_from_cam=other_world.poses(scene.world_from_cam).astype(np.float32),
        depth=12 * scene.depth,
    )
    placement = side_by_side(scene, other, first)
    left, right = first.poses(scene.world_from_cam), placement.poses(other.world_from_cam)
    np.testing.assert_allclose(right[:, :3, :3], left[:, :3, :3], atol=1e-5)
    shift = right[:, :3, 3] - left[:, :3, 3]
    np.testing.assert_allclose(shift, np.tile(shift[:1], (6, 1)), atol=1e-4)
    assert placement.scale == pytest.approx(first.scale / 12)
    aside = left[0, :3, 0]
    np.testing.assert_allclose(shift[0], (shift[0] @ aside) * aside, atol=1e-4)
    # They do not overlap: most of the left scene lies to the left of most of the right one.
    most_left = np.percentile(static_cloud(scene, first, 10**6).xyz @ aside, 95)
    least_right = np.percentile(static_cloud(other, placement, 10**6).xyz @ aside, 5)
    assert most_left < least_right
