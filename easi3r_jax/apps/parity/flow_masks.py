"""Masks from optical flow (MonST3R): by the cameras that the released program found, and by our own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from easi3r_jax import alignment
from easi3r_jax.alignment.flow_masks import both_directions, mean_residual, one_pair
from easi3r_jax.alignment.pair import two_frames
from easi3r_jax.apps.parity.report import Golden, Row, at_most, compare
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.config import AlignConfig, PipelineConfig
from easi3r_jax.core.types import KnownCameras, PairPredictions

_TOLERANCE = 1e-5


def check_flow_masks(stage: str, golden: Golden, predictions: PairPredictions, flow: Array) -> Iterator[Row]:
    """MonST3R's masks: flow that the cameras of each pair do not explain; with golden's cameras, and with our own."""
    config = dataclasses.replace(AlignConfig(), min_confidence=2.5, shared_focal=False)
    geometries = [
        (rows, two_frames(one_pair(predictions, rows), config, known=_golden_cameras(golden, number)))
        for number, rows in enumerate(both_directions(predictions))
    ]
    residual = mean_residual(geometries, predictions, flow)
    yield compare(stage, "mean_error, from golden's cameras", residual, golden["mean_error"], _TOLERANCE)
    own = alignment.flow_residual(predictions, flow, config)
    differ = float((np.asarray(own > PipelineConfig().flow_threshold) != golden["masks"]).mean())
    yield at_most(stage, "masks from our cameras, share that differs", differ, 1e-3)
    yield from golden.unread(stage, r".*_pair0")


def _golden_cameras(golden: Golden, pair: int) -> KnownCameras:
    """Cameras of two frames that the released program reconstructs by themselves."""
    world_from_cam = np.tile(np.eye(4), (2, 1, 1))
    for frame, side in enumerate("ij"):
        world_from_cam[frame, :3] = np.concatenate([golden[f"R_{side}"][pair], golden[f"T_{side}"][pair]], axis=1)
    matrices = np.stack([golden["K_i"][pair], golden["K_j"][pair]]).astype(np.float64)
    everything = np.ones(2, bool)
    return KnownCameras(
        focal=matrices[:, 0, 0],
        principal_point=matrices[:, :2, 2],
        intrinsics_known=everything,
        world_from_cam=world_from_cam,
        poses_known=everything,
        start_scale=np.float64(1),
    )
