"""Initialisation: spanning tree, focal lengths, poses and depth, on clips with a known answer and on the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.transform import Rotation

from easi3r_jax import alignment
from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.confidence import confident_pixels
from easi3r_jax.alignment.graph import nearest_first
from easi3r_jax.alignment.initialise import positive_depth
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.geometry.focal import weiszfeld_focal


def random_graph(seed, num_frames=9):
    """Connected: a chain and random pairs, in random directions and order."""
    rng = np.random.default_rng(seed)
    pairs = [(t, t + 1) for t in range(num_frames - 1)]
    pairs += [(i, j) for i in range(num_frames) for j in range(i + 2, num_frames) if rng.random() < 0.4]
    edges = rng.permutation([p[:: rng.choice([1, -1])] for p in pairs])
    return edges, rng.permutation(len(edges)) + 1.0


@pytest.mark.parametrize("seed", range(5))
def test_tree_is_the_heaviest_and_grows_from_its_best_edge(seed):
    edges, scores = random_graph(seed)
    tree = alignment.spanning_tree(edges, scores, 9)
    weights = sparse.coo_array((-scores, edges.T), shape=(9, 9))
    heaviest = -sparse.csgraph.minimum_spanning_tree(weights).sum()
    assert scores[tree.edges].sum() == heaviest
    assert tree.edges[0] == np.argmax(scores)
    known = set(edges[tree.edges[0]].tolist())
    for (i, j), joins_i in zip(edges[tree.edges[1:]].tolist(), tree.joins_i[1:], strict=True):
        assert len({i, j} & known) == 1, "an edge neither end of which is new, or both"
        assert joins_i == (i in known)
        known |= {i, j}
    assert known == set(range(9))


@pytest.mark.parametrize("seed", range(5))
def test_focal_lengths_are_measured_in_the_frames_own_map(seed):
    edges, scores = random_graph(seed)
    tree = alignment.spanning_tree(edges, scores, 9)
    for frame, e in enumerate(tree.focal_edges):
        own = np.flatnonzero(edges[:, 0] == frame)
        if len(own) == 0:
            assert e == -1
        elif set(own) & set(tree.edges):
            assert e in set(own) & set(tree.edges)
        else:
            assert e == own[np.argmax(scores[own])]


def test_tree_ignores_a_frame_against_itself_and_takes_the_better_direction():
    edges = np.array([[0, 0], [0, 1], [1, 0], [1, 2]])
    tree = alignment.spanning_tree(edges, np.array([9.0, 1, 2, 3]), 3)
    assert tree.edges.tolist() == [3, 2]


def test_tree_and_scores_of_the_reference(predictions, reference):
    arrays = reference("a_noflow_linear")
    scores = np.asarray(alignment.edge_scores(predictions))
    np.testing.assert_allclose(scores, arrays["edge_scores"], rtol=1e-6)
    edges = np.asarray(predictions.edges)
    tree = alignment.spanning_tree(edges, scores, 8)
    np.testing.assert_array_equal(edges[tree.edges], arrays["mst_edges"])


def test_focals_of_the_reference_with_its_stale_map(predictions, reference):
    """The reference measures a tree edge's focal length in the edge before: equal only where that is switched on."""
    expected = reference("a_noflow_linear")["mst_focals"]
    edges, scores = np.asarray(predictions.edges), np.asarray(alignment.edge_scores(predictions))
    centre = camera.default_principal_point(*predictions.points_i.shape[1:3])
    found = {}
    for stale in (True, False):
        number = alignment.spanning_tree(edges, scores, 8, stale_focal=stale).focal_edges
        found[stale] = jax.vmap(weiszfeld_focal, (0, None))(predictions.points_i[number], centre)
    np.testing.assert_allclose(found[True], expected, rtol=1e-5)
    assert not np.allclose(found[False], expected, rtol=1e-3)
    np.testing.assert_allclose(found[False], 60, rtol=0.03)  # of the scene


def test_confidence_is_the_largest_over_the_pairs(predictions, reference):
    confidence = alignment.frame_confidence(dataclasses.replace(predictions, num_frames=9))
    np.testing.assert_array_equal(confidence[:8], reference("a_noflow_linear")["im_conf_before_clean"])
    np.testing.assert_array_equal(confidence[8], 0)  # a frame in no pair


def test_start_of_the_reference(predictions, config, reference):
    """Poses by registration are equal; RANSAC and the stale focal leave the others their noise."""
    ours, arrays = alignment.initial_state(predictions, config), reference("a_noflow_linear")
    a, b = (np.asarray(x, np.float64) for x in (state_of.world_from_cam(ours), arrays["init_im_poses"]))
    turn = (Rotation.from_matrix(a[:, :3, :3]).inv() * Rotation.from_matrix(b[:, :3, :3])).magnitude()
    shift = np.linalg.norm(a[:, :3, 3] - b[:, :3, 3], axis=1)
    registered = np.unique(arrays["mst_edges"][:, 0])
    assert np.degrees(turn[registered]).max() < 0.01
    assert shift[registered].max() < 1e-4
    assert np.degrees(turn).max() < 1
    np.testing.assert_allclose(state_of.pair_scales(ours), arrays["init_pw_scale"], rtol=1e-4)
    np.testing.assert_allclose(state_of.pair_transforms(ours), arrays["init_pw_poses_scaled"], atol=1e-4)
    assert ours.log_focal.shape == (1,)


@pytest.mark.parametrize("seed", range(5))
def test_chain_joins_each_two_neighbours(seed):
    edges, scores = random_graph(seed)
    tree = alignment.spanning_tree(edges, nearest_first(edges, scores), 9)
    joined = edges[tree.edges]
    np.testing.assert_array_equal(np.abs(joined[:, 0] - joined[:, 1]), 1)
    neighbours = np.abs(edges[:, 0] - edges[:, 1]) == 1
    assert tree.edges[0] == np.flatnonzero(neighbours)[np.argmax(scores[neighbours])]


@pytest.mark.parametrize(
    ("shared", "initialisation"),
    [(True, "spanning-tree"), (False, "spanning-tree"), (True, "chain")],
    ids=["shared", "own", "chain"],
)
def test_perfect_predictions_start_at_the_truth(shared, initialisation, exact_clip, config):
    """Up to the world: its frame is that of the best pair's first camera, its size makes the mean pair scale 0.5."""
    clip = exact_clip(focals=20.0 if shared else np.array([18.0, 20.0, 23.0, 26.0]))
    config = dataclasses.replace(config, shared_focal=shared, initialisation=initialisation)
    state = alignment.initial_state(clip.predictions, config)
    assert state.log_focal.shape == ((1,) if shared else (4,))
    np.testing.assert_allclose(state_of.focals(state), clip.focals, rtol=1e-4)

    poses = np.asarray(state_of.world_from_cam(state), np.float64)
    root = np.flatnonzero(np.abs(poses - np.eye(4)).max(axis=(1, 2)) < 1e-6)
    assert len(root) == 1
    truth = np.linalg.inv(clip.world_from_cam[root[0]]) @ clip.world_from_cam
    size = np.exp(np.log(0.5) + np.log(clip.pair_scale).mean())
    truth[:, :3, 3] *= size
    np.testing.assert_allclose(poses, truth, atol=2e-3)
    np.testing.assert_allclose(state_of.depth(state), clip.depth * size, rtol=5e-3)
    np.testing.assert_allclose(state_of.pair_scales(state), size / clip.pair_scale, rtol=1e-4)
    assert alignment.total_loss(state, alignment.make_problem(clip.predictions, config)) < 0.02


def test_mean_pair_scale_is_a_half_and_frames_and_pairs_stay_together(predictions, config):
    """The world is scaled by what normalising the scales does to the pairs: no other size of the depth fits better."""
    state, problem = alignment.initial_state(predictions, config), alignment.make_problem(predictions, config)
    np.testing.assert_allclose(np.exp(np.log(state_of.pair_scales(state)).mean()), 0.5, rtol=1e-5)
    loss = jax.jit(alignment.total_loss)
    smaller, larger = (dataclasses.replace(state, log_depth=state.log_depth + d) for d in (-0.05, 0.05))
    assert loss(state, problem) < min(loss(smaller, problem), loss(larger, problem))


def test_confident_pixels_and_what_is_taken_when_there_are_none():
    confidence = np.full((10, 10), 1.5)
    confidence[0] = np.arange(2, 12)
    np.testing.assert_array_equal(confident_pixels(confidence, 5.0), confidence > 5)
    scarce = np.arange(100.0).reshape(10, 10)
    few = confident_pixels(scarce, 98.5)  # 1 % is enough
    assert few.sum() == 1 and few[9, 9]
    best = confident_pixels(scarce, 1000.0)
    np.testing.assert_array_equal(best, scarce >= 75)
    assert confident_pixels(np.full((10, 10), 2.0), 3.0).all()


def test_depth_is_kept_positive():
    depth = jnp.asarray(np.stack([np.full((4, 4), 2.0), np.full((4, 4), -3.0), np.zeros((4, 4))]), jnp.float32)
    depth = depth.at[0, 0, 0].set(-1.0).at[0, 0, 1].set(0.0)
    kept = np.asarray(positive_depth(depth))
    assert (kept > 0).all()
    np.testing.assert_array_equal(kept[0, 1:], depth[0, 1:])
    floor = 1e-3 * np.abs(depth[0]).mean()
    np.testing.assert_allclose(kept[0, 0, :2], floor, rtol=1e-5)
    np.testing.assert_allclose(kept[1], 3e-3, rtol=1e-5)
