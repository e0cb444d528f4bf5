"""The objective as a list: omitting a term, adding one, and recompilation of the loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import alignment
from easi3r_jax.core.errors import ConfigError

T = 3


@pytest.fixture(scope="module")
def clip(exact_clip):
    return exact_clip(T, 4, 6, noise=0.05)


@pytest.fixture(scope="module")
def small(clip, config):
    """(state, problem): the start, moved a little, with every kind of term in use but cameras."""
    config = dataclasses.replace(config, depth_weight=0.3, flow_weight=0.7, smoothing_weight=0.2)
    start = alignment.initial_state(clip.predictions, config)
    flow = jnp.ones((*clip.predictions.confidence_i.shape, 2))
    problem = alignment.make_problem(clip.predictions, config, flow=flow)
    problem = alignment.with_depth_prior(problem, start, config)
    return dataclasses.replace(start, log_depth=start.log_depth * 1.1), problem


def roughness(state, problem):
    """Squared differences of neighbouring columns' log depth."""
    del problem
    return jnp.mean(jnp.diff(state.log_depth, axis=-1) ** 2)


TERMS = jax.jit(alignment.loss_terms, static_argnames=("terms",))
LOSS = jax.jit(alignment.total_loss, static_argnames=("terms",))


def test_each_term_is_a_function_of_state_and_problem(small):
    values = TERMS(*small)
    assert set(values) == {"total", "points", "smoothness", "flow", "depth"}
    functions = {
        "points": alignment.points_loss,
        "smoothness": alignment.smoothness_loss,
        "flow": alignment.flow_loss,
        "depth": alignment.depth_loss,
    }
    for name, function in functions.items():
        np.testing.assert_allclose(jax.jit(function)(*small), values[name], rtol=1e-6)
    weights = {"points": 1.0, "smoothness": 0.2, "flow": 0.7, "depth": 0.3}
    assert all(values[name] > 0 for name in weights)
    total = sum(weight * float(values[name]) for name, weight in weights.items())
    np.testing.assert_allclose(values["total"], total, rtol=1e-6)
    np.testing.assert_allclose(LOSS(*small), total, rtol=1e-6)


@pytest.mark.parametrize(("name", "weight"), [("points", 1.0), ("smoothness", 0.2), ("flow", 0.7), ("depth", 0.3)])
def test_leaving_a_term_out(name, weight, small):
    rest = tuple(term for term in alignment.DEFAULT_TERMS if term.name != name)
    values = TERMS(*small)
    assert name not in TERMS(*small, terms=rest)
    np.testing.assert_allclose(LOSS(*small, terms=rest), values["total"] - weight * values[name], rtol=1e-5)


def test_a_custom_term_is_added(small):
    more = (*alignment.DEFAULT_TERMS, alignment.Term("roughness", roughness, 10.0))
    values = TERMS(*small, terms=more)
    assert values["roughness"] > 0
    np.testing.assert_allclose(values["total"], LOSS(*small) + 10 * values["roughness"], rtol=1e-5)


def test_a_weight_may_come_from_the_problem(small):
    state, problem = small
    terms = (alignment.Term("roughness", roughness, lambda problem: problem.smoothing_weight),)
    np.testing.assert_allclose(alignment.total_loss(state, problem, terms), 0.2 * roughness(state, problem), rtol=1e-6)
    slope = jax.grad(lambda w: alignment.total_loss(state, dataclasses.replace(problem, smoothing_weight=w), terms))
    np.testing.assert_allclose(slope(problem.smoothing_weight), roughness(state, problem), rtol=1e-6)


def test_no_terms_are_refused(small):
    assert alignment.total_loss(*small, ()) == 0
    assert set(alignment.loss_terms(*small, ())) == {"total"}


@pytest.mark.parametrize("name", ["points", "total"])
def test_two_terms_of_one_name_are_refused(name, small):
    terms = (*alignment.DEFAULT_TERMS, alignment.Term(name, roughness))
    with pytest.raises(ConfigError, match=name):
        alignment.total_loss(*small, terms)


@pytest.mark.parametrize("term", [alignment.depth_loss, alignment.cameras_loss])
def test_a_term_without_its_prior_says_what_is_missing(term, small):
    state, problem = small
    with pytest.raises(ConfigError, match="with_"):
        term(state, dataclasses.replace(problem, depth_prior=None))


def test_optimising_a_custom_term_smooths_what_it_penalises(clip, config):
    short = dataclasses.replace(config, iterations=60)
    rough = [
        roughness(alignment.initial_state(clip.predictions, config), None),
        *(
            float(
                np.mean(np.diff(np.log(alignment.align(clip.predictions, short, terms=terms)[0].depth), axis=-1) ** 2)
            )
            for terms in (
                alignment.DEFAULT_TERMS,
                [*alignment.DEFAULT_TERMS, alignment.Term("roughness", roughness, 10.0)],
            )
        ),
    ]
    assert rough[2] < 0.5 * min(rough[:2])


def test_equal_terms_are_compiled_once(small, config):
    traces = []

    def counted(state, problem):
        traces.append(1)
        return roughness(state, problem)

    def run(weight):
        alignment.optimise(
            *small, dataclasses.replace(config, iterations=2), terms=[alignment.Term("own", counted, weight)]
        )
        return len(traces)

    first = run(1.0)
    assert run(1.0) == first
    assert run(2.0) > first


def test_steps_map_over_weights_rates_and_terms_in_the_problem(small):
    """One call, what one at a time gives."""
    state, problem = small
    rates = jnp.asarray([[0.01, 0.01], [0.02, 0.005], [0.001, 0.001]], jnp.float32)
    smoothing, flow_weight = jnp.asarray([0.0, 0.5, 2.0], jnp.float32), jnp.asarray([0.0, 0.1, 1.0], jnp.float32)

    def two_steps(rates, smoothing, flow_weight):
        flow = dataclasses.replace(problem.flow, weight=flow_weight)
        now = dataclasses.replace(problem, smoothing_weight=smoothing, flow=flow)
        end, _, losses = alignment.adam_steps(state, alignment.init_moments(state), now, rates, jnp.ones(2, bool))
        return end, losses

    one, together = jax.jit(two_steps), jax.jit(jax.vmap(two_steps))(rates, smoothing, flow_weight)
    for k in range(3):
        end, losses = one(rates[k], smoothing[k], flow_weight[k])
        np.testing.assert_allclose(together[1][k], losses, rtol=1e-5)
        # Adam divides a gradient by its length: where that is rounding, so is the step, of the size of the rate.
        np.testing.assert_allclose(together[0].log_depth[k], end.log_depth, atol=2e-4)
    assert len(np.unique(together[1][:, 0])) == 3


def test_softened_distances_have_no_corner(small):
    """sqrt(d^2 + s^2) - s: close to d where d is large, d^2 / 2 s where it is small."""
    state, problem = small
    exact, nearly, far = (
        float(jax.jit(alignment.points_loss, static_argnums=2)(*small, s)) for s in (0.0, 1e-4, 100.0)
    )
    np.testing.assert_allclose(nearly, exact, rtol=1e-2)
    assert nearly < exact and far < 0.01 * exact
    terms = alignment.softened(0.3)
    assert [term.name for term in terms] == [term.name for term in alignment.DEFAULT_TERMS]
    assert terms == alignment.softened(0.3) != alignment.softened(0.2)
    value = TERMS(state, problem, terms=terms)["points"]  # another program: it may round differently
    np.testing.assert_allclose(value, alignment.points_loss(state, problem, 0.3), rtol=1e-6)


@pytest.mark.parametrize("softness", [0.0, -0.1, np.nan, np.inf])
def test_softness_is_positive(softness):
    with pytest.raises(ConfigError, match="softness must be a positive number"):
        alignment.softened(softness)
