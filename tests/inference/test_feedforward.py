"""Streaming reconstruction with a network that returns the ground truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.inference import feedforward

T, H, W, FOCAL = 6, 12, 16, 20.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Oracle:
    """Answers with what a faultless network would say; an image's first value is its number."""

    points: jax.Array  # (T, T, 2, H, W, 3)
    confidence: jax.Array  # (T, T, 2, H, W)

    def grid(self, size):
        return size

    def encode(self, rgb):
        return rgb[:, :1, 0, :1].astype(jnp.float32)

    def decode(self, features_i, features_j, grid):
        del grid
        return features_i, features_j

    def predict(self, features_i, features_j, decoded, grid):
        del decoded, grid
        i, j = (x[:, 0, 0].astype(jnp.int32) for x in (features_i, features_j))
        points, confidence = self.points[i, j], self.confidence[i, j]
        return points[:, 0], confidence[:, 0], points[:, 1], confidence[:, 1]


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (T, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(np.arange(T)[:, None] * [[0.02, -0.05, 0.01]]).as_matrix()
    poses[:, :3, 3] = np.arange(T)[:, None] * [[0.2, -0.1, 0.15]]
    depth = rng.uniform(2, 5, (T, H, W))
    matrices = camera.intrinsics(jnp.full(T, FOCAL), jnp.tile(camera.default_principal_point(H, W)[None], (T, 1)))
    own = np.asarray(camera.unproject(jnp.asarray(depth, jnp.float32), matrices))
    scale = np.exp(rng.uniform(-0.5, 0.5, (T, T)))
    scale[0, 0] = 1.0
    points = np.zeros((T, T, 2, H, W, 3), np.float32)
    for i in range(T):
        for j in range(T):
            i_from_j = jnp.asarray(np.linalg.inv(poses[i]) @ poses[j], jnp.float32)
            points[i, j] = scale[i, j] * np.stack([own[i], se3.transform_points(i_from_j, jnp.asarray(own[j]))])
    return poses, depth, points


def images():
    rgb = np.zeros((T, H, W, 3), np.uint8)
    rgb[:] = np.arange(T, dtype=np.uint8)[:, None, None, None]
    return rgb


def test_perfect_pairs_give_the_clip(truth):
    poses, depth, points = truth
    model = Oracle(jnp.asarray(points), jnp.full(points.shape[:-1], 4.0))
    frames = list(feedforward.track(model, images()))
    assert len(frames) == T
    np.testing.assert_allclose([f.world_from_cam for f in frames], poses, atol=2e-3)
    np.testing.assert_allclose([f.depth for f in frames], depth, rtol=5e-3)
    np.testing.assert_allclose([f.focal for f in frames], FOCAL, rtol=1e-3)


def test_each_frame_comes_out_before_the_next_goes_in(truth):
    model = Oracle(jnp.asarray(truth[2]), jnp.full(truth[2].shape[:-1], 4.0))
    taken = []

    def source():
        for t, rgb in enumerate(images()):
            taken.append(t)
            yield rgb

    for t, _ in enumerate(feedforward.track(model, source())):
        assert taken == list(range(t + 1))


def test_a_lost_reference_is_left_for_the_frame_before(truth):
    """From frame 3 on, pairs with frame 0 are wrong, and so are those of frames 3 and 4; all of them say so."""
    poses, _, points = truth
    confidence = np.full(points.shape[:-1], 4.0, np.float32)
    points = points.copy()
    unsure = [(0, 3), (0, 4), (0, 5), (3, 4)]  # frame 4 is placed by frame 2, the new reference, or not at all
    for pair in unsure + [pair[::-1] for pair in unsure]:
        confidence[pair] = 1.01
        points[pair] += np.float32([3.0, 0, 0])
    frames = list(feedforward.track(Oracle(jnp.asarray(points), jnp.asarray(confidence)), images()))
    np.testing.assert_allclose([f.world_from_cam for f in frames], poses, atol=5e-3)


def test_undefined_predictions_are_refused(truth):
    points = truth[2].copy()
    points[2, 1] = np.nan
    points[1, 2] = np.nan
    points[2, 0] = np.nan
    frames = feedforward.track(Oracle(jnp.asarray(points), jnp.full(points.shape[:-1], 4.0)), images())
    next(frames), next(frames)
    with pytest.raises(InputError, match="Frame 2 gets no finite camera"):
        next(frames)


def test_what_moves_does_not_pull_the_camera(truth):
    """A fifth of each frame's points are wrong in the maps of another frame."""
    poses, _, points = truth
    points = points.copy()
    for i in range(T):
        for j in range(T):
            if i != j:
                points[i, j, 1, :, : W // 5] += np.float32([0.8, 0.1, -0.5])
    model = Oracle(jnp.asarray(points), jnp.full(points.shape[:-1], 4.0))
    frames = list(feedforward.track(model, images()))
    np.testing.assert_allclose([f.world_from_cam for f in frames], poses, atol=0.03)


def test_separate_and_shared_focal_lengths(truth):
    _, _, points = truth
    points = points.copy()
    points[3, :, 0, ..., 2] *= 1.5  # frame 3 zooms
    model = Oracle(jnp.asarray(points), jnp.full(points.shape[:-1], 4.0))
    own = [float(f.focal) for f in feedforward.track(model, images(), shared_focal=False)]
    shared = [float(f.focal) for f in feedforward.track(model, images())]
    np.testing.assert_allclose(own, [FOCAL, FOCAL, FOCAL, 1.5 * FOCAL, FOCAL, FOCAL], rtol=1e-3)
    np.testing.assert_allclose(shared, np.cumsum(own) / np.arange(1, T + 1), rtol=1e-5)
