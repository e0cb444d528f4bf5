"""The alignment's objective: a sum of named terms, each a pure function of (state, problem) times its weight.

    total = points + smoothing_weight * smoothness + weight of the flow * flow + weight of the matches * matches
            + weight of the depth prior * depth + weight of the camera prior * cameras

`DEFAULT_TERMS` is that list. Omitting a term or adding your own is a list operation:

    without = tuple(term for term in DEFAULT_TERMS if term.name != "smoothness")
    more = (*DEFAULT_TERMS, Term("level", horizon_loss, 0.1))
    state, losses = optimise(start, problem, config, terms=more)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from easi3r_jax.alignment.flow import flow_loss
from easi3r_jax.alignment.matching import match_loss
from easi3r_jax.alignment.problem import AlignProblem, DepthPrior
from easi3r_jax.alignment.residuals import points_loss
from easi3r_jax.alignment.state import FOCAL_PARAM_SCALE, AlignState, unit_length, world_from_cam
from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.core.geometry import se3


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the objective. Terms with equal fields are equal and do not trigger a recompilation.

    Attributes:
      name: name in `loss_terms`.
      value: function of (state, problem): () float, differentiable.
      weight: factor on the value: a number, or a function of the problem that returns None if the problem has no data
        for the term. A weight held by the problem can be differentiated and vmapped.
    """

    name: str
    value: Callable[[AlignState, AlignProblem], Float[Array, ""]]
    weight: Callable[[AlignProblem], Float[Array, ""] | None] | float = 1.0


@jax.jit
def smoothness_loss(state: AlignState, problem: AlignProblem) -> Float[Array, ""]:
    """Change of pose between neighbouring frames (MonST3R, eq. 4), () float: sum_t |R_rel - I|_F + weight * |t_rel|.

    `rel` is cam_t from cam_(t+1), the weight `problem.translation_weight`.
    """
    residual = relative_pose_residual(world_from_cam(state), problem.translation_weight)
    return jnp.sum(residual if problem.frame_counts is None else problem.frame_counts[1:] * residual)


def relative_pose_residual(
    poses: Float[Array, "T 4 4"], translation_weight: Float[Array, ""] | float
) -> Float[Array, "T-1"]:
    """(T, 4, 4) world_from_cam -> (T-1,) residuals of `smoothness_loss`."""
    relative = se3.compose(se3.inverse(poses[:-1]), poses[1:])
    turn = (relative[:, :3, :3] - jnp.eye(3, dtype=poses.dtype)[None]).reshape(-1, 9)
    return se3.safe_norm(turn) + translation_weight * se3.safe_norm(relative[:, :3, 3])


@jax.jit
def depth_loss(state: AlignState, problem: AlignProblem) -> Float[Array, ""]:
    """Distance of the depth from the problem's depth prior, () float: see `depth_change`.

    Raises:
      ConfigError: the problem has no depth prior.
    """
    if problem.depth_prior is None:
        raise ConfigError("The problem has no depth prior: add one by with_depth_prior.")
    return depth_change(state.log_depth, problem.depth_prior)


def depth_change(log_depth: Float[Array, "T H W"], prior: DepthPrior) -> Float[Array, ""]:
    """Variance of the change of each frame's log depth (T, H, W), weighted per pixel, mean over frames, () float.

    A factor per frame costs nothing: the unweighted mean of the change is subtracted.
    """
    change = log_depth - prior.log_depth
    centred = change - jnp.mean(change, axis=(1, 2), keepdims=True)
    return jnp.mean(prior.pixel_weight * centred * centred)


@jax.jit
def cameras_loss(state: AlignState, problem: AlignProblem) -> Float[Array, ""]:
    """Distance from the problem's camera prior, () float.

    Sums over frames of |R - R_known|_F, of the distance between camera centres (in units of `unit_length`) and of the
    difference between log focal lengths.

    Raises:
      ConfigError: the problem has no camera prior.
    """
    prior = problem.camera_prior
    if prior is None:
        raise ConfigError("The problem has no camera prior: add one by with_known_cameras.")
    difference = world_from_cam(state)[:, :3] - prior.world_from_cam[:, :3]
    turn = se3.safe_norm(difference[:, :, :3].reshape(-1, 9))
    moved = se3.safe_norm(difference[:, :, 3]) / unit_length(state, problem.scale_known, problem.pair_counts)
    zoom = jnp.abs(state.log_focal - prior.log_focal) / FOCAL_PARAM_SCALE
    return jnp.sum(prior.poses_known * (turn + moved)) + jnp.sum(prior.focals_known * zoom)


def _smoothness_weight(problem: AlignProblem) -> Array:
    return problem.smoothing_weight


def _flow_weight(problem: AlignProblem) -> Array | None:
    return None if problem.flow is None else problem.flow.weight


def _match_weight(problem: AlignProblem) -> Array | None:
    return None if problem.matches is None else problem.matches.weight


def _depth_weight(problem: AlignProblem) -> Array | None:
    return None if problem.depth_prior is None else problem.depth_prior.weight


def _cameras_weight(problem: AlignProblem) -> Array | None:
    return None if problem.camera_prior is None else problem.camera_prior.weight


DEFAULT_TERMS = (
    Term("points", points_loss),
    Term("smoothness", smoothness_loss, _smoothness_weight),
    Term("flow", flow_loss, _flow_weight),
    Term("matches", match_loss, _match_weight),
    Term("depth", depth_loss, _depth_weight),
    Term("cameras", cameras_loss, _cameras_weight),
)
"""The method's objective. Flow, matches, depth and cameras only count if the problem has data for them."""


@dataclasses.dataclass(frozen=True)
class _SoftPoints:
    softness: float

    def __call__(self, state: AlignState, problem: AlignProblem) -> Array:
        return points_loss(state, problem, self.softness)


def softened(softness: float, terms: Iterable[Term] = DEFAULT_TERMS) -> tuple[Term, ...]:
    """The terms with the points' distances d replaced by sqrt(d^2 + s^2) - s, which is twice differentiable everywhere.

    Args:
      softness: s > 0, in the world's units.
      terms: terms in which `points_loss` with softness 0 is replaced.

    Raises:
      ConfigError: the softness is not positive and finite.
    """
    if not 0 < softness < math.inf:
        raise ConfigError(f"The softness must be a positive number, in the world's units, not {softness}.")
    soft = _SoftPoints(float(softness))
    return tuple(dataclasses.replace(term, value=soft) if softness_of(term.value) == 0 else term for term in terms)


def softness_of(value: Callable[..., Any]) -> float | None:
    """The softness of a term's function if that is `points_loss`, also with arguments; None for any other function."""
    if isinstance(value, _SoftPoints):
        return value.softness
    if isinstance(value, partial) and value.func is points_loss:
        return value.keywords.get("softness", 0.0)
    return 0.0 if value is points_loss else None


def total_loss(state: AlignState, problem: AlignProblem, terms: Iterable[Term] = DEFAULT_TERMS) -> Float[Array, ""]:
    """The objective, () float: the weighted sum of the terms that the problem has data for.

    Differentiable in reverse mode, also twice, with respect to the state and the problem: see docs/differentiating.md.

    Raises:
      ConfigError: two terms with the same name.
    """
    return sum((weight * term.value(state, problem) for term, weight in _in_use(terms, problem)), _zero(state))


def loss_terms(
    state: AlignState, problem: AlignProblem, terms: Iterable[Term] = DEFAULT_TERMS
) -> dict[str, Float[Array, ""]]:
    """The objective, "total", and the unweighted values of the active terms, by name.

    Raises:
      ConfigError: two terms with the same name.
    """
    values = {term.name: (weight, term.value(state, problem)) for term, weight in _in_use(terms, problem)}
    total = sum((weight * value for weight, value in values.values()), _zero(state))
    return {"total": total} | {name: value for name, (_, value) in values.items()}


def _in_use(terms: Iterable[Term], problem: AlignProblem) -> Iterator[tuple[Term, Array | float]]:
    names = {"total"}
    for term in terms:
        if term.name in names:
            raise ConfigError(f"Two terms of the objective are called {term.name!r}.")
        names.add(term.name)
        weight = term.weight(problem) if callable(term.weight) else term.weight
        if weight is not None:
            yield term, weight


def _zero(state: AlignState) -> Array:
    return jnp.zeros((), state.log_depth.dtype)
