"""Dynamic clips with exact optical flow, and their motionless twins.

Only motion may distinguish dynamic objects. So a path is sampled for *every* object, and then the objects that follow
their path are chosen: sizes, kinds, positions and the clearance for cameras are distributed alike. A path bounces off
the box in which objects are placed, so at any time dynamic objects are distributed over the room like static ones.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.arrays import Array, Bool, Float, Key, pytree_dataclass
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.synthetic import cameras
from easi3r_jax.synthetic.draws import between, normal, one_of, uniforms
from easi3r_jax.synthetic.flow import exact_flow
from easi3r_jax.synthetic.pairs import PairSampling, arrange_pair, check_size, random_viewpoint
from easi3r_jax.synthetic.render import Sensor, View, random_sensor, render
from easi3r_jax.synthetic.scenes import PLACED_WITHIN, Scene, random_scene, shrunk, standing

#: Minimum distance between a camera and the surface of an object, at any time of a clip.
CLEARANCE = 0.9
#: Frames are rendered in batches of at most this many rays.
_MAX_RAYS = 2**20


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """How clips are sampled.

    Attributes:
      size: (H, W) of the images, at least 16 each.
      num_frames: T, at least 2.
      num_objects: K, number of objects in the room.
      num_moving: number of objects that move.
      arc_deg: range of the angle around the target between the two ends of the camera's path.
      sweeps: number of times that the camera moves along its path, back and forth; for long clips.
      speed: range of an object's speed perpendicular to the line of sight, per frame, as a fraction of the image's
        longer side, seen from the middle frame's camera. 0.02 is 2 pixels of 96.
      spin_deg: range of an object's rotation per frame.

    Raises:
      ConfigError: a value outside its range.
    """

    size: tuple[int, int] = (64, 96)
    num_frames: int = 16
    num_objects: int = 12
    num_moving: int = 6
    arc_deg: tuple[float, float] = (12.0, 30.0)
    sweeps: int = 1
    speed: tuple[float, float] = (0.018, 0.04)
    spin_deg: tuple[float, float] = (1.0, 6.0)

    def __post_init__(self):
        check_size(self.size)
        if self.num_frames < 2:
            raise ConfigError(f"num_frames={self.num_frames}: must be at least 2.")
        if self.sweeps < 1:
            raise ConfigError(f"sweeps={self.sweeps}: must be at least 1.")
        if not 0 <= self.num_moving <= self.num_objects or self.num_objects < 1:
            raise ConfigError(
                f"num_moving={self.num_moving}, num_objects={self.num_objects}: there must be at least one object, and "
                "num_moving must be between 0 and num_objects."
            )
        for name, maximum in (("arc_deg", 90.0), ("speed", 1.0), ("spin_deg", 180.0)):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= maximum:
                raise ConfigError(f"{name}={low:g}..{high:g}: not a range within 0..{maximum:g}, lower end first.")


@pytree_dataclass
class ClipPlan:
    """A clip before it is rendered.

    Attributes:
      scene: the scene in the middle frame.
      world_from_object: (T, K, 4, 4) rigid.
      moves: (K,) bool.
      world_from_cam: (T, 4, 4).
      intrinsics: (T, 3, 3), pixels.
      sensor: with a leading axis T, or None for a perfect one.
    """

    scene: Scene
    world_from_object: Float[Array, "T K 4 4"]
    moves: Bool[Array, "K"]
    world_from_cam: Float[Array, "T 4 4"]
    intrinsics: Float[Array, "T 3 3"]
    sensor: Sensor | None


@pytree_dataclass
class RenderedClip:
    """A rendered clip and its ground truth.

    Attributes:
      views: with a leading axis T.
      moving: (T, H, W) bool: the pixel belongs to a moving object, however slowly it moves at that time.
      flow_forward: (T-1, H, W, 2) float32 pixels (x, y), from frame t to t + 1; see `flow.exact_flow`.
      flow_backward: (T-1, H, W, 2) float32 pixels (x, y), from frame t + 1 to t.
      visible_forward: (T-1, H, W) bool: the point seen in frame t is visible in frame t + 1.
      visible_backward: (T-1, H, W) bool: the point seen in frame t + 1 is visible in frame t.
    """

    views: View
    moving: Bool[Array, "T H W"]
    flow_forward: Float[Array, "T-1 H W 2"]
    flow_backward: Float[Array, "T-1 H W 2"]
    visible_forward: Bool[Array, "T-1 H W"]
    visible_backward: Bool[Array, "T-1 H W"]


def sample_clip(key: Key[Array, ""], config: ClipConfig, moving: bool | Bool[Array, ""] = True) -> RenderedClip:
    """Samples and renders a clip.

    Args:
      key: determines everything.
      config: how clips are sampled; static under `jit`.
      moving: () bool. False gives the clip's motionless twin: the same scene, camera path, sensor and noise, but every
        object stays at its position in the middle frame (number T // 2), which is therefore the same in both.
    """
    plan_key, noise_key = jax.random.split(key)
    return render_clip(noise_key, plan_clip(plan_key, config, moving), config.size)


def pair_as_clip(key: Key[Array, ""], sampling: PairSampling) -> RenderedClip:
    """The static pair that `sample_pair` samples with the same key, as a clip of two frames with flow and masks."""
    arrangement = arrange_pair(key, sampling)
    scene = arrangement.scene
    plan = ClipPlan(
        scene=scene,
        world_from_object=jnp.stack([scene.world_from_object] * 2),
        moves=jnp.zeros(len(scene.kind), bool),
        world_from_cam=arrangement.world_from_cam,
        intrinsics=jnp.stack([arrangement.intrinsics] * 2),
        sensor=arrangement.sensors,
    )
    return render_clip(arrangement.noise_key, plan, sampling.size)


def plan_clip(key: Key[Array, ""], config: ClipConfig, moving: bool | Bool[Array, ""] = True) -> ClipPlan:
    """Samples a clip without rendering it; see `sample_clip`."""
    scene_key, path_key, focal_key, camera_key, choice_key, sensor_key = jax.random.split(key, 6)
    scene = random_scene(scene_key, config.num_objects)
    intrinsics = cameras.random_intrinsics(focal_key, config.size)
    world_from_cam = _camera_path(camera_key, scene.room_half_size, config)
    middle = config.num_frames // 2
    paths = _object_paths(path_key, scene, world_from_cam[middle], intrinsics, config)
    resting = jnp.broadcast_to(paths[middle][None], paths.shape)

    # Every object keeps clear of the cameras on both its path and its resting position. Otherwise, size would reveal
    # which objects move: moving ones would have to be smaller.
    eyes = world_from_cam[:, None, :3, 3]
    offset = jnp.stack([paths, resting])[..., :3, 3] - eyes[None]
    nearest = jnp.min(jnp.sqrt(jnp.sum(offset * offset, axis=-1)), axis=(0, 1))
    scene = shrunk(dataclasses.replace(scene, world_from_object=paths[middle]), nearest - CLEARANCE)

    from_middle = se3.transform_points(se3.inverse(world_from_cam[middle]), paths[middle][:, :3, 3])
    in_view = cameras.in_image(*camera.project(from_middle, intrinsics), config.size)
    moves = _choose(choice_key, in_view, config.num_moving) & jnp.asarray(moving)
    sensor = random_sensor(sensor_key)
    return ClipPlan(
        scene=scene,
        world_from_object=jnp.where(moves[None, :, None, None], paths, resting),
        moves=moves,
        world_from_cam=world_from_cam,
        intrinsics=jnp.stack([intrinsics] * config.num_frames),
        sensor=jax.tree.map(lambda a: jnp.stack([a] * config.num_frames), sensor),
    )


def render_clip(key: Key[Array, ""], plan: ClipPlan, size: tuple[int, int]) -> RenderedClip:
    """Renders a plan.

    Args:
      key: of the noise.
      plan: the clip.
      size: (H, W); static under `jit`.
    """
    num_frames = len(plan.world_from_cam)
    batch = max(1, _MAX_RAYS // (size[0] * size[1]))

    def scene_at(world_from_object: Array) -> Scene:
        return dataclasses.replace(plan.scene, world_from_object=world_from_object)

    def frame(part) -> View:
        noise_key, objects, pose, intrinsics, sensor = part
        return render(noise_key, scene_at(objects), pose, intrinsics, size, sensor)

    def flow(part) -> tuple[Array, Array]:
        view, objects, other_view, other_objects = part
        return exact_flow(view, scene_at(objects), other_view, scene_at(other_objects))

    keys = jax.random.split(key, num_frames)
    parts = (keys, plan.world_from_object, plan.world_from_cam, plan.intrinsics, plan.sensor)
    views = _map(frame, parts, num_frames, batch)
    at_time = (views, plan.world_from_object)
    earlier, later = jax.tree.map(lambda a: a[:-1], at_time), jax.tree.map(lambda a: a[1:], at_time)
    # Both directions in one call: half the compilation.
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (*earlier, *later), (*later, *earlier))
    (flow_forward, flow_backward), (visible_forward, visible_backward) = (
        jnp.split(result, 2) for result in _map(flow, both, 2 * (num_frames - 1), batch)
    )
    return RenderedClip(
        views=views,
        moving=jnp.concatenate([jnp.zeros(1, bool), plan.moves])[views.instance],
        flow_forward=flow_forward,
        flow_backward=flow_backward,
        visible_forward=visible_forward,
        visible_backward=visible_backward,
    )


def _map(function, parts, count: int, batch: int):
    """`jax.vmap` over the leading axis, in batches if it is longer than `batch`."""
    return jax.vmap(function)(parts) if count <= batch else jax.lax.map(function, parts, batch_size=batch)


def _camera_path(key: Array, room_half_size: Array, config: ClipConfig) -> Array:
    """(T, 4, 4) `world_from_cam` on a great-circle arc around a slowly drifting target.

    Seen from the target, the ends of the path are exactly the sampled angle apart. One sweep has constant speed;
    several sweeps slow down at the turning points.
    """
    view_key, own_key = jax.random.split(key)
    u = uniforms(own_key, arc=(), tilt=(), side=(), zoom=(), drift=(3,), roll=())
    view = random_viewpoint(view_key, room_half_size)
    low, high = np.radians(np.asarray(config.arc_deg, np.float32))
    arc, tilt = between(low, high, u["arc"]), between(-0.35, 0.35, u["tilt"])
    step = jnp.arange(config.num_frames, dtype=jnp.float32) / (config.num_frames - 1) - 0.5  # -1/2 .. 1/2
    if config.sweeps > 1:
        step = -0.5 * jnp.cos(np.pi * config.sweeps * (step + 0.5))

    outwards = cameras.on_sphere(jnp.zeros(3), view.azimuth, view.elevation, jnp.ones(()))
    sideways = jnp.stack([jnp.cos(view.azimuth), jnp.zeros(()), -jnp.sin(view.azimuth)])
    sideways = jnp.where(u["side"] < 0.5, -sideways, sideways)
    along = jnp.cos(tilt) * sideways + jnp.sin(tilt) * jnp.cross(outwards, sideways)
    angle = (arc * step)[:, None]
    direction = jnp.cos(angle) * outwards[None] + jnp.sin(angle) * along[None]

    # Clipping at the walls would shorten the arc. Instead, the whole path is scaled down until it fits.
    zoom = jnp.exp(between(-0.2, 0.2, u["zoom"]) * step)
    limit = (room_half_size - cameras.WALL_MARGIN)[None]
    reach = (limit - jnp.sign(direction) * view.target[None]) / jnp.maximum(jnp.abs(direction), 1e-3)
    radius = jnp.minimum(view.radius, jnp.min(jnp.min(reach, axis=1) / zoom))
    position = view.target[None] + (radius * zoom)[:, None] * direction

    drift = 0.02 * radius * between(-1.0, 1.0, u["drift"])
    target = view.target[None] + step[:, None] * drift[None]
    roll = view.roll + 0.05 * step * normal(u["roll"])
    return jax.vmap(cameras.look_at)(position, target, roll)


def _object_paths(key: Array, scene: Scene, world_from_cam: Array, intrinsics: Array, config: ClipConfig) -> Array:
    """(T, K, 4, 4) poses of every object if it moved, with constant speed and spin, through its position in the scene.

    Args:
      key: of directions and speeds.
      scene: the objects in the middle frame.
      world_from_cam, intrinsics: the middle frame's camera. Objects move mainly perpendicular to its lines of sight.
      config: speeds.
    """
    num_objects = len(scene.kind)
    one = (num_objects, 1)
    u = uniforms(key, heading=one, away=one, speed=one, axis=(num_objects, 3), spin=(num_objects,))
    stands = jnp.asarray(standing(num_objects))[:, None]
    upright = jnp.asarray([[0, 1, 0]], jnp.float32)
    centre = scene.world_from_object[:, :3, 3]

    sight = centre - world_from_cam[None, :3, 3]
    distance = jnp.sqrt(jnp.sum(sight * sight, axis=1, keepdims=True))
    level = _unit(sight * (1 - upright))
    sight = jnp.where(stands, level, sight / distance)  # objects on the floor slide over it
    side = jnp.cross(jnp.broadcast_to(upright, sight.shape), level)
    heading = between(0.0, 2 * np.pi, u["heading"])
    heading = jnp.where(stands, jnp.where(heading < np.pi, 0.0, np.float32(np.pi)), heading)
    across = jnp.cos(heading) * side + jnp.sin(heading) * jnp.cross(sight, side)
    across = jnp.where(stands, across * (1 - upright), across)
    away = between(-0.5, 0.5, u["away"])
    low, high = config.speed
    speed = between(low, high, u["speed"]) * max(config.size)
    velocity = speed * distance / intrinsics[0, 0] * (across + away * sight)

    axis = _unit(normal(u["axis"]))
    axis = jnp.where(stands, jnp.sign(axis[:, :1]) * upright, axis)
    low, high = np.radians(np.asarray(config.spin_deg, np.float32))
    spin = between(low, high, u["spin"])

    time = jnp.arange(config.num_frames, dtype=jnp.float32) - config.num_frames // 2
    box = PLACED_WITHIN * scene.room_half_size
    place = centre[None] + time[:, None, None] * velocity[None]
    bounced = _bounced(place, jnp.broadcast_to(box, place.shape))
    place = jnp.where(stands[None] & (upright > 0)[None], place, bounced)  # objects on the floor are below the box
    turn = _turns(axis, time[:, None] * spin[None])
    start = jnp.broadcast_to(scene.world_from_object[None, :, :3, :3], turn.shape)
    return se3.from_parts(jnp.matmul(turn, start, precision=jax.lax.Precision.HIGHEST), place)


def _bounced(x: Array, bound: Array) -> Array:
    """Reflects unbounded motion x at -bound and bound, as light between two mirrors."""
    return bound - jnp.abs(jnp.mod(x + bound, 4 * bound) - 2 * bound)


def _turns(axis: Array, angle: Array) -> Array:
    """(T, K, 3, 3) rotations by (T, K) radians about (K, 3) unit axes (Rodrigues)."""
    x, y, z = axis[:, 0], axis[:, 1], axis[:, 2]
    zero = jnp.zeros_like(x)
    cross = jnp.stack([jnp.stack([zero, -z, y], 1), jnp.stack([z, zero, -x], 1), jnp.stack([-y, x, zero], 1)], 1)
    twice = jnp.matmul(cross, cross, precision=jax.lax.Precision.HIGHEST)
    s, c = jnp.sin(angle)[..., None, None], jnp.cos(angle)[..., None, None]
    return jnp.eye(3)[None, None] + s * cross[None] + (1 - c) * twice[None]


def _unit(vectors: Array) -> Array:
    return vectors / jnp.maximum(jnp.sqrt(jnp.sum(vectors * vectors, axis=-1, keepdims=True)), 1e-6)


def _choose(key: Array, in_view: Array, count: int) -> Array:
    """(K,) bool: chooses `count` objects with equal probability, spread evenly over objects in view and others.

    Systematic sampling: objects are sorted randomly, those in view first, and every (K / count)-th is chosen from a
    random start. So there is almost always a moving object in view, but being in view does not change an object's
    probability.
    """
    num_objects = len(in_view)
    u = uniforms(key, order=(num_objects,), start=())
    order = u["order"] - in_view.astype(jnp.float32)
    rank = jnp.argsort(jnp.argsort(order))
    taken = rank * count + one_of(num_objects, u["start"])
    return (taken + count) // num_objects > taken // num_objects
