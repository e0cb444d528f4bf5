"""Policies: what every product is computed in, what is stored, and that they are named in one line if wrong."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.models import POLICIES, Precision, abstract_model, flow_network, policy
from easi3r_jax.models.config import FlowConfig
from easi3r_jax.motion import cluster_labels, init_temporal, motion_maps
from tests.networks import network, small_released

HIGH, HIGHEST = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST
RGB = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
#: Policy -> number type and precision of products in encoder and decoder, and precision in the heads.
EXPECTED = {
    "exact": (jnp.float32, HIGHEST, HIGHEST),
    "tf32": (jnp.float32, HIGH, HIGH),
    "bf16": (jnp.bfloat16, None, HIGH),
}


def products(function, *args):
    """(number type, precision) of every product and convolution; the precision is None if not of float32."""
    return traced(function, *args)[0]


def traced(function, *args):
    """The `products` of a function, and the shapes that it returns."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                dtype, precision = equation.invars[0].aval.dtype, equation.params["precision"]
                yield dtype.type, precision[0] if dtype == jnp.float32 else None
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(inner, "eqns"):
                    yield from walk(getattr(inner, "jaxpr", inner))

    with jax.default_matmul_precision("bfloat16"):  # what a product has that asks for nothing
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        return list(walk(program.jaxpr)), shapes


@jax.jit
def run(model, rgb=RGB):
    features = model.encode(rgb)
    decoded = model.decode(features[:1], features[1:], (3, 3), gram=True)
    return features, decoded.stats, model.predict(features[:1], features[1:], decoded, (3, 3))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("head", ["linear", "dpt"])
def test_the_policy_reaches_every_product(name, head):
    model = abstract_model(small_released(head), precision=POLICIES[name])
    layers, trunk, heads = EXPECTED[name]

    def decode(model, features):
        return model.decode(features[:1], features[1:], (3, 3), gram=True)

    found, features = traced(lambda m: m.encode(RGB), model)
    assert len(found) >= 7 and set(found) == {(layers, trunk)}
    found, decoded = traced(decode, model, features)
    statistics = (jnp.float32, HIGHEST)  # in every policy
    assert set(found) == {(layers, trunk), statistics} and found.count((layers, trunk)) >= 20
    assert found.count(statistics) >= 2 * (1 + 9)  # of two branches: mean logits, Gram statistics
    found = products(lambda m, f, d: m.predict(f[:1], f[1:], d, (3, 3)), model, features, decoded)
    assert len(found) >= (2 if head == "linear" else 40) and set(found) == {(jnp.float32, heads)}


@pytest.mark.parametrize("name", ["sea-raft", "raft"])
def test_the_policy_reaches_the_flow_networks(name):
    rgb = jnp.zeros((1, 64, 64, 3))
    for precision, expected in (("exact", HIGHEST), ("bf16", HIGH)):
        of_policy = partial(flow_network, FlowConfig(name), precision=policy(precision))
        found = products(lambda n: n(rgb, rgb, 1)[0], jax.eval_shape(of_policy))
        assert {dtype for dtype, _ in found} == {jnp.float32}
        inexact = [p for _, p in found if p != expected]
        assert inexact == ([] if expected == HIGHEST else [HIGHEST])  # pixels are not rounded: the upsampling


def test_nothing_after_the_networks_is_rounded():
    edges = np.array([[0, 1], [1, 0]], np.int32)
    features, labels, statistics = jnp.ones((2, 6, 4)), jnp.zeros((2, 2, 3), jnp.int32), init_temporal(2, 1, 1, 6)
    points, confidence = jnp.ones((2, 16, 24, 3)), jnp.ones((2, 16, 24))
    predictions = e3r.PairPredictions(jnp.asarray(edges), points, points, confidence, confidence)
    config = e3r.SegmentationConfig(num_clusters=3, restarts=1)
    problem = e3r.make_problem(predictions, e3r.AlignConfig())
    state = e3r.initial_state(predictions, e3r.AlignConfig())
    found = products(lambda f: cluster_labels(f, (2, 3), config, jax.random.key(0)), features)
    found += products(lambda s: motion_maps(s, labels, config), statistics)
    found += products(jax.grad(lambda s: e3r.alignment_loss(s, problem)), state)
    assert len(found) >= 4 and set(found) == {(jnp.float32, HIGHEST)}


def test_bfloat16_is_close_and_its_weights_take_half_the_memory():
    exact, half = (network(small_released("linear"), name) for name in ("exact", "bf16"))
    results = run(exact), run(half)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert b.dtype == jnp.float32
        assert 0 < np.abs(a - b).max() / np.abs(a).max() < 0.05  # 8 bits: .4 % a product; 0: it was not used
    for part in (half.encoder, half.decoder):
        stored = jax.tree.leaves(part.blocks.mlp if part is half.encoder else part.branch1.cross_attention)
        assert {leaf.dtype for leaf in stored} == {jnp.dtype(jnp.bfloat16)}
    assert half.encoder.norm.scale[...].dtype == half.head1.proj.kernel[...].dtype == jnp.float32
    assert half.encoder.blocks.norm1.scale[...].dtype == jnp.float32


def test_another_policy_shares_what_it_stores_the_same_way():
    model = network(small_released("linear"))
    before = run(model)
    half = model.with_precision("bf16")
    assert half.precision == POLICIES["bf16"] and model.precision == Precision()
    chex.assert_trees_all_equal(run(half), run(network(small_released("linear"), "bf16")))
    assert half.head1.proj.kernel[...] is model.head1.proj.kernel[...]
    tf32 = model.with_precision("tf32")
    assert all(a is b for a, b in zip(jax.tree.leaves(tf32), jax.tree.leaves(model), strict=True))
    half.encoder.norm.scale[...] = jnp.zeros_like(half.encoder.norm.scale[...])
    chex.assert_trees_all_equal(run(model), before)


def test_a_change_of_policy_is_differentiable():
    """Gradients arrive in float32 at the parameters of the network it was called on."""
    model = network(small_released("linear"))
    with jax.numpy_dtype_promotion("standard"):  # JAX's attention mixes half and single precision inside
        gradient = jax.jit(jax.grad(lambda m: jnp.sum(m.with_precision("bf16").encode(RGB) ** 2)))(model)
    encoder = jax.tree.leaves(gradient.encoder)
    assert all(leaf.dtype == jnp.float32 for leaf in encoder) and sum(jnp.abs(leaf).sum() for leaf in encoder) > 0


def test_names():
    assert policy("auto") == POLICIES["exact"] == Precision()  # on a CPU
    assert [policy(name).name for name in POLICIES] == list(POLICIES)
    own = Precision(layers="bfloat16")
    assert policy(own) is own and own.name == "bfloat16, products exact, heads exact"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: e3r.load_model("embedded", "float32"), "Unknown precision 'float32': auto, exact, tf32, bf16"),
        (lambda: e3r.load_flow_model("none.pth", "fp8"), "Unknown precision 'fp8'"),
        (lambda: network(small_released("linear")).with_precision("half"), "Unknown precision 'half'"),
        (lambda: e3r.Precision(layers="float16"), "float32, bfloat16 or float64, not 'float16'"),
        (lambda: e3r.Precision(heads="high"), "'exact' or 'tf32', not 'high'"),
    ],
)
def test_wrong_policies_are_one_line(wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)
