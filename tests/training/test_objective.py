"""The objective against values computed by hand, and its invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.types import PairPredictions
from easi3r_jax.training import objective
from easi3r_jax.training.batch import Targets, targets_of
from easi3r_jax.training.config import ObjectiveConfig
from tests.networks import network
from tests.walls import PATCH, wall


def random_targets(seed: int = 0, pairs: int = 3) -> Targets:
    keys = jax.random.split(jax.random.key(seed), 2)
    i, j = (jax.random.normal(k, (pairs, 4, 6, 3)) + jnp.asarray([0, 0, 4.0]).reshape(1, 1, 1, 3) for k in keys)
    valid = jnp.ones((pairs, 4, 6), bool)
    return Targets(points_i=i, points_j=j, valid_i=valid, valid_j=valid.at[:, 0].set(False))


def answer(targets: Targets, scale: float = 1.0, confidence: float = 2.0) -> PairPredictions:
    c = jnp.full(targets.valid_i.shape, confidence)
    return PairPredictions(jnp.zeros((len(c), 2), jnp.int32), scale * targets.points_i, scale * targets.points_j, c, c)


@pytest.mark.parametrize("scale", [1.0, 0.01, 30.0])
def test_the_ground_truth_at_any_scale_leaves_only_the_confidence_term(scale):
    loss, terms = objective.regression(answer(random_targets(), scale), random_targets(), alpha=0.2)
    np.testing.assert_allclose(loss, -2 * 0.2 * np.log(2.0), rtol=1e-5)
    assert terms["error_1"] < 1e-6 and terms["error_2"] < 1e-6


def test_a_case_computed_by_hand():
    # One pixel per view. True points at distances 2 and 4 (mean 3), predicted ones at 1 and 1 (mean 1).
    true = Targets(
        jnp.array([[[[0.0, 0, 2]]]]), jnp.array([[[[0.0, 0, 4]]]]), jnp.ones((1, 1, 1), bool), jnp.ones((1, 1, 1), bool)
    )
    predicted = PairPredictions(
        jnp.zeros((1, 2), jnp.int32),
        jnp.array([[[[0.0, 0, 1]]]]),
        jnp.array([[[[1.0, 0, 0]]]]),
        jnp.full((1, 1, 1), 3.0),
        jnp.full((1, 1, 1), 5.0),
    )
    error_1, error_2 = 1 / 3, np.hypot(1, 4 / 3)
    expected = 3 * error_1 - 0.2 * np.log(3) + 5 * error_2 - 0.2 * np.log(5)
    np.testing.assert_allclose(objective.regression(predicted, true, 0.2)[0], expected, rtol=1e-6)


def test_the_best_confidence_is_alpha_over_the_error():
    targets = random_targets()
    wrong = dataclasses.replace(answer(targets), points_i=targets.points_i * 1.3)
    error, _, _ = objective.point_errors(wrong, targets)

    def loss(confidence):
        return objective.regression(dataclasses.replace(wrong, confidence_i=confidence), targets, 0.2)[0]

    np.testing.assert_allclose(jax.grad(loss)(0.2 / error), 0, atol=1e-6)


def test_predictions_at_unknown_pixels_do_not_matter():
    targets = random_targets()
    predicted = answer(targets)
    changed = dataclasses.replace(predicted, points_j=predicted.points_j.at[:, 0].set(1e6))

    def loss(p):
        return objective.regression(p, targets, 0.2)[0]

    assert loss(predicted) == loss(changed)
    assert not np.any(jax.grad(loss, allow_int=True)(changed).points_j[:, 0])


def test_gradients_are_finite_without_known_pixels_and_at_coinciding_points():
    targets = random_targets()
    nothing = dataclasses.replace(
        targets, valid_i=jnp.zeros_like(targets.valid_i), valid_j=jnp.zeros_like(targets.valid_j)
    )
    for t in (nothing, targets):
        gradient = jax.grad(lambda p, t=t: objective.regression(p, t, 0.2)[0], allow_int=True)(answer(targets))
        floats = dataclasses.replace(gradient, edges=None)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(floats))


def test_validation_is_invariant_to_scale_and_depth_shift():
    targets = random_targets()
    shift = jnp.asarray([0, 0, 1.7]).reshape(1, 1, 1, 3)
    moved = dataclasses.replace(
        answer(targets), points_i=2 * targets.points_i + shift, points_j=2 * targets.points_j + shift
    )
    for errors in objective.scale_shift_invariant_errors(moved, targets):
        assert float(errors.max()) < 1e-5
    sideways = dataclasses.replace(moved, points_i=moved.points_i + jnp.asarray([1.0, 0, 0]).reshape(1, 1, 1, 3))
    assert float(objective.scale_shift_invariant_errors(sideways, targets)[0].mean()) > 0.1


def test_targets_are_in_the_first_cameras_frame_in_both_directions():
    targets = targets_of(wall((0.5, 0.0, 0.25)))
    np.testing.assert_allclose(targets.points_i[..., 2], [[[2.0] * 24] * 16, [[1.75] * 24] * 16], rtol=1e-6)
    # View 2's wall in camera 1 is still the plane z = 2; view 1's wall in camera 2 is 1.75 away.
    np.testing.assert_allclose(targets.points_j[..., 2], [[[2.0] * 24] * 16, [[1.75] * 24] * 16], rtol=1e-6)
    # The second camera's central ray meets the wall half a unit to the right in camera 1, and vice versa.
    np.testing.assert_allclose(targets.points_j[:, 8, 12, 0], [0.5, -0.5], atol=1e-6)


# --- terms that DUSt3R does not have --------------------------------------------------------------------------------


def test_a_view_matches_itself_token_by_token():
    weights, known = objective.matches(wall((0.0, 0.0, 0.0)), PATCH)
    assert known.all()
    np.testing.assert_allclose(weights, np.broadcast_to(np.eye(6), (2, 6, 6)), atol=1e-5)


@pytest.mark.parametrize(("patches", "first"), [(1.0, [0, 1, 0, 0, 0, 0]), (0.5, [0.5, 0.5, 0, 0, 0, 0])])
def test_a_shift_by_whole_patches_matches_neighbouring_tokens(patches, first):
    # The camera moves left by depth / focal * pixels, so that the wall's image moves right by `patches` patches.
    weights, known = objective.matches(wall((-patches * PATCH * 2.0 / 20.0, 0.0, 0.0)), PATCH)
    np.testing.assert_allclose(weights[0, 0], first, atol=1e-5)
    np.testing.assert_array_equal(known[0], [True, True, False] * 2)  # the last column has left the image
    np.testing.assert_array_equal(known[1], [patches < 1, True, True] * 2)


def test_occluded_tokens_have_no_match():
    pairs = wall((0.0, 0.0, 0.0))
    hidden = dataclasses.replace(pairs, depth=pairs.depth.at[:, 1, :8].set(1.0))  # an object occludes the upper half
    _, known = objective.matches(hidden, PATCH)
    np.testing.assert_array_equal(known[0], [False] * 3 + [True] * 3)


def test_unknown_depth_has_no_match():
    pairs = wall((0.0, 0.0, 0.0))
    _, known = objective.matches(dataclasses.replace(pairs, depth=jnp.zeros_like(pairs.depth)), PATCH)
    assert not known.any()


def test_cross_entropy_of_uniform_weights_is_the_logarithm_of_their_number():
    weights, known = objective.matches(wall((0.0, 0.0, 0.0)), PATCH)
    np.testing.assert_allclose(objective.cross_entropy(jnp.zeros((2, 6, 6)), weights, known), np.log(6), rtol=1e-5)
    assert objective.cross_entropy(50 * weights, weights, known) < 1e-5
    tokens = jnp.broadcast_to(jnp.eye(6)[None], (2, 6, 6))
    assert objective.matching(tokens, tokens, weights, known) < 1e-3
    assert objective.matching(tokens, jnp.roll(tokens, 1, axis=1), weights, known) > 5


def attend(record, logits, layers, heads):
    """Sets rotated queries and keys (L, E, N, A, D): the maps of some layers and heads become `logits` (E, N, N)."""
    queries, keys = record["rotated_queries"], record["rotated_keys"]
    tokens, width = queries.shape[2], queries.shape[-1]
    wanted = jnp.pad(logits * width**0.5, ((0, 0), (0, 0), (0, width - tokens)))
    record["rotated_queries"] = queries.at[layers, :, :, heads].set(wanted[:, :, None])
    record["rotated_keys"] = keys.at[layers, :, :, heads].set(jnp.eye(tokens, width)[:, None])


def test_only_the_given_layer_and_its_first_heads_are_supervised(config):
    pairs = wall((0.0, 0.0, 0.0))
    _, _, decoded = objective.predict(network(config), pairs.rgb, intermediates=True)
    weights, known = objective.matches(pairs, PATCH)
    before = objective.attention_supervision(decoded, 1, weights, known)
    for branch in ("branch1", "branch2"):
        record = decoded.intermediates[branch]["cross"]
        assert record["rotated_queries"].shape == (2, 2, 6, 2, 8)  # layers, pairs, tokens, heads, channels
        attend(record, 50 * weights, 1, slice(0, 1))
    assert before > 1 and objective.attention_supervision(decoded, 1, weights, known) < 1e-5
    np.testing.assert_allclose(  # the other layer is unchanged
        objective.attention_supervision(decoded, 0, weights, known), np.log(6), atol=0.5
    )


def test_the_second_branch_is_supervised_by_the_reverse_pairs(config):
    pairs = wall((-PATCH * 2.0 / 20.0, 0.0, 0.0))  # one patch: the two directions differ
    weights, known = objective.matches(pairs, PATCH)
    _, _, decoded = objective.predict(network(config), pairs.rgb, intermediates=True)
    reverse = weights[::-1]
    for branch, w in (("branch1", weights), ("branch2", reverse)):
        attend(decoded.intermediates[branch]["cross"], 50 * w, slice(None), slice(None))
    assert objective.attention_supervision(decoded, 0, weights, known) < 1e-5


def test_terms_of_weight_zero_are_absent(config):
    model, pairs = network(config), wall((0.1, 0.0, 0.0))
    loss, terms = objective.objective(model, pairs, ObjectiveConfig())
    assert loss == terms["regression"] and not {"matching", "attention", "scale_anchor"} & terms.keys()
    extra = ObjectiveConfig(scale_weight=0.5, matching_weight=0.25, attention_weight=2.0)
    total, terms = objective.objective(model, pairs, extra)
    parts = terms["regression"] + 0.5 * terms["scale_anchor"] + 0.25 * terms["matching"] + 2 * terms["attention"]
    np.testing.assert_allclose(total, parts, rtol=1e-6)
    assert min(terms["scale_anchor"], terms["matching"], terms["attention"]) > 0
