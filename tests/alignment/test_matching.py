"""Matches of descriptors as a term: written out plainly, what counts, and what it changes."""

import dataclasses

import jax
import numpy as np
import pytest

import easi3r_jax as e3r
from easi3r_jax import alignment
from easi3r_jax.core.reciprocal import Matches

CONFIG = e3r.AlignConfig(iterations=40, match_weight=1.0)
H, W = 12, 16


@pytest.fixture(scope="module")
def clip(exact_clip):
    return exact_clip(noise=0.05, seed=2)


@pytest.fixture(scope="module")
def matches(clip):
    """Every fourth pixel of frame i, and the pixel of frame j that its true point is nearest to; some are wrong."""
    edges = np.asarray(clip.predictions.edges)
    index = np.broadcast_to(np.arange(0, H * W, 4, dtype=np.int32), (len(edges), H * W // 4))
    seen, inside = seen_in_j(clip.depth, clip.world_from_cam, clip.focals, edges, index)
    x, y = (np.clip(np.rint(seen[:, a]), 0, n - 1).astype(np.int32) for a, n in ((0, W), (1, H)))
    index_j = np.where(inside, y * W + x, 0).astype(np.int32)
    index_j[:, ::11] = 5
    return Matches(index, index_j, inside)


def seen_in_j(depth, poses, focals, edges, index):
    """(E, 2, K) where the points of frame i's pixels are seen in frame j, and whether that is inside the image."""
    centre = np.array([W / 2, H / 2])[:, None]
    out = []
    for (i, j), pixels in zip(edges, index, strict=True):
        rays = np.stack([pixels % W, pixels // W]).astype(np.float64)
        points = np.concatenate([(rays - centre) / focals[i], np.ones_like(rays[:1])]) * depth[i].ravel()[pixels]
        world = poses[i][:3, :3] @ points + poses[i][:3, 3:]
        local = poses[j][:3, :3].T @ (world - poses[j][:3, 3:])
        out.append(focals[j] * local[:2] / local[2:] + centre)
    seen = np.stack(out)
    limits = np.array([W, H])[None, :, None] - 0.5
    return seen, np.all((seen > -0.5) & (seen < limits), axis=1)


def problem_of(clip, matches, mask=None, **changes):
    predictions = dataclasses.replace(clip.predictions, **changes)
    problem = alignment.make_problem(predictions, CONFIG)
    return alignment.with_matches(problem, predictions, matches, CONFIG, mask)


@pytest.fixture(scope="module")
def state(clip):
    return e3r.initial_state(clip.predictions, CONFIG)


def test_the_loss_is_the_mean_distance_of_what_counts(clip, matches, state):
    mask = np.zeros((len(clip.depth), H, W), bool)
    mask[1, :, :5] = True
    problem = problem_of(clip, matches, mask)
    geometry = jax.tree.map(np.asarray, e3r.geometry_of(state, problem, clip.depth.astype(np.float32)))
    edges, poses = np.asarray(clip.predictions.edges), geometry.world_from_cam.astype(np.float64)
    seen, _ = seen_in_j(geometry.depth, poses, geometry.intrinsics[:, 0, 0], edges, matches.index_i)
    error = np.abs(seen - np.stack([matches.index_j % W, matches.index_j // W], axis=1))
    loss = np.where(error < 1, error**2 / 2, error - 0.5)
    moving = mask.reshape(len(mask), -1)
    still = ~moving[edges[:, :1], matches.index_i] & ~moving[edges[:, 1:], matches.index_j]
    kept = (loss < CONFIG.flow_outlier) & (matches.valid & still)[:, None]
    assert 0.5 < kept.mean() < 1
    found = e3r.loss_terms(state, problem)["matches"]
    np.testing.assert_allclose(found, loss[kept].mean(), rtol=1e-4)


def test_padding_counts_nothing(clip, matches, state):
    """Pairs that are padding repeat the last one, which has wrong matches here."""
    valid = np.arange(len(matches.index_i)) < len(matches.index_i) - 1
    wrong = dataclasses.replace(matches, index_j=np.where(valid[:, None], matches.index_j, 0).astype(np.int32))
    first, second = (alignment.match_loss(state, problem_of(clip, m, valid=valid)) for m in (matches, wrong))
    np.testing.assert_array_equal(first, second)


def test_the_gradient_is_that_of_finite_differences(clip, matches, state):
    problem = problem_of(clip, matches)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else x.dtype), (state, problem))
        rng = np.random.default_rng(0)
        along = jax.tree.map(lambda x: rng.standard_normal(x.shape), wide[0])

        @jax.jit
        def moved(step):
            return alignment.match_loss(jax.tree.map(lambda x, d: x + step * d, wide[0], along), wide[1])

        # Not at the start itself, where the first frame's translation is 0: its parameter has no derivative there.
        slope = (moved(1e-3 + 1e-7) - moved(1e-3 - 1e-7)) / 2e-7
        np.testing.assert_allclose(jax.grad(moved)(1e-3), slope, rtol=1e-4)


def test_matches_improve_what_they_measure(clip, matches):
    """And without the weight, they change nothing."""
    right = dataclasses.replace(matches, valid=matches.valid & (np.arange(matches.valid.shape[1]) % 11 > 0))
    problem, losses = problem_of(clip, right), []
    off = dataclasses.replace(CONFIG, match_weight=0.0)
    start = e3r.initial_state(clip.predictions, CONFIG)
    for config in (CONFIG, off):
        observed = alignment.make_problem(clip.predictions, config)
        observed = alignment.with_matches(observed, clip.predictions, matches, config)
        ended, _ = e3r.optimise(start, observed, config)
        losses.append(float(alignment.match_loss(ended, problem)))
    assert losses[0] < 0.9 * losses[1]
    assert observed.matches is None


def test_matches_of_another_clip_are_refused(clip, matches, state):
    fewer = jax.tree.map(lambda x: x[:-1], matches)
    with pytest.raises(e3r.InputError, match="matches of 11 pairs, but 12"):
        problem_of(clip, fewer)
    with pytest.raises(e3r.ConfigError, match="no matches"):
        alignment.match_loss(state, alignment.make_problem(clip.predictions, CONFIG))
