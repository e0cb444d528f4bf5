"""The optimiser's result, differentiated with respect to the problem: through its steps, or implicitly at a minimum."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

from easi3r_jax import alignment
from easi3r_jax.alignment import state as state_of
from easi3r_jax.core.errors import GradientError

T, H, W = 3, 4, 6
#: Of the rounded distances, in the world's units: a hundredth of the scene's depth.
SOFT = alignment.softened(0.05)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def wide(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), np.float64 if x.dtype.kind == "f" else np.int32), tree)


@pytest.fixture(scope="module")
def clip(exact_clip, config):
    """(predictions, start) in float64: noise so that no pair fits exactly."""
    with jax.enable_x64(False):
        predictions = exact_clip(T, H, W, noise=0.2).predictions
        start = alignment.initial_state(predictions, config)
    with jax.enable_x64(True):
        return wide(dataclasses.replace(predictions, edges=np.asarray(predictions.edges))), wide(start)


@pytest.fixture(scope="module")
def directions():
    """Of a change of the confidences of the i sides, and of the metric of depth."""
    rng = np.random.default_rng(5)
    return rng.standard_normal((T * (T - 1), H, W)), rng.standard_normal((T, H, W))


def figure(state, weights):
    """Depth, which moving the world does not change."""
    return jnp.mean(weights * state_of.depth(state))


def problem_of(clip, confidence, config):
    predictions = dataclasses.replace(clip[0], confidence_i=confidence, edges=np.asarray(clip[0].edges))
    return alignment.make_problem(predictions, config)


@pytest.mark.slow
def test_through_the_steps_by_confidences(clip, directions, config):
    along, weights = directions
    rates = jnp.asarray([0.01, 0.02, 0.01, 0.005])

    def end(confidence):
        state = clip[1]
        problem = problem_of(clip, confidence, dataclasses.replace(config, smoothing_weight=0.1))
        steps = alignment.adam_steps(state, alignment.init_moments(state), problem, rates, jnp.ones(4, bool))
        return figure(steps[0], weights)

    confidence = clip[0].confidence_i
    slope = jnp.vdot(jax.jit(jax.grad(end))(confidence), along)
    value = jax.jit(end)
    h = 1e-5
    expected = (value(confidence + h * along) - value(confidence - h * along)) / (2 * h)
    assert abs(expected) > 1e-6
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def minimum(clip, config):
    """(flat minimum, to a state, Newton's iteration from a point for confidences): exact to rounding."""
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(clip[1])

        def loss(x, confidence):
            return alignment.total_loss(unravel(x), problem_of(clip, confidence, config), SOFT)

        both, curvature = jax.jit(jax.value_and_grad(loss)), jax.jit(jax.jacfwd(jax.grad(loss)))

        def newton(x, confidence):
            for _ in range(8):
                values, vectors = jnp.linalg.eigh(curvature(x, confidence))
                slopes = vectors.T @ both(x, confidence)[1]
                # Directions in which the objective does not change have no curvature, and no slope.
                x = x - vectors @ jnp.where(values > 1e-9 * values[-1], slopes / values, 0)
            return x, jnp.max(jnp.abs(both(x, confidence)[1]))

        confidence = clip[0].confidence_i
        near = scipy.optimize.minimize(
            lambda x: tuple(np.asarray(v) for v in both(x, confidence)),
            np.asarray(flat),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20_000, "maxfun": 40_000, "maxcor": 50, "ftol": 1e-16, "gtol": 1e-5},
        )
        x, slope = newton(jnp.asarray(near.x), confidence)
        assert slope < 1e-11
        return x, unravel, newton


def test_at_the_minimum_by_confidences(minimum, clip, directions, config):
    """Against minima of changed problems."""
    x, unravel, newton = minimum
    along, weights = directions
    confidence, h = clip[0].confidence_i, 1e-3
    ends = [newton(x, confidence + s * h * along) for s in (1, -1)]
    assert max(slope for _, slope in ends) < 1e-11
    expected = (figure(unravel(ends[0][0]), weights) - figure(unravel(ends[1][0]), weights)) / (2 * h)
    assert abs(expected) > 1e-4

    def end(confidence):
        problem = problem_of(clip, confidence, config)
        return figure(alignment.at_minimum(unravel(x), problem, SOFT, damping=1e-9, tolerance=1e-6), weights)

    np.testing.assert_allclose(jnp.vdot(jax.jit(jax.grad(end))(confidence), along), expected, rtol=1e-4)


@pytest.mark.slow
def test_what_is_fixed_stays_so(minimum, clip, directions, config):
    """Frames that known cameras hold have no derivative, and the others the one of the smaller problem."""
    x, unravel, _ = minimum
    state, (_, weights) = unravel(x), directions
    free = jax.tree.map(jnp.ones_like, state)
    free = dataclasses.replace(free, log_depth=free.log_depth.at[0].set(0))

    def end(confidence, weights):
        problem = dataclasses.replace(problem_of(clip, confidence, config), free=free)
        return figure(alignment.at_minimum(state, problem, SOFT), weights)

    gradient = jax.jit(jax.grad(end))
    of_fixed = gradient(clip[0].confidence_i, jnp.asarray(weights).at[1:].set(0))
    assert not np.any(of_fixed)
    assert np.all(np.isfinite(gradient(clip[0].confidence_i, jnp.asarray(weights))))


@pytest.mark.slow
def test_without_a_minimum_the_result_is_nan(clip, directions, config):
    """The second derivative must be positive to follow a minimum."""
    state = clip[1]
    saddle = (alignment.Term("hill", lambda state, problem: -alignment.points_loss(state, problem, 0.05)),)

    def end(confidence):
        return figure(alignment.at_minimum(state, problem_of(clip, confidence, config), saddle), directions[1])

    assert np.all(np.isnan(jax.jit(jax.grad(end))(clip[0].confidence_i)))
    assert np.isfinite(jax.jit(end)(clip[0].confidence_i))


@pytest.mark.slow
def test_too_few_iterations_give_nan(minimum, clip, directions, config):
    x, unravel, _ = minimum

    def end(confidence):
        state = alignment.at_minimum(unravel(x), problem_of(clip, confidence, config), SOFT, iterations=2)
        return figure(state, directions[1])

    assert np.all(np.isnan(jax.jit(jax.grad(end))(clip[0].confidence_i)))


@pytest.mark.parametrize(
    "points",
    [
        alignment.points_loss,
        functools.partial(alignment.points_loss),
        functools.partial(alignment.points_loss, softness=0.0),
        dataclasses.replace(SOFT[0].value, softness=0.0),
    ],
)
def test_the_methods_own_objective_has_corners_at_its_minimum(points, clip, config):
    problem = problem_of(clip, clip[0].confidence_i, config)
    terms = (*alignment.DEFAULT_TERMS[1:], alignment.Term("points", points))
    with pytest.raises(GradientError, match="softened"):
        alignment.at_minimum(clip[1], problem, terms)
    alignment.at_minimum(clip[1], problem, alignment.softened(0.1, terms))


def test_points_with_a_softness_of_ones_own_are_taken(clip, config):
    terms = (alignment.Term("points", functools.partial(alignment.points_loss, softness=0.1)),)
    assert alignment.softened(0.2, terms) == terms
    alignment.at_minimum(clip[1], problem_of(clip, clip[0].confidence_i, config), terms)


def test_the_gradient_by_the_given_state_is_zero(minimum, clip, directions, config):
    x, unravel, _ = minimum
    problem = problem_of(clip, clip[0].confidence_i, config)
    gradient = jax.jit(jax.grad(lambda s: figure(alignment.at_minimum(s, problem, SOFT), directions[1])))(unravel(x))
    assert not any(np.any(g) for g in jax.tree.leaves(gradient))
