"""The calibrated read-out: its formula, what it ignores, derivatives, many at once, and its use as a cue."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax import motion
from easi3r_jax.core.config import GRAM_MOMENTS, GRAM_STATISTICS
from easi3r_jax.core.statistics import AttentionStats, GramStats
from tests.networks import network, small_network
from tests.wide import in_float64, widened

T, LAYERS, HEADS, GRID = 5, 2, 3, (3, 4)
EDGES = e3r.make_edges(T, "complete")
# Compiled, as the pipeline calls them: operation by operation, they are a hundred programs for every shape.
update = jax.jit(motion.update_temporal, static_argnums=4)
raw_moments = jax.jit(motion.raw_moments, static_argnums=1)
readout_score = jax.jit(motion.readout_score, static_argnums=2)
centred_moments = jax.jit(motion.centred_moments, static_argnums=(1, 2))


def state_of(statistics, edges=EDGES, frames=T):
    empty = motion.init_temporal(frames, LAYERS, HEADS, GRID[0] * GRID[1])
    return update(empty, statistics, edges, np.ones(len(edges), bool), GRID)


@pytest.fixture(scope="module")
def statistics():
    rng = np.random.default_rng(0)
    shape = (len(EDGES), LAYERS, HEADS, GRID[0] * GRID[1])
    return AttentionStats(*(jnp.asarray(rng.normal(3, 1, shape), jnp.float32) for _ in range(2)))


@pytest.fixture(scope="module")
def readout():
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=(4, LAYERS, HEADS)), jnp.float32)
    return e3r.Readout(weights, jnp.float32(-0.5), jnp.float32(0.25))


def test_it_is_a_logistic_function_of_moments_minus_their_median(statistics, readout):
    state = state_of(statistics)
    raw = raw_moments(state, GRID)
    logit = np.full((T, *GRID), -0.5)
    for n, moment in enumerate((raw.mean_src, raw.std_src, raw.mean_ref, raw.std_ref)):
        moment = np.asarray(moment, np.float64)
        centred = moment - np.median(moment, axis=(0, 1, 2))
        logit += centred @ np.asarray(readout.weights[n], np.float64).ravel()
    score, observed = readout_score(state, readout, GRID)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-logit)), atol=1e-5)
    assert np.all(observed)


def test_it_weights_gram_statistics_by_name(readout):
    rng = np.random.default_rng(4)
    tokens = GRID[0] * GRID[1]
    shape = (len(EDGES), LAYERS, len(GRAM_STATISTICS), HEADS, tokens)
    gram = [jnp.asarray(rng.normal(3, 1, shape), jnp.float32) for _ in range(2)]
    flat = GramStats(*(x.reshape(len(EDGES), LAYERS, -1, tokens) for x in gram))
    plain = AttentionStats(*(jnp.asarray(rng.normal(3, 1, (*flat.src.shape[:2], HEADS, tokens)), jnp.float32),) * 2)
    empty = motion.init_temporal(T, LAYERS, HEADS, tokens, gram=True)
    with_gram = dataclasses.replace(plain, gram=flat)
    state = update(empty, with_gram, EDGES, np.ones(len(EDGES), bool), GRID)
    names = ("std_kk_mean_src", "mean_ref", "std_qk_std_ref")
    moments, observed = centred_moments(state, GRID, names)
    moments = np.asarray(moments).reshape(T, tokens, 3, LAYERS, HEADS)

    def deviation(x):  # (T, LAYERS, HEADS, tokens) over the pairs of each frame, minus the median of each channel
        x[..., 0] = (x[..., 1] + x[..., GRID[1]]) / 2
        return x.std(0, ddof=1)

    for name, side, column in (("kk_mean", 0, 1), ("qk_std", 1, 0)):
        of_pairs = np.asarray(gram[side][:, :, GRAM_STATISTICS.index(name)], np.float64).copy()
        expected = np.stack([deviation(of_pairs[EDGES[:, column] == t].copy()) for t in range(T)])
        expected -= np.median(expected, axis=(0, 3), keepdims=True)
        ours = moments[:, :, names.index(f"std_{name}_{('src', 'ref')[side]}")]
        np.testing.assert_allclose(ours, np.moveaxis(expected, 3, 1), atol=1e-5)
    usual = np.asarray(centred_moments(state, GRID)[0]).reshape(T, tokens, 4, LAYERS, HEADS)
    np.testing.assert_array_equal(moments[:, :, 1], usual[:, :, 2])
    assert np.all(observed)
    three = dataclasses.replace(readout, weights=readout.weights[:3], moments=names)
    assert three.needs_gram and not readout.needs_gram
    with pytest.raises(e3r.ConfigError, match="std_kk_mean_src, but Gram statistics were not computed"):
        readout_score(dataclasses.replace(state, gram=None), three, GRID)


def test_a_constant_added_to_a_head_changes_nothing(statistics, readout):
    src = np.array(statistics.src)
    src[:, 1, 2] += 4
    shifted = dataclasses.replace(statistics, src=src)
    scores = [readout_score(state_of(s), readout, GRID)[0] for s in (statistics, shifted)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_frames_without_pairs_do_not_count(statistics, readout):
    """Two more frames that no pair observes, as padding is."""
    alone, seen = readout_score(state_of(statistics), readout, GRID)
    padded, observed = readout_score(state_of(statistics, frames=T + 2), readout, GRID)
    np.testing.assert_allclose(padded[:T], alone, atol=1e-6)
    assert not np.any(padded[T:])
    np.testing.assert_array_equal(observed, np.arange(T + 2)[:, None, None] < np.full((1, *GRID), T))
    assert np.all(seen)
    nothing, observed = readout_score(motion.init_temporal(T, LAYERS, HEADS, 12), readout, GRID)
    assert not np.any(nothing) and not np.any(observed)


def test_a_deviation_that_is_missing_does_not_count(statistics, readout):
    """In one direction only: frame 0 is never j, frame 1 once, so these lack deviations."""
    one_way = EDGES[:, 0] < EDGES[:, 1]
    chosen = jax.tree.map(lambda x: x[one_way], statistics)
    state = state_of(chosen, EDGES[one_way])
    moments, observed = centred_moments(state, GRID)
    parts = np.asarray(moments).reshape(T, *GRID, 4, LAYERS * HEADS)
    np.testing.assert_array_equal(observed, [True] * T)
    assert np.isfinite(parts).all()
    assert not parts[0, ..., :2, :].any() and not parts[1, ..., 1, :].any() and not parts[T - 1, ..., 2:, :].any()
    of_others = np.asarray(raw_moments(state, GRID).std_src)[2:]
    np.testing.assert_allclose(parts[2:, ..., 1, :], of_others - np.median(of_others, axis=(0, 1, 2)), atol=1e-6)


def test_derivatives(statistics, readout):
    """By weights, bias and the statistics, against differences in float64."""
    rng = np.random.default_rng(2)
    at = (readout, statistics)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), at)

    def figure(at):
        score, _ = readout_score(state_of(at[1]), at[0], GRID)
        return jnp.sum(score * jnp.cos(jnp.arange(score.size, dtype=score.dtype)).reshape(score.shape))

    gradient = jax.jit(jax.grad(figure))(at)
    found = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    with jax.enable_x64(True):
        wide = jax.jit(in_float64(figure, at))
        start, tree = jax.tree.flatten(widened(at))
        along = [jnp.asarray(d) for d in jax.tree.leaves(direction)]

        def moved(step):
            return wide(tree.unflatten([x + step * d for x, d in zip(start, along, strict=True)]))

        expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_many_readouts_at_once(statistics, readout):
    state, scales = state_of(statistics), jnp.asarray([0.0, 1.0, -2.0])
    many = jax.vmap(lambda s: dataclasses.replace(readout, weights=s * readout.weights))(scales)
    scores = jax.vmap(lambda one: readout_score(state, one, GRID)[0])(many)
    for n, scale in enumerate(scales):
        one = dataclasses.replace(readout, weights=scale * readout.weights)
        np.testing.assert_allclose(scores[n], readout_score(state, one, GRID)[0], atol=1e-6)


def test_a_readout_of_another_network_is_refused(statistics):
    wrong = e3r.Readout(jnp.zeros((4, LAYERS, 2)), jnp.float32(0), jnp.float32(0))
    with pytest.raises(e3r.ConfigError, match=r"decoder of 2 layers and 2 heads; this network has 2 and 3"):
        readout_score(state_of(statistics), wrong, GRID)
    model = network(small_network())
    with pytest.raises(e3r.ConfigError, match="The read-out is for a decoder of 7 layers"):
        model.with_readout(e3r.ReadoutConfig(7, 1, (0.0,) * 28, 0.0, 0.5))
    with pytest.raises(e3r.ConfigError, match="28 weights, not 3"):
        e3r.ReadoutConfig(7, 1, (0.0,) * 3, 0.0, 0.5)


@pytest.fixture(scope="module")
def calibrated():
    """A network with a read-out, and a clip."""
    model = network(small_network(), seed=1)
    config = model.config
    rng = np.random.default_rng(3)
    weights = tuple(rng.normal(size=4 * config.dec_depth * config.dec_heads).tolist())
    model = model.with_readout(e3r.ReadoutConfig(config.dec_depth, config.dec_heads, weights, 0.0, 0.5))
    rgb = rng.integers(0, 256, (4, 32, 48, 3), np.uint8)
    frames = e3r.Frames(rgb, np.arange(4), np.arange(4) / 24.0, np.eye(3), np.array([32, 48]))
    return model, frames


QUICK = e3r.PipelineConfig(
    graph="complete",
    segmentation=e3r.SegmentationConfig(num_clusters=6, restarts=1),
    alignment=e3r.AlignConfig(iterations=5),
)


def test_the_checkpoints_readout_is_the_default_cue(calibrated):
    model, frames = calibrated
    default = e3r.reconstruct(model, frames, QUICK)
    passed = e3r.reconstruct(model.with_readout(None), frames, QUICK, cue=e3r.Readout.from_config(model.readout))
    published = e3r.reconstruct(model, frames, dataclasses.replace(QUICK, cue="formula"))
    np.testing.assert_array_equal(default.motion.raw_score, passed.motion.raw_score)
    np.testing.assert_array_equal(
        published.motion.raw_score, e3r.reconstruct(model.with_readout(None), frames, QUICK).motion.raw_score
    )
    assert np.abs(default.motion.raw_score - published.motion.raw_score).max() > 0.1
    assert default.threshold >= 0.5 and model.with_precision("bf16").readout == model.readout
    np.testing.assert_array_equal(default.scene.dynamic_mask, default.scene.dynamic_score > default.threshold)


def test_nothing_moves_where_no_score_reaches_the_minimum(calibrated):
    model, frames = calibrated
    unsure = dataclasses.replace(model.readout, weights=tuple(1e-3 * w for w in model.readout.weights), bias=-1.0)
    result = e3r.reconstruct(model.with_readout(unsure), frames, QUICK)
    assert not result.scene.dynamic_mask.any() and result.threshold == 0.5


def test_the_pure_function_reads_it_too(calibrated):
    model, frames = calibrated
    readout, edges = e3r.Readout.from_config(model.readout), e3r.make_edges(4, "complete")

    def masks(model, readout):
        return e3r.motion_masks(model, frames.rgb, edges, QUICK.segmentation, readout=readout)

    plain = model.with_readout(None)
    own, given, published = masks(model, None), jax.jit(masks)(plain, readout), masks(plain, None)
    np.testing.assert_allclose(own.score, given.score, atol=1e-6)
    assert own.threshold >= 0.5 and np.abs(own.score - published.score).max() > 0.1
    sure = dataclasses.replace(readout, at_least=jnp.float32(1.0))
    assert not np.any(masks(model, sure).mask)
    np.testing.assert_array_equal(masks(model, dataclasses.replace(readout, bias=jnp.float32(-50.0))).mask, False)


def test_a_readout_of_gram_statistics_is_a_cue_too(calibrated):
    """The passes compute what it weights, and its pure counterpart agrees."""
    model, frames = calibrated
    config, names = model.config, ("std_src", *GRAM_MOMENTS)
    rng = np.random.default_rng(5)
    weights = tuple((0.3 * rng.normal(size=len(names) * config.dec_depth * config.dec_heads)).tolist())
    readout = e3r.ReadoutConfig(config.dec_depth, config.dec_heads, weights, 0.0, 0.5, moments=names)
    result = e3r.reconstruct(model.with_readout(readout), frames, dataclasses.replace(QUICK, reattention=False))
    edges = e3r.make_edges(4, "complete")
    masks = e3r.motion_masks(
        model.with_readout(readout), frames.rgb, edges, QUICK.segmentation, key=jax.random.key(QUICK.seed)
    )
    features = e3r.encode_frames(model.with_readout(readout), frames.rgb)
    statistics = e3r.attention_statistics(model.with_readout(readout), features, edges, model.grid((32, 48)), gram=True)
    expected, _ = readout_score(statistics, e3r.Readout.from_config(readout), model.grid((32, 48)))
    np.testing.assert_allclose(result.motion.raw_score, expected, atol=1e-4)
    np.testing.assert_allclose(masks.score, result.scene.dynamic_score, atol=1e-3)
    assert np.ptp(expected) > 0.1 and np.ptp(masks.score) > 0.02


@pytest.mark.parametrize("frames", [1, 2])
def test_one_or_two_frames_have_no_score(readout, frames):
    """They have no deviations: the score would be made of half of the moments."""
    edges = np.array([[0, 0]] if frames == 1 else [[0, 1], [1, 0]], np.int32)
    x = np.random.default_rng(0).normal(3, 1, (2, len(edges), LAYERS, HEADS, GRID[0] * GRID[1])).astype(np.float32)
    sure = dataclasses.replace(readout, bias=np.float32(10))
    score, _ = readout_score(state_of(AttentionStats(*x), edges, frames), sure, GRID)
    assert not np.any(score)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_one_or_two_frames_show_no_motion(calibrated, count):
    """The pair of frames in both directions, and the frame that is paired with itself."""
    model, frames = calibrated
    sure = dataclasses.replace(model.readout, bias=10.0)
    few = dataclasses.replace(
        frames, rgb=frames.rgb[:count], source_index=frames.source_index[:count], time=frames.time[:count]
    )
    result = e3r.reconstruct(model.with_readout(sure), few, QUICK)
    assert not result.scene.dynamic_mask.any() and not result.motion.raw_score.any()


def test_shared_shapes_give_the_same_result(calibrated):
    """Padding of frames and pairs does not reach the score."""
    model, frames = calibrated
    one, other = (
        e3r.reconstruct(model, frames, dataclasses.replace(QUICK, shared_shapes=shared)).motion.raw_score
        for shared in (False, True)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)
