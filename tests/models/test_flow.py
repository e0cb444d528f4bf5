"""Flow networks beyond parity (tests/apps/test_parity.py): lookup, upsampling, sizes, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.ndimage import map_coordinates

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.geometry import camera
from easi3r_jax.inference.flow import pad_images
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.models.correlation import LEVELS, halve, make_lookup, window
from easi3r_jax.models.flow_layers import bilinear_upsample, convex_upsample
from easi3r_jax.models.layers import depthwise_conv2d
from tests.networks import flow_network


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def network():
    return flow_network(FlowConfig("raft-small"))


def test_a_window_is_sampled_bilinearly_x_first_and_zero_outside():
    maps, radius = draw(0, 1, 3, 5, 7), 2
    coords = jnp.asarray([[[3.0, 2.0], [1.3, 3.6], [6.8, -1.5]]])
    found = np.asarray(window(maps, coords, radius)).reshape(3, 5, 5)
    for n in range(3):
        (x, y), steps = np.asarray(coords[0, n]), np.arange(-2, 3)
        x, y = np.meshgrid(x + steps, y + steps, indexing="ij")
        padded = np.pad(np.asarray(maps[0, n]), 2)  # beyond the edge, values fade to 0
        expected = map_coordinates(padded, [y + 2, x + 2], order=1)
        np.testing.assert_allclose(found[n], expected, atol=1e-5)


def test_far_outside_the_map_values_are_zero():
    assert not window(draw(0, 1, 2, 5, 7), jnp.asarray([[[1e4, 2.0], [3.0, -1e6]]]), 3).any()


@pytest.mark.parametrize("rows", [1, 3, 36])
def test_chunked_lookup_equals_the_full_one(rows):
    features_i, features_j = draw(0, 2, 9, 12, 6), draw(1, 2, 9, 12, 6)
    coords = camera.pixel_grid(9, 12)[None] + 3 * draw(2, 2, 9, 12, 2)
    cells = sum((9 >> n) * (12 >> n) for n in range(LEVELS))

    def looked_up(**options):
        return jax.jit(lambda i, j, c: make_lookup(i, j, 2, **options)(c))(features_i, features_j, coords)

    whole = looked_up()
    assert whole.shape == (2, 9, 12, LEVELS * 25)
    chunked = looked_up(max_bytes=4 * 2 * cells * rows)
    np.testing.assert_allclose(chunked, whole, atol=1e-5)


def test_chunks_bound_the_memory():
    features = jax.ShapeDtypeStruct((1, 48, 64, 8), jnp.float32)

    def temporary(max_bytes):
        lookup = jax.jit(lambda i, j, c: make_lookup(i, j, 4, max_bytes=max_bytes)(c))
        coords = jax.ShapeDtypeStruct((1, 48, 64, 2), jnp.float32)
        return lookup.lower(features, features, coords).compile().memory_analysis().temp_size_in_bytes

    assert temporary(1 << 20) < temporary(1 << 40) / 4


@pytest.mark.parametrize("size", [3, 7])
def test_depthwise_convolution_and_its_gradient_equal_xlas(size):
    layer, images = depthwise_conv2d(6, size, rngs=nnx.Rngs(0)), draw(0, 2, 9, 12, 6)
    layer.bias[...] = draw(1, 6)
    kernel, weights = layer.kernel[...], draw(2, 2, 9, 12, 6)
    assert kernel.shape == (size, size, 1, 6)

    def convolved(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
        )

    def own(images, kernel):
        return layer.conv_general_dilated(images, kernel, (1, 1), [(size // 2, size // 2)] * 2)

    expected = convolved(images, kernel) + layer.bias[...].reshape(1, 1, 1, 6)
    np.testing.assert_allclose(jax.jit(lambda x: layer(x))(images), expected, atol=1e-5)
    ours, xlas = (
        jax.jit(jax.grad(lambda x, k, f=f: jnp.sum(weights * f(x, k)), argnums=(0, 1)))(images, kernel)
        for f in (own, convolved)
    )
    for found, expected in zip(ours, xlas, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_halving_omits_the_last_odd_row():
    x = draw(0, 1, 5, 4, 3)
    np.testing.assert_allclose(halve(x)[0, 1, 0], x[0, 2:4, :2].mean((0, 1)), rtol=1e-5)
    assert halve(x).shape == (1, 2, 2, 3)


def test_upsampling_keeps_a_constant_flow_inside_the_image():
    flow = jnp.broadcast_to(jnp.asarray([1.5, -0.5]), (1, 4, 5, 2))
    fine = convex_upsample(flow, jnp.zeros((1, 4, 5, 576)))
    assert fine.shape == (1, 32, 40, 2)
    np.testing.assert_allclose(fine[0, 8:-8, 8:-8], np.broadcast_to([12.0, -4.0], (16, 24, 2)), rtol=1e-5)
    np.testing.assert_allclose(bilinear_upsample(flow), np.broadcast_to([12.0, -4.0], (1, 32, 40, 2)), rtol=1e-5)


def test_each_weight_selects_its_neighbour():
    flow = draw(0, 1, 4, 5, 2)
    weights = jnp.zeros((1, 4, 5, 9, 64)).at[:, :, :, 5].set(100.0)  # the neighbour to the right
    fine = convex_upsample(flow, weights.reshape(1, 4, 5, 576)).reshape(1, 4, 8, 5, 8, 2)
    np.testing.assert_allclose(fine[0, 1, 3, 2, 6], 8 * flow[0, 1, 3], rtol=1e-5)
    np.testing.assert_array_equal(fine[0, :, :, -1], 0)


def test_bilinear_upsampling_keeps_the_corners():
    flow = draw(0, 1, 3, 4, 2)
    fine = bilinear_upsample(flow)
    for row, column in ((0, 0), (-1, 0), (0, -1), (-1, -1)):
        np.testing.assert_allclose(fine[0, row, column], 8 * flow[0, row, column], rtol=1e-5)


@pytest.mark.parametrize(("size", "padded", "start"), [((64, 96), (64, 96), (0, 0)), ((65, 90), (72, 96), (3, 3))])
def test_padding_repeats_the_edge(size, padded, start):
    rgb = jnp.arange(np.prod(size) * 3, dtype=jnp.float32).reshape(1, *size, 3)
    larger, (row, column) = pad_images(rgb)
    assert larger.shape == (1, *padded, 3) and (row, column) == start
    np.testing.assert_array_equal(larger[:, row : row + size[0], column : column + size[1]], rgb)
    np.testing.assert_array_equal(larger[0, 0, 0], rgb[0, 0, 0])
    np.testing.assert_array_equal(larger[0, -1, -1], rgb[0, -1, -1])


def test_pairs_of_a_batch_are_independent(network):
    """One of two pairs, beside another pair and beside itself."""
    rgb = np.random.default_rng(0).integers(0, 256, (4, 64, 72, 3), np.uint8)
    estimate = jax.jit(lambda n, i, j: n(i, j, 2)[0])
    together, alone = estimate(network, rgb[:2], rgb[2:]), estimate(network, rgb[[1, 1]], rgb[[3, 3]])[:1]
    assert together.shape == (2, 64, 72, 2) and together.dtype == jnp.float32
    np.testing.assert_allclose(together[1:], alone, atol=1e-4 * float(jnp.abs(alone).max()))


def test_images_too_small_for_the_coarsest_level_are_refused(network):
    with pytest.raises(InputError, match="at least 64 pixels"):
        jax.eval_shape(network, *[np.zeros((1, 56, 96, 3), np.uint8)] * 2)


def test_an_unknown_network_is_refused():
    with pytest.raises(ConfigError, match="'flownet'"):
        FlowConfig("flownet")  # pyright: ignore[reportArgumentType]: the wrong name is the point
