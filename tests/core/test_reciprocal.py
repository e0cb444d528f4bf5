"""Reciprocal nearest neighbours of descriptors: the reference's indices, exactly, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax.core.reciprocal import nearest_descriptors


@pytest.fixture(scope="module")
def golden_nn(golden):
    with np.load(golden / "mast3r_tiny" / "reciprocal_nn.npz") as file:
        return dict(file)


def pairs(matches: e3r.Matches):
    valid = np.asarray(matches.valid)
    assert not valid[np.argmin(valid) :].any() or valid.all(), "what is not valid is at the end"
    return np.stack([np.asarray(matches.index_i)[valid], np.asarray(matches.index_j)[valid]], axis=1)


def test_the_nearest_descriptors_are_the_references(golden_nn):
    one, two = (golden_nn[f"desc{n}"].reshape(-1, 24) for n in (1, 2))
    np.testing.assert_array_equal(nearest_descriptors(one, two), golden_nn["nn_1to2"])
    np.testing.assert_array_equal(nearest_descriptors(two, one, block=100), golden_nn["nn_2to1"])


@pytest.mark.parametrize("subsample", [1, 2, 4, 8])
def test_walks_end_at_the_references_pairs(golden_nn, subsample):
    found = pairs(e3r.reciprocal_matches(golden_nn["desc1"], golden_nn["desc2"], subsample=subsample))
    expected = np.stack([golden_nn[f"fast_s{subsample}_idx{n}"] for n in (1, 2)], axis=1)
    np.testing.assert_array_equal(found, expected)
    xy = np.stack([found[:, 0] % 32, found[:, 0] // 32], axis=1)
    np.testing.assert_array_equal(xy, golden_nn[f"fast_s{subsample}_xy1"])


@pytest.mark.parametrize("tolerance", [0, 3, 5])
def test_one_way_and_back_within_a_tolerance(golden_nn, tolerance):
    found = pairs(
        e3r.reciprocal_matches(golden_nn["desc1"], golden_nn["desc2"], subsample=4, tolerance=float(tolerance))
    )
    expected = [golden_nn[f"init_grid4_tol{tolerance}_idx{n}"] for n in (1, 2)]
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))


@pytest.mark.parametrize("subsample", [2, 4])
def test_both_ways_join_what_either_way_finds(golden_nn, subsample):
    matches = e3r.reciprocal_matches(golden_nn["desc1"], golden_nn["desc2"], subsample=subsample, both_ways=True)
    found = pairs(matches)
    for side, width in ((1, 32), (2, 28)):
        xy = np.stack([found[:, side - 1] % width, found[:, side - 1] // width], axis=1)
        np.testing.assert_array_equal(xy, golden_nn[f"nonsym_s{subsample}_xy{side}"])
    confidence = np.minimum(golden_nn["conf1"].ravel()[found[:, 0]], golden_nn["conf2"].ravel()[found[:, 1]])
    np.testing.assert_array_equal(confidence, golden_nn[f"nonsym_s{subsample}_conf"])


def test_a_permuted_image_is_matched_to_itself():
    """The permutation comes back, whatever the block, and equal descriptors go to the first of them."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((6, 7, 8)).astype(np.float32)
    one /= np.linalg.norm(one, axis=-1, keepdims=True)
    order = rng.permutation(42)
    other = one.reshape(42, 8)[order].reshape(7, 6, 8)
    found = pairs(e3r.reciprocal_matches(one, other, subsample=1, block=5))
    np.testing.assert_array_equal(found, np.stack([np.arange(42), np.argsort(order)], axis=1))
    np.testing.assert_array_equal(nearest_descriptors(one[0], jnp.concatenate([one[0]] * 2), block=3), np.arange(7))


def test_no_array_is_larger_than_a_block():
    """Of 9216 pixels a side: 85 million products, of which 256 x 256 are held."""
    shape = jax.ShapeDtypeStruct((96, 96, 24), jnp.float32)
    jaxpr = str(jax.make_jaxpr(lambda a, b: e3r.reciprocal_matches(a, b, subsample=1, block=256))(shape, shape))
    assert "f32[256,256]" in jaxpr and "f32[9216,9216]" not in jaxpr and "9216,256]" not in jaxpr


@pytest.mark.parametrize("options", [{"subsample": 0}, {"block": 0}, {"tolerance": -1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(e3r.ConfigError, match="at least"):
        e3r.reciprocal_matches(jnp.ones((2, 2, 3)), jnp.ones((2, 2, 3)), **options)


def test_descriptors_of_two_networks_are_refused():
    with pytest.raises(e3r.InputError, match="3 and 4 channels"):
        e3r.reciprocal_matches(jnp.ones((2, 2, 3)), jnp.ones((2, 2, 4)))


@pytest.mark.parametrize("size", [(3, 20), (3, 3), (1, 1)])
def test_an_image_smaller_than_half_the_subsampling_has_a_start(size):
    drawn = np.random.default_rng(0).standard_normal((*size, 4), np.float32)
    descriptors = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    found = e3r.reciprocal_matches(descriptors, descriptors)
    assert found.valid.all() and len(found.valid) == -(-(size[1] - min(4, size[1] - 1)) // 8)
    np.testing.assert_array_equal(found.index_i, found.index_j)
