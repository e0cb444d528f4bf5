"""Shared by the tests of the pipeline: a small network's configuration, options, clips of noise, a refiner."""

import dataclasses

import chex
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.config import AlignConfig, PipelineConfig, SegmentationConfig
from easi3r_jax.core.types import Frames, KnownCameras
from tests.networks import small_network

NETWORK = small_network(enc_depth=2)
#: Most tests reconstruct `clip(4)` in all twelve pairs: what is compiled for one of them serves the others.
OPTIONS = PipelineConfig(
    graph="complete",
    segmentation=SegmentationConfig(num_clusters=8, restarts=1),
    alignment=AlignConfig(iterations=20),
)


def clip(count, height=32, width=48, seed=0):
    """A random texture that pans."""
    texture = np.random.default_rng(seed).integers(0, 256, (height, width + 4 * count, 3), np.uint8)
    rgb = np.stack([texture[:, 4 * t : 4 * t + width] for t in range(count)])
    return Frames(
        rgb=jnp.asarray(rgb),
        source_index=np.arange(count),
        time=np.arange(count) / 24.0,
        frame_from_source=np.eye(3),
        source_size=np.array([height, width]),
    )


def assert_finite(tree):
    chex.assert_tree_all_finite(tree)


def known_cameras(count, **changes):
    known = KnownCameras(
        focal=np.ones(count),
        principal_point=np.zeros((count, 2)),
        intrinsics_known=np.zeros(count, bool),
        world_from_cam=np.tile(np.eye(4), (count, 1, 1)),
        poses_known=np.zeros(count, bool),
    )
    return dataclasses.replace(known, **changes)


class Corner:
    """A refiner that adds the upper left corner of every frame, and records its arguments."""

    def __init__(self, size=6):
        self.size, self.calls = size, []

    def __call__(self, rgb, masks, *, progress):
        self.calls.append((rgb, masks))
        progress("refine", 0, 1, "")
        refined = masks.copy()
        refined[:, : self.size, : self.size] = True
        return refined
