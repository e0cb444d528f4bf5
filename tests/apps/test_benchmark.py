"""Counted operations against XLA's own count, and the benchmark program's measurements."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from easi3r_jax.apps import flops
from easi3r_jax.models import abstract_model, flow_network
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from tests.networks import small_network

GRID = (6, 8)


def config(**changes) -> DUSt3RConfig:
    """One layer each: XLA counts the body of a loop once, however often it runs."""
    sizes = {"enc_dim": 128, "enc_heads": 4, "dec_dim": 96, "dec_depth": 1, "dec_heads": 4}
    return small_network(**{"image_size": (96, 128), "patch_size": 16, **sizes, **changes})


def xla_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def decode(model, a, b, *, gram=False):
    decoded = model.decode(a, b, GRID, gram=gram)
    return decoded.tokens_i, decoded.tokens_j, decoded.stats


def features(config: DUSt3RConfig) -> jax.Array:
    return jnp.zeros((1, GRID[0] * GRID[1], config.enc_dim))


def assert_nearly_all(counted: float, by_xla: float):
    """Ours counts matrix products, XLA norms and activations too, but no product with a convolution's padding."""
    assert 0.95 * counted <= by_xla <= 1.15 * counted


def test_encoder_flops():
    c = config()
    rgb = jnp.zeros((1, *c.image_size, 3), jnp.uint8)
    assert_nearly_all(flops.encoder_flops(c, GRID), xla_flops(lambda m, x: m.encode(x), abstract_model(c), rgb))


def test_decoder_flops():
    c = config()
    counted = flops.decoder_flops(c, GRID) + flops.statistics_flops(c, GRID)
    assert_nearly_all(counted, xla_flops(decode, abstract_model(c), features(c), features(c)))


def test_gram_statistics_flops():
    c = config()
    arguments = (abstract_model(c), features(c), features(c))
    by_xla = xla_flops(functools.partial(decode, gram=True), *arguments) - xla_flops(decode, *arguments)
    assert_nearly_all(flops.statistics_flops(c, GRID, gram=True) - flops.statistics_flops(c, GRID), by_xla)


@pytest.mark.parametrize("changes", [{}, {"head": "dpt", "dec_depth": 4}], ids=["linear", "dpt"])
def test_heads_flops(changes):
    c = config(**changes)
    model, x = abstract_model(c), features(c)
    with_heads = xla_flops(lambda m, a, b: m.predict(a, b, m.decode(a, b, GRID), GRID), model, x, x)
    assert_nearly_all(flops.heads_flops(c, GRID), with_heads - xla_flops(decode, model, x, x))


@pytest.mark.parametrize("network", [pytest.param("sea-raft", marks=pytest.mark.slow), "raft-small"])
def test_traced_flops(network):
    """Of one iteration against XLA's count; of three as many times that of one as loops say."""
    model, image = flow_network(FlowConfig(network)), jnp.zeros((1, 64, 96, 3))

    def flow(iterations):
        return lambda network, a, b: network(a, b, iterations)[0]

    one, two, three = (flops.traced_flops(flow(n), model, image, image) for n in (1, 2, 3))
    # XLA counts no product with padding, of which small images have much.
    assert 0.9 * one <= xla_flops(flow(1), model, image, image) <= 1.1 * one
    assert three - two == pytest.approx(two - one) and two > one


def test_traced_flops_of_loops_and_branches():
    square = jnp.zeros((8, 8))

    def function(a):
        a = jax.lax.scan(lambda carry, _: (carry @ a, None), a, None, length=5)[0]
        return jax.lax.cond(a[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, a)

    assert flops.traced_flops(function, square) == (5 + 2) * 2 * 8**3


def test_counted_bytes_are_at_least_the_observations():
    counts = {"num_frames": 5, "num_edges": 20, "num_pixels": 1000, "iterations": 3}
    points = flops.alignment_bytes(**counts, with_flow=False)
    assert points > 3 * 20 * 1000 * 2 * 16
    assert flops.alignment_bytes(**counts, with_flow=True) - points == 3 * 20 * 1000 * (8 + 1 + 4 + 8)
    assert points - flops.alignment_bytes(**counts, with_flow=False, number=2) == 3 * 20 * 1000 * 2 * 8


@pytest.mark.slow
def test_the_program_measures_the_properties_of_the_design(command, tmp_path):
    """Eight frames make two batches of pairs."""
    file = tmp_path / "benchmark.json"
    done = command(
        "benchmark", "--frames=8", "--iterations=20", "--repeats=1", "--stages=network,alignment", f"--json={file}"
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(file.read_text())
    assert measured["reconstruction"]["encodings_per_frame"] == 1
    assert measured["reconstruction"]["compilations_between_pair_batches"] == 0
    assert measured["statistics_cost"]["counted_flops_share"] < 0.03
    for name in (
        "encode",
        "first pass",
        "k-means",
        "masks",
        "second pass",
        "alignment",
        "alignment, flow",
        "clean-up of confidence",
    ):
        stage = measured["stages"][name]
        assert stage["seconds"] > 0 and stage["peak_memory_bytes"]["host"] > 1e8
        assert stage["first_seconds"] >= stage["compile_seconds"] > 0
        assert name in done.stdout
    assert measured["matmul_flops_per_s"] > 1e9 and measured["copy_bytes_per_s"] > 1e8
    assert measured["stages"]["alignment, flow"]["bytes"] > measured["stages"]["alignment"]["bytes"] > 0
    assert "peak memory" in done.stdout


@pytest.mark.slow
def test_flow_without_weights_is_measured(command, tmp_path):
    file = tmp_path / "flow.json"
    done = command("benchmark", "--frames=3", "--stages=flow", "--flow=dis", "--repeats=1", f"--json={file}")
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["stages"]["flow, dis"]
    assert found["items"] == 4 and found["seconds"] > 0  # swinstride-5-noncyclic pairs neighbours


@pytest.mark.slow
def test_flow_is_measured_alone(command, tmp_path):
    file = tmp_path / "benchmark.json"
    size = ("--frames=3", "--height=64", "--width=64", "--graph=complete", "--repeats=1")
    done = command("benchmark", *size, "--stages=flow", "--flow=raft-small", f"--json={file}")
    assert done.returncode == 0, done.stderr
    stages = json.loads(file.read_text())["stages"]
    assert list(stages) == ["flow, raft-small"]
    assert stages["flow, raft-small"]["items"] == 6 and stages["flow, raft-small"]["flops"] > 1e9


def test_unknown_stages_are_refused(here):
    done = here("benchmark", "--stages=network,masks")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --stages=network,masks: it must be some of network, flow and alignment")


def test_a_size_that_does_not_divide_is_refused(here):
    done = here("benchmark", "--height=70", "--width=96")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: 96x70 does not divide into patches of 8."]
