"""The reference program's clip and its run, and clips whose exact alignment is known."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax import alignment
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.geometry import camera
from easi3r_jax.core.types import PairPredictions

#: The reference run's options.
CONFIG = AlignConfig(iterations=300, smoothing_weight=0.01, translation_weight=1.0, min_confidence=2.5)


@pytest.fixture(scope="session")
def config() -> AlignConfig:
    return CONFIG


@pytest.fixture(scope="session")
def reference(golden) -> Callable[[str], dict[str, np.ndarray]]:
    """Arrays of a file of the reference run."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(golden / "alignment" / f"{name}.npz") as file:
            return dict(file)

    return load


@pytest.fixture(scope="session")
def scene(reference) -> dict[str, np.ndarray]:
    return reference("scene")


@pytest.fixture(scope="session")
def predictions(reference, scene) -> PairPredictions:
    """Network-like predictions of the reference clip: 8 frames, 32 pairs, noise, a scale per pair."""
    arrays = reference("predictions")
    return PairPredictions(
        edges=jnp.asarray(scene["edges"]),
        points_i=jnp.asarray(arrays["pts3d_1"]),
        points_j=jnp.asarray(arrays["pts3d_2"]),
        confidence_i=jnp.asarray(arrays["conf_1"]),
        confidence_j=jnp.asarray(arrays["conf_2"]),
    )


@pytest.fixture(scope="session")
def problem(predictions) -> alignment.AlignProblem:
    return alignment.make_problem(predictions, CONFIG)


@pytest.fixture(scope="session")
def start(reference) -> alignment.AlignState:
    """Where the reference run starts (both schedules from the same state)."""
    arrays = reference("a_noflow_linear")
    return alignment.AlignState(
        pair_poses=jnp.asarray(arrays["init_pw_poses_param"]),
        frame_poses=jnp.asarray(arrays["init_im_poses_param"]),
        log_depth=jnp.log(jnp.asarray(arrays["init_depth"])),
        log_focal=jnp.asarray(arrays["init_log_focal_param"]).ravel(),
    )


@dataclasses.dataclass
class ExactClip:
    """Cameras, depth and the predictions a faultless network would make, each pair at its own scale."""

    predictions: PairPredictions
    world_from_cam: np.ndarray
    focals: np.ndarray
    depth: np.ndarray
    pair_scale: np.ndarray


@pytest.fixture(scope="session")
def exact_clip() -> Callable[..., ExactClip]:
    """A hand-held camera (frame 0 is the world); every pair of frames in both directions."""

    def make(num_frames=4, height=12, width=16, *, focals=20.0, noise=0.0, jitter=0.0, seed=0) -> ExactClip:
        rng = np.random.default_rng(seed)
        t = np.arange(num_frames)[:, None]
        poses = np.tile(np.eye(4), (num_frames, 1, 1))
        turns = t * [[0.03, -0.05, 0.02]] + jitter * rng.standard_normal((num_frames, 3)) * (t > 0)
        poses[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix()
        poses[:, :3, 3] = t * [[0.2, -0.1, 0.15]] + jitter * rng.standard_normal((num_frames, 3)) * (t > 0)
        depth = rng.uniform(2, 5, (num_frames, height, width))
        focals = np.broadcast_to(focals, num_frames).astype(float)

        edges = np.array([(i, j) for i in range(num_frames) for j in range(num_frames) if i != j])
        matrices = np.tile(np.eye(3), (num_frames, 1, 1))
        matrices[:, 0, 0] = matrices[:, 1, 1] = focals
        matrices[:, :2, 2] = camera.default_principal_point(height, width)
        own = camera.unproject(depth, matrices)
        i_from_j = np.linalg.inv(poses)[edges[:, 0]] @ poses[edges[:, 1]]
        turned = np.einsum("eab,ehwb->ehwa", i_from_j[:, :3, :3], own[edges[:, 1]])
        points = np.stack([own[edges[:, 0]], turned + i_from_j[:, None, None, :3, 3]])
        pair_scale = np.exp(rng.uniform(-0.7, 0.7, len(edges)))
        points = (points + noise * rng.standard_normal(points.shape)) * pair_scale[:, None, None, None]
        confidence = rng.uniform(3, 8, (2, len(edges), height, width))
        arrays = (jax.device_put(x.astype(np.float32)) for x in (*points, *confidence))
        predictions = PairPredictions(jax.device_put(edges.astype(np.int32)), *arrays, num_frames=len(poses))
        return ExactClip(predictions, poses, focals, depth, pair_scale)

    return make
