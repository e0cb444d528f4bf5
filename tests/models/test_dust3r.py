"""The network: shapes, symmetries, compilation, precision."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.models import Precision, abstract_model, normalize_rgb, parameters_of, random_model
from easi3r_jax.models.config import PRESETS, DUSt3RConfig
from easi3r_jax.models.heads import points_and_confidence
from easi3r_jax.models.layers import TransposedConv, upsample
from tests.networks import network, small_network, small_released

SMALL = {head: small_released(head) for head in ("linear", "dpt")}


def frames(count, height, width, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


@jax.jit
def encode(model, rgb):
    return model.encode(rgb)


@functools.partial(jax.jit, static_argnums=3, static_argnames="intermediates")
def decode(model, features_i, features_j, grid, dynamic=None, intermediates=False):
    return model.decode(features_i, features_j, grid, dynamic, intermediates=intermediates)


@jax.jit
def run(model, rgb, dynamic=None):
    grid = model.grid(rgb.shape[1:3])
    features = model.encode(rgb)
    decoded = model.decode(features[:1], features[1:2], grid, dynamic)
    return features, decoded.stats, model.predict(features[:1], features[1:2], decoded, grid)


@pytest.mark.parametrize("head", ["linear", "dpt"])
@pytest.mark.parametrize("size", [(32, 48), (48, 32), (16, 16), (48, 80)])
def test_any_multiple_of_the_patch_size_works(head, size):
    model, rgb = abstract_model(SMALL[head]), frames(2, *size)
    features, stats, (points_i, confidence_i, points_j, confidence_j) = jax.eval_shape(run, model, rgb)
    tokens = size[0] * size[1] // 256
    assert features.shape == (2, tokens, 16)
    assert stats.src.shape == stats.ref.shape == (1, 4, 2, tokens)
    assert points_i.shape == points_j.shape == (1, *size, 3)
    assert confidence_i.shape == confidence_j.shape == (1, *size)


@pytest.mark.parametrize("head", ["linear", "dpt"])
@pytest.mark.parametrize("size", [(32, 48), (16, 16)])
def test_predictions_are_finite(head, size):
    """One token included. Other sizes: tests/apps/test_parity.py."""
    points_i, confidence_i, points_j, confidence_j = run(network(SMALL[head]), frames(2, *size))[2]
    assert all(np.isfinite(x).all() for x in (points_i, points_j))
    assert confidence_i.min() >= 1 and confidence_j.min() >= 1


def test_sizes_must_be_multiples_of_the_patch_size():
    with pytest.raises(InputError, match="do not divide into 16x16"):
        network(SMALL["linear"]).encode(frames(1, 30, 48))


def test_frames_are_encoded_independently():
    model, rgb = network(SMALL["linear"]), frames(3, 32, 48)
    together, alone = encode(model, rgb), encode(model, rgb[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=2e-6)


def test_pairs_are_decoded_independently():
    """In a batch, each pair has its own statistics (the released code mixes them up)."""
    model = network(SMALL["linear"])
    features = np.asarray(encode(model, frames(3, 32, 48)))
    first, second = np.array([0, 2, 1]), np.array([1, 0, 2])
    batch = decode(model, features[first], features[second], (2, 3))
    for e in range(3):
        single = decode(model, features[first[e]][None], features[second[e]][None], (2, 3))
        np.testing.assert_allclose(batch.stats.src[e], single.stats.src[0], atol=3e-6)
        np.testing.assert_allclose(batch.stats.ref[e], single.stats.ref[0], atol=3e-6)
        np.testing.assert_allclose(batch.tokens_i[:, e], single.tokens_i[:, 0], atol=1e-5)


def test_reduced_statistics_equal_the_full_maps():
    model = network(SMALL["linear"])
    features = np.asarray(encode(model, frames(2, 48, 48)))
    decoded = decode(model, features[:1], features[1:], (3, 3), intermediates=True)
    for stats, branch in ((decoded.stats.src, "branch1"), (decoded.stats.ref, "branch2")):
        full = decoded.intermediates[branch]["cross"]["logits"]  # (L, E, A, Nq, Nk)
        np.testing.assert_allclose(np.swapaxes(stats, 0, 1), np.mean(full, axis=-2), atol=2e-6)


def test_the_mask_acts_on_branch_1_first():
    """Layer 0 of branch 2 does not depend on the mask, layer 1 does. Statistics are taken before masking."""
    model = network(SMALL["linear"])
    features = np.asarray(encode(model, frames(2, 48, 48)))
    masks = np.asarray(np.random.default_rng(2).random((2, 1, 9)) < 0.5)
    plain = decode(model, features[:1], features[1:], (3, 3), intermediates=True)
    masked = decode(model, features[:1], features[1:], (3, 3), (masks[0], masks[1]), intermediates=True)
    np.testing.assert_array_equal(masked.stats.src[:, 0], plain.stats.src[:, 0])
    blocks = [d.intermediates[b]["blocks"] for d in (plain, masked) for b in ("branch1", "branch2")]
    np.testing.assert_array_equal(blocks[1][0], blocks[3][0])
    assert np.abs(blocks[1][1] - blocks[3][1]).max() > 1e-4
    assert np.abs(blocks[0][0] - blocks[2][0]).max() > 1e-4


def test_one_compilation_per_batch_and_resolution():
    model = network(SMALL["linear"])
    chex.clear_trace_counter()
    encode = jax.jit(chex.assert_max_traces(lambda m, x: m.encode(x), n=1))
    for seed in range(3):
        encode(model, frames(2, 32, 48, seed))
    with pytest.raises(AssertionError, match="traced"):
        encode(model, frames(2, 48, 32))
    chex.clear_trace_counter()


def test_depth_does_not_change_the_size_of_the_program():
    """Layers are scanned, not unrolled."""

    def operations(depth):
        config = DUSt3RConfig(
            image_size=(32, 32),
            enc_dim=16,
            enc_depth=depth,
            enc_heads=2,
            dec_dim=16,
            dec_depth=depth,
            dec_heads=2,
            head="linear",
        )
        return str(jax.make_jaxpr(run)(abstract_model(config), frames(2, 32, 32))).count(" = ")

    assert operations(2) == operations(12)


def test_the_gradient_in_float64_is_that_of_finite_differences():
    """By all parameters, along a random direction. Measured: 2e-9, and 1e-4 where one operation takes float32."""
    rgb, model = frames(2, 32, 48), network(SMALL["linear"])  # the DPT head's many ReLUs have kinks on the way
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # Flax asks for the wider of float32 and float64
        model = model.with_precision(Precision(layers="float64"))
        leaves, structure = jax.tree.flatten(model)
        rng = np.random.default_rng(0)
        direction = [rng.standard_normal(leaf.shape) for leaf in leaves]

        @jax.jit
        def loss(step):
            moved = jax.tree.unflatten(structure, [a + step * b for a, b in zip(leaves, direction, strict=True)])
            features, stats, points = run(moved, rgb)
            outputs = jax.tree.leaves((features, stats, points))
            assert all(leaf.dtype == jnp.float64 for leaf in outputs)
            return sum(jnp.mean(jnp.sin(leaf)) for leaf in outputs)

        difference = (loss(1e-6) - loss(-1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(loss)(0.0), difference, rtol=1e-7)


def test_gradients_are_finite_at_a_zero_point():
    gradient = jax.grad(lambda raw: points_and_confidence(raw, (1.0, np.inf))[0].sum())(jnp.zeros((2, 4)))
    np.testing.assert_allclose(gradient, [[1, 1, 1, 0]] * 2, atol=1e-6)


def test_points_grow_exponentially_and_keep_their_direction():
    raw = jnp.array([[3.0, 0.0, -4.0, 0.5]])
    points, confidence = points_and_confidence(raw, (1.0, np.inf))
    np.testing.assert_allclose(points[0], np.array([0.6, 0.0, -0.8]) * np.expm1(5.0), rtol=1e-6)
    np.testing.assert_allclose(confidence, 1 + np.exp(0.5), rtol=1e-6)
    np.testing.assert_allclose(points_and_confidence(raw, (1.0, 2.0))[1], 2.0)


def test_transposed_convolution_scatters_blocks():
    from flax import nnx

    layer = TransposedConv(2, 3, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 2))
    y = np.asarray(layer(x))
    kernel = np.asarray(layer.kernel[...])
    for h, w, k, m in np.ndindex(2, 3, 2, 2):
        np.testing.assert_allclose(y[0, 2 * h + k, 2 * w + m], np.asarray(x)[0, h, w] @ kernel[:, k, m], atol=1e-6)


def test_upsampling_aligns_corners_and_is_exact_on_ramps():
    ramp = np.arange(5.0)[:, None] * 2 + np.arange(4.0)[None] * 3
    up = np.asarray(upsample(jnp.asarray(ramp, jnp.float32)[None, :, :, None], 2))[0, :, :, 0]
    expected = np.linspace(0, 4, 10)[:, None] * 2 + np.linspace(0, 3, 8)[None] * 3
    np.testing.assert_allclose(up, expected, atol=1e-5)
    assert upsample(jnp.ones((1, 1, 1, 2)), 2).shape == (1, 2, 2, 2)


def test_normalisation_range():
    np.testing.assert_array_equal(normalize_rgb(jnp.array([0, 255], jnp.uint8)), [-1.0, 1.0])


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("512-dpt", 571171208), ("512-linear", 532342784), ("224-linear", 532342784), ("embedded", 2230144)],
)
def test_presets_have_the_released_number_of_parameters(preset, parameters):
    config = PRESETS[preset]()
    ours = sum(x.size for x in jax.tree.leaves(abstract_model(config)))
    unused = config.dec_dim  # mask_token
    if config.head == "dpt":
        unused += 2 * 2 * (256 * 256 * 9 + 256)  # refinenet4.resConfUnit1 of both heads
    assert ours + unused == parameters


@pytest.mark.parametrize("preset", ["embedded", "embedded-wide"])
def test_networks_to_ship_are_below_15_megabytes_in_half_precision(preset):
    assert 2 * sum(x.size for x in jax.tree.leaves(abstract_model(PRESETS[preset]()))) < 15e6


@pytest.mark.parametrize(
    "options", [{"enc_heads": 7}, {"patch_size": 8}, {"dec_depth": 2}, {"enc_dim": 0}, {"head": "mlp"}]
)
def test_impossible_configurations_are_refused(options):
    with pytest.raises(ConfigError):
        DUSt3RConfig(**options)


def test_random_weights_are_a_seeds_in_every_policy():
    """Of the deviations that tests/networks.py draws with, too."""
    config = small_network()
    exact, half, other = (
        jax.tree.map(np.asarray, parameters_of(random_model(config, seed=seed, precision=precision)))
        for seed, precision in ((1, "exact"), (1, "bf16"), (2, "exact"))
    )
    drawn = jax.tree.map(np.asarray, parameters_of(network(config)))
    for name, value in exact.items():
        np.testing.assert_allclose(half[name].astype(np.float32), value, rtol=2**-8)
        if name.endswith("kernel"):
            assert not np.any(value == other[name])
            assert np.std(drawn[name]) == pytest.approx(np.std(value), rel=0.2)
        else:
            np.testing.assert_array_equal(value, drawn[name])
