"""VGGT4D's cue on statistics of pairs. tests/apps/test_parity.py compares the formula with the released program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax import motion
from easi3r_jax.core.config import GRAM_STATISTICS
from easi3r_jax.core.statistics import AttentionStats, GramStats
from easi3r_jax.inference import pipeline
from tests.networks import network, small_network

T, LAYERS, HEADS, GRID = 4, 6, 2, (3, 4)
EDGES = e3r.make_edges(T, "complete")
# Compiled, as the pipeline calls them: operation by operation, they are a hundred programs for every shape.
update = jax.jit(motion.update_temporal, static_argnums=4)
gram_residual = jax.jit(motion.gram_residual, static_argnums=1)


def state_of(gram, edges=EDGES, frames=T, valid=None):
    tokens = GRID[0] * GRID[1]
    empty = motion.init_temporal(frames, LAYERS, HEADS, tokens, gram=True)
    nothing = np.zeros((len(edges), LAYERS, HEADS, tokens), np.float32)
    valid = np.ones(len(edges), bool) if valid is None else valid
    return update(empty, AttentionStats(nothing, nothing, gram), edges, valid, GRID)


@pytest.fixture(scope="module")
def gram():
    rng = np.random.default_rng(0)
    shape = (len(EDGES), LAYERS, len(GRAM_STATISTICS) * HEADS, GRID[0] * GRID[1])
    return GramStats(*(jnp.asarray(rng.normal(3, 1, shape), jnp.float32) for _ in range(2)))


def normalised(x):
    low, high = x.min((-2, -1), keepdims=True), x.max((-2, -1), keepdims=True)
    return (x - low) / (high - low + 1e-6)


def test_the_score_is_the_product_of_five_factors_of_bands_of_layers(gram):
    """By hand: six layers are a quarter of the released network's, so its bands 3-7, 18-19, 17-21, 0 are these."""
    of_frame = np.zeros((T, LAYERS, len(GRAM_STATISTICS), HEADS, *GRID))
    counts = np.zeros(T)
    for side, column in ((gram.src, 1), (gram.ref, 0)):
        side = np.asarray(side, np.float64).reshape(len(EDGES), LAYERS, len(GRAM_STATISTICS), HEADS, *GRID).copy()
        side[..., 0, 0] = (side[..., 0, 1] + side[..., 1, 0]) / 2  # as everywhere in the method
        np.add.at(of_frame, EDGES[:, column], side)
        np.add.at(counts, EDGES[:, column], 1)
    of_frame /= counts[:, None, None, None, None, None]
    mean = {name: of_frame[:, :, n] for n, name in enumerate(GRAM_STATISTICS)}

    def factor(name, layers):
        return normalised(mean[name][:, layers].mean((1, 2)))

    expected = (1 - factor("qq_mean", slice(0, 2))) * (1 - factor("qq_std", slice(4, 5)))
    expected *= factor("qq_mean", slice(4, 6)) * (1 - factor("kk_mean", slice(0, 1))) * factor("qk_std", slice(0, 1))
    residual = gram_residual(state_of(gram), GRID)
    np.testing.assert_allclose(residual.value, expected, atol=1e-5)
    assert np.all(residual.observed) and residual.at_least is None


@pytest.mark.parametrize("depth", [1, 4, 12, 24])
def test_every_band_has_layers_at_any_depth(depth):
    for factor in motion.GRAM_FACTORS:
        band = range(depth)[factor.band(depth)]
        assert len(band) >= 1
        if depth == 24:
            assert (band[0], band[-1]) == factor.layers


def test_padding_does_not_count(gram):
    """A frame that no pair observes, and a pair that is not valid."""
    alone = gram_residual(state_of(gram), GRID)
    longer = GramStats(*(np.concatenate([x, 1e6 + x[:1]]) for x in map(np.asarray, (gram.src, gram.ref))))
    edges = np.concatenate([EDGES, [[T, 0]]]).astype(np.int32)
    padded = gram_residual(state_of(longer, edges, T + 1, np.arange(len(edges)) < len(EDGES)), GRID)
    np.testing.assert_allclose(padded.value[:T], alone.value, atol=1e-6)
    assert not np.any(padded.observed[T:]) and not np.any(padded.value[T:])


@pytest.fixture(scope="module")
def clip():
    model = network(small_network(), seed=1)
    rgb = np.random.default_rng(3).integers(0, 256, (4, 32, 48, 3), np.uint8)
    return model, e3r.Frames(rgb, np.arange(4), np.arange(4) / 24.0, np.eye(3), np.array([32, 48]))


QUICK = e3r.PipelineConfig(
    graph="complete",
    cue="gram",
    segmentation=e3r.SegmentationConfig(num_clusters=6, restarts=1),
    alignment=e3r.AlignConfig(iterations=5),
)


def test_the_pipeline_computes_what_the_cue_reads(clip):
    """In both passes: the last one's score is that of statistics under masked attention."""
    model, frames = clip
    seen = []

    @e3r.reads_gram
    @e3r.reads_attention
    def cue(evidence):
        seen.append(evidence)
        return motion.gram_residual(evidence.statistics, evidence.grid)

    result = e3r.reconstruct(model, frames, QUICK, cue=cue)
    named = e3r.reconstruct(model, frames, QUICK)
    np.testing.assert_array_equal(result.motion.raw_score, named.motion.raw_score)
    assert seen[0].predictions is None and seen[0].statistics.gram is not None and len(seen) == 2
    both = [evidence.statistics.gram.src.mean for evidence in seen]
    assert np.abs(both[0] - both[1]).max() > 1e-3  # something is masked in the second pass
    features = e3r.encode_frames(model, frames.rgb)
    statistics = e3r.attention_statistics(model, features, EDGES, seen[0].grid, gram=True)
    for ours, pure in zip(
        (seen[0].statistics.gram.src, seen[0].statistics.gram.ref),
        (statistics.gram.src, statistics.gram.ref),
        strict=True,
    ):
        np.testing.assert_allclose(ours.mean, pure.mean, rtol=1e-4, atol=1e-4)
    shapes = jax.eval_shape(lambda m, f: e3r.attention_statistics(m, f, EDGES, seen[0].grid), model, features)
    assert shapes.gram is None


def test_a_cue_without_the_mark_gets_none(clip):
    class Enough(Exception):  # noqa: N818
        pass

    def cue(evidence):
        assert evidence.statistics.gram is None
        raise Enough

    with pytest.raises(Enough):
        e3r.reconstruct(*clip, QUICK, cue=cue)


def test_batches_make_no_difference(clip):
    model, frames = clip
    features, grid = pipeline.encode(model, frames), model.grid((32, 48))
    one, many = (
        pipeline.attention_pass(model, features, EDGES, grid, gram=True, batch=batch).gram for batch in (len(EDGES), 5)
    )
    for a, b in ((one.src, many.src), (one.ref, many.ref)):
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a.squares, b.squares, rtol=1e-3, atol=1e-4)


def test_shared_shapes_give_the_same_score(clip):
    model, frames = clip
    one, other = (
        e3r.reconstruct(model, frames, dataclasses.replace(QUICK, shared_shapes=shared)).motion.raw_score
        for shared in (False, True)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)
