"""The unit that a result states: that of the alignment's own decision about known poses."""

import dataclasses

import numpy as np

from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.types import Given
from easi3r_jax.inference import pipeline
from tests.inference.small import OPTIONS, clip, known_cameras

QUICK = dataclasses.replace(OPTIONS, cue="none", alignment=AlignConfig(iterations=2))


def test_poses_of_a_camera_that_only_turns_are_no_unit(model):
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, :3, 3] = 1e-6 * np.random.default_rng(1).standard_normal((6, 3))
    cameras = known_cameras(6, world_from_cam=poses, poses_known=np.ones(6, bool))
    result = pipeline.reconstruct(model, clip(6), QUICK, given=Given(cameras=cameras))
    assert result.unit == "arbitrary"
