"""The optimisation loop: Adam written out, schedules, a single compilation, determinism, and the options' effects."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import alignment
from easi3r_jax.alignment import descent
from easi3r_jax.alignment import state as state_of
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.types import PairPredictions
from tests.alignment.aligned import aligned
from tests.flags import run_on_devices


@pytest.fixture(scope="module")
def noisy(exact_clip):
    """A clip with noise, a trembling camera and a focal length of its own for every frame."""
    return exact_clip(focals=np.array([18.0, 20.0, 22.0, 24.0]), noise=0.05, jitter=0.02)


@pytest.fixture(scope="module")
def small(noisy, config):
    """(start, problem) of the noisy clip."""
    own = dataclasses.replace(config, shared_focal=False)
    return alignment.initial_state(noisy.predictions, own), alignment.make_problem(noisy.predictions, own)


def bowl(state, problem):
    """Squares and a slope: an objective whose steps are quick to write out."""
    del problem
    return jnp.sum(state.frame_poses**2) + 3 * jnp.sum(state.log_focal)


BOWL = (alignment.Term("bowl", bowl),)


def test_steps_are_adams(small, config):
    """Kingma & Ba (2015), alg. 1, betas (0.9, 0.9), eps 1e-8, in float64; parameters without a gradient stay."""
    state, problem = small
    config = dataclasses.replace(config, iterations=30)
    end, losses = alignment.optimise(state, problem, config, terms=BOWL)
    pose, focal = np.asarray(state.frame_poses, np.float64), np.asarray(state.log_focal, np.float64)
    m, v, expected = 0.0, 0.0, []
    for k, rate in enumerate(np.linspace(0.01, 0.001, 31)[:30], start=1):
        expected.append((pose**2).sum() + 3 * focal.sum())
        m, v = 0.9 * m + 0.1 * 2 * pose, 0.9 * v + 0.1 * (2 * pose) ** 2
        pose = pose - rate * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.9**k)) + 1e-8)
        focal = focal - rate  # a constant slope: every step is the learning rate
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(end.frame_poses, pose, atol=1e-5)
    np.testing.assert_allclose(end.log_focal, focal, rtol=1e-6)
    np.testing.assert_array_equal(end.pair_poses, state.pair_poses)
    np.testing.assert_array_equal(end.log_depth, state.log_depth)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_fall_from_one_end_towards_the_other(schedule):
    config = AlignConfig(iterations=100, learning_rate=0.02, learning_rate_min=0.004, schedule=schedule)
    rates = alignment.learning_rates(config)
    assert rates.shape == (100,) and rates[0] == 0.02
    assert (np.diff(rates) < 0).all() and rates[-1] > 0.004
    np.testing.assert_allclose(rates[50], 0.012, rtol=1e-12)  # half way in both
    quarter = {"linear": 0.016, "cosine": 0.004 + 0.008 * (1 + 0.5**0.5)}[schedule]
    np.testing.assert_allclose(rates[25], quarter, rtol=1e-12)


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"iterations": -3}, {"schedule": "step"}])
def test_impossible_schedules_are_refused(wrong, small, config):
    with pytest.raises(ConfigError):
        alignment.optimise(*small, dataclasses.replace(config, **wrong))


def test_one_compilation_whatever_the_number_of_iterations_and_the_rates(small, config):
    traces = []

    def counted(state, problem):
        traces.append(1)
        return bowl(state, problem)

    def run(config):
        return alignment.optimise(*small, config, terms=[alignment.Term("counted", counted)])

    before = descent._compiled_steps._cache_size()
    run(dataclasses.replace(config, iterations=1))
    first = len(traces)
    assert first > 0
    for change in ({"iterations": 7}, {"iterations": 45}, {"schedule": "cosine"}, {"learning_rate": 0.3}):
        run(dataclasses.replace(config, **{"iterations": 20, **change}))
    list(alignment.iterate(*small, config, [3, 4, 41], terms=(alignment.Term("counted", counted),)))
    assert descent._compiled_steps._cache_size() == before + 1
    start, problem = small
    bound = jax.device_put(start, jax.local_devices()[0])
    assert bound.log_depth.committed and not start.log_depth.committed
    list(alignment.iterate(bound, problem, config, [3, 41], terms=(alignment.Term("counted", counted),)))
    assert len(traces) == first
    # Arguments committed to a device are another signature: the same one for the first call and those after it.
    assert descent._compiled_steps._cache_size() == before + 2


ON_THE_SECOND_DEVICE = """
import jax, numpy as np
from easi3r_jax import alignment
from easi3r_jax.apps.benchmark.stages import slanted_wall
from easi3r_jax.core.config import AlignConfig

config = AlignConfig(iterations=2)
predictions = slanted_wall(jax.numpy.asarray([[0, 1], [1, 0]]), (8, 8), "float32")
problem, start = alignment.make_problem(predictions, config), alignment.initial_state(predictions, config)
second = jax.devices()[1]
bound = jax.device_put(problem, second)
host, there = jax.tree.map(np.asarray, start), jax.device_put(start, second)
for start, problem in ((start, bound), (host, bound), (there, problem)):
    state, _ = alignment.optimise(start, problem, config)
    print(state.log_depth.devices() == {second})
"""


def test_it_runs_where_its_arguments_are():
    """Committed to a device are the problem, the problem beside arrays of NumPy, the start."""
    assert run_on_devices(2, "-c", ON_THE_SECOND_DEVICE).split() == ["True"] * 3


@pytest.fixture(scope="module")
def run(small, config):
    """Losses and end of 50 iterations."""
    return alignment.optimise(*small, dataclasses.replace(config, iterations=50))


def test_the_same_bits_twice(small, run, config):
    again = alignment.optimise(*small, dataclasses.replace(config, iterations=50))
    jax.tree.map(np.testing.assert_array_equal, again, run)


def test_stops_on_the_way_change_nothing(small, run, config):
    config = dataclasses.replace(config, iterations=50)
    done, states, losses = zip(*alignment.iterate(*small, config, [1, 2, 23, 50]), strict=True)
    assert done == (1, 2, 23, 50)
    assert [len(x) for x in losses] == [1, 1, 21, 27]
    jax.tree.map(np.testing.assert_array_equal, (states[-1], np.concatenate(losses)), run)


def test_progress_is_reported_from_start_to_end(small, run, config):
    told = []
    config = dataclasses.replace(config, iterations=50)
    _, losses = alignment.optimise(*small, config, progress=lambda *report: told.append(report))
    stages, done, total, notes = zip(*told, strict=True)
    assert set(stages) == {"align"}
    assert done[0] == 0 and done[-1] == 50 and list(done) == sorted(set(done)) and len(done) >= 3
    assert set(total) == {50}
    assert notes[0] == ""
    assert list(notes[1:]) == [f"loss {loss:.4f}" for loss in np.asarray(losses)[np.array(done[1:]) - 1]]


RATES, ACTIVE = jnp.asarray([0.01, 0.02], jnp.float32), jnp.asarray([True, True])


def test_steps_map_over_starts(small):
    state, problem = small
    starts = jax.tree.map(lambda x: jnp.stack([x, x + 0.01]), state)

    def two_steps(state):
        return alignment.adam_steps(state, alignment.init_moments(state), problem, RATES, ACTIVE)

    both, one = jax.jit(jax.vmap(two_steps))(starts), jax.jit(two_steps)
    for k in range(2):
        expected = one(jax.tree.map(lambda x, k=k: x[k], starts))
        np.testing.assert_allclose(both[2][k], expected[2], rtol=1e-5)
        np.testing.assert_allclose(both[0].pair_poses[k], expected[0].pair_poses, atol=1e-5)


def test_steps_differentiate_through(small):
    """The end knows how the learning rates made it, parameters that have no gradient notwithstanding."""
    state, problem = small

    def final(rates):
        return bowl(
            alignment.adam_steps(state, alignment.init_moments(state), problem, rates, ACTIVE, BOWL)[0], problem
        )

    slope = jax.grad(final)(RATES)
    for k in range(2):
        change = jnp.zeros(2).at[k].set(1e-3)
        np.testing.assert_allclose(slope[k], (final(RATES + change) - final(RATES - change)) / 2e-3, rtol=0.01)


def test_inactive_steps_change_nothing(small):
    state, problem = small
    moments = alignment.init_moments(state)
    rates, active = jnp.asarray([0.01, 0.01], jnp.float32), jnp.asarray([False, False])
    after, memory, losses = alignment.adam_steps(state, moments, problem, rates, active, BOWL)
    jax.tree.map(np.testing.assert_array_equal, (after, memory), (state, moments))
    np.testing.assert_array_equal(losses, 0)


def of_200_steps(clip, config, **change):
    return aligned(clip.predictions, dataclasses.replace(config, iterations=200, **change))


def test_optimising_lowers_the_loss_and_finds_each_focal_length(noisy, config):
    own, shared = (of_200_steps(noisy, config, shared_focal=flag) for flag in (False, True))
    assert own.losses[-1] < 0.9 * own.losses[0]
    np.testing.assert_allclose(own.intrinsics[:, 0, 0], noisy.focals, rtol=0.03)
    assert len(np.unique(shared.intrinsics[:, 0, 0])) == 1
    np.testing.assert_allclose(shared.intrinsics[0, 0, 0], noisy.focals.mean(), rtol=0.1)
    assert own.losses[-1] < shared.losses[-1]  # one focal length for four cameras fits worse


def jitter(result):
    """Change of the camera's step from frame to frame, in units of the scene's depth."""
    return np.linalg.norm(np.diff(result.world_from_cam[:, :3, 3], axis=0), axis=1).sum() / result.depth.mean()


def test_smoothing_shortens_the_camera_path(exact_clip, config):
    trembling = exact_clip(noise=0.05, jitter=0.15)
    none, some, much = (jitter(of_200_steps(trembling, config, smoothing_weight=w)) for w in (0.0, 0.1, 1.0))
    assert much < some < none
    assert much < 0.8 * none


def test_half_precision_observations_do_not_halve_the_state(noisy, config):
    """Predictions may arrive in bfloat16: parameters and losses stay float32."""
    half = jax.tree.map(lambda x: x if x.dtype == jnp.int32 else x.astype(jnp.bfloat16), noisy.predictions)
    assert isinstance(half, PairPredictions)
    state = alignment.initial_state(half, config)
    assert {x.dtype for x in jax.tree.leaves(state)} == {np.dtype(np.float32)}
    full = state_of.focals(alignment.initial_state(noisy.predictions, config))
    np.testing.assert_allclose(state_of.focals(state), full, rtol=0.02)
