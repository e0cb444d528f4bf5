"""The optical-flow term: known flows, which pixels are used, its gradient, and when it is switched on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import alignment
from easi3r_jax.alignment import state as state_of
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import PairPredictions
from tests.alignment.aligned import aligned

T, H, W = 3, 4, 6
EDGES = jnp.asarray([[0, 1], [1, 0], [1, 2], [2, 1], [0, 2], [2, 0]])
CONFIG = AlignConfig(flow_weight=0.7, smoothing_weight=0.01)


@pytest.fixture(autouse=True)
def float64():
    """Equations are checked in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def scene():
    """(state, predictions, flow): cameras that differ a little, and the flow that they give."""
    rng = np.random.default_rng(0)
    identity = np.array([0.0, 0, 0, 1, 0, 0, 0])
    state = alignment.AlignState(
        pair_poses=jnp.asarray(rng.standard_normal((len(EDGES), 8))),
        frame_poses=jnp.asarray(identity + 0.05 * rng.standard_normal((T, 7))),
        log_depth=jnp.asarray(rng.uniform(0.5, 1.5, (T, H, W))),
        log_focal=jnp.asarray(20 * np.log(rng.uniform(5, 7, T))),
    )
    points = rng.normal([0, 0, 3], 1, (2, len(EDGES), H, W, 3))
    confidence = rng.uniform(1, 9, (2, len(EDGES), H, W))
    predictions = PairPredictions(EDGES, *(jnp.asarray(x) for x in (*points, *confidence)))
    poses, depth = state_of.world_from_cam(state), state_of.depth(state)
    intrinsics = state_of.intrinsics(state, alignment.make_problem(predictions, CONFIG).principal_point)
    i, j = EDGES.T
    exact = alignment.ego_flow(se3.compose(se3.inverse(poses[j]), poses[i]), depth[i], intrinsics[i], intrinsics[j])
    return state, predictions, jnp.moveaxis(exact, 1, -1).reshape(len(EDGES), H, W, 2)


def loss_of(scene, flow, config=CONFIG, **options):
    state, predictions, _ = scene
    return float(FLOW_LOSS(state, alignment.make_problem(predictions, config, flow=flow, **options)))


FLOW_LOSS = jax.jit(alignment.flow_loss)


def test_ego_flow_is_where_the_point_is_seen_less_where_it_was(scene):
    state, predictions, flow = scene
    intrinsics = state_of.intrinsics(state, alignment.make_problem(predictions, CONFIG).principal_point)
    points = state_of.world_coordinates(state, alignment.make_problem(predictions, CONFIG).principal_point)
    points = jnp.moveaxis(points, 1, -1).reshape(len(points), H, W, 3)
    cam_from_world = se3.inverse(state_of.world_from_cam(state))
    for edge, (i, j) in enumerate(np.asarray(EDGES)):
        seen, _ = camera.project(se3.transform_points(cam_from_world[j], points[i]), intrinsics[j])
        np.testing.assert_allclose(flow[edge], seen - camera.pixel_grid(H, W, jnp.float64), atol=1e-4)


def test_ego_flow_of_known_motions():
    """Sideways motion gives f t / z; flow of a rotation does not depend on depth; without motion it is zero."""
    intrinsics = camera.intrinsics(jnp.float64(50.0), camera.default_principal_point(H, W, jnp.float64))
    depth = jnp.asarray(np.random.default_rng(0).uniform(1, 4, (H, W)))

    def flow(rotation, translation, depth=depth):
        motion = se3.from_parts(jnp.asarray(rotation, jnp.float64), jnp.asarray(translation, jnp.float64))
        return np.asarray(alignment.ego_flow(motion, depth, intrinsics, intrinsics))

    still = np.eye(3)
    np.testing.assert_allclose(flow(still, [0, 0, 0]), 0, atol=1e-4)
    aside = flow(still, [0.2, 0, 0])
    np.testing.assert_allclose(aside[0], (50 * 0.2 / depth).ravel(), rtol=1e-4)
    np.testing.assert_allclose(aside[1], 0, atol=1e-4)
    c, s = np.cos(0.1), np.sin(0.1)
    turn = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    np.testing.assert_allclose(flow(turn, [0, 0, 0]), flow(turn, [0, 0, 0], 2 * depth), atol=1e-5)


def test_the_flow_that_cameras_and_depth_give_costs_nothing(scene):
    assert loss_of(scene, scene[2]) < 1e-12


@pytest.mark.parametrize(("error", "loss"), [(0.5, 0.125), (3.0, 2.5)])
def test_the_loss_is_the_smooth_distance_twice(scene, error, loss):
    assert loss_of(scene, scene[2].at[..., 0].add(error)) == pytest.approx(loss, rel=1e-5)  # of two coordinates one


def test_what_moves_does_not_count(scene):
    dynamic = jnp.zeros((T, H, W), bool).at[1, :2].set(True)
    wrong = scene[2].at[jnp.asarray(EDGES[:, 0] == 1), :2].add(5.0)
    assert loss_of(scene, wrong) > 0.1
    assert loss_of(scene, wrong, dynamic_mask=dynamic) < 1e-12
    assert loss_of(scene, wrong, dynamic_mask=jnp.ones((T, H, W), bool)) == 0


def test_outliers_do_not_count(scene):
    off = scene[2].at[0, 1, 2, 1].add(200.0)
    assert loss_of(scene, off, dataclasses.replace(CONFIG, flow_outlier=1e6)) > 0.1
    assert loss_of(scene, off) < 1e-12


def test_nothing_counts_where_all_is_off(scene):
    config = dataclasses.replace(CONFIG, flow_limit=10.0)
    assert loss_of(scene, scene[2] + 4, config) == pytest.approx(7)
    assert loss_of(scene, scene[2] + 6, config) == 0


def test_flow_of_weight_zero_adds_no_term(scene):
    state, predictions, flow = scene
    problem = alignment.make_problem(predictions, dataclasses.replace(CONFIG, flow_weight=0.0), flow=flow)
    assert "flow" not in alignment.loss_terms(state, problem)
    with pytest.raises(ConfigError, match="optical flow"):
        alignment.flow_loss(state, problem)


def test_blocks_change_nothing(scene):
    state, predictions, exact = scene
    five = dataclasses.replace(
        predictions, **{name: x[:5] for name, x in vars(predictions).items() if getattr(x, "ndim", 0)}
    )
    state = dataclasses.replace(state, pair_poses=state.pair_poses[:5])
    flow = exact[:5] + jnp.asarray(np.random.default_rng(1).normal(0, 2, exact[:5].shape))
    whole = loss_of((state, five, flow), flow, block=1)
    assert whole > 0.1
    for block in (2, 3, 5):
        assert loss_of((state, five, flow), flow, block=block) == pytest.approx(whole, rel=1e-9)
    padded = alignment.make_problem(five, CONFIG, flow=flow, block=3).edges
    assert padded.shape == (2, 3, 2)  # a place is empty


def test_its_gradient_is_the_slope_of_the_objective(scene):
    state, predictions, exact = scene
    rng = np.random.default_rng(1)
    flow = exact + jnp.asarray(rng.normal(0, 2, exact.shape))
    problem = alignment.make_problem(predictions, CONFIG, flow=flow)
    terms = alignment.loss_terms(state, problem)
    parts = terms["points"] + 0.01 * terms["smoothness"] + 0.7 * terms["flow"]
    np.testing.assert_allclose(terms["total"], parts, rtol=1e-9)
    value = jax.jit(alignment.total_loss)
    np.testing.assert_allclose(value(state, problem), parts, rtol=1e-9)
    gradient = jax.jit(jax.grad(alignment.total_loss))(state, problem)
    along = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), state)
    step = 1e-6

    def at(t):
        return float(value(jax.tree.map(lambda x, d: x + t * d, state, along), problem))

    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
    assert slope == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-5)


def test_flow_counts_from_its_share_of_the_iterations_on(scene):
    state, predictions, exact = scene
    flow = exact + 1.0

    def losses(start, flow):
        config = dataclasses.replace(CONFIG, iterations=10, flow_start=start)
        problem = alignment.make_problem(predictions, config, flow=flow)
        return np.asarray(alignment.optimise(state, problem, config)[1])

    without, late, always = losses(0.0, None), losses(0.3, flow), losses(0.0, flow)
    np.testing.assert_allclose(late[:3], without[:3], rtol=1e-9)
    assert (late[3:] > without[3:] + 0.01).all()
    assert always[0] == pytest.approx(without[0] + 0.7, rel=1e-4)  # half a pixel each way, two coordinates


def test_flow_corrects_errors_of_the_points(exact_clip):
    """Points with noise and the exact flow: cameras come out better than without it."""
    with jax.enable_x64(False):
        clip = exact_clip(noise=0.1)
        frames, config = len(clip.world_from_cam), AlignConfig(iterations=200, flow_weight=0.1)
        i, j = np.asarray(clip.predictions.edges).T
        poses, depth = jnp.asarray(clip.world_from_cam, jnp.float32), jnp.asarray(clip.depth, jnp.float32)
        centre = jnp.tile(camera.default_principal_point(*depth.shape[1:])[None], (frames, 1))
        intrinsics = camera.intrinsics(jnp.asarray(clip.focals, jnp.float32), centre)
        j_from_i = se3.compose(se3.inverse(poses[j]), poses[i])
        flow = alignment.ego_flow(j_from_i, depth[i], intrinsics[i], intrinsics[j])
        flow = jnp.moveaxis(flow, 1, -1).reshape(*clip.predictions.points_i.shape[:3], 2)
        errors = []
        for given in (None, flow):
            result = aligned(clip.predictions, config, flow=given)
            relative = np.linalg.inv(result.world_from_cam[0]) @ np.asarray(result.world_from_cam)
            true = np.linalg.inv(clip.world_from_cam[0]) @ np.asarray(clip.world_from_cam)
            errors.append(np.abs(relative[:, :3, :3] - true[:, :3, :3]).max())
        assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("field", ["flow_weight", "flow_start", "flow_outlier", "flow_limit"])
def test_options_below_zero_are_refused(field):
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(AlignConfig(), **{field: -1.0})
