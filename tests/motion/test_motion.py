"""The complete motion stage: golden arrays of the published program, degenerate clips, transforms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import motion
from easi3r_jax.core.config import SegmentationConfig
from easi3r_jax.core.statistics import AttentionStats
from easi3r_jax.core.types import TemporalMaps
from easi3r_jax.motion.aggregate import _fuse
from easi3r_jax.motion.normalise import min_max

RUNS = [f"{graph}_pass{n}" for graph in ("swinstride_5_noncyclic", "swin_2_noncyclic", "complete") for n in (1, 2)]
MAPS = {"mean_src": "i_mean", "std_src": "i_var", "mean_ref": "j_mean", "std_ref": "j_var"}
IMAGE_SIZE = (96, 128)
CONFIG = SegmentationConfig(num_clusters=8, restarts=1)
# Compiled, as the pipeline calls them: operation by operation, they are a hundred programs for every shape.
update = jax.jit(motion.update_temporal, static_argnums=4)
motion_maps = jax.jit(motion.motion_maps, static_argnums=2)
masks_from_maps = jax.jit(motion.masks_from_maps, static_argnums=(1, 2))


def relative_error(found, expected):
    return np.max(np.abs(np.asarray(found, np.float64) - expected)) / np.max(np.abs(expected))


def golden_maps(g):
    return TemporalMaps(**{ours: jnp.asarray(g[f"fused_{theirs}"]) for ours, theirs in MAPS.items()})


@pytest.mark.parametrize("name", ["i_mean", "i_std", "j_mean", "j_std"])
def test_golden_normalisation_and_fusion(golden, name):
    """Raw moments to normalised channels to the fused map; all golden frames have two observations or more."""
    g = np.load(golden / "aggregation" / "swinstride_5_noncyclic_pass1.npz")
    raw, theirs = jnp.asarray(g[f"raw_{name}"]), name.replace("std", "var")
    assert relative_error(min_max(raw), g[f"norm_{theirs}"]) <= 1e-5
    assert relative_error(_fuse(raw, jnp.ones(len(raw), bool)), g[f"fused_{theirs}"]) <= 1e-5


@pytest.mark.parametrize("side", ["i", "j"])
def test_golden_moments_survive_streaming(golden, side):
    """Observations constructed to have the golden mean and deviation give the golden fused maps.

    The pairs' own attention is compared in the tests that run the network. Here each frame has two observations, mean ±
    std / √2, whose unbiased moments are the golden ones.
    """
    g = np.load(golden / "aggregation" / "swinstride_5_noncyclic_pass1.npz")
    grid = (6, 8)

    def observations(side):
        mean, half = g[f"raw_{side}_mean"].astype(np.float64), g[f"raw_{side}_std"] / np.sqrt(2)
        both = np.concatenate([mean + half, mean - half])  # (2T, h, w, channels)
        return np.moveaxis(both, -1, 1).reshape(12, 12, 12, 48).astype(np.float32)

    frames = np.tile(np.arange(6, dtype=np.int32), 2)
    state = motion.init_temporal(6, 12, 12, 48)
    stats = AttentionStats(src=observations("i"), ref=observations("j"))
    for part in np.split(np.random.default_rng(0).permutation(12), 3):
        batch = jax.tree.map(lambda x, part=part: x[part], stats)
        state = update(state, batch, np.stack([frames, frames], 1)[part], np.ones(4, bool), grid)
    raw = jax.jit(motion.raw_moments, static_argnums=1)(state, grid)
    maps = jax.jit(motion.fuse_temporal, static_argnums=1)(state, grid)
    ours = {"i": "src", "j": "ref"}[side]
    others = np.ones(48, bool).reshape(grid)
    others[0, 0] = False  # replaced per pair: in the golden moments it already is
    for kind, theirs in (("mean", "mean"), ("std", "std")):
        found, expected = getattr(raw, f"{kind}_{ours}"), g[f"raw_{side}_{theirs}"]
        assert relative_error(found[:, others], expected[:, others]) <= 1e-5
    assert relative_error(getattr(maps, f"mean_{ours}"), g[f"fused_{side}_mean"]) <= 1e-4
    found, expected = getattr(maps, f"std_{ours}"), g[f"fused_{side}_var"]
    assert relative_error(found[:, others], expected[:, others]) <= 1e-4


@jax.jit
def otsu_of_upsampled(score):
    return motion.multi_otsu(motion.upsample(score, IMAGE_SIZE))


@pytest.mark.parametrize("run", RUNS)
def test_golden_scores_thresholds_and_masks(golden, run):
    """From the golden fused maps and labels: score, refined score, upsampled score, thresholds, masks."""
    g = np.load(golden / "aggregation" / f"{run}.npz")
    labels = jnp.asarray(g["cluster_labels"])
    maps = motion_maps(golden_maps(g), labels, SegmentationConfig())
    assert relative_error(maps.raw_score, g["dynamic_map"]) <= 1e-5
    assert relative_error(maps.score, g["refined_dynamic_map"]) <= 1e-5
    masks = masks_from_maps(maps, IMAGE_SIZE, SegmentationConfig())
    assert relative_error(masks.score[:2], g["upsampled_first2"]) <= 1e-5
    np.testing.assert_allclose(masks.threshold, g["threshold_f64"], atol=1e-6)
    assert np.mean(np.asarray(masks.mask) != g["masks"]) <= 5e-4
    otsu = otsu_of_upsampled(jnp.asarray(g["refined_dynamic_map"]))
    np.testing.assert_allclose(otsu.scores, g["otsu_scores_f64"], atol=1e-6)
    for n, thresholds in zip((2, 3, 4), otsu.thresholds, strict=True):
        np.testing.assert_allclose(thresholds, g[f"otsu_thresholds_{n}classes_f64"], atol=1e-6)


def random_clip(seed, num_frames=5, grid=(3, 4), offset=0.0):
    """State and features of a clip with all ordered pairs."""
    rng = np.random.default_rng(seed)
    edges = np.array([(i, j) for i in range(num_frames) for j in range(num_frames) if i != j], np.int32)
    shape = (len(edges), 2, 2, grid[0] * grid[1])
    stats = AttentionStats(*(jnp.asarray(offset + rng.standard_normal(shape), jnp.float32) for _ in range(2)))
    state = motion.init_temporal(num_frames, 2, 2, shape[-1])
    state = update(state, stats, edges, np.ones(len(edges), bool), grid)
    return state, jnp.asarray(rng.standard_normal((num_frames, shape[-1], 6)), jnp.float32)


def segment(state, features, key, grid=(3, 4), config=CONFIG):
    maps = motion.motion_maps(state, motion.cluster_labels(features, grid, config, key), config)
    return maps, motion.masks_from_maps(maps, (grid[0] * 4, grid[1] * 4), config)


segmented = jax.jit(segment, static_argnums=(3, 4))


def test_a_moving_region_is_masked():
    """The method's premise, planted: a region of low, varying attention as source and high, steady one as reference."""
    rng = np.random.default_rng(0)
    num_frames, grid = 6, (6, 8)
    edges = np.array([(i, j) for i in range(num_frames) for j in range(num_frames) if i != j], np.int32)
    moving = np.zeros((num_frames, *grid), bool)
    for t in range(num_frames):
        moving[t, 2:4, t : t + 2] = True
    moving = moving.reshape(num_frames, -1)
    noise = rng.standard_normal((2, len(edges), 2, 2, 48))
    is_j, is_i = moving[edges[:, 1]][:, None, None], moving[edges[:, 0]][:, None, None]
    stats = AttentionStats(
        src=jnp.asarray(np.where(is_j, -3.0 + 2.0 * noise[0], 3.0 + 0.2 * noise[0]), jnp.float32),
        ref=jnp.asarray(np.where(is_i, 3.0 + 0.2 * noise[1], -3.0 + 2.0 * noise[1]), jnp.float32),
    )
    state = motion.init_temporal(num_frames, 2, 2, 48)
    state = update(state, stats, edges, np.ones(len(edges), bool), grid)
    colour = np.where(moving[..., None], 1.0, -1.0) + 0.1 * rng.standard_normal((num_frames, 48, 3))
    config = SegmentationConfig(num_clusters=2)
    maps, masks = segmented(state, jnp.asarray(colour, jnp.float32), jax.random.key(0), grid, config)
    found = motion.token_masks(masks.mask, 4).reshape(moving.shape)
    assert np.all(np.asarray(found)[moving])
    centre = np.asarray(masks.mask)[:, 2::4, 2::4].reshape(moving.shape)  # one pixel within each token
    np.testing.assert_array_equal(centre, moving)
    assert np.asarray(maps.raw_score)[moving.reshape(-1, *grid)].mean() > 0.5


@pytest.mark.parametrize(
    ("num_frames", "grid"),
    [(1, (3, 4)), (2, (3, 4)), (3, (1, 4)), (3, (4, 1)), (3, (1, 1)), pytest.param(3, (2, 2), marks=pytest.mark.slow)],
)
def test_degenerate_clips_are_defined(num_frames, grid):
    if num_frames == 1:  # paired with itself, as in the pipeline
        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 2, 12)), jnp.float32)
        state = motion.init_temporal(1, 2, 2, 12)
        state = update(state, AttentionStats(x, x), np.zeros((1, 2), np.int32), np.array([True]), grid)
        features = jnp.zeros((1, 12, 6))
    else:
        state, features = random_clip(0, num_frames, grid)
    maps, masks = segmented(state, features, jax.random.key(0), grid)
    chex.assert_tree_all_finite((maps, masks))
    if num_frames <= 2 or grid == (1, 1):
        assert not jnp.any(masks.mask)


def test_constant_attention_has_no_motion():
    state = motion.init_temporal(5, 2, 2, 12)
    x = np.full((20, 2, 2, 12), 7.5, np.float32)
    edges = np.array([(i, j) for i in range(5) for j in range(5) if i != j], np.int32)
    state = update(state, AttentionStats(x, x), edges, np.ones(20, bool), (3, 4))
    maps, masks = segmented(state, np.zeros((5, 12, 6), jnp.bfloat16), jax.random.key(0))
    chex.assert_tree_all_finite((maps, masks))
    assert not jnp.any(masks.mask)


def test_the_order_of_frames_does_not_matter():
    """Only the clusters' random initialisation depends on it."""
    state, features = random_clip(2)
    order = np.random.default_rng(0).permutation(5)
    labels = motion.cluster_labels(features, (3, 4), CONFIG, jax.random.key(0))
    a = motion_maps(state, labels, CONFIG)
    shuffled = jax.tree.map(lambda x: x[order], state)
    b = motion_maps(shuffled, labels[order], CONFIG)
    # Sums over frames run in another order, and two normalisations stretch their rounding.
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[order], a), b, atol=1e-5)


def test_vmap_over_clips_and_bfloat16_features():
    clips = [random_clip(seed) for seed in range(2)]
    keys = jax.random.split(jax.random.key(0), 2)
    states, features = jax.tree.map(lambda *x: jnp.stack(x), *clips)
    features = features.astype(jnp.bfloat16)
    together = jax.jit(jax.vmap(segment))(states, features, keys)
    for n in range(2):
        alone = segmented(clips[n][0], features[n], keys[n])
        chex.assert_trees_all_close(jax.tree.map(lambda x, n=n: x[n], together), alone, atol=1e-5)


def test_one_trace_for_many_clips():
    before = segmented._cache_size()
    for seed in range(3):
        state, features = random_clip(seed)
        _, masks = segmented(state, features.astype(jnp.bfloat16), jax.random.key(seed))
    assert segmented._cache_size() <= before + 1
    assert masks.mask.shape == (5, 12, 16)
