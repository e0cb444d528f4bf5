"""Streaming moments against a two-pass computation in float64, and degenerate cases."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import motion
from easi3r_jax.core.statistics import AttentionStats

GRID = (3, 4)
LAYERS, HEADS = 2, 3

update = jax.jit(motion.update_temporal, static_argnums=4)


def random_stats(rng, num_pairs, grid=GRID, offset=0.0):
    shape = (num_pairs, LAYERS, HEADS, grid[0] * grid[1])
    return AttentionStats(
        src=(offset + rng.standard_normal(shape)).astype(np.float32),
        ref=(offset + rng.standard_normal(shape)).astype(np.float32),
    )


def stream(stats, edges, num_frames, batch, grid=GRID, padding=np.nan):
    """Adds the pairs in batches, the last one padded with `padding`."""
    state = motion.init_temporal(num_frames, LAYERS, HEADS, grid[0] * grid[1])
    for start in range(0, len(edges), batch):
        part = slice(start, start + batch)
        size = len(edges[part])

        def padded(x, fill, part=part, size=size):
            return np.concatenate([x[part], np.full((batch - size, *x.shape[1:]), fill, x.dtype)])

        batch_stats = AttentionStats(src=padded(stats.src, padding), ref=padded(stats.ref, padding))
        state = update(state, batch_stats, padded(edges, 0), np.arange(batch) < size, grid)
    return state


def two_pass(x, frame, num_frames, grid=GRID):
    """Mean and unbiased deviation per frame in float64, (T, h, w, channels)."""
    maps = x.astype(np.float64).reshape(len(x), LAYERS * HEADS, *grid).transpose(0, 2, 3, 1).copy()
    maps[:, 0, 0] = (maps[:, 0, 1] + maps[:, 1, 0]) / 2
    mean, std = np.zeros((2, num_frames, *grid, LAYERS * HEADS))
    for t in range(num_frames):
        if np.any(frame == t):
            mean[t] = maps[frame == t].mean(0)
        if np.sum(frame == t) > 1:
            std[t] = maps[frame == t].std(0, ddof=1)
    return mean, std


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_streaming_equals_two_passes(seed, batch):
    rng = np.random.default_rng(seed)
    num_frames, num_pairs = 6, 30
    edges = rng.integers(0, num_frames, (num_pairs, 2)).astype(np.int32)
    stats = random_stats(rng, num_pairs)
    raw = motion.raw_moments(stream(stats, edges, num_frames, batch), GRID)
    for name, x, frame in (("src", stats.src, edges[:, 1]), ("ref", stats.ref, edges[:, 0])):
        mean, std = two_pass(x, frame, num_frames)
        np.testing.assert_allclose(getattr(raw, f"mean_{name}"), mean, atol=2e-6)
        np.testing.assert_allclose(getattr(raw, f"std_{name}"), std, atol=2e-6)
        np.testing.assert_array_equal(getattr(raw, f"count_{name}"), np.bincount(frame, minlength=num_frames))


def test_a_frame_may_occur_many_times_in_one_batch():
    rng = np.random.default_rng(0)
    edges = np.array([[0, 1]] * 5 + [[1, 0]] * 3, np.int32)
    stats = random_stats(rng, len(edges))
    raw = motion.raw_moments(stream(stats, edges, 2, len(edges)), GRID)
    mean, std = two_pass(stats.src, edges[:, 1], 2)
    np.testing.assert_allclose(raw.mean_src, mean, atol=1e-6)
    np.testing.assert_allclose(raw.std_src, std, atol=1e-6)


def test_the_order_of_pairs_changes_only_the_rounding():
    rng = np.random.default_rng(1)
    edges = rng.integers(0, 5, (40, 2)).astype(np.int32)
    stats = random_stats(rng, 40)
    order = rng.permutation(40)
    shuffled = AttentionStats(src=stats.src[order], ref=stats.ref[order])
    a = motion.raw_moments(stream(stats, edges, 5, 8), GRID)
    b = motion.raw_moments(stream(shuffled, edges[order], 5, 8), GRID)
    chex.assert_trees_all_close(a, b, atol=3e-6)


def test_large_means_keep_small_deviations():
    """Logits around 1000 with deviation 1: with sums of squares in float32 the error would be 6 % and more."""
    rng = np.random.default_rng(2)
    edges = np.stack([np.zeros(200), np.ones(200)], 1).astype(np.int32)
    stats = random_stats(rng, 200, offset=1000.0)
    raw = motion.raw_moments(stream(stats, edges, 2, 8), GRID)
    _, std = two_pass(stats.src, edges[:, 1], 2)
    np.testing.assert_allclose(raw.std_src[1], std[1], rtol=2e-4)


@pytest.mark.parametrize("batch", [1, 7, 20])
def test_equal_observations_have_no_deviation(batch):
    """Exactly: normalisation would stretch rounding errors to motion."""
    edges = np.array([(i, j) for i in range(5) for j in range(5) if i != j], np.int32)
    one = random_stats(np.random.default_rng(4), 1, offset=3.0)
    state = stream(jax.tree.map(lambda x: np.repeat(x, len(edges), axis=0), one), edges, 5, batch)
    for moments, x in ((state.src, one.src), (state.ref, one.ref)):
        assert not np.any(moments.squares)
        np.testing.assert_array_equal(moments.mean[..., 1:], np.broadcast_to(x[..., 1:], (5, LAYERS, HEADS, 11)))


def test_branches_and_channels_are_assigned_correctly():
    """Pair (2, 0): branch 1 is of frame 0 (source), branch 2 of frame 2 (reference); channel = layer * heads + head."""
    shape = (1, LAYERS, HEADS, 12)
    channel = jnp.arange(LAYERS * HEADS, dtype=jnp.float32).reshape(1, LAYERS, HEADS, 1)
    stats = AttentionStats(src=jnp.broadcast_to(channel, shape), ref=jnp.broadcast_to(-channel, shape))
    state = motion.init_temporal(3, LAYERS, HEADS, 12)
    raw = motion.raw_moments(update(state, stats, jnp.array([[2, 0]]), jnp.array([True]), GRID), GRID)
    np.testing.assert_array_equal(raw.count_src, [1, 0, 0])
    np.testing.assert_array_equal(raw.count_ref, [0, 0, 1])
    expected = np.broadcast_to(np.arange(6.0), (*GRID, 6))
    np.testing.assert_allclose(raw.mean_src[0], expected)
    np.testing.assert_allclose(raw.mean_ref[2], -expected)


@pytest.mark.parametrize(("grid", "expected"), [((2, 3), 2.0), ((1, 5), 1.0), ((5, 1), 1.0), ((1, 1), 0.0)])
def test_first_token_becomes_the_mean_of_its_neighbours(grid, expected):
    """Each token's value is its number: (0, 1) is 1, (1, 0) is the width."""
    tokens = jnp.arange(grid[0] * grid[1], dtype=jnp.float32)
    x = jnp.broadcast_to(tokens, (1, LAYERS, HEADS, len(tokens)))
    state = motion.init_temporal(1, LAYERS, HEADS, len(tokens))
    raw = motion.raw_moments(update(state, AttentionStats(x, x), jnp.array([[0, 0]]), jnp.array([True]), grid), grid)
    np.testing.assert_allclose(raw.mean_src[0, 0, 0], expected)
    np.testing.assert_allclose(raw.mean_src[0].reshape(len(tokens), -1)[1:, 0], tokens[1:])


def test_frames_with_no_or_one_observation_are_defined():
    """Frame 3 is in no pair, frame 2 in one: no NaN, no motion there, and no influence on the other frames' maps."""
    rng = np.random.default_rng(3)
    edges = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [1, 2], [2, 0]], np.int32)
    stats = random_stats(rng, len(edges))
    maps = motion.fuse_temporal(stream(stats, edges, 4, 3), GRID)
    chex.assert_tree_all_finite(maps)
    for x in jax.tree.leaves(maps):
        assert x.min() >= 0 and x.max() <= 1
        np.testing.assert_array_equal(x[3], 0)
    score = motion.dynamic_score(maps)
    np.testing.assert_array_equal(score[2:], 0)
    assert score[:2].max() > 0.99
    observed = motion.fuse_temporal(stream(stats, edges, 4, 3), GRID).std_src[:2]
    assert observed.min() == 0 and observed.max() > 0.99  # extremes are over frames 0 and 1 only


def test_two_frames_have_no_motion():
    rng = np.random.default_rng(4)
    edges = np.array([[0, 1], [1, 0]], np.int32)
    maps = motion.fuse_temporal(stream(random_stats(rng, 2), edges, 2, 2), GRID)
    chex.assert_tree_all_finite(maps)
    np.testing.assert_array_equal(motion.dynamic_score(maps), 0)


def test_bfloat16_statistics_are_accumulated_in_float32():
    rng = np.random.default_rng(5)
    edges = rng.integers(0, 3, (20, 2)).astype(np.int32)
    stats = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_stats(rng, 20))
    state = update(motion.init_temporal(3, LAYERS, HEADS, 12), stats, edges, jnp.ones(20, bool), GRID)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float32), stats)
    chex.assert_trees_all_close(state, stream(exact, edges, 3, 20), atol=1e-6)
    assert state.src.mean.dtype == jnp.float32


def test_vmap_over_clips():
    rng = np.random.default_rng(6)
    edges = rng.integers(0, 4, (2, 10, 2)).astype(np.int32)
    stats = [random_stats(rng, 10) for _ in range(2)]
    empty = motion.init_temporal(4, LAYERS, HEADS, 12)
    valid = jnp.arange(10) < 9

    def clip(stats, edges):
        return motion.fuse_temporal(motion.update_temporal(empty, stats, edges, valid, GRID), GRID)

    together = jax.vmap(clip)(jax.tree.map(lambda *x: jnp.stack(x), *stats), edges)
    for n in range(2):
        alone = clip(jax.tree.map(jnp.asarray, stats[n]), edges[n])
        chex.assert_trees_all_close(jax.tree.map(lambda x, n=n: x[n], together), alone, atol=1e-5)


def test_all_batches_use_one_compilation():
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(motion.update_temporal, n=1), static_argnums=4)
    state = motion.init_temporal(4, LAYERS, HEADS, 12)
    rng = np.random.default_rng(7)
    for _ in range(3):
        edges = rng.integers(0, 4, (5, 2)).astype(np.int32)
        state = traced(state, random_stats(rng, 5), edges, np.ones(5, bool), GRID)
    assert int(state.src.count.sum()) == 15
