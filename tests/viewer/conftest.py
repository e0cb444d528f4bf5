"""A wall and a square in front of it that moves to the right, seen by a camera that also moves to the right."""

import pathlib

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.types import Frames, Reconstruction, Scene4D
from easi3r_jax.io import results
from tests.results import write_result

T, H, W = 6, 24, 32


def make_scene(count: int = T, height: int = H, width: int = W) -> Scene4D:
    """The scene; everything scales with the image size, and the square is a quarter of the image wide."""
    world_from_cam = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_rotvec([[0, 0.2, 0.1]] * count).as_matrix()
    world_from_cam[:, :3, 3] = np.linspace([0.3, -0.2, 0.1], [0.8, -0.2, 0.1], count)
    moving = np.zeros((count, height, width), bool)
    for t in range(count):
        left = round(0.1 * width + 0.6 * width * t / count)
        moving[t, height // 3 : height // 3 + height // 4, left : left + width // 4] = True
    x = np.arange(width, dtype=np.float32)
    wave = 127 + 120 * np.sin(np.arange(height)[:, None, None] / 3 + x[:, None] / 5 + np.arange(3))
    rgb = np.broadcast_to(wave.astype(np.uint8), (count, height, width, 3)).copy()
    rgb[moving] = [230, 40, 60]
    return Scene4D(
        world_from_cam=world_from_cam,
        intrinsics=np.tile(
            np.array([[1.25 * width, 0, width / 2], [0, 1.25 * width, height / 2], [0, 0, 1]], np.float32),
            (count, 1, 1),
        ),
        depth=np.where(moving, 2.0, 4.0 + x / width).astype(np.float32),
        confidence=np.full(moving.shape, 1.5 + 3 * x / width, np.float32),
        dynamic_mask=moving,
        dynamic_score=np.where(moving, 0.9, 0.1).astype(np.float32),
        static_mask=~moving,
        rgb=rgb,
    )


def write_scene(folder: pathlib.Path, scene: Scene4D) -> Reconstruction:
    """A result folder, read back."""
    count, height, width = scene.depth.shape
    frames = Frames(
        rgb=scene.rgb,
        source_index=np.arange(count, dtype=np.int32),
        time=np.arange(count) / 20,
        frame_from_source=np.eye(3),
        source_size=np.array([height, width], np.int32),
    )
    return results.load_result(write_result(folder, scene, frames=frames, config={}))


@pytest.fixture
def scene() -> Scene4D:
    return make_scene()


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Reconstruction:
    return write_scene(tmp_path_factory.mktemp("results") / "clip", make_scene())
