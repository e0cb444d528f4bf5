"""A GPU's TF32 products on any machine: a function with the factors of such products rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx

from easi3r_jax.core.arrays import Array, Float
from easi3r_jax.models import Decoded, DUSt3R

_PRODUCTS = ("dot_general", "conv_general_dilated")
#: Bits of a float32 number's mantissa that TF32 lacks: 23 - 10.
_DROPPED = 13


def round_to_tf32(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Rounds float32 numbers to 10 bits of mantissa, ties to even, as the units that multiply in TF32 read them."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    half = jnp.uint32((1 << (_DROPPED - 1)) - 1) + ((bits >> _DROPPED) & 1)
    rounded = (bits + half) & jnp.uint32(0xFFFFFFFF << _DROPPED & 0xFFFFFFFF)
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(rounded, jnp.float32), x)


def emulated(model: DUSt3R) -> DUSt3R:
    """The network as a GPU computes it: where its policy says TF32, factors are rounded. Its arrays are shared."""
    _, state = nnx.split(model)
    like = nnx.eval_shape(
        lambda: _Emulated(model.config, rngs=nnx.Rngs(0), precision=model.precision, readout=model.readout)
    )
    return nnx.merge(nnx.split(like)[0], state, copy=True)


class _Emulated(DUSt3R):
    def encode(self, rgb: Array) -> Array:
        return with_tf32(super().encode)(rgb)

    def decode(self, features_i, features_j, grid, dynamic_tokens=None, *, gram=False, intermediates=False) -> Decoded:
        def plain(features_i: Array, features_j: Array, dynamic_tokens: Any) -> Decoded:
            options = {"gram": gram, "intermediates": intermediates}
            return super(_Emulated, self).decode(features_i, features_j, grid, dynamic_tokens, **options)

        return with_tf32(plain)(features_i, features_j, dynamic_tokens)

    def predict(self, features_i, features_j, decoded, grid) -> tuple[Array, Array, Array, Array]:
        def plain(features_i: Array, features_j: Array, decoded: Decoded) -> tuple[Array, Array, Array, Array]:
            return super(_Emulated, self).predict(features_i, features_j, decoded, grid)

        return with_tf32(plain)(features_i, features_j, decoded)


def with_tf32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays with rounded factors in all products of float32 arrays at `Precision.HIGH`."""

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluate(closed.jaxpr, closed.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return run


def _evaluate(jaxpr: Any, consts: Any, *args: Any) -> list[Any]:
    """The program's results, one equation after the other."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        results = _bind(equation, inputs)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(equation: Any, inputs: list[Any]) -> list[Any]:
    primitive, params = equation.primitive, equation.params
    inner = next((params[key] for key in ("call_jaxpr", "jaxpr", "fun_jaxpr") if key in params), None)
    if inner is not None and primitive.name != "scan":  # a program called once
        return _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), *inputs)
    if primitive.name in _PRODUCTS and _is_tf32(equation):
        inputs = [round_to_tf32(x) for x in inputs]
    if primitive.name in ("scan", "while", "cond"):
        params = {key: jax.tree.map(_rewritten, value, is_leaf=_is_closed) for key, value in params.items()}
    results = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return results if primitive.multiple_results else [results]


def _is_tf32(equation: Any) -> bool:
    precision = equation.params["precision"]
    return equation.invars[0].aval.dtype == jnp.float32 and (precision or (None,))[0] == jax.lax.Precision.HIGH


def _is_closed(value: Any) -> bool:
    return isinstance(value, jax.extend.core.ClosedJaxpr)


def _rewritten(value: Any) -> Any:
    """An inner program of a loop or branch, rewritten."""
    if not _is_closed(value):
        return value
    return jax.make_jaxpr(lambda *args: _evaluate(value.jaxpr, value.consts, *args))(*value.in_avals)
