"""The optimiser: Adam over the whole state, as one compiled loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from easi3r_jax.alignment.problem import AlignProblem
from easi3r_jax.alignment.state import AlignState
from easi3r_jax.alignment.terms import DEFAULT_TERMS, Term, total_loss
from easi3r_jax.core import sharding
from easi3r_jax.core.arrays import Array, Bool, Float
from easi3r_jax.core.config import AlignConfig
from easi3r_jax.core.types import Progress, silent

#: Steps per call of the compiled loop: about 15 reports for the usual 300 iterations.
CHUNK = 20

# eps_root is far below the square of Adam's eps (1e-8) and does not affect any step. It keeps the square root
# differentiable where a gradient is exactly 0 (the root frame's translation), for differentiation through the loop.
_ADAM = optax.scale_by_adam(b1=0.9, b2=0.9, eps_root=1e-30)


def learning_rates(config: AlignConfig) -> Float[np.ndarray, "iterations"]:
    """(iterations,) float64: from `learning_rate` at t = 0 towards `learning_rate_min` at t = 1, t = step / iterations.

    The end point is never reached: the last step has t = 1 - 1 / iterations.
    """
    t = np.arange(config.iterations) / config.iterations
    if config.schedule == "linear":
        return config.learning_rate + (config.learning_rate_min - config.learning_rate) * t
    span = config.learning_rate - config.learning_rate_min
    return config.learning_rate_min + span * (1 + np.cos(np.pi * t)) / 2


def adam_steps(
    state: AlignState,
    moments: optax.OptState,
    problem: AlignProblem,
    rates: Float[Array, "S"],
    active: Bool[Array, "S"],
    terms: Sequence[Term] = DEFAULT_TERMS,
    with_flow: Bool[Array, "S"] | None = None,
) -> tuple[AlignState, optax.OptState, Float[Array, "S"]]:
    """Runs one step per entry of `rates` (S,); steps that are not `active` change nothing. Returns (S,) losses before.

    Pure. The problem's flow, if any, is used in the steps marked in `with_flow`; None: in all. Start `moments` from
    `init_moments(state)`. Can be vmapped, and differentiated in reverse mode with respect to the start, the rates and
    the problem: the backward pass stores one state per step, not the intermediates.
    """
    memory = cast(optax.ScaleByAdamState, moments)
    chex.assert_trees_all_equal_shapes(state, memory.mu, memory.nu)
    chex.assert_equal_shape((rates, active))

    def step(carry, inputs):
        rate, is_active, flow_counts = inputs

        def take(carry):
            state, moments = carry
            now = problem
            if problem.flow is not None:
                counts = problem.flow.counts & flow_counts
                now = dataclasses.replace(problem, flow=dataclasses.replace(problem.flow, counts=counts))
            value, gradient = jax.value_and_grad(total_loss)(state, now, terms)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
                update, moments = _ADAM.update(gradient, moments)
            if problem.free is not None:
                update = jax.tree.map(lambda u, f: u * f, update, problem.free)
            return (jax.tree.map(lambda x, u: x - rate.astype(x.dtype) * u, state, update), moments), value

        def skip(carry):
            return carry, jnp.zeros((), problem.smoothing_weight.dtype)

        return jax.lax.cond(is_active, take, skip, carry)

    with_flow = jnp.ones(active.shape, bool) if with_flow is None else with_flow
    (state, moments), losses = jax.lax.scan(step, (state, moments), (rates, active, with_flow))
    return state, moments, losses


def init_moments(state: AlignState) -> optax.OptState:
    """Adam's moments before the first step."""
    return _ADAM.init(cast(optax.Params, state))


_compiled_steps = partial(jax.jit, static_argnames=("terms",))(adam_steps)
_compiled_moments = jax.jit(init_moments)


def iterate(
    state: AlignState,
    problem: AlignProblem,
    config: AlignConfig,
    stops: Sequence[int],
    *,
    terms: Sequence[Term] = DEFAULT_TERMS,
) -> Iterator[tuple[int, AlignState, Float[np.ndarray, "S"]]]:
    """Runs the schedule and yields (steps done, state, losses of the steps since the last stop) at every stop.

    Every call of the compiled loop has the same shapes, whatever the stops and the number of iterations: it compiles
    once per problem shape.

    Args:
      state, problem: where to start and what to fit.
      config: number of iterations and schedule.
      stops: increasing step counts, the last at most `config.iterations`.
      terms: of the objective. They are a static argument of the compiled loop, and new functions trigger a
        recompilation: create them once, not as new lambdas for each call.
    """
    terms = tuple(terms)
    rates = learning_rates(config).astype(np.float32)
    # If one argument of the loop is committed to a device, its results are too. Uncommitted arguments would be another
    # signature, and the loop would be compiled a second time.
    state = sharding.placed(state, problem.mesh, beside=problem)
    moments, done = sharding.placed(_compiled_moments(state), problem.mesh, beside=(problem, state)), 0
    for stop in stops:
        losses = []
        while done < stop:
            count = min(CHUNK, stop - done)
            active = np.arange(CHUNK) < count
            padded = np.zeros(CHUNK, np.float32)
            padded[:count] = rates[done : done + count]
            with_flow = np.arange(done, done + CHUNK) >= config.flow_start * config.iterations
            state, moments, values = _compiled_steps(
                state, moments, problem, padded, active, terms=terms, with_flow=with_flow
            )
            losses.append(sharding.on_host(values)[:count])
            done += count
        yield done, state, np.concatenate(losses) if losses else np.zeros(0, np.float32)


def optimise(
    state: AlignState,
    problem: AlignProblem,
    config: AlignConfig,
    *,
    terms: Sequence[Term] = DEFAULT_TERMS,
    progress: Progress = silent,
) -> tuple[AlignState, Float[Array, "iterations"]]:
    """Minimises the sum of the terms with `config.iterations` steps of Adam (betas 0.9, 0.9).

    Create the terms once, not for each call: see `iterate`. Runs on the host, so it is not differentiable; `adam_steps`
    is.

    Returns:
      The last state, and the (iterations,) losses before each step.
    """
    total = config.iterations
    losses = []
    progress("align", 0, total, "")
    for done, latest, values in iterate(state, problem, config, [*range(CHUNK, total, CHUNK), total], terms=terms):
        state = latest
        losses.append(values)
        progress("align", done, total, f"loss {float(values[-1]):.4f}")
    return state, np.concatenate(losses)
