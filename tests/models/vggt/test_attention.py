"""Attention in blocks, by rows, and without some keys, against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax.apps.compile_check import stablehlo
from easi3r_jax.models.vggt.attention import attend
from easi3r_jax.models.vggt.chunks import by_chunks

HEADS, DIM = 2, 8


def drawn(batch, count, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((batch, count, HEADS, DIM), np.float32) * 2 for _ in range(3))


def plain(queries, keys, values, kept=None):
    logits = np.einsum("bqad,bkad->baqk", *(x.astype(np.float64) for x in (queries, keys))) * DIM**-0.5
    if kept is not None:
        logits = np.where(kept[:, None, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("baqk,bkad->bqad", weights / weights.sum(axis=-1, keepdims=True), values)


# One map; rows of the batch; blocks of queries and keys of one sequence, also where the last ones are not full.
@pytest.mark.parametrize(("batch", "count", "map_size"), [(3, 10, 1 << 20), (5, 10, 400), (1, 37, 64), (2, 37, 300)])
@pytest.mark.parametrize("masked", [False, True])
def test_every_way_of_computing_it_is_the_plain_formula(batch, count, map_size, masked):
    queries, keys, values = drawn(batch, count)
    kept = None
    if masked:  # long runs, so that whole blocks of keys are left out; the first key stays, as special tokens do
        kept = np.zeros((batch, count), bool)
        kept[:, 0] = kept[:, -3:] = True
    ours = jax.jit(attend, static_argnames="map_size")(queries, keys, values, kept, map_size=map_size)
    np.testing.assert_allclose(ours, plain(queries, keys, values, kept), atol=5e-6)


def test_left_out_keys_change_nothing():
    queries, keys, values = drawn(1, 20)
    kept = np.arange(20)[None] % 3 != 1
    ours = attend(queries, keys, values, jnp.asarray(kept))
    np.testing.assert_allclose(ours, attend(queries, keys[:, kept[0]], values[:, kept[0]]), atol=1e-6)


def test_no_array_has_the_size_of_a_map_of_all_tokens():
    """On a GPU in half precision, a fused kernel; elsewhere, blocks of at most `map_size` numbers."""
    count, map_size = 4096, 1 << 16
    shapes = [jax.ShapeDtypeStruct((1, count, HEADS, DIM), jnp.float32)] * 3
    kept = jax.ShapeDtypeStruct((1, count), bool)
    traced = jax.jit(lambda *x: attend(*x, map_size=map_size)).trace(*shapes, kept)
    assert 0 < largest_array(traced.jaxpr.jaxpr) <= 2 * max(map_size, count * HEADS * DIM)
    half = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in shapes]
    with stablehlo.traced_for_gpu():
        lowered = jax.jit(attend).trace(*half, kept).lower(lowering_platforms=("cuda",)).as_text()
    found = stablehlo.inspected(lowered, {}, count)
    assert found.fused == {"bf16": 1} and not found.quadratic


def largest_array(jaxpr):
    """Elements of the largest array of a program, of its loops too."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            sizes += [largest_array(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


@pytest.mark.parametrize(("rows", "most"), [(5, 8), (8, 4), (7, 3)])
def test_chunks_give_every_row_once(rows, most):
    seen = []

    def function(x):
        seen.append(x["a"].shape)
        return {"b": x["a"] * 2 + 1}

    out = by_chunks(function, {"a": jnp.arange(3.0 * rows).reshape(rows, 3)}, most)
    np.testing.assert_array_equal(out["b"], np.arange(3.0 * rows).reshape(rows, 3) * 2 + 1)
    assert len(seen) == 1 and seen[0][0] <= most


@pytest.mark.parametrize(("dim", "fused"), [(120, True), (128, False)])
def test_left_out_keys_are_fused_only_if_their_channels_fit_the_kernel(dim, fused):
    half = [jax.ShapeDtypeStruct((1, 64, 1, dim), jnp.bfloat16)] * 3
    kept = jax.ShapeDtypeStruct((1, 64), bool)
    with stablehlo.traced_for_gpu():
        masked = jax.jit(attend).trace(*half, kept).lower(lowering_platforms=("cuda",)).as_text()
        plain = jax.jit(attend).trace(*half).lower(lowering_platforms=("cuda",)).as_text()
    assert bool(stablehlo.inspected(masked, {}, 64).fused) == fused
    assert stablehlo.inspected(plain, {}, 64).fused
