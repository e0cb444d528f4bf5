"""The minimum as a differentiable function of the problem, without differentiating through the optimiser's steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easi3r_jax.alignment.derivatives import instantiated, is_wanted, values_of
from easi3r_jax.alignment.problem import AlignProblem
from easi3r_jax.alignment.state import AlignState
from easi3r_jax.alignment.terms import Term, softness_of, total_loss
from easi3r_jax.core.arrays import Array
from easi3r_jax.core.errors import GradientError

# Lower bound on a field's curvatures, relative to its largest: a pixel that no pair sees has none.
_MIN_CURVATURE = 1e-6


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Solver:
    terms: tuple[Term, ...]
    damping: float
    iterations: int
    tolerance: float


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Wanted:
    leaves: tuple[bool, ...]


def at_minimum(
    state: AlignState,
    problem: AlignProblem,
    terms: Iterable[Term],
    *,
    damping: float = 1e-7,
    iterations: int = 1000,
    tolerance: float = 1e-2,
) -> AlignState:
    """`state`, differentiable with respect to the problem it minimises (implicit function theorem; reverse mode).

    At a minimum the gradient is 0 and stays 0 when the problem changes: dstate = -H^-1 d(gradient), with H the Hessian
    with respect to the state. For a function g of the state, conjugate gradients solve u = H^-1 dg, and -u d(gradient)
    is returned; each product H v takes two passes over the observations. Unlike differentiation through `adam_steps`,
    time and memory do not grow with the number of steps.

    Conditions:

    - The objective is twice differentiable. The method's own has kinks where a distance is 0, and at its minimum some
      distances are 0, as in any fit of a sum of distances: minimise `softened(...)` instead. Only `points_loss` is
      checked for this, not terms of your own.
    - The state is a minimum: the gradient there is much smaller than its change with the problem. 300 steps at the
      default rates are not enough; use more steps and a smaller final rate.
    - H is positive except in directions in which the objective never changes (the world's pose, quaternions' lengths).
      Components of dg along these do not affect the result.

    The result is NaN if conjugate gradients do not converge: the state is not a minimum, or more `iterations` are
    needed.

    Args:
      state: the end of the descent. It has no derivative: any start nearby leads to the same minimum.
      problem: the problem that was minimised.
      terms: the objective's terms.
      damping: added to H, as a fraction of its diagonal.
      iterations: maximum number of conjugate-gradient iterations.
      tolerance: norm of the residual of the linear system, scaled by its diagonal, relative to the right-hand side.

    Raises:
      GradientError: one of the terms is `points_loss` with softness 0.
    """
    terms = tuple(terms)
    if any(softness_of(term.value) == 0 for term in terms):
        raise GradientError("points_loss has no second derivative at its minimum: minimise softened(...) instead.")
    return _at_minimum(state, problem, _Solver(terms, damping, iterations, tolerance))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _at_minimum(state: AlignState, problem: AlignProblem, solver: _Solver) -> AlignState:
    del problem, solver
    return state


def _forward(state: AlignState, problem: AlignProblem, solver: _Solver):
    wanted = _Wanted(tuple(is_wanted(x) for x in jax.tree.leaves(problem)))
    state, problem = values_of((state, problem))
    return state, (state, problem, wanted)


def _backward(solver: _Solver, saved: tuple[AlignState, AlignProblem, _Wanted], cotangent: AlignState):
    state, problem, wanted = saved

    def gradient(state: AlignState, problem: AlignProblem) -> AlignState:
        return _masked(jax.grad(total_loss)(state, problem, solver.terms), problem.free)

    def product(v: AlignState) -> AlignState:
        return jax.jvp(lambda s: gradient(s, problem), (state,), (_masked(v, problem.free),))[1]

    cotangent = jax.tree.map(instantiated, cotangent)
    u = _solve(product, _masked(cotangent, problem.free), solver)
    leaves, tree = jax.tree.flatten(problem)

    def by_leaves(chosen: list[Any]) -> AlignState:
        rest = iter(chosen)
        every = [next(rest) if is_one else x for x, is_one in zip(leaves, wanted.leaves, strict=True)]
        return gradient(state, jax.tree.unflatten(tree, every))

    chosen = [x for x, is_one in zip(leaves, wanted.leaves, strict=True) if is_one]
    _, pull = jax.vjp(by_leaves, chosen)
    (found,) = pull(jax.tree.map(jnp.negative, u))
    rest = iter(found)
    return None, jax.tree.unflatten(tree, [next(rest) if is_one else None for is_one in wanted.leaves])


_at_minimum.defvjp(_forward, _backward, symbolic_zeros=True)


def _masked(x: AlignState, free: AlignState | None) -> AlignState:
    return x if free is None else jax.tree.map(lambda x, f: x * f, x, free)


def _solve(product: Callable[[AlignState], AlignState], right: AlignState, solver: _Solver) -> AlignState:
    """Solves H u = right by conjugate gradients on S H S, S = diag(H)^-1/2; NaN if they do not converge."""
    scale = jax.tree.map(lambda d: d**-0.5, _curvature(product, right))

    def scaled(x: AlignState) -> AlignState:
        return jax.tree.map(lambda s, x: s * x, scale, x)

    def dot(x: AlignState, y: AlignState) -> Array:
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))

    def system(y: AlignState) -> AlignState:
        return jax.tree.map(lambda a, y: a + solver.damping * y, scaled(product(scaled(y))), y)

    def step(carry):
        k, x, left, direction, size = carry
        image = system(direction)
        length = size / dot(direction, image)  # negative, infinite or NaN where H is not positive
        x = jax.tree.map(lambda x, d: x + length * d, x, direction)
        left = jax.tree.map(lambda r, a: r - length * a, left, image)
        new = jnp.where(length > 0, dot(left, left), jnp.nan)
        direction = jax.tree.map(lambda r, d: r + (new / size) * d, left, direction)
        return k + 1, x, left, direction, new

    right = scaled(right)
    enough = solver.tolerance**2 * dot(right, right)
    start = (jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, right), right, right, dot(right, right))
    # Not JAX's `cg`, which does not report whether it converged.
    _, found, _, _, size = jax.lax.while_loop(lambda c: (c[0] < solver.iterations) & (c[4] > enough), step, start)
    return jax.tree.map(lambda x: jnp.where(size <= enough, x, jnp.nan), scaled(found))


def _curvature(product: Callable[[AlignState], AlignState], like: AlignState) -> AlignState:
    """Approximate diagonal of H, made positive.

    One product per column of a field, with ones in all its rows: different pairs, frames and pixels hardly interact.
    For the depth, with only the point and flow terms, it is exact.
    """
    fields, tree = jax.tree.flatten(like)
    columns = [x.shape[1] if x.ndim == 2 else 1 for x in fields]
    first = np.cumsum([0, *columns])

    def add(total: AlignState, k: Array) -> tuple[AlignState, None]:
        probes = [
            jnp.broadcast_to((np.arange(n) + start == k).astype(x.dtype).reshape((1,) * (x.ndim - 1) + (n,)), x.shape)
            for x, n, start in zip(fields, columns, first[:-1], strict=True)
        ]
        probe = jax.tree.unflatten(tree, probes)
        return jax.tree.map(lambda t, p, h: t + p * h, total, probe, product(probe)), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), jnp.arange(int(first[-1])))

    def positive(x: Array) -> Array:
        largest = jnp.max(jnp.abs(x))
        return jnp.maximum(jnp.abs(x), jnp.where(largest > 0, _MIN_CURVATURE * largest, 1))

    return jax.tree.map(positive, total)
