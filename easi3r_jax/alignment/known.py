"""Known cameras, and the transformation between their world and the alignment's.

The alignment works in its own world, whose scale comes from the pairs. Known poses may have any origin and unit: they
are transformed into the alignment's world for the start, and the result is transformed back.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.alignment import state as state_of
from easi3r_jax.alignment.problem import AlignProblem, CameraPrior
from easi3r_jax.alignment.state import FOCAL_PARAM_SCALE, AlignState
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.core.types import Geometry, KnownCameras

# Known focal lengths that differ relatively by less than this are treated as equal.
_FOCAL_TOLERANCE = 0.01
# Centres closer than this, relative to their coordinates, are identical up to float64 rounding.
_CENTRE_TOLERANCE = 1e-9
# Minimum correlation of the known path with the one estimated without it, and its minimum spread relative to the depth.
_MIN_CORRELATION, _MIN_PATH_LENGTH = 0.5, 1e-3


def check_known(known: KnownCameras, num_frames: int) -> None:
    """Refuses known cameras of another clip.

    Raises:
      InputError: another number of frames than the clip's.
    """
    if len(known.intrinsics_known) != num_frames or len(known.poses_known) != num_frames:
        raise InputError(f"Cameras are known for {len(known.poses_known)} frames, but the clip has {num_frames}.")


def known_focals(
    focals: Float[np.ndarray, "T"], known: KnownCameras | None, config: AlignConfig
) -> tuple[Float[np.ndarray, "T"], bool]:
    """Replaces estimated focal lengths (T,) by known ones. Also returns whether all frames share one.

    If all are known, each frame keeps its own. If only some are known and all frames share one, it is the known one.

    Raises:
      ConfigError: frames share a focal length, but the known ones differ.
    """
    if known is None:
        return focals, config.shared_focal
    which = np.asarray(known.intrinsics_known)
    if which.all():
        return np.asarray(known.focal), False
    if not config.shared_focal:
        return np.where(which, known.focal, focals), False
    focal = clip_focal(known)
    return (focals if focal is None else np.full(len(focals), focal)), True


def clip_focal(known: KnownCameras) -> float | None:
    """The focal length that all frames share, if known.

    Raises:
      ConfigError: the known ones differ.
    """
    given = np.asarray(known.focal)[np.asarray(known.intrinsics_known)]
    if not len(given):
        return None if known.shared_focal is None else float(known.shared_focal)
    if given.max() > (1 + _FOCAL_TOLERANCE) * given.min():
        raise ConfigError(
            f"The known focal lengths differ ({given.min():.1f} to {given.max():.1f} pixels) and some frames' are not "
            "known, so the frames cannot share one. Give each frame its own: AlignConfig(shared_focal=False), or "
            "--noshared_focal."
        )
    return float(given.mean())


def nothing_known(num_frames: int) -> KnownCameras:
    """Known cameras of a clip about which nothing is known."""
    return KnownCameras(
        focal=np.ones(num_frames),
        principal_point=np.zeros((num_frames, 2)),
        intrinsics_known=np.zeros(num_frames, bool),
        world_from_cam=np.tile(np.eye(4), (num_frames, 1, 1)),
        poses_known=np.zeros(num_frames, bool),
    )


def principal_points(
    centre: Float[np.ndarray, "2"], num_frames: int, known: KnownCameras | None
) -> Float[np.ndarray, "T 2"]:
    """(T, 2): known principal points, and the image's centre elsewhere."""
    centres = np.tile(np.asarray(centre)[None], (num_frames, 1))
    return centres if known is None else np.where(known.intrinsics_known[:, None], known.principal_point, centres)


def world_from_known(
    world_from_cam: Float[np.ndarray, "T 4 4"], known: KnownCameras, scale: Float[np.ndarray, ""] | float | None = None
) -> Float[np.ndarray, "4 4"]:
    """The similarity (4, 4) that best aligns the known poses with estimated ones, (T, 4, 4).

    Its rotation is the mean of the relative rotations. Its scale, unless given, is the ratio of the centres' spreads if
    the known poses fix the scale, else 1. Its translation maps one mean centre to the other.
    """
    ours, theirs = _known_poses(world_from_cam, known), _known_poses(known.world_from_cam, known)
    u, _, vt = np.linalg.svd(np.einsum("tab,tcb->ac", ours[:, :3, :3], theirs[:, :3, :3]))
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    spreads = [float(np.linalg.norm(_centred(poses))) for poses in (ours, theirs)]
    if scale is None:
        scale = spreads[0] / spreads[1] if scale_is_known(known) and min(spreads) > 0 else 1.0
    out = np.eye(4)
    out[:3, :3] = scale * rotation
    out[:3, 3] = ours[:, :3, 3].mean(0) - out[:3, :3] @ theirs[:, :3, 3].mean(0)
    return out


def scale_is_known(known: KnownCameras | None) -> bool:
    """Whether known poses fix the world's scale."""
    if known is None or np.sum(known.poses_known) < 2:
        return False
    if known.scale_known is not None:
        return bool(known.scale_known)
    poses = _known_poses(known.world_from_cam, known)
    return bool(np.abs(_centred(poses)).max() > _CENTRE_TOLERANCE * np.abs(poses[:, :3, 3]).max())


def decide_scale(
    known: KnownCameras | None, world_from_cam: Float[np.ndarray, "T 4 4"], depth: Float[np.ndarray, "T H W"]
) -> KnownCameras | None:
    """Decides whether known poses fix the world's scale, by comparison with poses estimated without them.

    They do if the two paths are similar and longer than a thousandth of the depth. The centres of a camera that only
    rotates differ by rounding or by play in its mount, which says nothing about scale.

    Args:
      known: the cameras.
      world_from_cam: (T, 4, 4) estimated without the known poses.
      depth: (T, H, W) of the same estimate.
    """
    if known is None or not scale_is_known(known):
        return known
    alike = dataclasses.replace(known, scale_known=np.array(True))
    ours, theirs = _known_poses(world_from_cam, known), _known_poses(known.world_from_cam, known)
    a, b = _centred(ours), _centred(theirs) @ world_from_known(world_from_cam, alike)[:3, :3].T
    reach = _MIN_PATH_LENGTH * float(np.median(depth))
    follows = np.sum(a * b) > _MIN_CORRELATION * np.linalg.norm(a) * np.linalg.norm(b)
    known_scale = bool(follows and np.sqrt(np.mean(np.sum(a * a, axis=1))) > reach)
    return dataclasses.replace(known, scale_known=np.array(known_scale))


def _known_poses(world_from_cam: np.ndarray, known: KnownCameras) -> np.ndarray:
    return np.asarray(world_from_cam, np.float64)[np.asarray(known.poses_known)]


def _centred(poses: np.ndarray) -> np.ndarray:
    """(K, 3) camera centres minus their mean."""
    return poses[:, :3, 3] - poses[:, :3, 3].mean(0)


def with_known_poses(
    world_from_cam: Float[np.ndarray, "T 4 4"], known: KnownCameras | None
) -> Float[np.ndarray, "T 4 4"]:
    """Estimated poses (T, 4, 4), replaced by the known ones where available, aligned with the estimate."""
    if known is None or not np.any(known.poses_known):
        return world_from_cam
    similarity = world_from_known(world_from_cam, known, known.start_scale)
    moved = transformed_poses(np.asarray(known.world_from_cam, np.float64), similarity)
    return np.where(np.asarray(known.poses_known)[:, None, None], moved, world_from_cam)


def with_known_cameras(
    problem: AlignProblem, start: AlignState, known: KnownCameras | None, config: AlignConfig
) -> AlignProblem:
    """Makes the problem hold known cameras fixed at their start, or adds a prior that pulls towards them."""
    if known is None:
        return problem
    dtype = problem.principal_point.dtype
    poses_known, focals_known = (np.asarray(x, dtype) for x in (known.poses_known, known.intrinsics_known))
    centres = principal_points(np.asarray(problem.principal_point[0]), len(problem.principal_point), known)
    problem = dataclasses.replace(
        problem, principal_point=np.asarray(centres, dtype), scale_known=np.asarray(scale_is_known(known))
    )
    one = np.ones((), dtype)
    shared_known = np.asarray(known.shared_focal is not None, dtype)
    shared = np.maximum(focals_known.max(), shared_known)[None]
    free_focals = 1 - (focals_known if len(start.log_focal) > 1 else shared)
    free = AlignState(
        pair_poses=one,
        frame_poses=1 - poses_known[:, None],
        log_depth=one,
        log_focal=free_focals,
        principal_offset=None if start.principal_offset is None else 1 - focals_known[:, None],
    )
    if math.isinf(config.camera_weight):
        return dataclasses.replace(problem, free=free)
    # The prior does not cover the principal point: where known, it is fixed.
    world_from_cam, log_focal = _poses_and_log_focals(start)
    prior = CameraPrior(
        world_from_cam=world_from_cam,
        poses_known=poses_known,
        log_focal=log_focal,
        focals_known=focals_known,
        weight=np.asarray(config.camera_weight, dtype),
    )
    free = dataclasses.replace(free, frame_poses=one, log_focal=1 - shared_known)
    return dataclasses.replace(problem, camera_prior=prior, free=free)


@jax.jit
def _poses_and_log_focals(state: AlignState) -> tuple[Array, Array]:
    return state_of.world_from_cam(state), FOCAL_PARAM_SCALE * jnp.log(state_of.focals(state))


def in_known_world(geometry: Geometry, known: KnownCameras | None, config: AlignConfig) -> Geometry:
    """The geometry in the world and units of the known poses. Known poses that are held fixed are returned exactly."""
    if known is None or not np.any(known.poses_known):
        return geometry
    poses = sharding.on_host(geometry.world_from_cam)
    known_from_world = np.linalg.inv(world_from_known(poses, known))
    poses = transformed_poses(np.asarray(poses, np.float64), known_from_world)
    if math.isinf(config.camera_weight):
        poses = np.where(np.asarray(known.poses_known)[:, None, None], known.world_from_cam, poses)
    scale = np.cbrt(np.linalg.det(known_from_world[:3, :3]))
    return dataclasses.replace(
        geometry,
        world_from_cam=jax.device_put(np.asarray(poses, np.float32)),
        depth=geometry.depth * jnp.float32(scale),
    )


def transformed_poses(
    poses: Float[np.ndarray, "T 4 4"], similarity: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "T 4 4"]:
    """Rigid poses (T, 4, 4) in another world: the similarity's scale applies to translations only."""
    out = similarity @ poses
    out[:, :3, :3] /= np.cbrt(np.linalg.det(similarity[:3, :3]))
    return out
