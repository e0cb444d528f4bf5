"""The metrics of a whole scene."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Scene4D
from easi3r_jax.evaluation.metrics import GroundTruth, evaluate_scene

T, H, W = 4, 12, 16


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    world_from_cam = np.tile(np.eye(4, dtype=np.float32), (T, 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_rotvec(0.2 * rng.normal(size=(T, 3))).as_matrix()
    world_from_cam[:, :3, 3] = rng.normal(size=(T, 3))
    mask = np.zeros((T, H, W), bool)
    mask[:, 3:8, 4:9] = True
    return Scene4D(
        world_from_cam=jnp.asarray(world_from_cam),
        intrinsics=jnp.tile(jnp.array([[20.0, 0, W / 2], [0, 20.0, H / 2], [0, 0, 1]]), (T, 1, 1)),
        depth=jnp.asarray(rng.uniform(1, 4, (T, H, W)), jnp.float32),
        confidence=jnp.full((T, H, W), 3.0),
        dynamic_mask=jnp.asarray(mask),
        dynamic_score=jnp.asarray(mask, jnp.float32),
        static_mask=jnp.asarray(~mask),
        rgb=jnp.zeros((T, H, W, 3), jnp.uint8),
    )


@pytest.fixture
def truth(scene):
    """The scene itself, in a world of another scale."""
    world_from_cam = np.array(scene.world_from_cam, np.float64)
    world_from_cam[:, :3, 3] *= 3
    return GroundTruth(
        depth=3 * np.asarray(scene.depth),
        masks=np.asarray(scene.dynamic_mask),
        world_from_cam=world_from_cam,
        intrinsics=np.asarray(scene.intrinsics),
    )


BEST = {
    "ate": 0, "rpe_translation": 0, "rpe_rotation_deg": 0, "focal_relative_error": 0,
    "abs_rel": 0, "sq_rel": 0, "depth_rmse": 0, "log_rmse": 0, "delta_1_25": 1, "delta_1_25_2": 1, "delta_1_25_3": 1,
    "abs_rel_scale_shift": 0, "delta_1_25_scale_shift": 1,
    "mask_iou": 1, "mask_share": 25 / (H * W), "mask_j_mean": 1, "mask_j_recall": 1, "mask_j_decay": 0,
    "mask_f_mean": 1, "mask_f_recall": 1, "mask_f_decay": 0, "score_auc": 1,
}  # fmt: skip


def test_a_perfect_scene_has_the_best_metrics(scene, truth):
    result = evaluate_scene(scene, truth)
    assert list(result) == list(BEST)
    assert all(type(value) is float for value in result.values())
    for name, value in result.items():
        assert value == pytest.approx(BEST[name], abs=1e-5), name


@pytest.mark.parametrize(
    ("field", "count"), [("depth", 9), ("masks", 9), ("world_from_cam", 3), ("intrinsics", 1), (None, 0)]
)
def test_unknown_fields_have_no_metrics(scene, truth, field, count):
    known = GroundTruth(**{field: getattr(truth, field)}) if field else GroundTruth()
    assert len(evaluate_scene(scene, known)) == count


def test_focal_error(scene, truth):
    intrinsics = truth.intrinsics * np.array([[2.0], [0.5], [1.0]])
    result = evaluate_scene(scene, GroundTruth(intrinsics=intrinsics))
    assert result["focal_relative_error"] == pytest.approx((0.5 + 1.0) / 2)


def test_undefined_metrics_are_none_never_nan(scene):
    still = jnp.tile(jnp.eye(4), (T, 1, 1))
    scene = dataclasses.replace(scene, world_from_cam=still, dynamic_mask=jnp.zeros((T, H, W), bool))
    nothing = GroundTruth(depth=np.zeros((T, H, W)), masks=np.zeros((T, H, W), bool), world_from_cam=np.asarray(still))
    result = evaluate_scene(scene, nothing)
    for name in ("ate", "rpe_translation", "abs_rel", "delta_1_25_scale_shift", "mask_iou", "score_auc"):
        assert result[name] is None
    assert not any(value is not None and math.isnan(value) for value in result.values())
    assert result["mask_share"] == 0


def test_a_static_clip_has_no_overlap_metrics(scene, truth):
    result = evaluate_scene(scene, GroundTruth(masks=np.zeros((T, H, W), bool)))
    assert {name: value for name, value in result.items() if value is not None} == {
        "mask_share": pytest.approx(BEST["mask_share"])
    }


def test_mismatched_shapes_are_refused(scene, truth):
    with pytest.raises(InputError, match=r"true depth has shape \(3, 12, 16\)"):
        evaluate_scene(scene, dataclasses.replace(truth, depth=truth.depth[:3]))
