"""Evaluates a network on held-out pairs: points, depth, relative pose, focal length."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.geometry.focal import weiszfeld_focal
from easi3r_jax.core.geometry.pnp import solve_pnp
from easi3r_jax.core.geometry.procrustes import register_similarity
from easi3r_jax.models import DUSt3R
from easi3r_jax.training.batch import ViewPairs, both_ways, targets_of
from easi3r_jax.training.objective import (
    masked_mean,
    mean_distance,
    point_errors,
    predict,
    scale_shift_invariant_errors,
)

_PNP_ITERATIONS = 100


def evaluate(model: DUSt3R, pairs: ViewPairs, *, copied: bool = False, batch_size: int = 16) -> dict[str, float]:
    """Metrics, averaged over both directions of B pairs.

    Args:
      model: the network.
      pairs: B pairs with depth that is at least partly known.
      copied: give the network view 1 twice. A baseline: its predictions without a second view.
      batch_size: number of pairs per batch.

    Returns:
      error_1, error_2: distance of normalised points, of view 1 and of view 2 in view 1's camera.
      invariant_1, invariant_2: the same after removing a depth shift and a scale (DUSt3R's validation).
      abs_rel, delta_1_25: of view 1's depth, scaled by the median ratio.
      rotation_deg, rotation_procrustes_deg: error of view 2's rotation, by PnP on its points, and by registering its
        own points, from the reverse pair, to them.
      translation: error of the translation by PnP. Both translations are in units of their pair's mean distance.
      rotation_still_deg, translation_still: the same errors for the prediction that the camera does not move.
      focal: relative error of the focal length.
    """
    count = len(pairs.rgb)
    # All batches have one size: the last one is padded, and the padding is dropped.
    batches = np.arange(-(-count // batch_size) * batch_size).reshape(-1, batch_size) % count
    outputs = [_outputs(model, jax.tree.map(lambda a, n=numbers: a[n], pairs), copied=copied) for numbers in batches]
    merged = {
        name: np.concatenate([np.asarray(a[name]).reshape(2, batch_size, *a[name].shape[1:]) for a in outputs], axis=1)
        for name in outputs[0]
    }
    return _metrics({name: value[:, :count].reshape(2 * count, *value.shape[2:]) for name, value in merged.items()})


@functools.partial(jax.jit, static_argnames="copied")
def _outputs(model: DUSt3R, pairs: ViewPairs, *, copied: bool) -> dict[str, Array]:
    """Per directed pair: metrics that are computed on the device, and inputs of those that need the host (PnP)."""
    targets = targets_of(pairs)
    if copied:
        first, second = (predict(model, jnp.stack([pairs.rgb[:, k], pairs.rgb[:, k]], axis=1))[0] for k in (0, 1))
        half = len(pairs.rgb)
        predicted = jax.tree.map(lambda a, b: jnp.concatenate([a[:half], b[:half]]), first, second)
    else:
        predicted = predict(model, pairs.rgb)[0]
    error_i, error_j, _ = point_errors(predicted, targets)
    invariant_i, invariant_j = scale_shift_invariant_errors(predicted, targets)
    over = (1, 2)
    height, width = pairs.depth.shape[2:]
    centre = camera.default_principal_point(height, width)
    reverse = jnp.roll(jnp.arange(len(error_i)), len(pairs.rgb))
    own_j = predicted.points_i[reverse]
    weights = jnp.where(targets.valid_j, predicted.confidence_j, 0)
    flat = (len(error_i), -1)
    _, rotation, _ = jax.vmap(register_similarity)(
        own_j.reshape(*flat, 3), predicted.points_j.reshape(*flat, 3), weights.reshape(flat)
    )
    pose_i, pose_j = both_ways(pairs.world_from_cam[:, 0], pairs.world_from_cam[:, 1])
    cam_i_from_cam_j = se3.compose(se3.inverse(pose_i), pose_j)
    true_focal, _ = both_ways(pairs.intrinsics[:, 0, 0, 0], pairs.intrinsics[:, 1, 0, 0])
    depth, true = predicted.points_i[..., 2], targets.points_i[..., 2]
    ratio = jnp.nanmedian(jnp.where(targets.valid_i, true / jnp.maximum(depth, 1e-6), jnp.nan).reshape(flat), axis=1)[
        :, None, None
    ]
    scaled = depth * ratio
    relative = jnp.abs(scaled - true) / jnp.where(targets.valid_i, true, 1)
    close = jnp.maximum(scaled / jnp.where(targets.valid_i, true, 1), true / jnp.maximum(scaled, 1e-6)) < 1.25
    return {
        "error_1": masked_mean(error_i, targets.valid_i, over),
        "error_2": masked_mean(error_j, targets.valid_j, over),
        "invariant_1": masked_mean(invariant_i, targets.valid_i, over),
        "invariant_2": masked_mean(invariant_j, targets.valid_j, over),
        "abs_rel": masked_mean(relative, targets.valid_i, over),
        "delta_1_25": masked_mean(close.astype(jnp.float32), targets.valid_i, over),
        "procrustes": rotation,
        "cam_i_from_cam_j": cam_i_from_cam_j,
        "focal": jax.vmap(lambda p: weiszfeld_focal(p, centre))(predicted.points_i),
        "focal_j": jax.vmap(lambda p: weiszfeld_focal(p, centre))(own_j),
        "true_focal": true_focal,
        "points_j": predicted.points_j,
        "confidence_j": predicted.confidence_j,
        "scale": mean_distance(predicted.points_i, predicted.points_j, targets.valid_i, targets.valid_j),
        "true_scale": mean_distance(targets.points_i, targets.points_j, targets.valid_i, targets.valid_j),
    }


def _metrics(outputs: dict[str, np.ndarray]) -> dict[str, float]:
    plain = ("error_1", "error_2", "invariant_1", "invariant_2", "abs_rel", "delta_1_25")
    metrics = {name: float(outputs[name].mean()) for name in plain}
    height, width = outputs["points_j"].shape[1:3]
    pixels = np.asarray(camera.pixel_grid(height, width)).reshape(-1, 2)
    rotations, translations = [], []
    still = outputs["cam_i_from_cam_j"]
    for e, points in enumerate(outputs["points_j"]):
        f = float(outputs["focal_j"][e])
        confident = outputs["confidence_j"][e] >= np.median(outputs["confidence_j"][e])
        intrinsics = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]])
        chosen = confident.reshape(-1)
        pose = solve_pnp(points.reshape(-1, 3)[chosen], pixels[chosen], intrinsics, iterations=_PNP_ITERATIONS)
        pose = np.eye(4) if pose is None else pose
        true = outputs["cam_i_from_cam_j"][e]
        rotations.append(_angle_deg(pose[:3, :3], true[:3, :3]))
        error = pose[:3, 3] / outputs["scale"][e] - true[:3, 3] / outputs["true_scale"][e]
        translations.append(float(np.linalg.norm(error)))
    procrustes = [
        _angle_deg(a, b[:3, :3]) for a, b in zip(outputs["procrustes"], outputs["cam_i_from_cam_j"], strict=True)
    ]
    focal = np.abs(outputs["focal"] - outputs["true_focal"]) / outputs["true_focal"]
    return metrics | {
        "rotation_deg": float(np.mean(rotations)),
        "rotation_procrustes_deg": float(np.mean(procrustes)),
        "translation": float(np.mean(translations)),
        "rotation_still_deg": float(np.mean([_angle_deg(np.eye(3), pose[:3, :3]) for pose in still])),
        "translation_still": float(np.mean(np.linalg.norm(still[:, :3, 3], axis=1) / outputs["true_scale"])),
        "focal": float(focal.mean()),
    }


def _angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    cosine = (np.trace(a.T @ b) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
