"""The objective: its hand-written gradient equals autodiff's, its invariances, known values of the smoothness term."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax import alignment
from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.terms import relative_pose_residual
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import PairPredictions

T, E, H, W = 3, 5, 4, 6


@pytest.fixture(autouse=True)
def float64(request):
    """Equations are checked in float64; the reference's numbers are float32."""
    with jax.enable_x64("reference" not in request.fixturenames):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def observed(rng):
    points = rng.normal([0, 0, 3], 1, (2, E, H, W, 3))
    confidence = rng.uniform(1, 9, (2, E, H, W))
    edges = jnp.asarray([[0, 1], [1, 0], [1, 2], [2, 0], [2, 2]])
    return PairPredictions(edges, *(jnp.asarray(x) for x in (*points, *confidence)))


def random_state(seed=0, num_focals=T):
    rng = np.random.default_rng(seed)
    return alignment.AlignState(
        pair_poses=jnp.asarray(rng.standard_normal((E, 8))),
        frame_poses=jnp.asarray(rng.standard_normal((T, 7))),
        log_depth=jnp.asarray(rng.uniform(0, 2, (T, H, W))),
        log_focal=jnp.asarray(20 * np.log(rng.uniform(5, 9, num_focals))),
    )


def problem_of(observed, config, block=1):
    return alignment.make_problem(observed, config, block=block)


def plain(state, problem):
    """The objective as it is written in the papers."""
    return sum(alignment.pair_terms(state, problem)) + alignment.total_loss(state, problem, alignment.DEFAULT_TERMS[1:])


# Compiled once for all tests: most of the time goes there.
LOSS = jax.jit(alignment.total_loss)
VALUE_AND_GRADIENT = jax.jit(jax.value_and_grad(alignment.total_loss))
PLAIN_VALUE_AND_GRADIENT = jax.jit(jax.value_and_grad(plain))


@pytest.mark.parametrize(("block", "num_focals"), [(1, T), (1, 1), (3, T)])
def test_the_kernels_value_and_gradient_are_autodiffs(block, num_focals, observed, config):
    """Blocks of three leave the last one filled up with an edge that must not count."""
    state, problem = random_state(num_focals=num_focals), problem_of(observed, config, block)
    ours, gradient = VALUE_AND_GRADIENT(state, problem)
    expected, expected_gradient = PLAIN_VALUE_AND_GRADIENT(state, problem)
    assert ours.dtype == jnp.float64 and ours > 0
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_the_gradient_is_the_slope(observed, config, rng):
    """Finite differences along random directions."""
    state, problem = random_state(), problem_of(observed, config)
    _, gradient = VALUE_AND_GRADIENT(state, problem)
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), state)
        ahead, behind = (
            LOSS(jax.tree.map(lambda x, d, h=h: x + h * d, state, direction), problem) for h in (1e-6, -1e-6)
        )
        slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6)


def test_the_value_is_the_formula_written_out(observed, config):
    """One loop iteration a term: log confidence times distance, divided by the pixels of all edges."""
    state, problem = random_state(), problem_of(observed, config)
    transforms, matrices = (
        np.asarray(state_of.pair_transforms(state)),
        state_of.intrinsics(state, problem.principal_point),
    )
    cameras = camera.unproject(jnp.exp(state.log_depth), matrices)
    world = np.asarray(se3.transform_points(state_of.world_from_cam(state), cameras))
    sums = [0.0, 0.0]
    for e, frames in enumerate(np.asarray(observed.edges)):
        sides = ((observed.points_i, observed.confidence_i), (observed.points_j, observed.confidence_j))
        for side, (points, confidence) in enumerate(sides):
            moved = np.asarray(points[e]) @ transforms[e, :3, :3].T + transforms[e, :3, 3]
            distance = np.linalg.norm(moved - world[frames[side]], axis=-1)
            sums[side] += (np.log(confidence[e]) * distance).sum() / (E * H * W)
    np.testing.assert_allclose(alignment.pair_terms(state, problem), sums, rtol=1e-12)


def shifted(state, transform):
    """The state after its world is moved by a rigid motion."""
    turn, shift = transform[:3, :3], transform[:3, 3]

    def move(params, scale):
        moved = se3.from_parts(jnp.asarray(turn), jnp.asarray(shift))[None]
        rigid = se3.from_parts(se3.matrix_from_quaternion(params[:, :4]), scale * se3.signed_expm1(params[:, 4:7]))
        after = se3.compose(jnp.tile(moved, (len(params), 1, 1)), rigid)
        translation = se3.signed_log1p(after[:, :3, 3] / scale)
        parts = [se3.quaternion_from_matrix(after[:, :3, :3]), translation, params[:, 7:]]
        return jnp.concatenate(parts, axis=1)

    scales = state_of.pair_scales(state)[:, None]  # they multiply the pairs' translations
    return dataclasses.replace(
        state, pair_poses=move(state.pair_poses, scales), frame_poses=move(state.frame_poses, jnp.ones((T, 1)))
    )


def test_the_world_may_be_moved(observed, config):
    state, problem = random_state(), problem_of(observed, config)
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_rotvec([0.3, -1, 0.5]).as_matrix()
    transform[:3, 3] = [2, -1, 5]
    moved = shifted(state, transform)
    np.testing.assert_allclose(state_of.world_from_cam(moved), transform @ state_of.world_from_cam(state), atol=1e-12)
    np.testing.assert_allclose(LOSS(moved, problem), LOSS(state, problem), rtol=1e-12)


def test_a_common_factor_of_all_scales_does_not_matter_but_the_worlds_size_does(observed, config):
    """The scales' geometric mean is held: else everything would shrink to a point, where all distances are 0."""
    state, problem = random_state(), problem_of(observed, config)
    before = LOSS(state, problem)
    stretched = dataclasses.replace(state, pair_poses=state.pair_poses.at[:, 7].add(3.0))
    np.testing.assert_allclose(LOSS(stretched, problem), before, rtol=1e-12)
    half = dataclasses.replace(
        state,
        log_depth=state.log_depth - np.log(2),
        frame_poses=state.frame_poses.at[:, 4:].set(se3.signed_log1p(se3.signed_expm1(state.frame_poses[:, 4:]) / 2)),
    )
    assert abs(LOSS(half, problem) / before - 1) > 0.01


@pytest.mark.parametrize("spread", [0, 1, 5])
def test_the_geometric_mean_of_the_pairs_scales_is_a_half(spread):
    state = random_state()
    state = dataclasses.replace(state, pair_poses=state.pair_poses.at[:, 7].multiply(spread).at[:, 7].add(7.0))
    np.testing.assert_allclose(np.exp(np.log(state_of.pair_scales(state)).mean()), 0.5, rtol=1e-12)
    linear = np.asarray(state_of.pair_transforms(state))[:, :3, :3]
    np.testing.assert_allclose(np.cbrt(np.linalg.det(linear)), state_of.pair_scales(state), rtol=1e-10)


def test_every_pair_may_come_at_its_own_scale(observed, config, rng):
    """A pair's points times k, its scale divided and its translation multiplied by k: nothing changes."""
    state = random_state()
    log_k = rng.standard_normal(E)
    k = np.exp(log_k - log_k.mean())[:, None]
    poses = state.pair_poses.at[:, 7:].add(-np.log(k))
    poses = poses.at[:, 4:7].set(se3.signed_log1p(k * se3.signed_expm1(poses[:, 4:7])))
    grown = dataclasses.replace(
        observed,
        points_i=observed.points_i * k[:, :, None, None],
        points_j=observed.points_j * k[:, :, None, None],
    )
    np.testing.assert_allclose(
        LOSS(dataclasses.replace(state, pair_poses=poses), problem_of(grown, config)),
        LOSS(state, problem_of(observed, config)),
        rtol=1e-12,
    )


def test_confidence_of_one_and_below_counts_nothing(observed, config):
    state = random_state()
    nothing = dataclasses.replace(
        observed, confidence_i=jnp.ones_like(observed.confidence_i), confidence_j=0.1 * observed.confidence_j
    )
    problem = problem_of(nothing, dataclasses.replace(config, smoothing_weight=0.0))
    value, gradient = VALUE_AND_GRADIENT(state, problem)
    assert value == 0
    assert all(not np.any(g) for g in jax.tree.leaves(gradient))


def test_distances_of_zero_have_gradient_zero(observed, config):
    """A state in which every point sits exactly where it is seen: all at the origin."""
    state = dataclasses.replace(random_state(), log_depth=jnp.full((T, H, W), -jnp.inf, jnp.float64))
    state = dataclasses.replace(
        state, frame_poses=state.frame_poses.at[:, 4:].set(0), pair_poses=state.pair_poses.at[:, 4:7].set(0)
    )
    zero = dataclasses.replace(
        observed, points_i=jnp.zeros_like(observed.points_i), points_j=jnp.zeros_like(observed.points_j)
    )
    problem = problem_of(zero, dataclasses.replace(config, smoothing_weight=0.0))
    for function in (VALUE_AND_GRADIENT, PLAIN_VALUE_AND_GRADIENT):
        value, gradient = function(state, problem)
        assert value == 0
        assert all(not np.any(g) for g in jax.tree.leaves(gradient))


def camera_path(rotvecs, positions):
    out = np.tile(np.eye(4), (len(positions), 1, 1))
    out[:, :3, :3] = Rotation.from_rotvec(rotvecs).as_matrix()
    out[:, :3, 3] = positions
    return jnp.asarray(out)


def test_temporal_term_of_known_motions(rng):
    """A turn by a has |R - I|_F = 2 sqrt(2) |sin(a / 2)|; a step of length d has d."""
    still = camera_path(np.tile([[0.1, 0.2, 0.3]], (4, 1)), np.tile([[1.0, 2.0, 3.0]], (4, 1)))
    np.testing.assert_allclose(relative_pose_residual(still, 1.0), 0, atol=1e-12)
    turning = camera_path([[0, 0, 0], [0, 0.4, 0], [0, -0.2, 0]], np.zeros((3, 3)))
    np.testing.assert_allclose(relative_pose_residual(turning, 1.0), 8**0.5 * np.sin([0.2, 0.3]), rtol=1e-12)
    walking = camera_path(np.zeros((3, 3)), [[0, 0, 0], [3, 4, 0], [3, 4, 2]])
    np.testing.assert_allclose(relative_pose_residual(walking, 0.1), [0.5, 0.2], rtol=1e-12)

    path = camera_path(rng.standard_normal((5, 3)), rng.standard_normal((5, 3)))
    elsewhere = camera_path(rng.standard_normal((1, 3)), rng.standard_normal((1, 3)))[0] @ path
    residual = relative_pose_residual(path, 1.0)
    np.testing.assert_allclose(relative_pose_residual(elsewhere, 1.0), residual, rtol=1e-10)


def test_smoothness_gradient_of_a_still_camera_is_finite(observed, config):
    state = random_state()
    state = dataclasses.replace(state, frame_poses=jnp.tile(state.frame_poses[:1], (T, 1)))
    gradient = jax.jit(jax.grad(alignment.smoothness_loss))(state, problem_of(observed, config))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize(("name", "weight"), [("rel_pose_loss", 1.0), ("rel_pose_loss_w01", 0.1)])
def test_temporal_term_of_the_reference(name, weight, reference):
    poses = jnp.asarray(reference("scene")["poses_c2w"])
    expected = reference("primitives")[name]
    np.testing.assert_allclose(relative_pose_residual(poses, weight), expected, rtol=0, atol=1e-5 * expected.max())
