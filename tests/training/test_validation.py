"""Validation on predictions whose errors are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.types import PairPredictions
from easi3r_jax.training import validation
from easi3r_jax.training.batch import edges_both_ways, targets_of
from tests.networks import network
from tests.walls import wall


@pytest.fixture
def answers(monkeypatch):
    """Replaces the network's predictions by a function of the targets."""

    def use(answer):
        def predict(model, rgb, *, intermediates=False):
            del model, intermediates
            targets = targets_of(tilted(len(rgb)))
            return answer(targets), None, None

        monkeypatch.setattr(validation, "predict", predict)
        validation._outputs.clear_cache()

    yield use
    validation._outputs.clear_cache()


def tilted(batch: int = 3):
    """Pairs whose second camera is rotated by 0.1 rad about its y axis; the depth is not a plane."""
    pairs = wall((0.3, 0.0, 0.1), batch=batch)
    c, s = np.cos(0.1), np.sin(0.1)
    rotation = jnp.asarray([[c, 0, s], [0, 1, 0], [-s, 0, c]], jnp.float32)
    poses = pairs.world_from_cam.at[:, 1, :3, :3].set(rotation[None])
    rough = jax.random.uniform(jax.random.key(1), (1, *pairs.depth.shape[1:]))  # the same for every pair
    depth = pairs.depth + 0.5 * jnp.tile(rough, (batch, 1, 1, 1))
    return dataclasses.replace(pairs, world_from_cam=poses, depth=depth)


def perfect(targets):
    confidence = jnp.full(targets.valid_i.shape, 5.0)
    return PairPredictions(
        edges_both_ways(len(confidence) // 2), 3 * targets.points_i, 3 * targets.points_j, confidence, confidence
    )


def test_the_ground_truth_at_another_scale_has_no_error(answers, config):
    answers(perfect)
    metrics = validation.evaluate(network(config), tilted(), batch_size=2)
    for name in ("error_1", "error_2", "invariant_1", "invariant_2", "abs_rel", "translation", "focal"):
        assert metrics[name] < 1e-4, (name, metrics[name])
    assert metrics["delta_1_25"] == 1
    assert metrics["rotation_deg"] < 0.05 and metrics["rotation_procrustes_deg"] < 0.1


def test_a_wrong_pose_of_the_second_view_is_measured(answers, config):
    """The network predicts the same camera for both views: the error is the motion between them."""

    def identity(targets):
        own_j = jnp.roll(targets.points_i, len(targets.points_i) // 2, axis=0)
        return dataclasses.replace(perfect(targets), points_j=3 * own_j)

    answers(identity)
    metrics = validation.evaluate(network(config), tilted(), batch_size=2)
    assert metrics["rotation_deg"] == pytest.approx(np.degrees(0.1), abs=0.1)
    assert metrics["rotation_procrustes_deg"] == pytest.approx(np.degrees(0.1), abs=0.1)
    targets = targets_of(tilted())
    own = jnp.roll(targets.points_i, 3, axis=0)
    mean = jnp.mean(jnp.linalg.norm(jnp.stack([targets.points_i, own]), axis=-1), axis=(0, 2, 3))
    true_mean = jnp.mean(jnp.linalg.norm(jnp.stack([targets.points_i, targets.points_j]), axis=-1), axis=(0, 2, 3))
    shape = (-1, 1, 1, 1)
    expected = jnp.linalg.norm(own / mean.reshape(shape) - targets.points_j / true_mean.reshape(shape), axis=-1).mean()
    assert metrics["error_2"] == pytest.approx(float(expected), rel=1e-4)


def test_depth_and_focal_errors_are_relative(answers, config):
    """A focal length that is 1.2 times as long (x and y shrink), and 30 % too large depth in one half of the image."""

    def wrong(targets):
        shrink = jnp.asarray([1 / 1.2, 1 / 1.2, 1.0]).reshape(1, 1, 1, 3)
        right = perfect(targets)
        far = right.points_i.at[:, :, 12:].multiply(1.3)
        return dataclasses.replace(right, points_i=far * shrink)

    answers(wrong)
    metrics = validation.evaluate(network(config), tilted(), batch_size=2)
    assert metrics["focal"] == pytest.approx(0.2, abs=1e-3)
    # The median of ratios lies between the halves' (1 and 1/1.3): mean of both halves' errors.
    ratio = (1 + 1 / 1.3) / 2
    assert metrics["abs_rel"] == pytest.approx((abs(ratio - 1) + abs(1.3 * ratio - 1)) / 2, rel=0.02)


def test_the_baseline_uses_only_the_first_view(config):
    pairs = tilted(2)
    model = network(config)
    other = dataclasses.replace(pairs, rgb=pairs.rgb.at[:, 1].set(0))
    a, b = (validation._outputs(model, p, copied=True)["points_j"] for p in (pairs, other))
    np.testing.assert_allclose(a[:2], b[:2])  # the pairs (1, 2): view 2 is not used
    assert float(jnp.abs(a[2:] - b[2:]).max()) > 0  # in the pairs (2, 1) it is the first view


def test_a_partial_batch_changes_nothing(config):
    model, pairs = network(config), tilted(5)
    whole, parts = (validation.evaluate(model, pairs, batch_size=n) for n in (5, 2))
    for name, value in whole.items():
        if not name.startswith(("rotation", "translation")):  # RANSAC and Procrustes on a random network's noise
            assert parts[name] == pytest.approx(value, rel=1e-3), name
