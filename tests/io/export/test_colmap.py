"""COLMAP models, read back by its own library, and the tracks in them."""

import dataclasses

import numpy as np
import pycolmap
import pytest

from easi3r_jax.core.types import Scene4D
from easi3r_jax.io import export
from easi3r_jax.io.export import colmap
from easi3r_jax.io.export.tracks import DEPTH_TOLERANCE, project, tracked_points
from tests.exact_scene import TIME, H, T, W, in_images, world_points, write


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory):
    return write(tmp_path_factory.mktemp("colmap"), "colmap", exported)


@pytest.mark.parametrize("model", ["sparse/0", "sparse_text"])
def test_colmap_sees_every_point_where_it_came_from(exported, folder, model):
    read = pycolmap.Reconstruction(folder / model)
    assert {image.name for image in read.images.values()} == set(exported.views.names)
    images = sorted(read.images.values(), key=lambda image: image.name)
    for t, image in enumerate(images):
        camera = read.cameras[image.camera_id]
        assert camera.model == pycolmap.CameraModelId.PINHOLE
        assert (camera.height, camera.width) == exported.views.size
        found = np.array([image.project_point(point) for point in world_points(exported.scene, t)])
        np.testing.assert_allclose(found, in_images(exported), atol=1e-3)


def test_colmap_has_one_camera_for_equal_intrinsics(exported, folder):
    read = pycolmap.Reconstruction(folder / "sparse" / "0")
    assert len(read.cameras) == len(np.unique(exported.scene.intrinsics, axis=0))


@pytest.mark.parametrize("model", ["sparse/0", "sparse_text"])
def test_colmap_tracks_are_complete_and_correct(exported, folder, model):
    read = pycolmap.Reconstruction(folder / model)
    assert len(read.points3D) > 1000
    scene, index = exported.scene, {name: t for t, name in enumerate(exported.views.names)}
    longest = 0
    for number, point in list(read.points3D.items())[::7]:
        assert np.isclose(point.xyz[2], 6 + 0.3 * point.xyz[0], atol=1e-3) or np.isclose(point.xyz[2], 3.5, atol=1e-3)
        elements = point.track.elements
        assert len({element.image_id for element in elements}) == len(elements)
        longest = max(longest, len(elements))
        colors = []
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
            if np.abs(xy - [column, row]).max() < 1e-3:  # the pixel that the point is made of
                colors.append(scene.rgb[t, row, column].tolist())
        assert point.color.tolist() in colors
    assert longest == len(index)


def test_colmap_models_agree(folder):
    binary, text = (pycolmap.Reconstruction(folder / model) for model in ("sparse/0", "sparse_text"))
    assert set(binary.points3D) == set(text.points3D)
    assert binary.compute_num_observations() == text.compute_num_observations() > 2000
    for number in binary.points3D:
        np.testing.assert_array_equal(binary.points3D[number].color, text.points3D[number].color)


def test_colmap_itself_writes_the_same_bytes(folder, tmp_path):
    pycolmap.Reconstruction(folder / "sparse" / "0").write_binary(tmp_path)
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        assert (tmp_path / name).read_bytes() == (folder / "sparse" / "0" / name).read_bytes()


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
        on_panel = world_points(room, t, np.column_stack([column, row]))[:, 2] < 4
        behind = on_panel & (points.xyz[:, 2] > 4.5)
        assert behind.any()
        assert not points.seen[behind, t].any()


@pytest.mark.parametrize(("stretch", "is_seen"), [(0.5, True), (2.0, False)])
def test_a_frame_sees_points_whose_depth_it_agrees_with(room, stretch, is_seen):
    """Of a frame whose depths are off by half of what is tolerated, or by twice as much."""
    depth = room.depth.copy()
    depth[3] *= 1 + stretch * DEPTH_TOLERANCE
    points = tracked_points(dataclasses.replace(room, depth=depth), min_confidence=1.1, max_points=100_000)
    share = points.seen[points.frame < 3, 3].mean()
    assert share > 0.5 if is_seen else share < 0.02


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


def test_nothing_static_gives_no_points(room, tmp_path):
    nothing = dataclasses.replace(
        room, static_mask=np.zeros_like(room.static_mask), dynamic_mask=np.ones_like(room.dynamic_mask)
    )
    for name in export.FORMATS:
        write(tmp_path, name, export.frames_of(nothing, TIME))
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
