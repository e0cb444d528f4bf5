"""Joining the windows of a long clip: exact where they agree, approximate where they do not."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.alignment import join_windows, keyframe_numbers, window_ranges
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import KnownCameras, Scene4D
from easi3r_jax.evaluation.metrics import pose_metrics

T, H, W, FOCAL = 23, 16, 24, 30.0


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def clip(seed=0):
    """A camera that turns about a bumpy wall."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (T, 1, 1))
    turns = np.arange(T)[:, None] * [[0.01, -0.06, 0.004]]
    poses[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix()
    poses[:, :3, 3] = np.arange(T)[:, None] * [[0.2, -0.05, 0.1]]
    matrix = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]])
    return Scene4D(
        world_from_cam=poses.astype(np.float32),
        intrinsics=np.tile(matrix, (T, 1, 1)).astype(np.float32),
        depth=rng.uniform(2, 5, (T, H, W)).astype(np.float32),
        confidence=rng.uniform(2, 5, (T, H, W)).astype(np.float32),
        dynamic_mask=np.zeros((T, H, W), bool),
        dynamic_score=rng.random((T, H, W)).astype(np.float32),
        static_mask=np.ones((T, H, W), bool),
        rgb=rng.integers(0, 256, (T, H, W, 3), np.uint8),
    )


def similarity(rng):
    matrix = np.eye(4)
    matrix[:3, :3] = rng.uniform(0.5, 2) * Rotation.random(random_state=rng).as_matrix()
    matrix[:3, 3] = rng.normal(0, 3, 3)
    return matrix


def moved(scene, matrix):
    scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
    poses = matrix @ scene.world_from_cam.astype(np.float64)
    poses[:, :3, :3] /= scale
    return dataclasses.replace(
        scene, world_from_cam=poses.astype(np.float32), depth=(scene.depth * scale).astype(np.float32)
    )


def windows_of(scene, ranges, rng, noise=0.0):
    """Each window in a world of its own, the first in the clip's; depth with a common relative error of each window."""
    parts = []
    for first, last in ranges:
        part = Scene4D(**{name: value[first:last] for name, value in vars(scene).items()})
        depth = part.depth * np.exp(noise * rng.standard_normal(part.depth.shape))
        part = dataclasses.replace(part, depth=depth.astype(np.float32))
        parts.append(moved(part, similarity(rng)) if first else part)
    return parts


@pytest.mark.parametrize(
    ("frames", "window", "overlap", "ranges"),
    [
        (5, 8, 2, [(0, 5)]),
        (8, 8, 2, [(0, 8)]),
        (9, 8, 2, [(0, 8), (1, 9)]),
        (14, 8, 2, [(0, 8), (6, 14)]),
        (20, 8, 2, [(0, 8), (6, 14), (12, 20)]),
        (21, 8, 6, [(0, 8), (2, 10), (4, 12), (6, 14), (8, 16), (10, 18), (12, 20), (13, 21)]),
    ],
)
def test_ranges(frames, window, overlap, ranges):
    assert window_ranges(frames, window, overlap) == ranges


@pytest.mark.parametrize(("window", "overlap"), [(2, 1), (8, 0), (8, 8), (8, 9)])
def test_windows_that_cannot_be_joined_are_refused(window, overlap):
    with pytest.raises(ConfigError, match="frames"):
        window_ranges(20, window, overlap)


@pytest.mark.parametrize(("window", "overlap"), [(8, 1), (8, 3), (9, 6)])
def test_windows_that_agree_give_the_clip(window, overlap, rng):
    truth = clip()
    ranges = window_ranges(T, window, overlap)
    joined = join_windows(windows_of(truth, ranges, rng), ranges)
    np.testing.assert_allclose(joined.world_from_cam, truth.world_from_cam, atol=5e-3)
    np.testing.assert_allclose(joined.depth, truth.depth, rtol=5e-3)
    for name in ("confidence", "dynamic_score", "rgb", "dynamic_mask", "static_mask"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(truth, name))
    for name, value in vars(joined).items():
        assert value.dtype == getattr(truth, name).dtype, name


def test_noise_does_not_add_up_to_much(rng):
    truth, ranges = clip(), window_ranges(T, 8, 4)
    joined = join_windows(windows_of(truth, ranges, rng, noise=0.1), ranges)
    np.testing.assert_allclose(joined.world_from_cam[:, :3, 3], truth.world_from_cam[:, :3, 3], atol=0.1)
    np.testing.assert_allclose(np.median(joined.depth / truth.depth, axis=(1, 2)), 1, atol=0.03)


def drifting(scene, ranges, rng):
    """Windows that bend and stretch the clip's path a little, each in a world of its own."""
    parts = []
    for part in windows_of(scene, ranges, rng):
        count = len(part.depth)
        bend = np.tile(np.eye(4), (count, 1, 1))
        bend[:, :3, :3] = Rotation.from_rotvec(np.arange(count)[:, None] * [[0.01, 0.0, 0.0]]).as_matrix()
        grown = np.exp(0.02 * np.arange(count))[:, None, None]
        poses = part.world_from_cam.astype(np.float64) @ bend
        parts.append(
            dataclasses.replace(
                part, world_from_cam=poses.astype(np.float32), depth=(part.depth * grown).astype(np.float32)
            )
        )
    return parts


def picked(scene, numbers):
    return Scene4D(**{name: value[numbers] for name, value in vars(scene).items()})


def off(joined, truth):
    """Root mean square distance of the cameras after the best similarity."""
    return pose_metrics(joined.world_from_cam, truth.world_from_cam)["ate"]


def test_keyframes_hold_windows_together_that_drift(rng):
    truth, ranges = clip(), window_ranges(T, 8, 2)
    parts, numbers = drifting(truth, ranges, rng), keyframe_numbers(T, 8)
    keyframes = moved(picked(truth, numbers), similarity(rng))
    without, held = join_windows(parts, ranges), join_windows(parts, ranges, keyframes=(keyframes, numbers))
    assert off(held, truth) < 0.5 * off(without, truth)


def test_keyframes_that_fit_nothing_do_not_count(rng):
    truth, ranges = clip(), window_ranges(T, 8, 2)
    parts, numbers = windows_of(truth, ranges, rng, noise=0.02), keyframe_numbers(T, 8)
    torn = picked(truth, numbers)
    poses = torn.world_from_cam.copy()
    poses[:, :3, 3] = rng.normal(0, 3, (len(numbers), 3))
    depth = rng.uniform(0.1, 10, torn.depth.shape).astype(np.float32)
    torn = dataclasses.replace(torn, depth=depth, world_from_cam=poses)
    without, held = join_windows(parts, ranges), join_windows(parts, ranges, keyframes=(torn, numbers))
    assert off(held, truth) < off(without, truth) + 1e-4 < 0.01  # but for the order of sums


@pytest.mark.parametrize(("shift", "grow"), [(0.3, 1.1), (1.0, 1.3)])
def test_one_wrong_keyframe_does_not_misplace_its_windows(shift, grow, rng):
    truth, ranges = clip(), window_ranges(T, 8, 3)
    parts, numbers = windows_of(truth, ranges, rng, noise=0.01), keyframe_numbers(T, 8)
    keyframes = picked(truth, numbers)
    poses, depth = keyframes.world_from_cam.copy(), keyframes.depth.copy()
    poses[3, :3, 3] += shift
    depth[3] *= grow
    wrong = dataclasses.replace(keyframes, world_from_cam=poses, depth=depth)
    assert off(join_windows(parts, ranges, keyframes=(wrong, numbers)), truth) < 0.01


def test_keyframes_of_exact_windows_change_nothing(rng):
    truth, ranges = clip(), window_ranges(T, 8, 2)
    numbers = keyframe_numbers(T, 8)
    assert numbers[0] == 0 and numbers[-1] == T - 1 and len(numbers) == 8
    keyframes = moved(picked(truth, numbers), similarity(rng))
    joined = join_windows(windows_of(truth, ranges, rng), ranges, keyframes=(keyframes, numbers))
    np.testing.assert_allclose(joined.world_from_cam, truth.world_from_cam, atol=5e-3)
    np.testing.assert_allclose(joined.depth, truth.depth, rtol=5e-3)


def test_what_moves_does_not_pull(rng):
    """A third of each window's shared frames is misplaced in the second window, with full confidence."""
    truth, ranges = clip(), window_ranges(14, 8, 2)
    parts = windows_of(truth, ranges, rng)
    depth = parts[1].depth.copy()
    depth[:2, :, : W // 3] *= 1.5
    joined = join_windows([parts[0], dataclasses.replace(parts[1], depth=depth)], ranges)
    np.testing.assert_allclose(joined.world_from_cam, truth.world_from_cam[:14], atol=0.02)
    # Where it is known to move, it does not count at all.
    static = parts[1].static_mask.copy()
    static[:2, :, : W // 3] = False
    told = join_windows([parts[0], dataclasses.replace(parts[1], depth=depth, static_mask=static)], ranges)
    np.testing.assert_allclose(told.world_from_cam, truth.world_from_cam[:14], atol=5e-3)


def test_an_overlap_goes_evenly_from_one_window_to_the_other(rng):
    truth, ranges = clip(), [(0, 8), (4, 12)]
    parts = [Scene4D(**{name: value[a:b] for name, value in vars(truth).items()}) for a, b in ranges]
    parts[1] = dataclasses.replace(
        parts[1],
        depth=parts[1].depth * np.exp(0.02 * np.sign(rng.standard_normal(parts[1].depth.shape))).astype(np.float32),
        confidence=parts[1].confidence + 10,
    )
    joined = join_windows(parts, ranges)
    off = np.abs(np.log(joined.depth / truth.depth[:12])).mean(axis=(1, 2))
    np.testing.assert_allclose(off[4:8], 0.02 * np.arange(1, 5) / 5, atol=3e-3)
    np.testing.assert_array_equal(joined.confidence[:12] > 9, np.arange(12)[:, None, None] >= np.full((1, H, W), 6))


def test_the_result_is_in_the_world_of_known_poses(rng):
    truth, ranges = clip(), window_ranges(T, 8, 3)
    world = similarity(rng)
    there = moved(truth, world)
    known = np.arange(T) % 5 == 2
    cameras = KnownCameras(
        focal=np.ones(T),
        principal_point=np.zeros((T, 2)),
        intrinsics_known=np.zeros(T, bool),
        world_from_cam=there.world_from_cam.astype(np.float64),
        poses_known=known,
    )
    joined = join_windows(windows_of(truth, ranges, rng), ranges, cameras=cameras)
    np.testing.assert_allclose(joined.world_from_cam, there.world_from_cam, atol=0.02)
    np.testing.assert_array_equal(joined.world_from_cam[known], there.world_from_cam[known])
    np.testing.assert_allclose(joined.depth, there.depth, rtol=0.01)


def test_windows_are_joined_at_the_highest_precision(rng):
    """Rotations are rotations whatever products default to: a TPU's or a GPU's default loses four digits."""
    truth, ranges = clip(), window_ranges(T, 8, 3)
    with jax.default_matmul_precision("bfloat16"):
        joined = join_windows(windows_of(truth, ranges, rng), ranges)
    rotations = joined.world_from_cam[:, :3, :3].astype(np.float64)
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), np.tile(np.eye(3), (T, 1, 1)), atol=1e-5)


def test_windows_in_which_everything_moves_are_joined_all_the_same(rng):
    truth = dataclasses.replace(clip(), static_mask=np.zeros((T, H, W), bool))
    ranges = window_ranges(T, 8, 3)
    joined = join_windows(windows_of(truth, ranges, rng), ranges)
    np.testing.assert_allclose(joined.world_from_cam, truth.world_from_cam, atol=5e-3)


@pytest.mark.parametrize("keep_scale", [False, True])
def test_windows_in_metres_keep_the_median_of_their_scales(keep_scale, rng):
    """The first window's is wrong by a quarter, the others' by 2 %."""
    truth, ranges = clip(), window_ranges(T, 8, 3)
    parts = windows_of(truth, ranges, rng)
    for n, (first, _) in enumerate(ranges):
        wanted = (1.25, 1.02, 0.98, 1.0)[n % 4]
        now = np.median(parts[n].depth / truth.depth[first : first + len(parts[n].depth)])
        parts[n] = moved(parts[n], np.diag([wanted / now] * 3 + [1]))
    joined = join_windows(parts, ranges, keep_scale=keep_scale)
    expected = 1.01 if keep_scale else 1.25
    np.testing.assert_allclose(np.median(joined.depth / truth.depth), expected, rtol=0.02)
