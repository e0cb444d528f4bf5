"""Derivatives of the motion score, with respect to the network and to the cue's weights, against finite differences.

The score is piecewise smooth. It has kinks where another value becomes an extreme of a min-max, and jumps where a token
changes its cluster. Random values are far from both in units of the step, so central differences see one smooth piece:
two steps must give the same difference.

The derivatives are those of the float32 code, as users call it; the differences are of the same operations in float64
(`tests/wide.py`), since float32's rounding would hide them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax import motion
from easi3r_jax.core.statistics import AttentionStats
from tests.networks import network, small_network
from tests.wide import dot, in_float64, random_like, slope, widened

SIZE = (32, 48)
CONFIG = e3r.SegmentationConfig(num_clusters=8, restarts=1)
#: Error of a slope as a fraction of the gradient's length, which is the size of a slope along a random direction.
#: float32's rounding makes 1e-6 of it.
TOLERANCE = 1e-5
STEP = 1e-6


def check(f, at, rng) -> np.ndarray:
    """Compares slopes of `f` along a random direction in each array of `at`, the others held fixed. Returns them."""
    gradients, tree = jax.tree.flatten(jax.jit(jax.grad(f))(at))
    length = np.sqrt(dot(gradients, gradients))
    with jax.enable_x64(True):
        wide, arrays = jax.jit(in_float64(f, at)), jax.tree.leaves(widened(at))
        slopes = []
        for n, (gradient, array) in enumerate(zip(gradients, arrays, strict=True)):

            def along(x, n=n):
                return wide(tree.unflatten([*arrays[:n], x, *arrays[n + 1 :]]))

            direction = random_like(rng, array)
            expected, other = (slope(along, array, direction, step) for step in (STEP, 2 * STEP))
            assert abs(expected - other) < 0.1 * TOLERANCE * length
            assert abs(dot(gradient, direction) - expected) < TOLERANCE * length
            slopes.append(expected)
    return np.abs(slopes) / length


def test_scores_of_masks_by_the_networks_parameters():
    rng = np.random.default_rng(0)
    model = network(small_network(), seed=1)
    rgb = rng.integers(0, 256, (3, *SIZE, 3), np.uint8)
    edges = e3r.make_edges(3, "complete")
    weights = rng.standard_normal((3, *SIZE)).astype(np.float32)

    def figure(model):
        return jnp.vdot(weights, e3r.motion_masks(model, rgb, edges, CONFIG).score)

    slopes = check(figure, model, rng)
    assert np.mean(slopes > 1e-4) > 0.85  # the rest, such as the prediction head, has no influence


@pytest.fixture(scope="module")
def clip():
    """(state, labels) of random attention: four frames in all pairs, two layers of three heads, 3 x 4 tokens."""
    rng = np.random.default_rng(1)
    edges = e3r.make_edges(4, "complete")
    values = rng.standard_normal((2, len(edges), 2, 3, 12))
    stats = AttentionStats(*jnp.asarray(values, jnp.float32))
    empty = motion.init_temporal(4, 2, 3, 12)
    state = motion.update_temporal(empty, stats, edges, np.ones(len(edges), bool), (3, 4))
    return state, rng.integers(0, CONFIG.num_clusters, (4, 3, 4), np.int32)


def test_scores_by_weights_of_channels_and_maps(clip):
    state, labels = clip
    rng = np.random.default_rng(2)
    factors = rng.standard_normal((4, 3, 4)).astype(np.float32)
    at = e3r.CueWeights(
        channels=rng.uniform(0.5, 1.5, (2, 3)).astype(np.float32), maps=rng.uniform(0.2, 0.9, 4).astype(np.float32)
    )

    def figure(weights):
        return jnp.vdot(factors, motion.motion_maps(state, labels, CONFIG, weights=weights).score)

    slopes = check(figure, at, rng)
    assert np.all(slopes > 1e-3)
