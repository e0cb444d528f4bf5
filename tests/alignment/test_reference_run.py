"""The optimiser follows the reference's trajectory from the same start, and reaches the same result from its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax import alignment
from easi3r_jax.alignment import state as state_of
from tests.alignment.aligned import aligned

SCHEDULES = ["linear", "cosine"]
RUNS = ["linear", pytest.param("cosine", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def gradients(start, predictions, config):
    """Gradients at the reference's start: of the library in float32, and of the plain loss in float64."""
    ours = jax.jit(jax.grad(alignment.total_loss))(start, alignment.make_problem(predictions, config))

    def plain(state, problem):
        return sum(alignment.pair_terms(state, problem)) + alignment.total_loss(
            state, problem, alignment.DEFAULT_TERMS[1:]
        )

    with jax.enable_x64(True):

        def widen(x):
            return jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

        wide_state, wide_predictions = jax.tree.map(widen, start), jax.tree.map(widen, predictions)
        exact = jax.jit(jax.grad(plain))(wide_state, alignment.make_problem(wide_predictions, config))
        assert exact.log_depth.dtype == jnp.float64
        exact = jax.tree.map(np.asarray, exact)
    return jax.tree.map(np.asarray, ours), exact


@pytest.mark.parametrize(
    ("golden_name", "name"), [("im_poses", "frame_poses"), ("pw_poses", "pair_poses"), ("log_focal", "log_focal")]
)
def test_first_gradient_of_poses_and_focal(golden_name, name, gradients, reference):
    expected = reference("a_noflow_linear")[f"iter0_grad_{golden_name}"]
    for gradient in gradients:
        ours = getattr(gradient, name).reshape(expected.shape)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_first_gradient_of_depth_is_nearer_the_truth_than_the_references(gradients, reference):
    """The gradient of a distance is a direction.

    Where the start is all but exact, a distance is as small as float32's rounding, and so is what is left of its
    direction: in one pixel the reference's gradient is off by more than the bar it sets. Wherever it is right, ours
    equals it; ours is right everywhere.
    """
    expected = reference("a_noflow_linear")["iter0_grad_logdepth_f0"]
    ours, truth = (gradient.log_depth[0] for gradient in gradients)
    bar = 1e-4 * np.abs(truth).max()
    assert np.abs(ours - truth).max() <= bar
    off = np.abs(expected - truth) > bar
    assert off.sum() == 1
    assert (np.abs(ours - expected)[~off] <= bar).all()
    assert np.abs(ours - truth)[off] < np.abs(expected - truth)[off]


def test_first_loss_terms(start, problem, reference):
    terms = jax.jit(alignment.loss_terms)(start, problem)
    ours = [terms["total"], *jax.jit(alignment.pair_terms)(start, problem), terms["smoothness"]]
    np.testing.assert_allclose(ours, reference("a_noflow_linear")["iter0_loss_terms"][:4], rtol=1e-5)


@pytest.fixture(scope="module", params=RUNS)
def run(request, start, problem, config, reference):
    """(ours at steps 1, 10 and 300, our losses, the reference's arrays)."""
    config = dataclasses.replace(config, schedule=request.param)
    done, states, losses = zip(*alignment.iterate(start, problem, config, [1, 10, 300]), strict=True)
    return dict(zip(done, states, strict=True)), np.concatenate(losses), reference(f"a_noflow_{request.param}")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates(schedule, config, reference):
    ours = alignment.learning_rates(dataclasses.replace(config, schedule=schedule))
    np.testing.assert_allclose(ours, reference(f"a_noflow_{schedule}")["lrs_f64"], rtol=1e-12)


def test_losses(run):
    _, losses, expected = run
    assert losses.shape == (300,)
    np.testing.assert_allclose(losses[:10], expected["losses"][:10], rtol=1e-4)
    # The reference itself moves so much where its input moves by 1e-7: Adam amplifies gradients that vanish.
    np.testing.assert_allclose(losses, expected["losses"], rtol=3e-2)
    np.testing.assert_allclose(losses[-1], expected["losses"][-1], rtol=1e-3)


def test_parameters_after_the_first_steps(run):
    """Adam's steps have the learning rate's size whatever the gradient's: rounding shows where a gradient vanishes."""
    states, _, expected = run
    for steps in (1, 10):
        tolerance = 1e-2 * (0.01 * steps)  # a hundredth of the way travelled
        for ours, name in ((states[steps].pair_poses, "pw_poses"), (states[steps].frame_poses, "im_poses")):
            np.testing.assert_allclose(ours, expected[f"after{steps}_{name}_param"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(state_of.focals(states[steps]), expected[f"after{steps}_focals"], rtol=1e-6)


def _degrees(ours, expected):
    """Angles between rotations after the first frame's is removed: the world's own pose is free."""
    a, b = (Rotation.from_matrix(np.asarray(poses, np.float64)[:, :3, :3]) for poses in (ours, expected))
    return np.degrees(((a[0].inv() * a).inv() * (b[0].inv() * b)).magnitude())


def test_end(run):
    states, _, expected = run
    end = states[300]
    assert _degrees(state_of.world_from_cam(end), expected["final_im_poses"]).max() <= 0.2
    np.testing.assert_allclose(state_of.focals(end), expected["final_focals"], rtol=2e-4)
    np.testing.assert_allclose(state_of.pair_scales(end), expected["final_pw_scale"], rtol=1e-3)
    np.testing.assert_allclose(np.median(state_of.depth(end) / expected["final_depth"]), 1, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_our_start_ends_as_low(schedule, predictions, config, reference):
    config = dataclasses.replace(config, schedule=schedule)
    result = aligned(predictions, config)
    assert float(result.losses[-1]) <= 1.02 * reference(f"a_noflow_{schedule}")["losses"][-1]
