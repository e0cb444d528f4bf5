"""Counted operations against XLA's own count, and the benchmark program's promises."""

import json

import jax
import jax.numpy as jnp
import pytest

from easi3r_jax.config import DUSt3RConfig
from easi3r_jax.models import random_model
from experiments import flops
from tests.networks import small_network

GRID = (6, 8)


def config(**changes) -> DUSt3RConfig:
    """One layer each: XLA counts the body of a loop once, however often it runs."""
    sizes = {"enc_dim": 128, "enc_heads": 4, "dec_dim": 96, "dec_depth": 1, "dec_heads": 4}
    return small_network(**{"image_size": (96, 128), "patch_size": 16, **sizes, **changes})


def xla_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def decode(model, a, b):
    decoded = model.decode(a, b, GRID)
    return decoded.tokens_i, decoded.tokens_j, decoded.stats


def features(config: DUSt3RConfig) -> jax.Array:
    return jnp.zeros((1, GRID[0] * GRID[1], config.enc_dim))


def assert_nearly_all(counted: float, by_xla: float):
    """Ours counts matrix products, XLA norms and activations too, but no product with a convolution's padding."""
    assert 0.95 * counted <= by_xla <= 1.15 * counted


def test_encoder_flops():
    c = config()
    rgb = jnp.zeros((1, *c.image_size, 3), jnp.uint8)
    assert_nearly_all(flops.encoder_flops(c, GRID), xla_flops(lambda m, x: m.encode(x), random_model(c), rgb))


def test_decoder_flops():
    c = config()
    counted = flops.decoder_flops(c, GRID) + flops.statistics_flops(c, GRID)
    assert_nearly_all(counted, xla_flops(decode, random_model(c), features(c), features(c)))


@pytest.mark.parametrize("changes", [{}, {"head": "dpt", "dec_depth": 4}], ids=["linear", "dpt"])
def test_heads_flops(changes):
    c = config(**changes)
    model, x = random_model(c), features(c)
    with_heads = xla_flops(lambda m, a, b: m.predict(a, b, m.decode(a, b, GRID), GRID), model, x, x)
    assert_nearly_all(flops.heads_flops(c, GRID), with_heads - xla_flops(decode, model, x, x))


def test_the_program_shows_what_the_design_promises(command, tmp_path):
    """Eight frames make two batches of pairs."""
    file = tmp_path / "figures.json"
    done = command("benchmark", "--frames=8", "--iterations=20", "--repeats=1", f"--json={file}")
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["reconstruction"]["encodings_per_frame"] == 1
    assert figures["reconstruction"]["compilations_between_pair_batches"] == 0
    assert figures["statistics_cost"]["counted_flops_share"] < 0.03
    for name in ("encode", "first pass", "k-means", "masks", "second pass", "alignment"):
        stage = figures["stages"][name]
        assert stage["seconds"] > 0
        assert stage["first_seconds"] >= stage["compile_seconds"] > 0
        assert name in done.stdout
    assert figures["matmul_flops_per_s"] > 1e9
    assert "peak memory" in done.stdout


def test_a_size_that_does_not_divide_is_refused(command):
    done = command("benchmark", "--height=70", "--width=96")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: 96x70 does not divide into patches of 8."]
