"""Dynamic clips with exact optical flow, and their twins in which nothing moves.

Nothing but motion may tell what moves. So *every* object draws a path, and only then is it drawn which of them follow
theirs: sizes, kinds, places and the room kept free for the cameras are the same for both. A path bounces off the box
in which objects are placed, so at any moment what moves is spread over the room as what rests is.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry import camera, se3
from easi3r_jax.core.types import pytree_dataclass
from easi3r_jax.synthetic import cameras
from easi3r_jax.synthetic.draws import between, normal, one_of, uniforms
from easi3r_jax.synthetic.flow import exact_flow
from easi3r_jax.synthetic.pairs import PairSampling, arrange_pair, check_size, random_viewpoint
from easi3r_jax.synthetic.render import Sensor, View, random_sensor, render
from easi3r_jax.synthetic.scenes import PLACED_WITHIN, Scene, random_scene, shrunk, standing

Array = jax.Array

#: Least distance between a camera and the surface of an object, at any moment of a clip.
CLEARANCE = 0.9
#: Frames are rendered together as long as they have fewer rays than this.
_RAYS = 2**20


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """How clips are drawn.

    Attributes:
      size: (H, W) of the images, 16 or more each.
      num_frames: T, 2 or more.
      num_objects: K, in the room.
      num_moving: of them.
      arc_deg: range of the angle by which the camera turns around its target from one end of its path to the other.
      sweeps: how often it goes along the path, there and back: for long clips.
      speed: range of an object's speed across the line of sight: share of the image's longer side per frame, as seen
        from the middle frame's camera. 0.02 is 2 pixels of 96.
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
            raise ConfigError(f"A clip of num_frames={self.num_frames}: 2 or more.")
        if self.sweeps < 1:
            raise ConfigError(f"The camera goes along its path sweeps={self.sweeps} times: 1 or more.")
        if not 0 <= self.num_moving <= self.num_objects or self.num_objects < 1:
            raise ConfigError(
                f"num_moving={self.num_moving} of num_objects={self.num_objects}: at least one object, and no more "
                "moving than there are."
            )
        for name, most in (("arc_deg", 90.0), ("speed", 1.0), ("spin_deg", 180.0)):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= most:
                raise ConfigError(f"{name}={low:g}..{high:g}: from 0 to {most:g}, the lower end first.")


@pytree_dataclass
class ClipPlan:
    """Everything that happens in a clip, before it is rendered.

    Attributes:
      scene: as it is in the middle frame.
      world_from_object: (T, K, 4, 4) rigid.
      moves: (K,) bool.
      world_from_cam: (T, 4, 4).
      intrinsics: (T, 3, 3), pixels.
      sensor: with a leading axis T, or None for a perfect one.
    """

    scene: Scene
    world_from_object: Array
    moves: Array
    world_from_cam: Array
    intrinsics: Array
    sensor: Sensor | None


@pytree_dataclass
class Clip:
    """A rendered clip and what is known of it.

    Attributes:
      views: with a leading axis T.
      moving: (T, H, W) bool: the pixel belongs to an object that moves, however little it moves there and then.
      flow_forward: (T-1, H, W, 2) float32 pixels (x, y), from frame t to t + 1; see `flow.exact_flow`.
      flow_backward: (T-1, H, W, 2) float32 pixels (x, y), from frame t + 1 to t.
      visible_forward: (T-1, H, W) bool: frame t + 1 shows the point seen in frame t.
      visible_backward: (T-1, H, W) bool: frame t shows the point seen in frame t + 1.
    """

    views: View
    moving: Array
    flow_forward: Array
    flow_backward: Array
    visible_forward: Array
    visible_backward: Array


def sample_clip(key: Array, config: ClipConfig, moving: bool | Array = True) -> Clip:
    """A new random clip.

    Args:
      key: everything follows from it.
      config: how; static under `jit`.
      moving: () bool. False gives the clip's twin: the same scene, camera path, sensor and noise, but every object
        stays where it is in the middle frame (number T // 2), which therefore is the same in both.
    """
    plan_key, noise_key = jax.random.split(key)
    return render_clip(noise_key, plan_clip(plan_key, config, moving), config.size)


def pair_as_clip(key: Array, sampling: PairSampling) -> Clip:
    """The static pair that `sample_pair` draws from the same key, as a clip of two frames: with flow and masks."""
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


def plan_clip(key: Array, config: ClipConfig, moving: bool | Array = True) -> ClipPlan:
    """What happens in a random clip; see `sample_clip`."""
    scene_key, path_key, focal_key, camera_key, choice_key, sensor_key = jax.random.split(key, 6)
    scene = random_scene(scene_key, config.num_objects)
    intrinsics = cameras.random_intrinsics(focal_key, config.size)
    world_from_cam = _camera_path(camera_key, scene.room_half_size, config)
    middle = config.num_frames // 2
    paths = _object_paths(path_key, scene, world_from_cam[middle], intrinsics, config)
    resting = jnp.broadcast_to(paths[middle][None], paths.shape)

    # Room for the cameras beside every object, whether it moves or not: else the smaller ones would be those that move.
    eyes = world_from_cam[:, None, :3, 3]
    offset = jnp.stack([paths, resting])[..., :3, 3] - eyes[None]
    nearest = jnp.min(jnp.sqrt(jnp.sum(offset * offset, axis=-1)), axis=(0, 1))
    scene = shrunk(dataclasses.replace(scene, world_from_object=paths[middle]), nearest - CLEARANCE)

    from_middle = se3.transform_points(se3.inverse(world_from_cam[middle]), paths[middle][:, :3, 3])
    in_view = cameras.in_image(*camera.project(from_middle, intrinsics), config.size)
    moves = _some(choice_key, in_view, config.num_moving) & jnp.asarray(moving)
    sensor = random_sensor(sensor_key)
    return ClipPlan(
        scene=scene,
        world_from_object=jnp.where(moves[None, :, None, None], paths, resting),
        moves=moves,
        world_from_cam=world_from_cam,
        intrinsics=jnp.stack([intrinsics] * config.num_frames),
        sensor=jax.tree.map(lambda a: jnp.stack([a] * config.num_frames), sensor),
    )


def render_clip(key: Array, plan: ClipPlan, size: tuple[int, int]) -> Clip:
    """Renders a plan.

    Args:
      key: of the noise.
      plan: what happens.
      size: (H, W); static under `jit`.
    """
    num_frames = len(plan.world_from_cam)
    batch = max(1, _RAYS // (size[0] * size[1]))

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
    # Both directions in one go: half as much to compile.
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (*earlier, *later), (*later, *earlier))
    (flow_forward, flow_backward), (visible_forward, visible_backward) = (
        jnp.split(result, 2) for result in _map(flow, both, 2 * (num_frames - 1), batch)
    )
    return Clip(
        views=views,
        moving=jnp.concatenate([jnp.zeros(1, bool), plan.moves])[views.instance],
        flow_forward=flow_forward,
        flow_backward=flow_backward,
        visible_forward=visible_forward,
        visible_backward=visible_backward,
    )


def _map(function, parts, count: int, batch: int):
    """`jax.vmap` over the leading axis, in batches where all at once would need too much memory."""
    return jax.vmap(function)(parts) if count <= batch else jax.lax.map(function, parts, batch_size=batch)


def _camera_path(key: Array, room_half_size: Array, config: ClipConfig) -> Array:
    """(T, 4, 4) `world_from_cam` on an arc of a great circle around a target, drifting a little.

    Seen from the target, the path's ends are exactly the drawn angle apart. One sweep is even; several turn gently.
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

    # Not stopped at the walls, which would cut the arc short: the whole of it is made smaller until it fits.
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
    """(T, K, 4, 4) where every object would be if it moved: constant speed and spin, through its place in the scene.

    Args:
      key: of directions and speeds.
      scene: the objects' places in the middle frame.
      world_from_cam, intrinsics: the middle frame's camera; objects move mostly across its lines of sight.
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
    sight = jnp.where(stands, level, sight / distance)  # what stands slides over the floor
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
    place = jnp.where(stands[None] & (upright > 0)[None], place, bounced)  # a foot is lower than the box
    turn = _turns(axis, time[:, None] * spin[None])
    start = jnp.broadcast_to(scene.world_from_object[None, :, :3, :3], turn.shape)
    return se3.from_parts(jnp.matmul(turn, start, precision=jax.lax.Precision.HIGHEST), place)


def _bounced(x: Array, bound: Array) -> Array:
    """Unhindered motion x turned into one between -bound and bound, as light between two mirrors."""
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


def _some(key: Array, in_view: Array, count: int) -> Array:
    """(K,) bool: `count` objects, each with the same chance, but spread evenly over those in view and the others.

    Systematic sampling: objects are lined up in random order, those in view first, and every (K / count)-th is taken
    from a random start. So something moves in view as good as always, and nothing else follows from being in view.
    """
    num_objects = len(in_view)
    u = uniforms(key, lot=(num_objects,), start=())
    lot = u["lot"] - in_view.astype(jnp.float32)
    rank = jnp.argsort(jnp.argsort(lot))
    taken = rank * count + one_of(num_objects, u["start"])
    return (taken + count) // num_objects > taken // num_objects
