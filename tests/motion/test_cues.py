"""The cues that read motion from point maps: they find planted motion, and nothing else."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easi3r_jax import motion
from easi3r_jax.core.config import PipelineConfig, SegmentationConfig
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import MotionResidual, PairPredictions
from easi3r_jax.motion.match import frame_focals, match_tokens
from easi3r_jax.motion.normalise import min_max

GRID, PATCH = (8, 12), 4
SIZE = (GRID[0] * PATCH, GRID[1] * PATCH)
FOCAL = 40.0
CUES = pytest.mark.parametrize("cue", [motion.rigid_residual, motion.match_residual], ids=["rigid", "match"])


def complete(num_frames):
    return np.array([(i, j) for i in range(num_frames) for j in range(num_frames) if i != j], np.int32)


def pixels_of(tokens):
    return np.kron(tokens, np.ones((PATCH, PATCH), tokens.dtype))


# --- rigid ----------------------------------------------------------------------------------------------------------


def seen_by_partners(moves, *, num_frames=3, distance=0.4, seed=0):
    """Random depth maps of frames and their partners' views, in which the tokens of `moves` (h, w) are displaced.

    Each pair has its own scale. A displacement is `distance` times the point's distance from the camera.
    """
    rng = np.random.default_rng(seed)
    edges = complete(num_frames)
    depth = rng.uniform(1, 3, (num_frames, *SIZE))
    matrix = camera.intrinsics(jnp.float32(FOCAL), camera.default_principal_point(*SIZE))
    points = np.asarray(camera.unproject(jnp.asarray(depth, jnp.float32), jnp.tile(matrix[None], (num_frames, 1, 1))))
    direction = rng.standard_normal(3)
    direction *= distance / np.linalg.norm(direction)
    moved = points + np.where(pixels_of(moves)[..., None], direction, 0) * np.linalg.norm(points, axis=-1)[..., None]
    rotations = np.asarray(se3.matrix_from_quaternion(jnp.asarray(rng.standard_normal((len(edges), 4)), jnp.float32)))
    shifts = rng.standard_normal((len(edges), 3))
    scales = rng.uniform(0.5, 2, len(edges))

    def in_partner(e):  # frame j's pixels, in camera i
        return scales[e] * (moved[edges[e, 1]] @ rotations[e].T + shifts[e])

    confidence = 1 + rng.uniform(0, 5, (2, len(edges), *SIZE))
    return PairPredictions(
        edges=jnp.asarray(edges),
        points_i=jnp.asarray(scales[:, None, None, None] * points[edges[:, 0]], jnp.float32),
        points_j=jnp.asarray(np.stack([in_partner(e) for e in range(len(edges))]), jnp.float32),
        confidence_i=jnp.asarray(confidence[0], jnp.float32),
        confidence_j=jnp.asarray(confidence[1], jnp.float32),
    )


def features_like(num_frames):
    return jnp.asarray(np.random.default_rng(0).standard_normal((num_frames, GRID[0] * GRID[1], 32)), jnp.float32)


def block():
    tokens = np.zeros(GRID, bool)
    tokens[2:6, 3:7] = True
    return tokens


def test_rigid_residual_equals_the_displacement():
    moves = block()
    found = motion.rigid_residual(seen_by_partners(moves), features_like(3), GRID)
    assert found.observed.all()
    np.testing.assert_allclose(found.value, np.where(moves, 0.4, 0)[None].repeat(3, 0), atol=2e-3)
    maps = min_max(found.value, axis=(-2, -1), where=found.observed)
    np.testing.assert_array_equal(maps > 0.5, moves[None].repeat(3, 0))


def test_rigid_residual_of_a_static_scene_is_rounding_noise():
    found = motion.rigid_residual(seen_by_partners(np.zeros(GRID, bool)), features_like(3), GRID)
    assert found.value.max() < 1e-5


def test_rigid_residual_is_invariant_to_the_scales_of_pairs():
    predictions = seen_by_partners(block())
    factor = jnp.asarray(np.random.default_rng(1).uniform(0.01, 100, (6, 1, 1, 1)), jnp.float32)
    scaled = dataclasses.replace(
        predictions, points_i=factor * predictions.points_i, points_j=factor * predictions.points_j
    )
    expected, found = (motion.rigid_residual(p, features_like(3), GRID) for p in (predictions, scaled))
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_rigid_residual_is_invariant_to_the_order_of_pairs():
    predictions = seen_by_partners(block())
    order = np.random.default_rng(2).permutation(6)
    shuffled = jax.tree.map(lambda x: x[order], predictions)
    expected, found = (motion.rigid_residual(p, features_like(3), GRID) for p in (predictions, shuffled))
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_a_pair_whose_reverse_is_missing_is_ignored():
    predictions = seen_by_partners(block(), num_frames=3)
    kept = np.array([tuple(e) not in ((0, 2), (2, 0), (2, 1)) for e in np.asarray(predictions.edges)])
    found = motion.rigid_residual(jax.tree.map(lambda x: x[kept], predictions), features_like(3), GRID)
    np.testing.assert_array_equal(found.observed.all((1, 2)), [True, True, False])  # (0, 1), (1, 0), (1, 2)
    assert found.value[0, 3, 4] > 0.3
    np.testing.assert_array_equal(found.value[2], np.zeros(GRID))


# --- match ----------------------------------------------------------------------------------------------------------


def camera_that_slides(*, object_moves, num_frames=3, seed=0):
    """A camera that moves sideways past two layers: far tokens shift by one token per frame, near ones by two.

    A near block also moves down by one token per frame if `object_moves`. Each token has a feature of its own.

    Returns:
      predictions, features, the block's tokens (T, h, w), and the tokens (T, h, w) that are visible in all frames.
    """
    rng = np.random.default_rng(seed)
    h, w = GRID
    canvas_width = w + 4 * num_frames
    near = rng.random((h, canvas_width)) < 0.3
    descriptors = rng.standard_normal((3, h, canvas_width, 64))
    owner = np.full((num_frames, h, w), -1)
    feature, depth, is_object = (
        np.zeros((num_frames, h, w, 64)),
        np.zeros((num_frames, h, w)),
        np.zeros(owner.shape, bool),
    )
    for t in range(num_frames):
        number = 0
        for layer, shift, z in ((0, 1, 4.0), (1, 2, 2.0), (2, 2, 2.0)):
            for y in range(h):
                for x in range(canvas_width):
                    number += 1
                    in_block = layer == 2 and 1 <= y < 3 and 8 <= x < 11
                    if (layer == 1 and not near[y, x]) or (layer == 2 and not in_block):
                        continue
                    row, column = y + (t if layer == 2 and object_moves else 0), x - shift * t
                    if 0 <= column < w and row < h:
                        owner[t, row, column], depth[t, row, column] = number, z
                        feature[t, row, column] = descriptors[layer, y, x]
                        is_object[t, row, column] = layer == 2
    shared = np.stack([np.all([np.isin(owner[t], other) for other in owner], axis=0) for t in range(num_frames)])
    edges = complete(num_frames)
    matrix = camera.intrinsics(jnp.float32(FOCAL), camera.default_principal_point(*SIZE))
    pixel_depth = np.stack([pixels_of(d) for d in depth]).astype(np.float32)
    points = camera.unproject(jnp.asarray(pixel_depth), jnp.tile(matrix[None], (num_frames, 1, 1)))[edges[:, 0]]
    ones = jnp.ones((len(edges), *SIZE))
    predictions = PairPredictions(jnp.asarray(edges), points, points, ones, ones)  # points_j does not matter
    return predictions, jnp.asarray(feature.reshape(num_frames, h * w, 64), jnp.float32), is_object, shared


def test_match_residual_is_the_motion_across_the_epipolar_line():
    """The camera's own motion leaves no residual; a block that moves down by a token per frame leaves exactly that."""
    predictions, features, is_object, shared = camera_that_slides(object_moves=True)
    found = motion.match_residual(predictions, features, GRID)
    static = np.asarray(found.observed) & ~is_object & shared
    assert static.mean() > 0.4
    assert np.asarray(found.value)[static].max() < 1e-2 * PATCH / FOCAL
    assert found.observed[is_object & shared].all()
    # Frame 1 differs by one token from both partners, frames 0 and 2 by one token from one and two from the other.
    for t, tokens in ((0, 1.5), (1, 1.0), (2, 1.5)):
        moved = np.asarray(found.value)[t][is_object[t] & shared[t]]
        np.testing.assert_allclose(moved, tokens * PATCH / FOCAL, rtol=0.02)


def test_match_residual_of_a_static_scene_is_small():
    predictions, features, _, shared = camera_that_slides(object_moves=False)
    found = motion.match_residual(predictions, features, GRID)
    assert np.asarray(found.value)[np.asarray(found.observed) & shared].max() < 1e-2 * PATCH / FOCAL


def test_match_residual_is_invariant_to_the_scales_of_pairs():
    predictions, features, _, _ = camera_that_slides(object_moves=True)
    factor = 2.0 ** jnp.asarray([[[[-3.0]]], [[[1.0]]], [[[0.0]]], [[[5.0]]], [[[2.0]]], [[[-1.0]]]])
    scaled = dataclasses.replace(predictions, points_i=factor * predictions.points_i)
    expected, found = (motion.match_residual(p, features, GRID) for p in (predictions, scaled))
    chex.assert_trees_all_close(found, expected, atol=1e-4)


def test_tokens_are_matched_if_they_are_in_both_frames():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, *GRID, 64)).astype(np.float32)
    features[1, :, 2:] = features[0, :, :-2]  # everything moves right by two tokens
    position, held = match_tokens(jnp.asarray(features.reshape(2, -1, 64)), jnp.array([[0, 1]]), GRID)
    position, held = np.asarray(position).reshape(*GRID, 2), np.asarray(held).reshape(GRID)
    assert held[:, :-2].all()
    assert held[:, -2:].mean() < 0.3  # they are outside frame 1; some match mutually by chance
    x, y = np.meshgrid(np.arange(GRID[1]), np.arange(GRID[0]))
    np.testing.assert_allclose(position[:, :-2], np.stack([x + 2, y], -1)[:, :-2], atol=1e-2)


def test_focal_lengths_are_medians_over_pairs():
    edges = np.array([[0, 1], [0, 2], [0, 3], [1, 0]])
    found = frame_focals(np.array([1.0, 5.0, 2.0, 10.0]), edges, 3)
    np.testing.assert_array_equal(found, [2.0, 10.0, 3.5])  # frame 2 is never the first one


# --- both -----------------------------------------------------------------------------------------------------------


@CUES
@pytest.mark.parametrize("case", ["one frame", "one point", "all zero", "behind", "undefined", "same features"])
def test_degenerate_input_is_defined(cue, case):
    if case == "one frame":
        ones = jnp.ones((1, *SIZE))
        points = jnp.asarray(np.random.default_rng(0).standard_normal((1, *SIZE, 3)), jnp.float32)
        predictions = PairPredictions(jnp.zeros((1, 2), jnp.int32), points, points, ones, ones)
        features = features_like(1)
    else:
        predictions, features = seen_by_partners(block()), features_like(3)
        changes = {
            "one point": jnp.ones_like,
            "all zero": jnp.zeros_like,
            "behind": jnp.negative,
            "undefined": lambda x: x.at[0, 0, 0].set(jnp.nan),
        }
        change = changes.get(case, lambda x: x)
        predictions = dataclasses.replace(
            predictions, points_i=change(predictions.points_i), points_j=change(predictions.points_j)
        )
        if case == "same features":
            features = jnp.ones_like(features)
    found = cue(predictions, features, GRID, seed=0)
    assert found.value.shape == found.observed.shape == (len(features), *GRID)
    chex.assert_tree_all_finite(found)
    assert (found.value >= 0).all() and (found.value <= 1).all()
    if case in ("one frame", "one point", "all zero"):  # nothing is known, or all points coincide
        assert not found.value.any()


def test_unobserved_tokens_take_their_clusters_score():
    """They count neither for the extremes of the frame nor for the mean of their cluster."""
    rng = np.random.default_rng(0)
    value, observed = rng.random((2, 4, 6)).astype(np.float32), rng.random((2, 4, 6)) < 0.6
    labels = rng.integers(0, 3, (2, 4, 6)).astype(np.int32)
    temporal = motion.fuse_temporal(motion.init_temporal(2, 1, 1, 24), (4, 6))

    def maps(elsewhere):
        residual = MotionResidual(jnp.asarray(np.where(observed, value, elsewhere)), jnp.asarray(observed))
        return motion.motion_maps(temporal, jnp.asarray(labels), SegmentationConfig(num_clusters=3), residual)

    first, second = maps(np.float32(0)), maps(np.float32(1e3))
    chex.assert_trees_all_equal(first, second)
    raw, score = np.asarray(first.raw_score), np.asarray(first.score)
    for t in range(2):
        assert raw[t][observed[t]].min() == 0 and raw[t][observed[t]].max() > 0.99
    means = [raw[observed & (labels == k)].mean() for k in range(3)]
    np.testing.assert_array_equal(labels[score == 0] == np.argmin(means), True)
    np.testing.assert_array_equal(labels[score > 0.99] == np.argmax(means), True)


def test_only_known_cues_are_named():
    with pytest.raises(ConfigError, match=r"Unknown motion cue 'zero'.*pass a function"):
        PipelineConfig(cue="zero")
    assert motion.find_cue("attention") is None and not motion.needs_points(None)
    assert motion.needs_points(motion.find_cue("rigid")) and motion.needs_points(lambda evidence: None)
    assert not motion.needs_points(motion.reads_attention(lambda evidence: None))
    assert motion.needs_gram(motion.find_cue("gram")) and not motion.needs_points(motion.find_cue("gram"))
    assert motion.needs_gram(motion.reads_gram(lambda evidence: None)) and not motion.needs_gram(None)
