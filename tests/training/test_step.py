"""Training steps: what they change, that the loss falls, and that a stopped run resumes exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core import sharding
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.models import parameters_of
from easi3r_jax.training.config import ObjectiveConfig, TrainConfig
from easi3r_jax.training.optimiser import learning_rate, make_optimiser
from easi3r_jax.training.step import averaged_model, init_state, make_step, pair_numbers
from easi3r_jax.weights.checkpoint import latest_state, load_state, save_state
from tests.flags import run_on_devices
from tests.networks import network
from tests.walls import wall

EXTRA = ObjectiveConfig(alpha=0.4, scale_weight=0.01, matching_weight=0.1, attention_weight=0.1)


def draw(numbers):
    """Pairs that depend on their number: a wall with a random texture, seen by a random camera."""
    pairs = wall((0.2, 0.0, 0.1), batch=len(numbers))
    shape = pairs.rgb.shape[1:]
    rgb = jax.vmap(lambda n: jax.random.randint(jax.random.fold_in(jax.random.key(0), n), shape, 0, 256))(numbers)
    return dataclasses.replace(pairs, rgb=rgb.astype(jnp.uint8))


@pytest.fixture(params=[pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def run(request, config):
    training = TrainConfig(
        steps=40, batch_size=2, optimiser=request.param, learning_rate=3e-3, warmup_samples=4, objective=EXTRA
    )
    return config, training, make_step(config, training, sharding.data_mesh(), draw=draw)


def begin(config, training):
    state = init_state(parameters_of(network(config)), training)
    return jax.device_put(state, sharding.replicated_sharding(sharding.data_mesh()))


def test_a_stopped_run_resumes_exactly(run, tmp_path):
    config, training, step = run
    through, losses = begin(config, training), []
    for _ in range(5):
        through, terms = step(through)
        losses.append(float(terms["loss"]))

    first, again = begin(config, training), []
    for _ in range(2):
        first, terms = step(first)
        again.append(float(terms["loss"]))
    save_state(tmp_path / "states", 2, first, {})
    found = latest_state(tmp_path / "states")
    assert found is not None
    second, number = load_state(found, begin(config, training), {})
    assert number == 2 and int(second.step) == 2
    for _ in range(3):
        second, terms = step(second)
        again.append(float(terms["loss"]))

    assert again == losses and len(set(losses)) == 5
    for a, b in zip(jax.tree.leaves(through), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_loss_falls_on_repeated_pairs(config):
    training = TrainConfig(steps=60, batch_size=2, learning_rate=3e-3, warmup_samples=4, objective=EXTRA)
    pairs = draw(jnp.arange(2, dtype=jnp.int32))
    step = make_step(config, training, sharding.data_mesh())
    state, losses = begin(config, training), []
    for _ in range(60):
        state, terms = step(state, pairs)
        losses.append(float(terms["regression"]))
    assert losses[-1] < 0.5 * losses[0]
    assert np.isfinite(losses).all()


@pytest.fixture(scope="module")
def three_steps(config):
    """Host copies of the averages and the trained parameters before and after each step, and the averaged model's."""
    training = TrainConfig(
        steps=10, batch_size=2, learning_rate=1e-2, warmup_samples=2, freeze_encoder=True, average_decay=0.5
    )
    step = make_step(config, training, sharding.data_mesh(), draw=draw)
    state, seen = begin(config, training), []
    for _ in range(3):
        seen.append(jax.tree.map(np.array, (state.average, state.trained)))
        state, _ = step(state)
    seen.append(jax.tree.map(np.array, (state.average, state.trained)))
    return seen, parameters_of(averaged_model(state, config))


def test_a_frozen_encoder_is_unchanged_and_the_rest_is_trained(config, three_steps):
    before, after = parameters_of(network(config)), three_steps[1]
    assert before.keys() == after.keys()
    changed = {name: not np.array_equal(before[name], after[name]) for name in before}
    assert not any(value for name, value in changed.items() if name.startswith("encoder."))
    assert all(value for name, value in changed.items() if name.endswith(".kernel") and not name.startswith("encoder."))


def test_the_average_follows_the_parameters(three_steps):
    (first, *later), name = three_steps[0], "decoder.embed.kernel"
    average = first[0][name]
    for n, (averages, trained) in enumerate(later):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * trained[name]
        np.testing.assert_allclose(averages[name], average, rtol=1e-5, atol=1e-7)


def test_pairs_are_not_repeated():
    numbers = np.concatenate([pair_numbers(jnp.int32(n), 8) for n in range(5)])
    np.testing.assert_array_equal(numbers, np.arange(40))


ONE_AND_TWO_DEVICES = """
import jax
from easi3r_jax.core import sharding
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.models import parameters_of
from easi3r_jax.training.step import init_state, make_step
from tests.networks import network, small_network
from tests.training.test_step import draw
config = small_network(image_size=(16, 24))
training = TrainConfig(steps=10, batch_size=4, learning_rate=1e-3, warmup_samples=4)
start = init_state(parameters_of(network(config)), training)
for count in (1, 2):
    mesh = sharding.data_mesh(count)
    step = make_step(config, training, mesh, draw=draw)
    state = jax.device_put(jax.tree.map(lambda x: x.copy(), start), sharding.replicated_sharding(mesh))
    for _ in range(3):
        state, terms = step(state)
        print(len(terms["loss"].sharding.device_set), float(terms["loss"]), float(terms["gradient_norm"]))
"""


@pytest.mark.slow
def test_two_devices_train_like_one():
    """The batch is the same, and its gradient is the mean of the devices' gradients. Only rounding differs."""
    lines = run_on_devices(2, "-c", ONE_AND_TWO_DEVICES).splitlines()
    printed = np.array([line.split() for line in lines], float).reshape(2, 3, 3)
    assert (printed[0, :, 0] == 1).all() and (printed[1, :, 0] == 2).all()
    np.testing.assert_allclose(printed[0, :, 1:], printed[1, :, 1:], rtol=1e-4)


# --- the optimiser --------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_over_samples_and_decays_to_its_minimum():
    schedule = learning_rate(
        TrainConfig(steps=100, batch_size=4, learning_rate=1e-2, learning_rate_min=1e-4, warmup_samples=40)
    )
    np.testing.assert_allclose([schedule(n) for n in (0, 5, 10, 100)], [0, 5e-3, 1e-2, 1e-4], rtol=1e-5, atol=1e-9)
    values = [float(schedule(n)) for n in range(10, 101)]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(schedule(55), (1e-2 + 1e-4) / 2, rtol=1e-4)  # half a cosine


def moves(training: TrainConfig, parameters, gradients, count: int = 1):
    """The update of the step before the last, at the highest learning rate."""
    rule = make_optimiser(training)
    state = rule.init(parameters)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(count):
            update, state = rule.update(gradients, state, parameters)
    return update


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_are_decayed(name):
    training = TrainConfig(
        steps=100, batch_size=1, optimiser=name, learning_rate=0.1, warmup_samples=1, weight_decay=0.5
    )
    parameters = {
        "decoder.branch1.mlp.fc1.kernel": jnp.ones((2, 4, 4)),
        "head1.proj.kernel": jnp.ones((4, 4)),
        "decoder.norm.scale": jnp.ones(4),
        "head1.proj.bias": jnp.ones(4),
    }
    still = moves(training, parameters, jax.tree.map(jnp.zeros_like, parameters), count=2)
    for key, value in still.items():
        decayed = key.endswith("kernel") and (name == "adamw" or ".branch1." in key)
        expected = -0.1 * 0.5 if decayed else 0.0
        np.testing.assert_allclose(value, np.full(value.shape, expected), rtol=1e-3, atol=1e-6, err_msg=key)


def test_muon_updates_the_blocks_matrices_with_equal_singular_values():
    training = TrainConfig(
        steps=100, batch_size=1, optimiser="muon", learning_rate=0.1, warmup_samples=1, weight_decay=0.0, clip_norm=1e9
    )
    key = jax.random.key(0)
    parameters = {"encoder.blocks.mlp.fc1.kernel": jnp.zeros((3, 8, 6)), "head1.proj.kernel": jnp.zeros((8, 6))}
    gradients = {name: jax.random.normal(key, value.shape) for name, value in parameters.items()}
    update = moves(training, parameters, gradients, count=2)
    for matrix in np.asarray(update["encoder.blocks.mlp.fc1.kernel"]):
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values.max() / values.min() < 2  # Newton-Schulz brings them to within 0.7 to 1.2 of each other
    adam = np.asarray(update["head1.proj.kernel"] / (-0.1 * jnp.sign(gradients["head1.proj.kernel"])))
    assert (adam > 0.8).all() and (adam < 1.3).all()  # every entry moves by about the learning rate
    assert 0.5 < np.sqrt(np.mean(np.square(update["encoder.blocks.mlp.fc1.kernel"]))) / (0.2 * 0.1) < 2


def test_gradients_are_clipped():
    """Adam is invariant to the gradients' scale, but not to a change of scale: an outlier would stay in its moments."""

    def last_update(lengths):
        rule = make_optimiser(TrainConfig(steps=100, batch_size=1, warmup_samples=1, clip_norm=1.0, weight_decay=0.0))
        parameters = {"head1.proj.bias": jnp.zeros(4)}
        state = rule.init(parameters)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            for length in lengths:
                update, state = rule.update({"head1.proj.bias": jnp.full(4, length / 2)}, state, parameters)
        return np.asarray(update["head1.proj.bias"])

    np.testing.assert_allclose(last_update([1.0, 100.0, 1.0]), last_update([1.0, 1.0, 1.0]), rtol=1e-5)
    assert abs(last_update([1.0, 0.01, 1.0]) / last_update([1.0, 1.0, 1.0]) - 1).max() > 0.1  # shorter ones are not


def test_invalid_options_are_refused():
    for changes, message in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"optimiser": "sgd"}, "'sgd'"),
        ({"learning_rate": 1e-9}, "final learning rate"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"warmup_samples": 8000}, "warm-up has 8000 pairs"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(TrainConfig(), **changes)
