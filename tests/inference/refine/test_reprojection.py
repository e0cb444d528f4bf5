"""Refinement of masks by reprojection, on the golden scene and on made-up ones; `test_parity.py` compares its steps.

The golden scene: a wall, a static sphere, a moving sphere, a moving camera. Its masks are the moving sphere's, grown,
and two false discs on the wall.
"""

import dataclasses
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax.inference.clip import needs_geometry
from easi3r_jax.inference.refine import reprojection
from easi3r_jax.inference.refine.residuals import Views, cluster_losses, sample_views

#: As the released program, but for k-means.
RELEASED = e3r.ReprojectionRefiner(unit=1.0, pixel_offset=0.5)
#: Without smoothing, which costs much at this size.
SHARP = e3r.ReprojectionRefiner(closing=0, dilation=0)


@pytest.fixture(scope="module")
def scene(golden):
    return dict(np.load(golden / "vggt_motion" / "refine_5x48x64.npz"))


@pytest.fixture(scope="module")
def rgb(scene):
    rgb = np.round(255 * scene["images"]).astype(np.uint8)
    rgb.flags.writeable = False
    return rgb


@pytest.fixture
def masks(scene):
    masks = scene["coarse_masks"].copy()
    masks.flags.writeable = False
    return masks


@pytest.fixture(scope="module")
def geometry(scene):
    return geometry_of(scene["cam2world"], scene["intrinsics"], scene["depths"])


def geometry_of(world_from_cam, intrinsics, depth):
    return e3r.Geometry(world_from_cam, intrinsics, depth, np.ones_like(depth))


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_with_the_released_clusters_the_masks_are_the_released_ones(rgb, masks, geometry, scene, monkeypatch):
    labels = iter(scene["labels"])

    def stored(points, num_clusters, size, seed):
        own = next(labels)
        assert (own >= 0).sum() == len(points) and num_clusters == 30
        return own[own >= 0].astype(np.int32)

    monkeypatch.setattr(reprojection, "cluster_points", stored)
    np.testing.assert_array_equal(RELEASED(rgb, masks, geometry=geometry), scene["refined_masks"])


@pytest.mark.parametrize("seed", [0, 1])
def test_with_our_clusters_the_masks_are_as_good(rgb, masks, geometry, scene, seed):
    """Released: 0.87 before smoothing, 0.70 after it."""
    truth = scene["true_dynamic"]
    assert iou(masks, truth) < 0.41
    sharp = dataclasses.replace(RELEASED, closing=0, dilation=0, seed=seed)(rgb, masks, geometry=geometry)
    assert iou(sharp, truth) > 0.85
    assert not np.any(sharp & ~masks)
    smooth = dataclasses.replace(RELEASED, seed=seed)(rgb, masks, geometry=geometry)
    assert iou(smooth, truth) > 0.67 and iou(smooth, scene["refined_masks"]) > 0.9


def test_in_scene_units_the_masks_are_as_good(rgb, masks, geometry, scene):
    assert iou(SHARP(rgb, masks, geometry=geometry), scene["true_dynamic"]) > 0.85


def test_static_regions_are_dropped_and_the_moving_one_is_kept(rgb, masks, geometry, scene):
    """All of the discs' clusters that other frames see; a cluster may reach into the moving sphere's rim."""
    square = np.ones((9, 9), np.uint8)
    false = masks & ~np.stack([cv2.dilate(x.astype(np.uint8), square) > 0 for x in scene["true_dynamic"]])
    assert false.sum() > 1000
    refined = SHARP(rgb, masks, geometry=geometry)
    assert refined[false].mean() < 0.05
    assert refined[scene["true_dynamic"]].mean() > 0.95


@pytest.mark.parametrize(("scale", "least"), [(1 / 64, 1.0), (37.0, 0.97)])
def test_the_worlds_scale_does_not_matter(rgb, masks, geometry, scale, least):
    """Exactly for powers of two; otherwise a point may round into another cluster. Fixed units would break it."""
    poses = geometry.world_from_cam.copy()
    poses[:, :3, 3] *= scale
    scaled = geometry_of(poses, geometry.intrinsics, geometry.depth * np.float32(scale))
    assert iou(SHARP(rgb, masks, geometry=scaled), SHARP(rgb, masks, geometry=geometry)) >= least
    fixed = dataclasses.replace(SHARP, unit=1.0)
    assert iou(fixed(rgb, masks, geometry=scaled), fixed(rgb, masks, geometry=geometry)) < 0.97


def test_empty_masks_stay_empty(rgb, masks, geometry):
    empty = np.zeros_like(masks)
    heard = []
    refined = RELEASED(rgb, empty, geometry=geometry, progress=lambda *told: heard.append(told[:3]))
    assert refined.shape == masks.shape and not refined.any()
    assert heard == [("refine", t, 5) for t in range(6)]
    some = masks.copy()
    some[2] = False
    refined = RELEASED(rgb, some, geometry=geometry)
    assert [x.any() for x in refined] == [True, True, False, True, True]


def test_without_static_surroundings_the_masks_are_kept(rgb, masks, geometry):
    """Nothing says that they are wrong. Smoothing fills in the outliers."""
    everything = np.ones_like(masks)
    assert RELEASED(rgb, everything, geometry=geometry).all()
    assert SHARP(rgb, everything, geometry=geometry).mean() > 0.99


def test_one_frame_is_unchanged(rgb, masks, geometry):
    alone = jax.tree.map(lambda x: x[:1], geometry)
    refined = RELEASED(rgb[:1], masks[:1], geometry=alone)
    np.testing.assert_array_equal(refined, masks[:1])
    assert refined.flags.writeable


def test_fewer_points_than_clusters(rgb, masks, geometry, scene):
    """In frame 0 three static pixels in the middle of the image, in frames 1 and 2 two and one of the moving sphere."""
    few = np.zeros_like(masks)
    never = ~cv2.dilate(scene["true_dynamic"].any(axis=0).astype(np.uint8), np.ones((5, 5))).astype(bool)
    middle = np.zeros_like(never)
    middle[12:36, 16:48] = True
    inner = [never & middle, *scene["true_dynamic"][1:3]]
    for t, count in enumerate((3, 2, 1)):
        depth_within = cv2.distanceTransform(inner[t].astype(np.uint8), cv2.DIST_L2, 3)
        few[t].reshape(-1)[np.argsort(depth_within.ravel())[-count:]] = True
    np.testing.assert_array_equal(SHARP(rgb, few, geometry=geometry).sum(axis=(1, 2)), [0, 2, 1, 0, 0])


def test_clips_and_frames_share_compiled_code(rgb, masks, geometry):
    """Whatever the number of masked points; lengths in steps of an eighth are tested with the buckets."""
    SHARP(rgb, masks, geometry=geometry)
    before = reprojection._kmeans._cache_size(), sample_views._cache_size()
    some = masks.copy()
    some[0] &= np.arange(64) < 20
    SHARP(rgb, some, geometry=geometry)
    assert (reprojection._kmeans._cache_size(), sample_views._cache_size()) == before


# --- the parts ------------------------------------------------------------------------------------------------------


def wall(num_frames=2, depth=2.0, size=(6, 8)):
    """Equal cameras in front of a grey wall."""
    return Views(
        depth=np.full((num_frames, *size), depth, np.float32),
        masks=np.zeros((num_frames, *size), bool),
        colours=np.full((num_frames, *size, 3), 0.5, np.float32),
        intrinsics=np.tile(np.array([[4, 0, 4], [0, 4, 3], [0, 0, 1]], np.float32), (num_frames, 1, 1)),
    )


def sampled(views, points, **changes):
    count = len(views.depth)
    options = {
        "colours": np.full((len(points), 3), 0.5, np.float32),
        "views_from_cam": np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)),
        "others": np.arange(count) > 0,
        "margin": jnp.float32(0.01),
        **changes,
    }
    return sample_views(np.asarray(points, np.float32), views=jax.tree.map(jnp.asarray, views), **options)


def test_a_view_counts_for_what_is_not_hidden():
    """A point on the wall, one in front, one just behind, one hidden, one behind the camera, one beside the image."""
    points = [(0, 0, 2), (0, 0, 1.5), (0, 0, 2.005), (0, 0, 2.02), (0, 0, -2), (5, 0, 2)]
    samples = sampled(wall(num_frames=3), points)
    np.testing.assert_array_equal(samples.count, [2, 2, 2, 0, 0, 0])
    np.testing.assert_allclose(samples.depth, [0, 1, 0.01, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(samples.colour, 0)


def test_a_view_does_not_count_where_it_is_masked():
    """At (3, 4) and (3, 5) in pixels, row and column; the mask is bilinear, and half of it does not suffice."""
    views = wall()
    views.masks[1, 3, 4] = True
    samples = sampled(views, [(0, 0, 2), (0.5, 0, 2), (0.25, 0, 2), (0.24, 0, 2)])
    np.testing.assert_array_equal(samples.count, [0, 1, 1, 0])


def test_colours_differ_by_their_sum_over_channels_and_are_bilinear():
    views = wall()
    views.colours[1, 3, 5] = (1.0, 0.5, 0.25)
    samples = sampled(views, [(0, 0, 2), (0.5, 0, 2), (0.25, 0, 2)])
    np.testing.assert_allclose(samples.colour, [0, 0.75, 0.375], atol=1e-6)


def test_the_cameras_place_the_points():
    """A camera that has moved by one unit to the right sees the centre two pixels to the left."""
    views = wall()
    views.depth[1, 3, 2] = 2.5
    views_from_cam = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    views_from_cam[1, 0, 3] = -1
    samples = sampled(views, [(0, 0, 2)], views_from_cam=views_from_cam)
    np.testing.assert_allclose([samples.count[0], samples.depth[0]], [1, 0.5], atol=1e-6)


def test_clusters_that_are_hardly_seen_have_an_infinite_loss():
    samples = sampled(wall(), [(0, 0, 1.5)] + 19 * [(0, 0, 3)])
    labels = np.zeros(20, np.int32)
    assert cluster_losses(labels, samples, 1).total == 0.5  # 1 of 20 is 5 %
    losses = cluster_losses(labels, samples, 2, colour_weight=0.0)
    assert np.isinf(losses.total) and np.isinf(losses.depth)
    assert cluster_losses(labels, samples, 2, min_seen=0.0).total == 0.5
    none = sampled(wall(), [(0, 0, 3)])
    assert np.isinf(cluster_losses(labels[:1], none, 1, min_seen=0.0).total)


def test_outliers_are_far_from_their_neighbours():
    points = np.random.default_rng(0).uniform(size=(500, 3))
    points[7] = 3.0
    kept, threshold = reprojection.without_outliers(points, 20, 4.0)
    assert not kept[7] and kept.sum() > 490 and 0 < threshold < 1
    assert not reprojection.without_outliers(np.zeros((30, 3)))[0].any()  # all coincide
    assert not reprojection.without_outliers(np.zeros((1, 3)))[0].any()


def test_scene_units():
    depth = np.array([[[1.0, 4.0, 1000.0]]])
    pose = np.eye(4)[None].copy()
    pose[0, :3, 3] = (2, 4, 8)
    scaled, poses = reprojection.in_scene_units(depth, pose)
    np.testing.assert_array_equal(scaled, depth / 4)
    np.testing.assert_array_equal(poses[0, :3, 3], (0.5, 1, 2))
    np.testing.assert_array_equal(pose[0, :3, 3], (2, 4, 8))
    np.testing.assert_array_equal(reprojection.in_scene_units(depth, pose, 2.0)[0], depth / 2)


def test_smoothing():
    mask = np.zeros((15, 15), bool)
    mask[5:10, 5:10] = True
    square = mask.copy()
    mask[7, 7] = False
    np.testing.assert_array_equal(reprojection.smoothed(mask, 0, 0), mask)
    np.testing.assert_array_equal(reprojection.smoothed(mask, 5, 0), square)
    assert reprojection.smoothed(mask, 5, 1).sum() == 49


# --- the interface --------------------------------------------------------------------------------------------------


def test_it_reads_geometry_and_records_its_options():
    assert needs_geometry(RELEASED) and not needs_geometry(lambda rgb, masks, *, progress: masks)
    assert not needs_geometry(None)
    metadata = json.loads(json.dumps(RELEASED.metadata))
    assert metadata["source_name"] == "reprojection" and metadata["unit"] == 1.0 and metadata["num_clusters"] == 30


@pytest.mark.parametrize(
    "options", [{"num_clusters": 0}, {"num_neighbours": 1}, {"threshold": -1.0}, {"closing": -1}, {"unit": np.nan}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(e3r.ConfigError, match=next(iter(options))):
        e3r.ReprojectionRefiner(**options)


def test_geometry_of_another_clip_is_refused(rgb, masks, geometry):
    with pytest.raises(e3r.InputError, match="does not fit masks"):
        SHARP(rgb, masks, geometry=jax.tree.map(lambda x: x[1:], geometry))
    for wrong in (np.nan, 0.0):
        depth = geometry.depth.copy()
        depth[1, 2, 3] = wrong
        with pytest.raises(e3r.InputError, match="positive and finite"):
            SHARP(rgb, masks, geometry=dataclasses.replace(geometry, depth=depth))
