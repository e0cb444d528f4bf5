"""Dynamic and static regions from flow: where the cameras do not explain it, and where they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import alignment
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import Geometry

T, H, W = 4, 12, 16
MOVING = (slice(3, 7), slice(5, 10))


@pytest.fixture(scope="module")
def clip(exact_clip):
    return exact_clip()


@pytest.fixture(scope="module")
def solved(clip):
    centre = jnp.tile(camera.default_principal_point(H, W)[None], (T, 1))
    return Geometry(
        world_from_cam=jnp.asarray(clip.world_from_cam, jnp.float32),
        intrinsics=camera.intrinsics(jnp.asarray(clip.focals, jnp.float32), centre),
        depth=jnp.asarray(clip.depth, jnp.float32),
        confidence=jnp.ones((T, H, W)),
    )


@pytest.fixture(scope="module")
def flow(clip, solved):
    """What the cameras give; in frame 1, the pixels `MOVING` go their own way."""
    i, j = np.asarray(clip.predictions.edges).T
    poses = solved.world_from_cam
    exact = alignment.ego_flow(
        se3.compose(se3.inverse(poses[j]), poses[i]), solved.depth[i], solved.intrinsics[i], solved.intrinsics[j]
    )
    flow = np.array(jnp.moveaxis(exact, 1, -1).reshape(-1, H, W, 2))
    flow[(i == 1).nonzero()[0][:, None, None], MOVING[0].start + np.arange(4)[:, None], 5 + np.arange(5)] += [4.0, -3.0]
    return jnp.asarray(flow)


def moving_pixels():
    mask = np.zeros((T, H, W), bool)
    mask[1][MOVING] = True
    return mask


def test_motion_stands_out(clip, flow, config):
    residual = alignment.flow_residual(clip.predictions, flow, config)
    assert residual.shape == (T, H, W) and residual.dtype == jnp.float32
    moving = moving_pixels()
    assert residual[moving].min() > 0.95  # the largest error of each pair of frame 1
    assert residual[1][~moving[1]].max() < 0.05
    assert residual.min() >= 0 and residual.max() <= 1


def test_what_is_unknown_does_not_count(clip, flow, config):
    known = np.ones(flow.shape[:3], bool)
    edges = np.asarray(clip.predictions.edges)
    first = np.flatnonzero(edges[:, 0] == 1)
    known[first[0]][MOVING] = False  # one of frame 1's pairs
    wild = jnp.where(jnp.asarray(known)[..., None], flow, 1e9)
    residual = alignment.flow_residual(clip.predictions, wild, config, flow_known=jnp.asarray(known))
    assert residual[moving_pixels()].min() > 0.95  # the mean of the others
    known[first] = False
    blind = alignment.flow_residual(clip.predictions, flow, config, flow_known=jnp.asarray(known))
    np.testing.assert_array_equal(blind[1], 0)


def test_pairs_in_one_direction_give_no_residual(clip, flow, config):
    edges = np.asarray(clip.predictions.edges)
    one_way = edges[:, 0] < edges[:, 1]
    half = jax.tree.map(lambda x: x[one_way], clip.predictions)
    np.testing.assert_array_equal(alignment.flow_residual(half, flow[one_way], config), 0)


def test_progress_is_reported(clip, flow, config):
    calls = []
    alignment.flow_residual(
        clip.predictions, flow, config, progress=lambda stage, done, total, note: calls.append((stage, done, total))
    )
    assert calls[0] == ("flow masks", 0, 6) and calls[-1] == ("flow masks", 6, 6)


def test_static_is_what_the_cameras_explain(clip, solved, flow):
    static = alignment.static_regions(solved, flow, clip.predictions.edges, 1.0)
    np.testing.assert_array_equal(static, ~moving_pixels())
    # |4| + |-3| is 7 pixels.
    assert alignment.static_regions(solved, flow, clip.predictions.edges, 7.1).all()
    assert not alignment.static_regions(solved, flow, clip.predictions.edges, 6.9)[moving_pixels()].any()


def test_a_pixel_without_votes_counts_as_static(clip, solved, flow):
    known = np.asarray(clip.predictions.edges)[:, 0] != 1
    known = jnp.asarray(np.broadcast_to(known[:, None, None], flow.shape[:3]))
    assert alignment.static_regions(solved, flow, clip.predictions.edges, 1.0, known).all()


def test_unknown_flow_does_not_count_in_the_alignment(clip, flow, config):
    known = np.ones(flow.shape[:3], bool)
    known[:, ::2] = False
    wrong = jnp.where(jnp.asarray(known)[..., None], flow, flow + 9.0)
    state = alignment.initial_state(clip.predictions, config)

    def loss(flow, **options):
        return float(alignment.flow_loss(state, alignment.make_problem(clip.predictions, config, flow=flow, **options)))

    np.testing.assert_allclose(
        loss(wrong, flow_known=jnp.asarray(known)), loss(flow, flow_known=jnp.asarray(known)), rtol=1e-6
    )
    assert loss(wrong) > 2 * loss(wrong, flow_known=jnp.asarray(known))
