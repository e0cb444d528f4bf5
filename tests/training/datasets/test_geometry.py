"""Depth, cameras and images of every layout are consistent, before the crop and as training sees them."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from easi3r_jax.core.errors import InputError
from easi3r_jax.training.batch import ViewPairs, targets_of
from easi3r_jax.training.datasets import Mixture, SamplingConfig, open_dataset
from easi3r_jax.training.datasets.crop import centred_crop

# Precision of depth in each layout: PointOdyssey quantises to 15 mm, at 20 to 150 m.
DEPTH_TOLERANCE = {"pairs": 1e-6, "pointodyssey": 6e-4, "spring": 1e-6, "tartanair": 1e-6, "waymo": 1e-6}


def moved(intrinsics, offset):
    """The camera whose pixel (x, y) shows the original's (x + offset, y + offset)."""
    shifted = intrinsics.copy()
    shifted[:2, 2] -= offset
    return shifted


def agreement(depth, intrinsics, world_from_cam):
    """Relative difference of view 1's points, seen from camera 2, and view 2's depth there; (P,).

    Inverse depth is bilinear in the pixels of a plane, so its interpolation is exact but across the room's edges.
    """
    rows, columns = np.indices(depth[0].shape)
    rays = np.stack([columns, rows, np.ones(depth[0].shape)], -1) @ np.linalg.inv(intrinsics[0]).T
    second_from_first = np.linalg.inv(world_from_cam[1]) @ world_from_cam[0]
    points = (rays * depth[0][..., None]) @ second_from_first[:3, :3].T + second_from_first[:3, 3]
    x, y, z = np.moveaxis(points @ intrinsics[1].T, -1, 0)
    with np.errstate(divide="ignore"):
        inverse = np.where(depth[1] > 0, 1 / depth[1], np.nan)
    front = np.where(z > 0, z, np.nan)
    there = scipy.ndimage.map_coordinates(inverse, [y / front, x / front], order=1, cval=np.nan)
    difference = np.where(depth[0] > 0, z * there - 1, np.nan)
    return abs(difference[np.isfinite(difference)])


def test_depth_and_camera_are_those_of_the_room(layouts, layout):
    truth = layouts(layout)
    (sequence,) = open_dataset(layout, truth.root).sequences
    assert sequence.num_frames == len(truth.world_from_cam)
    views = [sequence.read(frame) for frame in range(sequence.num_frames)]
    for frame, view in enumerate(views):
        assert view.depth.dtype == np.float32 and view.depth.shape == truth.shape
        np.testing.assert_allclose(view.intrinsics, truth.intrinsics, rtol=1e-6)
        rgb, _ = truth.render(frame, truth.intrinsics, truth.shape)
        assert abs(np.asarray(view.image, int) - rgb).mean() < (2 if layout in ("pointodyssey", "waymo") else 0.01)
        known = view.depth > 0
        assert known.mean() > (0.6 if layout == "waymo" else 0.999)
        errors = {}
        for offset in (0.0, 0.5):  # a shift by half a pixel is detected
            _, depth = truth.render(frame, moved(truth.intrinsics, truth.depth_offset + offset), truth.shape)
            errors[offset] = abs(view.depth / depth - 1)[known].max()
        assert errors[0] < DEPTH_TOLERANCE[layout] < errors[0.5] / 3
        first_from_this = np.linalg.inv(views[0].world_from_cam) @ view.world_from_cam
        expected = np.linalg.inv(truth.world_from_cam[0]) @ truth.world_from_cam[frame]
        np.testing.assert_allclose(first_from_this, expected, atol=2e-6 * truth.unit)


def test_views_agree_on_depth(layouts, layout):
    truth = layouts(layout)
    (sequence,) = open_dataset(layout, truth.root).sequences
    for frames in ((0, 4), (5, 1)):
        views = [sequence.read(frame) for frame in frames]
        fields = [[getattr(v, name) for v in views] for name in ("depth", "intrinsics", "world_from_cam")]
        fields[0] = [depth.astype(np.float64) for depth in fields[0]]
        # Spring's depth is shifted by a quarter of a pixel, equally in both views.
        fields[1] = [moved(k, truth.depth_offset) for k in fields[1]]
        difference = agreement(*fields)
        assert len(difference) > 20
        limit = max(5 * DEPTH_TOLERANCE[layout], 1e-5)
        assert np.quantile(difference, 0.9) < limit
        turned = [fields[2][0] @ np.diag([1.0, -1, -1, 1]), fields[2][1] @ np.diag([1.0, -1, -1, 1])]
        for wrong in (turned, np.linalg.inv(fields[2]), fields[2][::-1]):  # other axes, other directions
            seen = agreement(fields[0], fields[1], wrong)
            assert not len(seen) or np.median(seen) > 20 * limit


def test_tartanair_forward_is_z(write):
    """NED: the first coordinate of a pose points forward, the second right, the third down."""
    truth = write("tartanair")
    lines = ["0 0 0 0 0 0 1", "3 0 0 0 0 0 1", "0 2 0 0 0 0 1", "0 0 1 0 0 0 1"]
    # A rotation about "down" turns the camera from forward to right.
    half = np.sin(np.pi / 8), np.cos(np.pi / 8)
    lines += [f"0 0 0 0 0 {half[0]} {half[1]}", "0 0 0 0 0 0 1"]
    (truth.folder / "pose_left.txt").write_text("\n".join(lines))
    (sequence,) = open_dataset("tartanair", truth.root).sequences
    poses = [sequence.read_camera(frame)[1] for frame in range(6)]
    first_from_other = [np.linalg.inv(poses[0]) @ pose for pose in poses]
    np.testing.assert_allclose([m[:3, 3] for m in first_from_other[1:4]], [[0, 0, 3], [2, 0, 0], [0, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(first_from_other[4][:3, 2], [0.5**0.5, 0, 0.5**0.5], atol=1e-12)


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (80, 48)])
def test_training_pairs_keep_the_geometry(layouts, layout, size):
    """For any crop, the batch's intrinsics and poses are consistent with its depth and colours, and its views agree."""
    truth = layouts(layout)
    config = SamplingConfig(sizes=(size,), crop_scale=(0.5, 1.0), max_stride=3)
    mixture = Mixture([(open_dataset(layout, truth.root), 1.0)], config)
    focal_lengths = []
    for step in range(4):
        pair = mixture.pair(0, step, 0)
        rgb, depth, intrinsics, world_from_cam = pair.arrays
        assert rgb.shape == (2, size[1], size[0], 3) and rgb.dtype == np.uint8
        assert {array.dtype for array in (depth, intrinsics, world_from_cam)} == {np.dtype(np.float32)}
        np.testing.assert_allclose(intrinsics[:, :2, 2], [[size[0] / 2, size[1] / 2]] * 2, atol=1e-4)
        aspects = intrinsics[:, 0, 0] / intrinsics[:, 1, 1]
        np.testing.assert_allclose(aspects, truth.intrinsics[0, 0] / truth.intrinsics[1, 1], rtol=1e-6)
        np.testing.assert_allclose(intrinsics[0], intrinsics[1], rtol=1e-6)  # one crop for both
        focal_lengths.append(intrinsics[0, 0, 0])
        i, j = pair.frames
        expected = np.linalg.inv(truth.world_from_cam[i]) @ truth.world_from_cam[j]
        np.testing.assert_allclose(world_from_cam[0], np.eye(4), atol=1e-6)
        np.testing.assert_allclose(world_from_cam[1], expected, atol=1e-5 * truth.unit)
        for view, frame in enumerate((i, j)):
            shape = depth.shape[1:]
            colours, _ = truth.render(frame, intrinsics[view].astype(np.float64), shape)
            assert abs(rgb[view].astype(int) - colours).mean() < 3
            # The nearest depth is that of a point up to half a pixel of the original away.
            half = 0.5 * intrinsics[view, 0, 0] / truth.intrinsics[0, 0]
            corners = [half * np.array([x, y]) + 2 * half * truth.depth_offset for x in (-1, 1) for y in (-1, 1)]
            around = [
                truth.render(frame, moved(intrinsics[view].astype(np.float64), corner), shape)[1] for corner in corners
            ]
            known = depth[view] > 0
            assert (depth[view] > np.min(around, 0) * (1 - 2e-3))[known].all()
            # (At the room's edges depth is largest between the corners of a pixel.)
            assert (depth[view] < np.max(around, 0) * (1 + 2e-3))[known].mean() > 0.95
        difference = agreement(depth, intrinsics, world_from_cam)
        assert len(difference) > 20 and np.median(difference) < 0.01
    assert len(set(np.round(focal_lengths, 3))) == 4


def test_a_batch_makes_targets(layouts):
    truth = layouts("pairs")
    config = SamplingConfig(sizes=((48, 32),))
    batch = Mixture([(open_dataset("pairs", truth.root), 1.0)], config).batch(0, 0, 3)
    targets = targets_of(ViewPairs(*map(jnp.asarray, batch)))
    assert targets.points_i.shape == (6, 32, 48, 3) and bool(targets.valid_j.all())
    # All points are on the walls of the room.
    sides = np.ptp(np.asarray(targets.points_j).reshape(6, -1, 3), axis=1)
    assert (sides < 2 * np.linalg.norm([4, 3, 5])).all()


# --- the crop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "point", "size", "scale"),
    [
        ((200, 120), (100, 60), (50, 30), 1.0),
        ((200, 120), (99.5, 59.5), (64, 48), 0.7),
        ((200, 120), (83.2, 71.9), (64, 16), 1.0),
        ((200, 120), (100, 60), (160, 112), 0.9),
        ((120, 200), (60, 100), (64, 48), 0.8),
        ((50, 40), (25, 20), (96, 64), 1.0),
    ],
)
def test_a_crop_maps_pixels_by_its_matrix(source, point, size, scale):
    crop = centred_crop(source, np.array(point), size, scale)
    centre = crop.frame_from_source @ [*point, 1]
    np.testing.assert_allclose(centre, [size[0] / 2, size[1] / 2, 1], atol=1e-9)
    left, top = crop.corner
    assert left >= -1e-9 and left + crop.step * size[0] <= source[0] + 1e-9
    assert top >= -1e-9 and top + crop.step * size[1] <= source[1] + 1e-9
    source_from_frame = np.linalg.inv(crop.frame_from_source)
    for axis in range(2):  # filters preserve ramps away from the image's edges
        ramp = np.indices((source[1], source[0]), np.float32)[1 - axis]
        expected = source_from_frame[axis, axis] * np.arange(size[axis]) + source_from_frame[axis, 2]
        profile = crop.image(Image.fromarray(ramp))[..., None].take(0, axis)[:, 0]
        margin = 1 + int(3 / min(crop.step, 1))
        np.testing.assert_allclose(profile[margin:-margin], expected[margin:-margin], atol=0.02)
        nearest = crop.depth(ramp).take(0, axis)
        assert abs(nearest - expected).max() <= 0.5 + 1e-6 and abs((nearest - expected).mean()) < 0.26


def test_an_image_of_the_right_size_is_unchanged():
    rgb = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    crop = centred_crop((48, 32), np.array([24, 16]), (48, 32))
    np.testing.assert_array_equal(crop.image(Image.fromarray(rgb)), rgb)
    np.testing.assert_array_equal(crop.depth(rgb[..., 0]), rgb[..., 0])
    np.testing.assert_allclose(crop.frame_from_source, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("point", [(-1, 16), (48, 16), (24, -0.4), (float("nan"), 16), (400, 400)])
def test_principal_points_without_a_crop(point):
    with pytest.raises(InputError, match="principal point"):
        centred_crop((48, 32), np.array(point), (48, 32))
