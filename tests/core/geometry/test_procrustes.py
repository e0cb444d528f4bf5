"""Weighted registration: exact recovery, optimality, proper rotations, degenerate input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.geometry import se3
from easi3r_jax.core.geometry.procrustes import register_similarity, robust_similarity


def moved_by(similarity, points):
    return se3.transform_points(jnp.asarray(similarity), jnp.asarray(points))


def found_matrix(source, target, weights):
    scale, rotation, translation = register_similarity(*(jnp.asarray(x) for x in (source, target, weights)))
    return np.asarray(se3.from_parts(scale * rotation, translation))


def cost(matrix, source, target, weights):
    return float(jnp.sum(weights * jnp.sum((moved_by(matrix, source) - target) ** 2, axis=-1)))


@pytest.mark.parametrize("shape", ["volume", "plane", "three points"])
@pytest.mark.parametrize("seed", range(3))
def test_similarity_is_recovered_exactly(shape, seed, random_motion):
    rng = np.random.default_rng(seed)
    source = 2 * rng.standard_normal((3 if shape == "three points" else 50, 3)) + 5
    if shape == "plane":
        source[:, 2] = source[:, 0] - 3 * source[:, 1]
    truth = random_motion(similarity=True)
    found = found_matrix(source, moved_by(truth, source), rng.uniform(0.1, 3, len(source)))
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-9)


def test_points_of_weight_zero_do_not_matter(random_motion, rng):
    source, truth = rng.standard_normal((40, 3)), random_motion(similarity=True)
    target, weights = np.array(moved_by(truth, source)), rng.uniform(1, 2, 40)
    target[::3] += 100 * rng.standard_normal(target[::3].shape)
    weights[::3] = 0
    np.testing.assert_allclose(found_matrix(source, target, weights), truth, rtol=1e-9, atol=1e-9)


def test_only_relative_weights_matter_and_a_weight_of_two_equals_two_points(rng):
    source, target = rng.standard_normal((2, 20, 3))
    weights = rng.integers(1, 4, 20)
    found = found_matrix(source, target, weights.astype(float))
    np.testing.assert_allclose(found_matrix(source, target, 1e-6 * weights), found, rtol=1e-9, atol=1e-9)
    repeated = [np.repeat(x, weights, axis=0) for x in (source, target)]
    np.testing.assert_allclose(found_matrix(*repeated, np.ones(weights.sum())), found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_nearby_similarity_has_a_lower_cost(seed, random_motion):
    """Noisy points: no small rotation, scaling or shift lowers the weighted sum of squares."""
    rng = np.random.default_rng(seed)
    source, weights = rng.standard_normal((30, 3)), rng.uniform(0.1, 3, 30)
    target = moved_by(random_motion(similarity=True), source) + 0.3 * rng.standard_normal((30, 3))
    found = found_matrix(source, target, weights)
    least = cost(found, source, target, weights)
    for _ in range(20):
        change = np.eye(4)
        change[:3, :3] = (
            np.exp(0.01 * rng.standard_normal()) * Rotation.from_rotvec(0.01 * rng.standard_normal(3)).as_matrix()
        )
        change[:3, 3] = 0.01 * rng.standard_normal(3)
        assert cost(change @ found, source, target, weights) > least


def test_the_rotation_equals_scipys(rng):
    source, target = rng.standard_normal((2, 30, 3))
    weights = rng.uniform(0.1, 3, 30)
    centred = [x - np.average(x, axis=0, weights=weights) for x in (source, target)]
    expected = Rotation.align_vectors(centred[1], centred[0], weights=weights)[0].as_matrix()
    rotation = register_similarity(*(jnp.asarray(x) for x in (source, target, weights)))[1]
    np.testing.assert_allclose(rotation, expected, atol=1e-7)


@pytest.mark.parametrize("mirror", [(-1, 1, 1), (1, 1, -1), (-1, -1, -1)])
def test_a_reflection_is_never_returned(mirror, random_motion, rng):
    source = rng.standard_normal((30, 3)) * [3, 2, 1]
    target = moved_by(random_motion(), source * np.array(mirror))
    scale, rotation, translation = register_similarity(jnp.asarray(source), target, jnp.ones(30))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, rtol=1e-12)
    assert 0 < scale < 1 and jnp.isfinite(translation).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 100], ids=["at the origin", "far away"])
@pytest.mark.parametrize("which", ["source is one point", "target is one point", "both are", "weights are zero"])
def test_if_the_scale_is_undefined_it_shifts_the_means(which, offset, dtype, rng):
    source, target = (rng.standard_normal((2, 20, 3)) + offset).astype(dtype)
    weights = rng.uniform(1, 2, 20).astype(dtype)
    if which in ("source is one point", "both are"):
        source = np.tile(source[:1], (20, 1))
    if which in ("target is one point", "both are"):
        target = np.tile(target[:1], (20, 1))
    if which == "weights are zero":
        weights = np.zeros_like(weights)
    scale, rotation, translation = register_similarity(*(jnp.asarray(x) for x in (source, target, weights)))
    assert scale == 1
    np.testing.assert_array_equal(rotation, np.eye(3))
    mean = [np.average(x, axis=0, weights=weights if weights.any() else None) for x in (source, target)]
    shift = np.zeros(3) if which == "weights are zero" else mean[1] - mean[0]
    np.testing.assert_allclose(translation, shift, atol=200 * np.finfo(dtype).eps * (1 + offset))


@pytest.mark.parametrize("count", [1, 2, 20])
def test_points_on_a_line_still_give_a_proper_similarity(count, random_motion, rng):
    """Only the rotation about the line is undetermined."""
    source = np.linspace(0, 1, count)[:, None] * rng.standard_normal(3) + rng.standard_normal(3)
    target = moved_by(random_motion(similarity=True), source)
    scale, rotation, translation = register_similarity(jnp.asarray(source), target, jnp.ones(count))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, rtol=1e-12)
    np.testing.assert_allclose(moved_by(se3.from_parts(scale * rotation, translation), source), target, atol=1e-9)


def test_vmap_over_pairs(random_motion, rng):
    truth = random_motion((4,), similarity=True)
    source, weights = rng.standard_normal((4, 15, 3)), jnp.asarray(rng.uniform(1, 2, (4, 15)))
    run = jax.jit(jax.vmap(register_similarity))
    scale, rotation, translation = run(jnp.asarray(source), moved_by(truth, source), weights)
    found = se3.from_parts(scale[:, None, None] * rotation, translation)
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-9)


def test_reference_numbers(golden):
    with np.load(golden / "alignment" / "primitives.npz") as g:
        source, target = (jnp.asarray(g[f"rigid_pts{k}"].reshape(-1, 3)) for k in (1, 2))
        scale, rotation, translation = register_similarity(source, target, jnp.asarray(g["rigid_conf"].ravel()))
        assert scale.dtype == jnp.float32
        np.testing.assert_allclose(scale, g["rigid_s"], rtol=1e-5)
        np.testing.assert_allclose(rotation, g["rigid_R"], rtol=0, atol=1e-5)
        # A difference of means of points far from the origin: in float32 it has one digit less.
        np.testing.assert_allclose(translation, g["rigid_T"], rtol=0, atol=5e-5 * np.abs(g["rigid_T"]).max())


def test_the_robust_similarity_is_that_of_most_points(random_motion, rng):
    """12 of 40 points have moved together: the similarity is almost exactly that of the other 28."""
    source, truth = rng.standard_normal((40, 3)), random_motion(similarity=True)
    target = np.array(moved_by(truth, source))
    target[:12] += [3.0, -1.0, 2.0]
    weights = np.ones(40)
    robust = np.asarray(robust_similarity(*(jnp.asarray(x) for x in (source, target, weights))))
    plain = found_matrix(source, target, weights)
    assert np.abs(robust - truth).max() < 0.02 * np.abs(plain - truth).max()


def test_the_robust_similarity_of_coincident_points_is_finite():
    points = jnp.ones((5, 3))
    for weights in (jnp.ones(5), jnp.zeros(5)):
        matrix = robust_similarity(points, points + 2, weights)
        assert np.isfinite(matrix).all()
        np.testing.assert_allclose(np.linalg.det(matrix[:3, :3]), 1, rtol=1e-5)
