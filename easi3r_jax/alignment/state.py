"""The alignment's unknowns, `AlignState`, and the cameras and depth that they stand for."""

from __future__ import annotations

import jax.numpy as jnp

from easi3r_jax.core.arrays import Array, Bool, Float, pytree_dataclass
from easi3r_jax.core.geometry import camera, se3

#: Geometric mean of the pairs' scales: the gauge of the world's scale.
MEAN_PAIR_SCALE = 0.5
#: Parameter units per natural-log unit of focal length: Adam's steps are smaller by this factor.
FOCAL_PARAM_SCALE = 20.0
#: Pixels per parameter unit of the principal point: Adam's steps are larger by this factor.
PRINCIPAL_POINT_SCALE = 10.0


@pytree_dataclass
class AlignState:
    """Unknowns of the alignment, in the parametrisation that Adam optimises.

    Pairs and frames may include padding: `AlignProblem` says which are real.

    Attributes:
      pair_poses: (E, 8), world from the pair's camera i: quaternion x y z w (any length), translation as
        sign(t) log(1 + |t|), log of the scale over 0.5. The scale multiplies translation *and* rotation, after
        normalising the scales' geometric mean to 0.5, unless known poses fix the world's scale: see `pair_transforms`.
      frame_poses: (T, 7), rigid world from camera: quaternion x y z w, translation as above.
      log_depth: (T, H, W), log of z.
      log_focal: (T,) or, shared by all frames, (1,): 20 log(focal in pixels).
      principal_offset: (T, 2), offset from the problem's principal point in units of 10 pixels; None: no offset.
    """

    pair_poses: Float[Array, "E 8"]
    frame_poses: Float[Array, "T 7"]
    log_depth: Float[Array, "T H W"]
    log_focal: Float[Array, "T"] | Float[Array, "1"]
    principal_offset: Float[Array, "T 2"] | None = None


def make_state(
    pair_poses: Float[Array, "E 8"],
    frame_poses: Float[Array, "T 7"],
    depth: Float[Array, "T H W"],
    focals: Float[Array, "T"] | Float[Array, "1"],
    *,
    shared_focal: bool,
    free_principal_point: bool = False,
) -> AlignState:
    """State from (E, 8) and (T, 7) parameters, (T, H, W) positive depth and (T,) focals in pixels.

    A shared focal is the arithmetic mean.
    """
    focals = jnp.mean(focals, keepdims=True) if shared_focal else focals
    offset = jnp.zeros((len(frame_poses), 2), depth.dtype) if free_principal_point else None
    return AlignState(pair_poses, frame_poses, jnp.log(depth), FOCAL_PARAM_SCALE * jnp.log(focals), offset)


def world_from_cam(state: AlignState) -> Float[Array, "T 4 4"]:
    """(T, 4, 4) rigid camera poses."""
    return _rigid(state.frame_poses)


def pair_scales(
    state: AlignState, scale_known: Bool[Array, ""] | bool = False, counts: Float[Array, "E"] | None = None
) -> Float[Array, "E"]:
    """(E,) scales; their geometric mean is 0.5 unless known poses fix the world's scale.

    Args:
      state: of the alignment.
      scale_known, counts: `scale_known` and `pair_counts` of the problem.
    """
    return MEAN_PAIR_SCALE * jnp.exp(state.pair_poses[:, 7] - jnp.where(scale_known, 0, _mean_log_scale(state, counts)))


def unit_length(
    state: AlignState, scale_known: Bool[Array, ""] | bool, counts: Float[Array, "E"] | None = None
) -> Float[Array, ""]:
    """() float, the unit of lengths: 1, or, if known poses fix the world's scale, the pairs' mean scale over 0.5.

    Without it, shrinking the world would reduce the loss, as all distances would shrink.
    """
    return jnp.where(scale_known, jnp.exp(_mean_log_scale(state, counts)), 1)


def _mean_log_scale(state: AlignState, counts: Array | None) -> Array:
    log_scale = state.pair_poses[:, 7]
    return jnp.mean(log_scale) if counts is None else jnp.sum(counts * log_scale) / jnp.sum(counts)


def pair_transforms(
    state: AlignState, scale_known: Bool[Array, ""] | bool = False, counts: Float[Array, "E"] | None = None
) -> Float[Array, "E 4 4"]:
    """(E, 4, 4) similarities, world from the pair's points: rotation and translation, both times the scale."""
    rigid = _rigid(state.pair_poses)
    scale = pair_scales(state, scale_known, counts)[:, None]
    return se3.from_parts(scale[..., None] * rigid[:, :3, :3], scale * rigid[:, :3, 3])


def focals(state: AlignState) -> Float[Array, "T"]:
    """(T,) focal lengths in pixels."""
    return jnp.broadcast_to(jnp.exp(state.log_focal / FOCAL_PARAM_SCALE), (len(state.frame_poses),))


def intrinsics(state: AlignState, principal_point: Float[Array, "T 2"]) -> Float[Array, "T 3 3"]:
    """(T, 3, 3) in pixels, where the offsets are from the problem's principal points (T, 2)."""
    if state.principal_offset is not None:
        principal_point = principal_point + PRINCIPAL_POINT_SCALE * state.principal_offset
    return camera.intrinsics(focals(state), principal_point)


def depth(state: AlignState) -> Float[Array, "T H W"]:
    """(T, H, W) z in the camera."""
    return jnp.exp(state.log_depth)


def world_coordinates(state: AlignState, principal_point: Float[Array, "T 2"]) -> Float[Array, "T 3 H*W"]:
    """(T, 3, H W): every pixel of every frame, unprojected to the world."""
    return camera.world_coordinates(depth(state), intrinsics(state, principal_point), world_from_cam(state))


def _rigid(params: Array) -> Array:
    return se3.from_parts(se3.matrix_from_quaternion(params[:, :4]), se3.signed_expm1(params[:, 4:7]))
