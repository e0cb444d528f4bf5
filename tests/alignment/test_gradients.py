"""Derivatives of the objective with respect to its observations: equal to autodiff's or an error, never silently 0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from easi3r_jax import alignment
from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.flow import robust_sum
from easi3r_jax.alignment.problem import UNKNOWN_FLOW
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import GradientError
from easi3r_jax.core.geometry import se3
from easi3r_jax.core.types import PairPredictions

T, H, W = 3, 4, 6
EDGES = np.array([[0, 1], [1, 0], [1, 2], [2, 1], [0, 2], [2, 0], [2, 2]], np.int32)
E = len(EDGES)
CONFIG = AlignConfig(flow_weight=0.7, smoothing_weight=0.1)
OBSERVED = ("points_i", "points_j", "confidence_i", "confidence_j")


@pytest.fixture(autouse=True)
def float64():
    """Equations are checked in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def state(rng):
    identity = np.array([0.0, 0, 0, 1, 0, 0, 0])
    return alignment.AlignState(
        pair_poses=jnp.asarray(rng.standard_normal((E, 8))),
        frame_poses=jnp.asarray(identity + 0.05 * rng.standard_normal((T, 7))),
        log_depth=jnp.asarray(rng.uniform(0.5, 1.5, (T, H, W))),
        log_focal=jnp.asarray(20 * np.log(rng.uniform(5, 7, T))),
    )


@pytest.fixture
def observed(rng):
    """Predictions, flow that is off by up to a few pixels, where it is known, and what moves."""
    points = rng.normal([0, 0, 3], 1, (2, E, H, W, 3))
    confidence = rng.uniform(1, 9, (2, E, H, W))
    predictions = PairPredictions(EDGES, *(jnp.asarray(x) for x in (*points, *confidence)), num_frames=T)
    return {
        "predictions": predictions,
        "flow": jnp.asarray(rng.normal(0, 2, (E, H, W, 2))),
        "known": jnp.asarray(rng.random((E, H, W)) < 0.8),
        "dynamic": jnp.asarray(rng.random((T, H, W)) < 0.3),
    }


def problem_of(observed, block=1):
    return alignment.make_problem(
        observed["predictions"],
        CONFIG,
        flow=observed["flow"],
        flow_known=observed["known"],
        dynamic_mask=observed["dynamic"],
        block=block,
    )


def plain_points(state, problem):
    return sum(alignment.pair_terms(state, problem))


def plain_flow(state, problem):
    """The flow's term as MonST3R writes it, all residuals at once."""
    i, j = problem.edges.reshape(-1, 2).T
    poses, matrices = state_of.world_from_cam(state), state_of.intrinsics(state, problem.principal_point)
    j_from_i = se3.compose(se3.inverse(poses[j]), poses[i])
    ego = alignment.ego_flow(j_from_i, state_of.depth(state)[i], matrices[i], matrices[j])
    targets = problem.flow
    flow = targets.flow.reshape(ego.shape)
    counts = targets.static[i] & (flow[:, 0] < UNKNOWN_FLOW)
    total, number = robust_sum(ego - flow, counts, targets.outlier)
    return 2 * total / (number + 1e-6)


PLAIN = tuple(
    dataclasses.replace(term, value={"points": plain_points, "flow": plain_flow}.get(term.name, term.value))
    for term in alignment.DEFAULT_TERMS
)


def by_observations(state, observed, terms, block=1):
    """Gradients by the four arrays of the predictions, and by the flow."""

    def loss(arrays, flow):
        predictions = dataclasses.replace(observed["predictions"], **arrays)
        problem = problem_of(observed | {"predictions": predictions, "flow": flow}, block)
        return alignment.total_loss(state, problem, terms)

    arrays = {name: getattr(observed["predictions"], name) for name in OBSERVED}
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(arrays, observed["flow"])


@pytest.mark.parametrize("block", [1, 3])
def test_gradients_by_the_observations_are_the_plain_formulas(block, state, observed):
    """Blocks of three leave the last one filled up with edges that must not count."""
    ours = by_observations(state, observed, alignment.DEFAULT_TERMS, block)
    expected = by_observations(state, observed, PLAIN)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 1e-4
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)


def test_flow_that_does_not_count_has_gradient_zero_and_the_rest_has_not(state, observed):
    _, by_flow = by_observations(state, observed, alignment.DEFAULT_TERMS)
    counts = np.asarray(observed["known"] & ~observed["dynamic"][EDGES[:, 0]])
    assert not np.any(np.asarray(by_flow)[~counts])
    assert np.all(np.asarray(by_flow)[counts] != 0)


@pytest.mark.parametrize("terms", [alignment.DEFAULT_TERMS, PLAIN], ids=["kernels", "plain"])
def test_gradients_by_the_problem_are_its_slope(terms, state, observed, rng):
    """Finite differences along a random direction of everything in the problem that a derivative is defined by."""
    problem = problem_of(observed)
    fields = ("points_i", "points_j", "weights_i", "weights_j", "principal_point", "smoothing_weight")
    fields += ("translation_weight",)

    def loss(chosen):
        flow = dataclasses.replace(problem.flow, flow=chosen["flow"], weight=chosen["flow_weight"])
        rest = {name: chosen[name] for name in fields}
        return alignment.total_loss(state, dataclasses.replace(problem, flow=flow, **rest), terms)

    at = {name: getattr(problem, name) for name in fields}
    at |= {"flow": problem.flow.flow, "flow_weight": problem.flow.weight}
    value, gradient = jax.jit(loss), jax.jit(jax.grad(loss))(at)
    for name, slopes in gradient.items():
        along = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), at[name])
        ahead, behind = (
            value(at | {name: jax.tree.map(lambda x, a, h=h: x + h * a, at[name], along)}) for h in (1e-6, -1e-6)
        )
        slope = sum(map(jnp.vdot, *map(jax.tree.leaves, (slopes, along))))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6, err_msg=name)


def test_the_flows_weight_has_its_slope_at_zero(state, observed):
    problem = problem_of(observed)

    def loss(weight):
        flow = dataclasses.replace(problem.flow, weight=weight)
        return alignment.total_loss(state, dataclasses.replace(problem, flow=flow))

    slope = jax.jit(jax.grad(loss))(jnp.zeros(()))
    assert slope > 0.1
    np.testing.assert_allclose(slope, alignment.flow_loss(state, problem), rtol=1e-12)


def second(terms, problem, state, along):
    """H v, by reverse over reverse and then by forward over reverse."""

    def gradient(state):
        return jax.grad(alignment.total_loss)(state, problem, terms)

    def product(state):
        pairs = zip(jax.tree.leaves(gradient(state)), jax.tree.leaves(along), strict=True)
        return sum(jnp.vdot(g, a) for g, a in pairs)

    yield jax.jit(jax.grad(product))(state)
    yield jax.jit(lambda s: jax.jvp(gradient, (s,), (along,))[1])(state)


@pytest.mark.slow
def test_second_derivatives_are_the_plain_formulas(state, observed, rng):
    problem = problem_of(observed, block=3)
    along = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), state)
    expected = next(second(PLAIN, problem, state, along))
    for ours in second(alignment.DEFAULT_TERMS, problem, state, along):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            assert np.abs(b).max() > 0
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_mixed_derivatives_are_the_plain_formulas(state, observed):
    """By observations of the gradient by the state: what differentiating through a step needs."""
    problem = problem_of(observed)

    def length(points, weights, flow, terms):
        now = dataclasses.replace(
            problem, points_i=points, weights_j=weights, flow=dataclasses.replace(problem.flow, flow=flow)
        )
        return sum(jnp.sum(jnp.sin(g)) for g in jax.tree.leaves(jax.grad(alignment.total_loss)(state, now, terms)))

    gradient = jax.jit(jax.grad(length, argnums=(0, 1, 2)), static_argnums=3)
    at = (problem.points_i, problem.weights_j, problem.flow.flow)
    ours, expected = (jax.tree.leaves(gradient(*at, terms)) for terms in (alignment.DEFAULT_TERMS, PLAIN))
    for a, b in zip(ours, expected, strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def sizes_written(function, *args):
    """Number of elements of every array of which a loop of the program, at whatever depth, writes a part a turn."""
    found = []

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "scan":
                found.extend(x.aval.size for x in eqn.outvars[eqn.params["num_carry"] :])
            for inner in jaxprs_in_params(eqn.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def test_an_unrequested_gradient_is_not_computed(state, observed):
    problem = problem_of(observed)
    by_state = sizes_written(jax.grad(alignment.total_loss), state, problem)
    by_points = sizes_written(
        jax.grad(lambda p: alignment.total_loss(state, dataclasses.replace(problem, points_i=p))), problem.points_i
    )
    assert max(by_state) == E * 12 < E * H * W  # the gradient by the pairs' transforms
    assert [size for size in by_points if size > E * 12] == [E * H * W] * 3


def test_second_derivatives_are_streamed(state, observed):
    """A product H v keeps nothing for each pixel of each pair."""
    problem = problem_of(observed)

    def product(s):
        return jax.jvp(jax.grad(lambda s: alignment.total_loss(s, problem)), (s,), (s,))[1]

    assert max(sizes_written(product, state)) == E * 12


def single(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == np.float64 else x, tree)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", [*OBSERVED, "flow"])
@pytest.mark.parametrize("transform", [jax.jit, lambda f: f], ids=["compiled", "eager"])
def test_observations_in_half_precision_have_no_gradient(dtype, name, transform, state, observed, convertible):
    """It would be 0: a mean over all pixels has gradients that float16 cannot hold, bfloat16 is kept as integers."""
    convertible(jnp.dtype(dtype).name)
    half = {name: getattr(observed["predictions"], name).astype(dtype) for name in OBSERVED}
    half["flow"] = observed["flow"].astype(dtype)

    def loss(x):
        arrays = half | {name: x}
        flow = arrays.pop("flow")
        predictions = dataclasses.replace(observed["predictions"], **arrays)
        return alignment.total_loss(single(state), problem_of(observed | {"predictions": predictions, "flow": flow}))

    with pytest.raises(GradientError, match=str(jnp.dtype(dtype))):
        transform(jax.grad(loss))(half[name])


def test_half_precision_does_not_stop_the_gradient_by_the_state(state, observed, convertible):
    convertible("float16")
    half = jax.tree.map(lambda x: x if x.dtype == np.int32 else x.astype(jnp.float16), observed["predictions"])
    gradient = jax.jit(jax.grad(alignment.total_loss))
    ours = gradient(single(state), problem_of(observed | {"predictions": half})).log_depth
    expected = gradient(state, problem_of(observed)).log_depth
    # Points with 11 bits; the direction of a distance feels them where it is short.
    np.testing.assert_allclose(ours, expected, atol=0.01 * np.abs(expected).max())


def test_a_problem_in_half_precision_has_no_gradient_either(state, observed, convertible):
    convertible("float16")
    half = jax.tree.map(lambda x: x if x.dtype == np.int32 else x.astype(jnp.float16), observed["predictions"])
    problem = problem_of(observed | {"predictions": half})
    with pytest.raises(GradientError, match="float16"):
        jax.grad(lambda w: alignment.total_loss(single(state), dataclasses.replace(problem, weights_i=w)))(
            problem.weights_i
        )


@pytest.mark.parametrize("name", ["outlier", "limit"])
def test_thresholds_have_no_gradient(name, state, observed):
    problem = problem_of(observed)

    def loss(x):
        return alignment.total_loss(
            state, dataclasses.replace(problem, flow=dataclasses.replace(problem.flow, **{name: x}))
        )

    with pytest.raises(GradientError, match=name):
        jax.jit(jax.grad(loss))(getattr(problem.flow, name))


def test_thresholds_and_weights_map(state, observed):
    """All at once what one at a time gives."""
    problem = problem_of(observed)

    def loss(outlier, limit, weight, smoothing):
        flow = dataclasses.replace(problem.flow, outlier=outlier, limit=limit, weight=weight)
        return alignment.total_loss(state, dataclasses.replace(problem, flow=flow, smoothing_weight=smoothing))

    cases = tuple(map(jnp.asarray, ([50.0, 1.0, 50.0, 50.0], [25.0, 25.0, 0.1, 25.0], [0.7, 0.7, 0.7, 0.0], [0.1] * 4)))
    found = jax.jit(jax.vmap(loss))(*cases)
    assert len(np.unique(found)) == 3  # beyond the limit flow counts as little as with weight 0
    one = jax.jit(loss)
    np.testing.assert_allclose(found, [one(*case) for case in zip(*cases, strict=True)], rtol=1e-12)


def test_forward_mode_alone_is_refused(state, observed):
    problem = problem_of(observed)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda s: alignment.total_loss(s, problem), (state,), (state,))


def test_laying_out_frees_nothing_that_is_traced(state, observed):
    """`release`, which deletes arrays, within a transformation."""

    def loss(points):
        predictions = dataclasses.replace(observed["predictions"], points_j=points)
        return alignment.total_loss(state, alignment.make_problem(predictions, CONFIG, release=True))

    copy = jax.tree.map(jnp.array, observed["predictions"])
    observed["predictions"] = dataclasses.replace(copy, edges=EDGES)
    points = jnp.array(copy.points_j)
    gradient = jax.grad(loss)(points)
    assert np.abs(gradient).max() > 0 and not points.is_deleted()


def test_everything_may_be_traced_at_once(state, observed):
    """Edges too: under `jit` of the predictions they are not a NumPy array."""
    expected = jax.jit(alignment.total_loss)(state, problem_of(observed))

    @jax.jit
    def loss(predictions):
        return alignment.total_loss(state, problem_of(observed | {"predictions": predictions}))

    np.testing.assert_allclose(loss(observed["predictions"]), expected, rtol=1e-12)


def test_the_driver_on_the_host_is_not_differentiable(observed):
    """It raises: by no number of steps would it say 0."""
    predictions = observed["predictions"]

    def depth(confidence):
        return alignment.align(dataclasses.replace(predictions, confidence_i=confidence), CONFIG)[0].depth.sum()

    with pytest.raises(jax.errors.JAXTypeError):
        jax.grad(depth)(predictions.confidence_i)
