"""Repeats a float32 computation in float64, for finite differences.

The motion stage computes in float32, whatever it is given. `in_float64` traces a function and evaluates the same
operations with float64 in place of float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


def widened(tree: Any) -> Any:
    """Its arrays of float32 as float64, to be used within `jax.enable_x64(True)`."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == jnp.float32 else np.asarray(x), tree)


def in_float64(f: Callable[..., Any], *example: Any) -> Callable[..., Any]:
    """`f` of arguments like the example's (float32), for arguments in float64."""
    with jax.enable_x64(False):
        program, shapes = jax.make_jaxpr(f, return_shape=True)(*example)

    def wide(*args: Any) -> Any:
        out = _run(program.jaxpr, program.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return wide


def slope(f: Callable[[Any], Any], at: Any, along: Any, step: float) -> float:
    """Central difference of a scalar function of a tree of float64."""
    ahead, behind = (f(jax.tree.map(lambda x, d, h=h: x + h * d, at, along)) for h in (step, -step))
    return float(ahead - behind) / (2 * step)


def random_like(rng: np.random.Generator, tree: Any) -> Any:
    """Standard normal float64."""
    return jax.tree.map(lambda x: rng.standard_normal(x.shape), tree)


def dot(a: Any, b: Any) -> float:
    """Sum of the products of two trees' values."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.vdot(np.asarray(x, np.float64), y)) for x, y in pairs)


def _wide_dtype(value: Any) -> Any:
    is_dtype = isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic))
    return np.dtype(np.float64) if is_dtype and value == np.float32 else value


def _run(jaxpr: Any, consts: Any, *args: Any) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(x: Any) -> Any:
        if not isinstance(x, core.Literal):
            return values[x]
        return np.asarray(x.val, np.float64) if x.aval.dtype == jnp.float32 else np.asarray(x.val, x.aval.dtype)

    values |= dict(zip(jaxpr.constvars, widened(list(consts)), strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        out = _step(eqn, [read(x) for x in eqn.invars])
        values |= dict(zip(eqn.outvars, out, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _called(program: Any, *args: Any) -> list[Any]:
    return _run(program.jaxpr, program.consts, *args)


def _step(eqn: Any, args: list[Any]) -> Any:
    name, params = eqn.primitive.name, eqn.params
    if name == "jit":
        return _called(params["jaxpr"], *args)
    if name == "cond":
        branches = [lambda *xs, b=b: _called(b, *xs) for b in params["branches"]]
        return jax.lax.switch(args[0], branches, *args[1:])
    if name == "while":
        n, m = params["cond_nconsts"], params["body_nconsts"]
        return jax.lax.while_loop(
            lambda carry: _called(params["cond_jaxpr"], *args[:n], *carry)[0],
            lambda carry: _called(params["body_jaxpr"], *args[n : n + m], *carry),
            args[n + m :],
        )
    if name == "scan":
        n, m = params["num_consts"], params["num_carry"]

        def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            out = _called(params["jaxpr"], *args[:n], *carry, *x)
            return out[:m], out[m:]

        length, reverse = params["length"], params["reverse"]
        carry, ys = jax.lax.scan(body, args[n : n + m], args[n + m :], length=length, reverse=reverse)
        return [*carry, *ys]
    if name == "bitcast_convert_type":  # random bits become a float32: the pattern is one of 32 bits
        out = eqn.primitive.bind(*args, **params)
        return [out.astype(jnp.float64) if out.dtype == jnp.float32 else out]
    out = eqn.primitive.bind(*args, **{key: _wide_dtype(value) for key, value in params.items()})
    return out if eqn.primitive.multiple_results else [out]
