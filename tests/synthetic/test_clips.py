"""Dynamic clips: the camera's arc, exact flow, moving objects, and that only motion distinguishes them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.synthetic import ClipConfig
from easi3r_jax.synthetic.cameras import WALL_MARGIN, rays
from easi3r_jax.synthetic.cast import cast
from easi3r_jax.synthetic.clips import CLEARANCE, _map, plan_clip, render_clip

CONFIG = ClipConfig(size=(16, 24), num_frames=6)
COUNT = 120
TOGETHER = 24  # clips drawn at a time
GRID = np.asarray(camera.pixel_grid(*CONFIG.size), np.float64)
EARLIER, LATER = slice(None, -1), slice(1, None)


@pytest.fixture(scope="module")
def draw():
    """So many clips and their plans, dynamic or motionless. One compilation for all."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def plan(key, moving):
        plan_key, noise_key = jax.random.split(key)
        return noise_key, plan_clip(plan_key, CONFIG, moving)

    # As `sample_clip` does both (test_study.py tests that). A program for each takes less time to compile.
    render = jax.jit(jax.vmap(lambda key, plan: render_clip(key, plan, CONFIG.size)))

    def draw(keys, moving):
        noise_keys, plans = plan(keys, moving)
        return plans, render(noise_keys, plans)

    keys = jax.random.split(jax.random.key(0), COUNT)

    def some(count, moving):
        parts = [draw(keys[start : start + TOGETHER], moving) for start in range(0, count, TOGETHER)]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    return some


@pytest.fixture(scope="module")
def moving(draw):
    return draw(COUNT, True)


@pytest.fixture(scope="module")
def still(draw):
    """The twins of the first ones."""
    return draw(TOGETHER, False)


@pytest.fixture(scope="module")
def plans(moving):
    return moving[0]


# --- camera ---------------------------------------------------------------------------------------------------------


def test_the_camera_rotates_by_at_least_ten_degrees(plans):
    pose = plans.world_from_cam.astype(np.float64)
    relative = np.swapaxes(pose[:, 0, :3, :3], 1, 2) @ pose[:, -1, :3, :3]
    angle = np.degrees(np.arccos(np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert angle.min() > 10
    assert np.percentile(angle, 90) > 25
    assert np.percentile(angle, 90) < 35
    # It also translates: the angle is around its target.
    assert (np.linalg.norm(pose[:, -1, :3, 3] - pose[:, 0, :3, 3], axis=1) > 0.15).all()


def test_the_camera_moves_smoothly_and_stays_in_the_room(plans):
    pose = plans.world_from_cam.astype(np.float64)
    room = plans.scene.room_half_size[:, None]
    assert (np.abs(pose[:, :, :3, 3]) <= room - WALL_MARGIN + 1e-4).all()
    step = np.linalg.norm(np.diff(pose[:, :, :3, 3], axis=1), axis=-1)
    assert (step.max(1) < 1.5 * step.min(1)).all()


def test_no_object_comes_close_to_a_camera(plans):
    radius = np.linalg.norm(plans.scene.half_size, axis=-1)[:, None]
    offset = plans.world_from_object[..., :3, 3] - plans.world_from_cam[:, :, None, :3, 3]
    speck = plans.scene.half_size.max(-1)[:, None] < 0.02
    clear = np.linalg.norm(offset, axis=-1) - radius > CLEARANCE - 1e-3
    assert (clear | speck).all()
    assert speck.mean() < 0.05


# --- flow -----------------------------------------------------------------------------------------------------------


def carried_exactly(plan, clip, source, target):
    """World positions of the points under all pixels of frames `source` at the times `target`: (B, P, H, W, 3) float64.

    With their pixels and depths in the cameras `target`.
    """
    pose, intrinsics, objects = (
        a.astype(np.float64) for a in (plan.world_from_cam, plan.intrinsics, plan.world_from_object)
    )
    focal, centre = intrinsics[:, :, None, None, :1, 0], intrinsics[:, :, None, None, :2, 2]
    place = pose[:, :, None, None, :3, 3]
    local = (GRID - centre[:, source]) / focal[:, source]
    local = np.concatenate([local, np.ones((*local.shape[:-1], 1))], -1) * clip.views.depth[:, source, ..., None]
    points = np.einsum("btij,bthwj->bthwi", pose[:, source, :3, :3], local) + place[:, source]

    eye = np.tile(np.eye(4), (*objects.shape[:2], 1, 1, 1))
    objects = np.concatenate([eye, objects], axis=2)
    motion = objects[:, target] @ np.linalg.inv(objects[:, source])
    b, t, _, _ = np.ogrid[tuple(slice(n) for n in points.shape[:-1])]
    own = motion[b, t, clip.views.instance[:, source]]
    moved = np.einsum("bthwij,bthwj->bthwi", own[..., :3, :3], points) + own[..., :3, 3]

    in_camera = np.einsum("btji,bthwj->bthwi", pose[:, target, :3, :3], moved - place[:, target])
    pixels = in_camera[..., :2] / in_camera[..., 2:] * focal[:, target] + centre[:, target]
    return moved, pixels, in_camera[..., 2]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_flow_leads_to_the_moved_points(moving, direction):
    plan, clip = moving
    source, target = (EARLIER, LATER) if direction == "forward" else (LATER, EARLIER)
    _, pixels, depth = carried_exactly(plan, clip, source, target)
    flow, visible = getattr(clip, f"flow_{direction}"), getattr(clip, f"visible_{direction}")
    in_front = depth > 0.1
    assert in_front[visible].all()
    np.testing.assert_allclose((GRID + flow)[in_front], pixels[in_front], atol=2e-3)
    assert 0.7 < visible.mean() < 0.99


def test_the_other_camera_sees_the_visible_points(moving):
    """The ray through x + flow hits the same object at the moved point; moved back, it projects to x."""
    plan, clip = jax.tree.map(lambda a: a[:TOGETHER], moving)
    moved, _, _ = carried_exactly(plan, clip, EARLIER, LATER)
    landing = jnp.asarray((GRID + clip.flow_forward).astype(np.float32)).reshape(TOGETHER, 5, -1, 2)

    @jax.jit
    @jax.vmap
    def seen_from(scene, objects, poses, intrinsics, pixels):
        def one(objects, pose, cam_intrinsics, pixels):
            origin, directions = rays(pose, cam_intrinsics, pixels)
            there = dataclasses.replace(scene, world_from_object=objects)
            hits = jax.vmap(lambda d: cast(there, origin, d))(directions)
            return hits.instance, origin[None] + hits.depth[:, None] * directions

        return jax.vmap(one)(objects, poses, intrinsics, pixels)

    instance, points = seen_from(
        plan.scene, plan.world_from_object[:, 1:], plan.world_from_cam[:, 1:], plan.intrinsics[:, 1:], landing
    )
    same = np.asarray(instance).reshape(clip.views.instance[:, 1:].shape) == clip.views.instance[:, :-1]
    near = np.linalg.norm(np.asarray(points).reshape(moved.shape) - moved, axis=-1) < 0.02
    visible = clip.visible_forward
    assert (same & near)[visible].mean() > 0.998  # except points exactly on the edge of an object
    inside = ((GRID + clip.flow_forward > -0.5) & (GRID + clip.flow_forward < (23.5, 15.5))).all(-1)
    assert near[~visible & inside].mean() < 0.02  # occluded points are not hit
    assert (~visible & inside).sum() > 100


def test_forward_and_backward_flow_agree_at_visible_points(moving):
    """Where flow leads to a pixel on the same smooth piece of surface, the two flows cancel."""
    _, clip = moving
    landing = np.rint(GRID + clip.flow_forward).astype(int)
    inside = ((landing >= 0) & (landing < (24, 16))).all(-1) & clip.visible_forward
    b, t, _, _ = np.ogrid[tuple(slice(n) for n in inside.shape)]
    x, y = np.where(inside[..., None], landing, 0).transpose(4, 0, 1, 2, 3)
    back = clip.flow_backward[b, t, y, x]
    same = inside & (clip.views.instance[:, 1:][b, t, y, x] == clip.views.instance[:, :-1])
    residual = np.linalg.norm(clip.flow_forward + back, axis=-1)[same]
    # The target is rounded to a pixel: the remainder is the change of flow within half a pixel.
    assert np.median(residual) < 0.1
    assert np.percentile(residual, 95) < 0.8
    assert np.median(np.linalg.norm(clip.flow_forward, axis=-1)[same]) > 0.5


def ego_flow(clip):
    """Flow of a static world, from depth and poses: (B, T-1, H, W, 2)."""

    def one(view, other):
        points = se3.transform_points(view.world_from_cam, camera.unproject(view.depth, view.intrinsics))
        pixels, _ = camera.project(se3.transform_points(se3.inverse(other.world_from_cam), points), other.intrinsics)
        return pixels - camera.pixel_grid(*view.depth.shape)

    earlier, later = (jax.tree.map(lambda a: a[:, :-1], clip.views), jax.tree.map(lambda a: a[:, 1:], clip.views))
    return np.asarray(jax.jit(jax.vmap(jax.vmap(one)))(earlier, later))


def test_static_objects_have_the_cameras_flow_and_moving_ones_do_not(moving):
    _, clip = moving
    own = np.linalg.norm(clip.flow_forward - ego_flow(clip), axis=-1)
    moves = clip.moving[:, :-1]
    assert own[~moves].max() < 2e-3
    assert 0.05 < moves.mean() < 0.4
    # 1.5 pixels of 96, for images of 24.
    assert (own[moves] > 1.5 * 24 / 96).mean() > 0.8


# --- twins ----------------------------------------------------------------------------------------------------------


def test_nothing_moves_in_a_twin(still):
    plan, clip = still
    assert not clip.moving.any()
    assert not plan.moves.any()
    np.testing.assert_array_equal(plan.world_from_object, plan.world_from_object[:, :1] + 0 * plan.world_from_object)
    in_front = clip.flow_forward.any(-1)
    np.testing.assert_allclose(clip.flow_forward[in_front], ego_flow(clip)[in_front], atol=2e-3)
    assert in_front.mean() > 0.95


def test_a_twin_differs_by_motion_only(moving, still):
    (plan, clip), (still_plan, twin) = jax.tree.map(lambda a: a[:TOGETHER], moving), still
    for name in ("scene", "sensor", "world_from_cam", "intrinsics"):
        jax.tree.map(np.testing.assert_array_equal, getattr(plan, name), getattr(still_plan, name))
    middle = CONFIG.num_frames // 2
    jax.tree.map(
        np.testing.assert_array_equal,
        *(jax.tree.map(lambda a: a[:, middle], c.views) for c in (clip, twin)),
    )
    at_rest = ~plan.moves
    np.testing.assert_array_equal(
        plan.world_from_object.swapaxes(1, 2)[at_rest], still_plan.world_from_object.swapaxes(1, 2)[at_rest]
    )
    # The same noise: pixels of static objects have exactly the same values.
    shown_at_rest = ~clip.moving & (clip.views.instance == twin.views.instance)
    np.testing.assert_array_equal(clip.views.rgb[shown_at_rest], twin.views.rgb[shown_at_rest])
    changed = (clip.views.rgb != twin.views.rgb).any(-1)[:, np.arange(CONFIG.num_frames) != middle]
    assert 0.05 < changed.mean() < 0.5


# --- only motion distinguishes ----------------------------------------------------------------------------------------


def auc(score, label):
    """ROC-AUC; ties count half."""
    rank = stats.rankdata(score)
    positive, negative = label.sum(), (~label).sum()
    return (rank[label].sum() - positive * (positive + 1) / 2) / (positive * negative)


def test_auc_of_known_scores():
    label = np.array([False, False, True, True])
    assert auc(np.array([0, 1, 2, 3]), label) == 1
    assert auc(np.array([3, 2, 1, 0]), label) == 0
    assert auc(np.zeros(4), label) == 0.5


def test_size_kind_depth_and_position_of_objects_do_not_reveal_motion(plans):
    """In all frames of all clips. The standard deviation by chance is about 0.02."""
    height, width = CONFIG.size
    pose = plans.world_from_cam.astype(np.float64)
    away = plans.world_from_object[..., :3, 3] - pose[:, :, None, :3, 3]
    points = np.einsum("btji,btkj->btki", pose[..., :3, :3], away)
    depth = points[..., 2]
    x, y = (points[..., k] / depth * plans.intrinsics[..., :1, 0] for k in (0, 1))
    in_view = (depth > 0) & (np.abs(x) < width / 2) & (np.abs(y) < height / 2)
    moves = np.broadcast_to(plans.moves[:, None], in_view.shape)[in_view]
    size = np.broadcast_to(np.cbrt(plans.scene.half_size.prod(-1))[:, None], in_view.shape)
    kind = np.broadcast_to(plans.scene.kind[:, None], in_view.shape)
    assert len(moves) > 2000
    assert 0.45 < moves.mean() < 0.55
    features = {"size": size, "depth": depth, "seen size": size / depth, "x": x, "y": y, "from middle": np.hypot(x, y)}
    features |= {f"kind {k}": kind == k for k in range(4)}
    areas = {name: auc(feature[in_view], moves) for name, feature in features.items()}
    assert all(abs(area - 0.5) < 0.06 for area in areas.values()), areas


def test_size_depth_and_position_of_pixels_do_not_reveal_motion(moving):
    _, clip = moving
    on_object = clip.views.instance > 0
    moves = clip.moving[on_object]
    assert 0.3 < moves.mean() < 0.7
    instances = np.arange(1, CONFIG.num_objects + 1)
    area = np.stack([(clip.views.instance == k).sum((2, 3)) for k in instances], -1)
    b, t, _, _ = np.ogrid[tuple(slice(n) for n in on_object.shape)]
    x, y = (np.broadcast_to(a, on_object.shape) for a in np.moveaxis(GRID - (12, 8), -1, 0))
    features = {
        "depth": clip.views.depth,
        "area": area[b, t, np.maximum(clip.views.instance - 1, 0)],
        "x": x,
        "y": y,
        "from middle": np.hypot(x, y),
    }
    areas = {name: auc(feature[on_object], moves) for name, feature in features.items()}
    assert all(abs(value - 0.5) < 0.1 for value in areas.values()), areas


def test_num_moving_objects_move_and_some_are_in_view(plans, moving):
    np.testing.assert_array_equal(plans.moves.sum(1), CONFIG.num_moving)
    assert plans.moves.mean(0).min() > 0.3  # every object is drawn: half the time, with a deviation of 0.05
    assert plans.moves.mean(0).max() < 0.6
    assert moving[1].moving.any((1, 2, 3)).mean() > 0.85


def test_some_objects_enter_or_leave(moving):
    """Also among moving objects: otherwise, everything in view at the start would stay in view."""
    _, clip = moving
    instances = np.arange(1, CONFIG.num_objects + 1)
    seen = np.stack([(clip.views.instance == k).any((2, 3)) for k in instances])  # (K, B, T)
    mover = np.stack([(clip.moving & (clip.views.instance == k)).any((1, 2, 3)) for k in instances])
    come_or_go = (seen.any(-1) & ~seen.all(-1))[mover]
    assert 0.1 < come_or_go.mean() < 0.9


def test_paths_are_rigid_smooth_and_bounce_off_the_rooms_middle(plans):
    pose = plans.world_from_object.astype(np.float64)
    rotation = pose[..., :3, :3]
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, -1, -2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-5
    )
    place = pose[..., :3, 3]
    room = plans.scene.room_half_size[:, None, None]
    assert (np.abs(place[..., [0, 2]]) <= 0.6 * room[..., [0, 2]] + 1e-4).all()
    assert (np.abs(place[..., 1]) <= room[..., 1]).all()
    speed = np.linalg.norm(np.diff(place, axis=1), axis=-1)
    mover = plans.moves
    assert (speed.swapaxes(1, 2)[~mover] == 0).all()
    # Constant speed, except in frames with a bounce; constant rotation.
    fastest = speed.max(1)[mover]
    assert (fastest > 0.001).all()  # world units: speeds are sampled in pixels, so near objects move less
    assert (np.abs(speed.swapaxes(1, 2)[mover] - fastest[:, None]) < 1e-4).mean() > 0.85
    turn = np.swapaxes(rotation[:, :-1], -1, -2) @ rotation[:, 1:]
    angle = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=-2, axis2=-1) - 1) / 2, -1, 1))).swapaxes(1, 2)[mover]
    assert angle.min() > 0.9
    assert angle.max() < 6.1


# --- appearance -----------------------------------------------------------------------------------------------------


SCALE = 6


@pytest.fixture(scope="module")
def clean_clips(plans):
    """The first two frames of some clips, larger and with an ideal sensor."""
    size = (SCALE * CONFIG.size[0], SCALE * CONFIG.size[1])
    draw = jax.jit(lambda plan: render_clip(jax.random.key(0), plan, size))

    def larger(index):
        plan = jax.tree.map(lambda a: a[index], plans)
        return dataclasses.replace(
            plan,
            world_from_object=plan.world_from_object[:2],
            world_from_cam=plan.world_from_cam[:2],
            intrinsics=plan.intrinsics[:2] * np.array([[SCALE], [SCALE], [1]], np.float32),
            sensor=None,
        )

    return [jax.tree.map(np.asarray, draw(larger(index))) for index in range(8)]


def test_colours_are_constant_along_the_flow(clean_clips):
    """Away from edges, a frame warped by its flow is the next one, up to shading and the blur of sampling."""
    errors, moving_errors, unwarped = [], [], []
    for clip in clean_clips:
        first, second = clip.views.rgb.astype(np.float64)
        y, x = (camera.pixel_grid(*first.shape[:2]) + clip.flow_forward[0])[..., ::-1].transpose(2, 0, 1)
        warped = np.stack([ndimage.map_coordinates(second[..., c], (y, x), order=1) for c in range(3)], -1)
        edges = [ndimage.maximum_filter(i, 5) != ndimage.minimum_filter(i, 5) for i in clip.views.instance]
        lands_on_edge = ndimage.map_coordinates(edges[1].astype(float), (y, x), order=1) > 0
        clear = clip.visible_forward[0] & ~edges[0] & ~lands_on_edge
        error = np.abs(warped - first).mean(-1)
        errors.append(error[clear])
        moving_errors.append(error[clear & clip.moving[0]])
        unwarped.append(np.abs(second - first).mean(-1)[clear])
    errors, moving_errors, unwarped = (np.concatenate(e) for e in (errors, moving_errors, unwarped))
    assert len(moving_errors) > 1000
    assert np.median(errors) < 3
    assert np.median(moving_errors) < 6
    assert np.median(errors) < 0.35 * np.median(unwarped)


# --- options --------------------------------------------------------------------------------------------------------


def test_a_camera_sweeps_back_and_forth():
    """Three sweeps of five frames each: one path, forwards, backwards and forwards, without a jump."""
    config = ClipConfig(num_frames=16, sweeps=3, num_objects=1, num_moving=0)
    poses = np.asarray(jax.jit(plan_clip, static_argnames="config")(jax.random.key(3), config).world_from_cam)
    np.testing.assert_allclose(poses[0], poses[10], atol=1e-5)
    np.testing.assert_allclose(poses[5], poses[15], atol=1e-5)
    np.testing.assert_allclose(poses[1:5], poses[9:5:-1], atol=1e-5)
    once = dataclasses.replace(config, num_frames=6, sweeps=1)
    ends = np.asarray(jax.jit(plan_clip, static_argnames="config")(jax.random.key(3), once).world_from_cam)[[0, 5]]
    np.testing.assert_allclose(poses[[0, 5]], ends, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (8, 96)}, "8x96"),
        ({"num_frames": 1}, "num_frames=1"),
        ({"num_objects": 3, "num_moving": 4}, "num_moving=4"),
        ({"num_moving": -1}, "num_moving=-1"),
        ({"num_objects": 0, "num_moving": 0}, "num_objects=0"),
        ({"arc_deg": (30.0, 12.0)}, "arc_deg=30..12"),
        ({"arc_deg": (0.0, 200.0)}, "arc_deg"),
        ({"sweeps": 0}, "sweeps=0"),
        ({"speed": (float("nan"), 0.1)}, "speed"),
        ({"spin_deg": (-1.0, 0.1)}, "spin_deg"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ClipConfig(**options)


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_batches_of_frames_give_the_same_frames(batch):
    """To bound memory, frames are rendered a few at a time."""
    parts = (jnp.arange(7.0), {"a": jnp.arange(14.0).reshape(7, 2)})
    result = _map(lambda part: (part[0] + part[1]["a"].sum(), part[1]["a"] * 2), parts, 7, batch)
    np.testing.assert_array_equal(result[0], np.arange(7) + 4 * np.arange(7) + 1)
    np.testing.assert_array_equal(result[1], 2 * np.arange(14).reshape(7, 2))
