"""A small scene with known geometry: a wall and a floor seen by three cameras, and a square that moves.

And exports of the scene in `tests.exact_scene`.
"""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.types import Frames, MotionMaps, Scene4D, TemporalMaps
from easi3r_jax.io import export
from tests import exact_scene

T, H, W = 3, 24, 32


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    world_from_cam = np.tile(np.eye(4, dtype=np.float32), (T, 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_rotvec([[0, 0.1 * t + 0.3, 0.2] for t in range(T)]).as_matrix()
    world_from_cam[:, :3, 3] = [[0.1 * t, 0.2, -0.05 * t] for t in range(T)]
    mask = np.zeros((T, H, W), bool)
    for t in range(T):
        mask[t, 8:14, 4 + 5 * t : 10 + 5 * t] = True
    depth = np.where(mask, 2.0, 4.0) + np.linspace(0, 0.5, W)
    return Scene4D(
        world_from_cam=world_from_cam,
        intrinsics=np.tile(np.array([[40, 0, W / 2], [0, 42, H / 2], [0, 0, 1]], np.float32), (T, 1, 1)),
        depth=depth.astype(np.float32),
        confidence=np.full((T, H, W), 3.0, np.float32),
        dynamic_mask=mask,
        dynamic_score=mask.astype(np.float32),
        static_mask=~mask,
        rgb=rng.integers(0, 256, (T, H, W, 3), np.uint8),
    )


@pytest.fixture
def motion():
    maps = np.random.default_rng(1).random((4, T, 3, 4)).astype(np.float32)
    return MotionMaps(TemporalMaps(*maps), maps[0], np.zeros((T, 3, 4), np.int32), maps[1])


@pytest.fixture
def time():
    return np.array([0.0, 0.5, 1.0])


@pytest.fixture
def frames(scene, time):
    """As if every second frame of images twice as large had been taken, and halved, and their left side cut off."""
    return Frames(
        rgb=scene.rgb,
        source_index=np.arange(0, 2 * T, 2, dtype=np.int32),
        time=time,
        frame_from_source=np.array([[0.5, 0, -4.25], [0, 0.5, -0.25], [0, 0, 1]]),
        source_size=np.array([2 * H, 2 * W + 8], np.int32),
    )


@pytest.fixture(scope="session")
def room():
    return exact_scene.made([exact_scene.FOCAL] * exact_scene.T)


@pytest.fixture(scope="session", params=["frames", "originals", "per-frame focal", "every second"])
def exported(request, room):
    """What is exported of the room, in pixels of the frames or of the originals."""
    varied = request.param == "per-frame focal"
    scene = exact_scene.made(exact_scene.FOCAL + np.arange(exact_scene.T)) if varied else room
    every = 2 if request.param == "every second" else 1
    chosen = export.frames_of(scene, exact_scene.TIME, every, max_points=3000)
    return dataclasses.replace(chosen, views=exact_scene.originals()) if request.param == "originals" else chosen
