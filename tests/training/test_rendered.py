"""Rendered training pairs: an endless, reproducible sequence, separate from the held-out pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.synthetic import ClipConfig, MovingSampling, PairSampling, sample_pair
from easi3r_jax.training.batch import targets_of
from easi3r_jax.training.rendered import HELD_OUT_SEED, draw_moving, draw_static, held_out_pairs

SAMPLING = PairSampling(size=(16, 24), num_objects=2, candidates=2)
STATIC = jax.jit(functools.partial(draw_static, SAMPLING))
MOVING = jax.jit(
    functools.partial(
        draw_moving, MovingSampling(ClipConfig(size=(16, 24), num_frames=5, num_objects=4, num_moving=2), max_stride=3)
    )
)
EIGHT = jnp.arange(8, dtype=jnp.int32)  # all tests draw this many at a time: one compilation


def test_a_pair_depends_on_seed_and_number_only():
    first, again = STATIC(0, EIGHT), STATIC(0, EIGHT + 1)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a[1:], b[:-1])
    assert len({rgb.tobytes() for rgb in np.asarray(first.rgb)}) == 8
    assert not np.array_equal(first.rgb, STATIC(1, EIGHT).rgb)


def test_training_pairs_differ_from_those_of_synthesize_with_the_same_seed():
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(0), n))(EIGHT)  # as experiments.synthesize draws them
    written = jax.jit(jax.vmap(lambda key: sample_pair(key, SAMPLING)))(keys)
    assert not {rgb.tobytes() for rgb in np.asarray(written.rgb)} & {
        p.tobytes() for p in np.asarray(STATIC(0, EIGHT).rgb)
    }


def test_held_out_pairs_are_a_separate_sequence():
    held_out = held_out_pairs(STATIC, 10)
    assert held_out.rgb.shape == (10, 2, 16, 24, 3)
    np.testing.assert_array_equal(held_out.rgb[:3], held_out_pairs(STATIC, 3).rgb)
    np.testing.assert_array_equal(held_out.rgb[:8], STATIC(HELD_OUT_SEED, EIGHT).rgb)


def consistent(pairs) -> np.ndarray:
    """(E,) fraction of view i's pixels whose point, projected into j, agrees with the depth there."""
    targets = targets_of(pairs)
    size = pairs.depth.shape[2:]
    pose_j = jnp.concatenate([pairs.world_from_cam[:, 1], pairs.world_from_cam[:, 0]])
    pose_i = jnp.concatenate([pairs.world_from_cam[:, 0], pairs.world_from_cam[:, 1]])
    intrinsics = jnp.concatenate([pairs.intrinsics[:, 1], pairs.intrinsics[:, 0]])
    depth_j = jnp.concatenate([pairs.depth[:, 1], pairs.depth[:, 0]])
    moved = se3.transform_points(se3.compose(se3.inverse(pose_j), pose_i), targets.points_i)
    pixels, z = (np.asarray(a) for a in camera.project(moved, intrinsics))
    nearest = np.rint(pixels).astype(int)
    shares = []
    for e in range(len(z)):
        x, y = nearest[e, ..., 0], nearest[e, ..., 1]
        inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0]) & (z[e] > 0)
        same = np.abs(np.asarray(depth_j[e])[y[inside], x[inside]] / z[e][inside] - 1) < 0.1
        shares.append(same.mean() if inside.any() else 0.0)
    return np.array(shares)


def test_static_scenes_are_consistent_between_views():
    assert np.median(consistent(STATIC(0, EIGHT))) > 0.8


def test_moving_pairs_show_a_dynamic_scene_at_two_times():
    pairs = MOVING(0, EIGHT)
    assert pairs.rgb.dtype == jnp.uint8 and pairs.rgb.shape == (8, 2, 16, 24, 3)
    assert (np.asarray(pairs.depth) > 0).all()
    assert np.median(consistent(pairs)) > 0.6  # most of a scene is static
    apart = np.linalg.norm(pairs.world_from_cam[:, 0, :3, 3] - pairs.world_from_cam[:, 1, :3, 3], axis=-1)
    assert (apart > 0).all() and np.unique(apart.round(5)).size == 8
