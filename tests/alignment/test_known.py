"""Known cameras, the depth prior and the free principal point: priors are kept, and improve the rest."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax import alignment
from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.known import in_known_world, scale_is_known, world_from_known
from easi3r_jax.alignment.known_scale import known_scale
from easi3r_jax.alignment.terms import depth_change
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.types import KnownCameras
from tests.alignment.aligned import aligned

T = 4


@pytest.fixture(scope="module")
def clip(exact_clip):
    return exact_clip()


@pytest.fixture(scope="module")
def noisy(exact_clip):
    return exact_clip(noise=0.05)


@pytest.fixture
def quick(config):
    return dataclasses.replace(config, iterations=100, smoothing_weight=0.0)


def moved(clip, size=3.0):
    """The clip's poses in a world of another origin, orientation and unit; the similarity that brings them there."""
    similarity = np.eye(4)
    similarity[:3, :3] = size * Rotation.from_rotvec([0.4, -1.2, 0.7]).as_matrix()
    similarity[:3, 3] = [100.0, -40.0, 7.0]
    poses = similarity @ clip.world_from_cam
    poses[:, :3, :3] /= size
    return poses


def known_cameras(clip, *, poses=None, which=(True,) * T, focals=None, focal_which=(True,) * T, centre=None):
    height, width = clip.depth.shape[1:]
    which, focal_which = np.array(which) & (poses is not None), np.array(focal_which) & (focals is not None)
    count = len(which)
    return KnownCameras(
        focal=np.where(focal_which, 1.0 if focals is None else focals, 1.0),
        principal_point=np.tile([width / 2, height / 2] if centre is None else centre, (count, 1)),
        intrinsics_known=focal_which,
        world_from_cam=np.where(which[:, None, None], np.eye(4) if poses is None else poses, np.eye(4)),
        poses_known=which,
    )


def degrees(a, b):
    a, b = (Rotation.from_matrix(np.asarray(x, np.float64)[..., :3, :3]) for x in (a, b))
    return np.degrees((a.inv() * b).magnitude())


def test_known_poses_come_out_as_given_and_depth_in_their_unit(clip, quick):
    poses = moved(clip)
    result = aligned(clip.predictions, quick, known=known_cameras(clip, poses=poses))
    np.testing.assert_allclose(result.world_from_cam, poses, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.depth, 3.0 * clip.depth, rtol=0.03)


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 1e-3), (0.05, 0.02)])
def test_parallax_gives_the_scale_of_known_poses(noise, tolerance, exact_clip, quick):
    """More accurate than by path length: some points of every pair are wrong, and so are initial cameras."""
    clip = exact_clip(noise=noise)
    points = np.array(clip.predictions.points_j)
    points[:, : points.shape[1] // 4] += 0.5
    predictions = dataclasses.replace(clip.predictions, points_j=jnp.asarray(points))
    known = known_cameras(clip, poses=moved(clip))
    found = alignment.initial_state(clip.predictions, quick)
    expected = 0.5 * np.exp(np.log(clip.pair_scale).mean()) / 3.0
    assert known_scale(predictions, known, found) == pytest.approx(expected, rel=tolerance)
    one = dataclasses.replace(known, poses_known=np.arange(T) == 1)
    assert known_scale(predictions, one, found) is None


def test_poses_of_some_frames_place_the_others(clip, quick):
    poses = moved(clip)
    known = known_cameras(clip, poses=poses, which=(True, False, True, False))
    result = aligned(clip.predictions, quick, known=known)
    np.testing.assert_allclose(result.world_from_cam[::2], poses[::2], rtol=1e-6, atol=1e-6)
    assert degrees(result.world_from_cam, poses).max() < 0.5
    np.testing.assert_allclose(result.world_from_cam[:, :3, 3], poses[:, :3, 3], atol=0.05)
    np.testing.assert_allclose(result.depth, 3.0 * clip.depth, rtol=0.05)


def test_one_known_pose_places_the_world_but_gives_it_no_unit(clip, quick):
    poses = moved(clip)
    known = known_cameras(clip, poses=poses, which=(False, False, True, False))
    assert not scale_is_known(known)
    result = aligned(clip.predictions, quick, known=known)
    free = aligned(clip.predictions, quick)
    np.testing.assert_allclose(result.world_from_cam[2], poses[2], rtol=1e-6, atol=1e-6)
    assert degrees(result.world_from_cam, poses).max() < 0.5
    np.testing.assert_allclose(np.median(result.depth), np.median(free.depth), rtol=0.02)


def test_known_poses_that_all_lie_at_one_place_give_no_unit(clip, quick):
    poses = clip.world_from_cam.copy()
    poses[:, :3, 3] = [1.0, 2.0, 3.0]
    known = known_cameras(clip, poses=poses)
    assert not scale_is_known(known)
    result = aligned(clip.predictions, quick, known=known)
    np.testing.assert_allclose(result.world_from_cam, poses, atol=1e-6)
    assert np.isfinite(result.depth).all()


def test_a_camera_that_only_turns_gives_no_unit(clip, quick):
    """Centres that differ by rounding, or because a mount is not rigid, do not form a baseline."""
    for jitter in (1e-17, 1e-4):
        poses = clip.world_from_cam.copy()
        poses[:, :3, 3] = jitter * np.random.default_rng(0).standard_normal((T, 3))
        result = aligned(clip.predictions, quick, known=known_cameras(clip, poses=poses))
        free = aligned(clip.predictions, quick)
        np.testing.assert_allclose(np.median(result.depth), np.median(free.depth), rtol=0.2)


def test_known_poses_do_not_let_the_world_shrink(noisy, quick):
    """With noise, distances are smaller in a smaller world: in units of the pairs' scales they are not."""
    poses = moved(noisy)
    result = aligned(
        noisy.predictions, dataclasses.replace(quick, iterations=300), known=known_cameras(noisy, poses=poses)
    )
    np.testing.assert_allclose(np.median(result.depth / (3.0 * noisy.depth)), 1, atol=0.03)


def test_known_intrinsics_come_out_as_given(noisy, quick):
    focals = np.array([18.0, 20.0, 23.0, 26.0])  # of each frame, though all share one where none is known
    known = known_cameras(noisy, focals=focals, centre=[7.0, 6.5])
    result = aligned(noisy.predictions, quick, known=known)
    np.testing.assert_allclose(result.intrinsics[:, 0, 0], focals, rtol=1e-6)
    np.testing.assert_allclose(result.intrinsics[:, :2, 2], np.tile([7.0, 6.5], (T, 1)), rtol=1e-6)


def test_intrinsics_of_some_frames(noisy, quick):
    known = known_cameras(noisy, focals=np.full(T, 20.0), focal_which=(True, False, False, True))
    shared = aligned(noisy.predictions, quick, known=known)
    np.testing.assert_allclose(shared.intrinsics[:, 0, 0], 20.0, rtol=1e-6)
    own = aligned(noisy.predictions, dataclasses.replace(quick, shared_focal=False), known=known)
    np.testing.assert_allclose(own.intrinsics[[0, 3], 0, 0], 20.0, rtol=1e-6)
    assert (np.abs(own.intrinsics[1:3, 0, 0] - 20.0) > 1e-3).all()


def test_a_focal_length_shared_by_all_stays_and_leaves_the_principal_point_free(noisy, quick):
    known = dataclasses.replace(alignment.nothing_known(T), shared_focal=np.float64(24.0))
    quick = dataclasses.replace(quick, free_principal_point=True)
    result = aligned(noisy.predictions, quick, known=known)
    np.testing.assert_allclose(result.intrinsics[:, 0, 0], 24.0, rtol=1e-6)
    height, width = noisy.depth.shape[1:]
    assert (np.abs(np.asarray(result.intrinsics)[:, :2, 2] - np.array([width / 2, height / 2])) > 1e-3).any()


def test_known_cameras_as_priors_pull_by_their_weight(noisy, quick):
    poses = noisy.world_from_cam.copy()
    poses[1, :3, :3] = poses[1, :3, :3] @ Rotation.from_rotvec([0, 0.1, 0]).as_matrix()  # one is wrong by 5.7 degrees
    known = known_cameras(noisy, poses=poses, focals=np.full(T, 24.0))

    def run(weight):
        # Long enough to leave the start, which is at the known cameras, where nothing attracts.
        config = dataclasses.replace(quick, camera_weight=weight, iterations=400)
        result = aligned(noisy.predictions, config, known=known)
        return degrees(result.world_from_cam, poses)[1], float(result.intrinsics[0, 0, 0])

    (none, focal_none), (some, focal_some), (much, focal_much) = (run(w) for w in (0.0, 0.01, 10.0))
    assert none > some > much
    assert much < 0.5 < 3 < none
    assert focal_none < focal_some < focal_much
    np.testing.assert_allclose(focal_much, 24, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_frames(count, exact_clip, quick):
    clip = exact_clip(num_frames=2)
    predictions = clip.predictions
    if count == 1:
        predictions = jax.tree.map(lambda x: x[:1], dataclasses.replace(predictions, points_j=predictions.points_i))
        predictions = dataclasses.replace(predictions, edges=jnp.zeros((1, 2), jnp.int32), num_frames=1)
    poses, everything = moved(clip)[:count], (True,) * count
    known = known_cameras(
        clip, poses=poses, which=everything, focals=np.full(count, 20.0), focal_which=everything, centre=[8.0, 6.0]
    )
    result = aligned(predictions, quick, known=known)
    np.testing.assert_allclose(result.world_from_cam, poses, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.intrinsics[:, 0, 0], 20.0, rtol=1e-6)
    if count == 2:
        np.testing.assert_allclose(result.depth, 3.0 * clip.depth, rtol=1e-3)


def test_known_cameras_are_refused_in_one_line(clip, quick):
    few = known_cameras(clip, poses=clip.world_from_cam[:2], which=(True, True), focal_which=(True, True))
    with pytest.raises(InputError, match="known for 2 frames, but the clip has 4"):
        aligned(clip.predictions, quick, known=few)
    differing = known_cameras(clip, focals=np.array([18.0, 20, 23, 26]), focal_which=(True, True, False, False))
    with pytest.raises(ConfigError, match=r"AlignConfig\(shared_focal=False\)"):
        aligned(clip.predictions, quick, known=differing)


def test_the_similarity_between_two_worlds_is_found(clip):
    known = known_cameras(clip, poses=moved(clip))
    similarity = world_from_known(clip.world_from_cam, known)
    there = similarity @ known.world_from_cam
    there[:, :3, :3] /= np.cbrt(np.linalg.det(similarity[:3, :3]))
    np.testing.assert_allclose(there, clip.world_from_cam, atol=1e-12)


def test_without_known_poses_the_world_stays(clip, quick):
    result = aligned(clip.predictions, quick)
    assert in_known_world(result, known_cameras(clip, focals=np.full(T, 20.0)), quick) is result


def test_the_principal_point_is_found_where_it_is_free(exact_clip, quick):
    clip = exact_clip(num_frames=4, height=24, width=32)
    # The same scene seen by cameras whose principal point lies elsewhere: pairs' points as those cameras have them.
    truth = np.array([17.5, 11.0])
    height, width = clip.depth.shape[1:]
    matrices = camera.intrinsics(jnp.full(T, 20.0), jnp.tile(jnp.asarray(truth, jnp.float32)[None], (T, 1)))
    own = np.asarray(camera.unproject(jnp.asarray(clip.depth, jnp.float32), matrices), np.float64)
    edges = np.asarray(clip.predictions.edges)
    i_from_j = np.linalg.inv(clip.world_from_cam)[edges[:, 0]] @ clip.world_from_cam[edges[:, 1]]
    in_i = np.einsum("eab,ehwb->ehwa", i_from_j[:, :3, :3], own[edges[:, 1]]) + i_from_j[:, None, None, :3, 3]
    predictions = dataclasses.replace(
        clip.predictions,
        points_i=jnp.asarray(own[edges[:, 0]], jnp.float32),
        points_j=jnp.asarray(in_i, jnp.float32),
    )
    quick = dataclasses.replace(quick, iterations=300)
    centre = np.array([width / 2, height / 2])
    fixed = aligned(predictions, quick)
    np.testing.assert_array_equal(fixed.intrinsics[:, :2, 2], np.tile(centre, (T, 1)))
    free = aligned(predictions, dataclasses.replace(quick, free_principal_point=True))
    found = np.asarray(free.intrinsics[:, :2, 2])
    assert np.linalg.norm(found - truth, axis=1).max() < 0.2 * np.linalg.norm(truth - centre)
    assert free.losses[-1] < 0.5 * fixed.losses[-1]


def test_depth_prior_of_the_reference(golden):
    with np.load(golden / "alignment" / "primitives.npz") as file:
        predicted, initial = file["depth_reg_pred"], file["depth_reg_init"]
        expected = {False: file["depth_reg_value_nomask"], True: file["depth_reg_value"]}
    with np.load(golden / "alignment" / "scene.npz") as file:
        moving = file["masks"][:3]
    for weighted, value in expected.items():
        weight = 1.0 + moving * weighted
        prior = alignment.DepthPrior(jnp.log(initial), jnp.asarray(weight, jnp.float32), jnp.ones(()))
        np.testing.assert_allclose(depth_change(jnp.log(predicted), prior), value, rtol=1e-5)


def test_the_depth_prior_holds_the_shape_of_depth_but_not_its_size(noisy, quick):
    start = alignment.initial_state(noisy.predictions, quick)
    quick = dataclasses.replace(quick, iterations=300)
    held, loose = (aligned(noisy.predictions, dataclasses.replace(quick, depth_weight=weight)) for weight in (1e4, 0.0))

    def departure(result):
        change = np.log(result.depth) - start.log_depth
        return float(np.std(change - change.mean(axis=(1, 2), keepdims=True)))

    assert departure(held) < 0.3 * departure(loose)
    prior = alignment.DepthPrior(start.log_depth, jnp.ones_like(start.log_depth), jnp.ones(()))
    factors = jnp.asarray([1.0, 2.0, 3.0, 4.0])[:, None, None]
    assert float(depth_change(start.log_depth + factors, prior)) < 1e-9


def test_terms_add_up_to_the_objective(noisy, quick):
    config = dataclasses.replace(quick, depth_weight=0.3, camera_weight=0.7, smoothing_weight=0.2)
    known = known_cameras(noisy, poses=noisy.world_from_cam, focals=np.full(T, 22.0))
    start = alignment.initial_state(noisy.predictions, config, known=known)
    problem = alignment.make_problem(noisy.predictions, config)
    problem = alignment.with_known_cameras(problem, start, known, config)
    problem = alignment.with_depth_prior(problem, start, config)
    state = dataclasses.replace(start, log_depth=start.log_depth * 1.1, log_focal=start.log_focal + 0.5)
    terms = jax.jit(alignment.loss_terms)(state, problem)
    weights = {"points": 1, "smoothness": 0.2, "depth": 0.3, "cameras": 0.7}
    assert set(terms) == {"total", *weights}
    assert all(float(terms[name]) > 0 for name in weights)
    total = sum(weight * float(terms[name]) for name, weight in weights.items())
    np.testing.assert_allclose(float(terms["total"]), total, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(alignment.total_loss)(state, problem), total, rtol=1e-5)
    np.testing.assert_allclose(float(terms["cameras"]), T * 0.5 / state_of.FOCAL_PARAM_SCALE, rtol=1e-4)
    assert math.isfinite(float(terms["total"]))
