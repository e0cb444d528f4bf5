"""Rigid motions and similarities: agreement with SciPy, group axioms, values at singular points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.geometry import se3

BATCHES = pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,)], ids=str)
SIMILARITY = pytest.mark.parametrize("similarity", [False, True], ids=["rigid", "similarity"])
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


@BATCHES
def test_matrix_from_quaternion_is_scipys(batch, rng):
    quaternion = rng.standard_normal((*batch, 4))
    ours = se3.matrix_from_quaternion(jnp.asarray(quaternion))
    assert ours.shape == (*batch, 3, 3) and ours.dtype == jnp.float64
    if quaternion.size:
        expected = Rotation.from_quat(quaternion.reshape(-1, 4)).as_matrix().reshape(ours.shape)
        np.testing.assert_allclose(ours, expected, **CLOSE)


def test_length_and_sign_of_a_quaternion_do_not_matter(rng):
    quaternion = jnp.asarray(rng.standard_normal((6, 4)))
    for factor in (-1.0, 1e-12, 1e12):
        np.testing.assert_allclose(
            se3.matrix_from_quaternion(factor * quaternion), se3.matrix_from_quaternion(quaternion), **CLOSE
        )


@BATCHES
def test_quaternion_from_matrix_round_trip(batch, random_motion):
    rotation = jnp.asarray(random_motion(batch)[..., :3, :3])
    quaternion = se3.quaternion_from_matrix(rotation)
    assert quaternion.shape == (*batch, 4)
    np.testing.assert_allclose(np.linalg.norm(quaternion, axis=-1), np.ones(batch), **CLOSE)
    assert (quaternion[..., 3] >= 0).all()
    np.testing.assert_allclose(se3.matrix_from_quaternion(quaternion), rotation, **CLOSE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("angle", [0, 1e-7, 1e-3, np.pi / 2, 2 * np.pi / 3, np.pi - 1e-3, np.pi - 1e-7, np.pi])
def test_quaternion_is_accurate_at_every_angle_and_axis(angle, dtype, rng):
    """Formulas that divide by w fail at half turns, and those with arccos near the identity."""
    axes = np.concatenate([np.eye(3), -np.eye(3), rng.standard_normal((20, 3))])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    rotation = Rotation.from_rotvec(angle * axes).as_matrix()
    quaternion = se3.quaternion_from_matrix(jnp.asarray(rotation, dtype))
    assert quaternion.dtype == dtype
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(se3.matrix_from_quaternion(quaternion), rotation, rtol=0, atol=tolerance)
    np.testing.assert_allclose(quaternion[:, 3], np.cos(angle / 2), rtol=0, atol=tolerance)


def test_zero_quaternion_is_the_identity_with_a_finite_gradient():
    value, gradient = jax.value_and_grad(lambda q: jnp.sum(se3.matrix_from_quaternion(q)))(jnp.zeros(4))
    assert value == 3
    assert jnp.isfinite(gradient).all()


@BATCHES
@SIMILARITY
def test_inverse_is_two_sided(batch, similarity, random_motion):
    b_from_a = jnp.asarray(random_motion(batch, similarity=similarity))
    identity = np.broadcast_to(np.eye(4), (*batch, 4, 4))
    a_from_b = se3.inverse(b_from_a)
    np.testing.assert_allclose(se3.compose(a_from_b, b_from_a), identity, **CLOSE)
    np.testing.assert_allclose(se3.compose(b_from_a, a_from_b), identity, **CLOSE)


@SIMILARITY
def test_inverse_of_a_product_is_the_product_of_inverses(similarity, random_motion):
    c_from_b, b_from_a = (jnp.asarray(random_motion((4,), similarity=similarity)) for _ in range(2))
    reverse = se3.compose(se3.inverse(b_from_a), se3.inverse(c_from_b))
    np.testing.assert_allclose(se3.inverse(se3.compose(c_from_b, b_from_a)), reverse, **CLOSE)


@BATCHES
@pytest.mark.parametrize("points_shape", [(7,), (4, 5)], ids=str)
def test_transforming_points_equals_multiplying_homogeneous_coordinates(batch, points_shape, random_motion, rng):
    b_from_a = random_motion(batch, similarity=True)
    points = rng.standard_normal((*batch, *points_shape, 3))
    homogeneous = np.concatenate([points, np.ones((*points.shape[:-1], 1))], axis=-1)
    spread = b_from_a.reshape(*batch, *(1,) * len(points_shape), 4, 4)
    moved = se3.transform_points(jnp.asarray(b_from_a), jnp.asarray(points))
    np.testing.assert_allclose(moved, (spread @ homogeneous[..., None])[..., :3, 0], **CLOSE)


def test_transforming_twice_equals_transforming_by_the_product(random_motion, rng):
    c_from_b, b_from_a = (jnp.asarray(random_motion((2, 3))) for _ in range(2))
    points = jnp.asarray(rng.standard_normal((2, 3, 6, 3)))
    twice = se3.transform_points(c_from_b, se3.transform_points(b_from_a, points))
    np.testing.assert_allclose(se3.transform_points(se3.compose(c_from_b, b_from_a), points), twice, **CLOSE)


def test_vmap_over_the_batch_equals_the_batched_call(random_motion, rng):
    motions, points = jnp.asarray(random_motion((5,), similarity=True)), jnp.asarray(rng.standard_normal((5, 6, 3)))
    np.testing.assert_allclose(jax.vmap(se3.inverse)(motions), se3.inverse(motions), **CLOSE)
    mapped = jax.vmap(se3.transform_points)(motions, points)
    np.testing.assert_allclose(mapped, se3.transform_points(motions, points), **CLOSE)


def test_translation_parametrisation_round_trip_and_known_values():
    x = jnp.asarray([-1e3, -1.0, -1e-12, 0.0, 1e-12, 1.0, 1e3])
    np.testing.assert_allclose(se3.signed_expm1(se3.signed_log1p(x)), x, rtol=1e-12)
    np.testing.assert_allclose(se3.signed_log1p(jnp.asarray([np.e - 1, 1 - np.e])), [1, -1], rtol=1e-12)
    np.testing.assert_array_equal(se3.signed_expm1(-x), -se3.signed_expm1(x))


def test_a_translation_parameter_at_zero_has_no_gradient():
    slope = jax.vmap(jax.grad(se3.signed_expm1))(jnp.asarray([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(slope, [np.e, 0, np.e], rtol=1e-12)


def test_safe_norm_has_gradient_zero_at_zero_and_a_unit_vector_elsewhere():
    x = jnp.asarray([[0.0, 0.0, 0.0], [3.0, 0.0, -4.0]])
    np.testing.assert_allclose(se3.safe_norm(x), [0, 5], rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(jax.grad(se3.safe_norm))(x), [[0, 0, 0], [0.6, 0, -0.8]], rtol=1e-12)


def test_products_run_at_the_highest_precision(random_motion, rng):
    """The default product of a GPU or TPU rounds to 10 or 8 bits of mantissa: these functions ask for more."""
    motions, points = jnp.asarray(random_motion((3,))), jnp.asarray(rng.standard_normal((3, 4, 3)))
    with jax.default_matmul_precision("bfloat16"):
        for function, inputs in (
            (se3.compose, (motions, motions)),
            (se3.inverse, (motions,)),
            (se3.transform_points, (motions, points)),
        ):
            program = jax.jit(function).lower(*inputs).as_text()
            products = [line for line in program.splitlines() if "dot_general" in line]
            assert products
            assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
