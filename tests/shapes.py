"""Checks annotations of arrays at run time: of the arguments and results of the library's public functions.

`install()` puts a hook into the import system. With it, every public function and method of the rooms below is wrapped
in `checked`, inside its other decorators: under `jax.jit` the check runs while the function is traced.

The check comes *after* the function: one that refuses its arguments does so by its own error. Arguments and results are
then checked together, so that an axis has the same length everywhere. Fields of the library's pytrees are
checked with the axes of the call, but not where pytrees are constructed: JAX puts anything into them, in
`vmap(in_axes=...)` and `tree.map`. A field that holds no array is not checked.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib.abc
import importlib.machinery
import inspect
import io
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

import jax
import jaxtyping
import numpy as np

PACKAGE = "easi3r_jax"
#: Rooms of the library whose functions are checked; of `io` and `weights`, the modules that fill or return pytrees.
ROOMS = ("core", "models", "motion", "alignment", "synthetic", "inference", "evaluation", "training")
ROOMS += ("io.export.full", "io.export.gaussians", "io.export.selection")
ROOMS += ("io.priors", "io.results", "io.sequences", "weights.load", "weights.readout")
#: Functions that choose or pad frames or pairs: their result has axes of its own, under the same letters.
CUT = ("frames_at", "prepare", "ClipInputs.result", "ClipInputs.without_padding", "one_pair")
_ARRAYS = (jax.Array, np.ndarray, np.generic)
_WRAPPER = "_checked_by_tests"


class ShapeError(AssertionError):
    """An array that does not match its annotation."""


def checked(function: Callable) -> Callable:
    """The function, with the check of its arguments and its result after every call."""
    signature = inspect.signature(function)
    hints: dict[str, Any] | None = None

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        nonlocal hints
        result = function(*args, **kwargs)
        if hints is None:  # not before the first call: the module is complete then
            found = inspect.get_annotations(function, eval_str=True)
            hints = {name: hint for name, hint in found.items() if tells_of_arrays(hint)}
        if hints:
            arguments = signature.bind(*args, **kwargs).arguments
            with jaxtyping.jaxtyped("context"):
                wrong = [x for name, value in arguments.items() for x in mismatches(value, hints.get(name), name)]
                with jaxtyping.jaxtyped("context") if function.__qualname__ in CUT else contextlib.nullcontext():
                    wrong += mismatches(result, hints.get("return"), "the result", shares_axes=True)
            if wrong:
                raise ShapeError(f"{function.__module__}.{function.__qualname__}: {'; '.join(wrong)}")
        return result

    return wrapper


def mismatches(value: Any, hint: Any, name: str, *, shares_axes: bool = False, field: bool = False) -> Iterator[str]:
    """Where a value differs from its annotation, within a context of jaxtyping, which knows the axes so far.

    Args:
      value: to be checked.
      hint: its annotation.
      name: of the value, for the message.
      shares_axes: whether pytrees within a container have the axes of the call: those in arguments are one of several,
        each of its own length.
      field: whether it is a pytree's, which may hold anything in an array's place.
    """
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    arrays = [option for option in options if is_array(option)]
    if isinstance(value, _ARRAYS):
        value = np.asarray(value) if isinstance(value, np.generic) else value  # NumPy gives () arrays as scalars
        if arrays and not any(isinstance(value, option) for option in arrays):
            yield f"{name} is {value.dtype}{list(value.shape)}, not {_spelt(arrays)}"
    elif any(option in type(value).__mro__ for option in options) and is_record(type(value)):
        for part, of_part in fields(type(value)).items():
            yield from mismatches(getattr(value, part), of_part, f"{name}.{part}", field=True)
    elif isinstance(value, (tuple, list, dict)):
        for option in options:
            for key, part, of_part in _parts(value, option):
                if shares_axes or is_array(of_part):
                    yield from mismatches(part, of_part, f"{name}[{key!r}]", shares_axes=shares_axes)
                else:
                    with jaxtyping.jaxtyped("context"):
                        yield from mismatches(part, of_part, f"{name}[{key!r}]")
    elif arrays and len(options) == len(arrays) and not field:
        yield f"{name} is {value!r}, not {_spelt(arrays)}"


def tells_of_arrays(hint: Any, within: tuple[type, ...] = ()) -> bool:
    """Whether an annotation contains arrays, or a pytree that does. A class may have fields of its own kind."""
    if isinstance(hint, type) and is_record(hint):
        parts = () if hint in within else fields(hint).values()
        return any(tells_of_arrays(of_part, (*within, hint)) for of_part in parts)
    if typing.get_origin(hint) is Callable:  # its arguments are nowhere to be seen
        return False
    return is_array(hint) or any(tells_of_arrays(part, within) for part in typing.get_args(hint))


@functools.cache
def fields(cls: type) -> dict[str, Any]:
    """Annotations of the fields of a dataclass or a named tuple."""
    names = cls._fields if issubclass(cls, tuple) else [field.name for field in dataclasses.fields(cls)]
    classes = [inspect.get_annotations(base, eval_str=True) for base in reversed(cls.__mro__)]
    hints = functools.reduce(operator.or_, classes)
    return {name: hints[name] for name in names}


def is_record(cls: type) -> bool:
    """Whether a class is one of the library's dataclasses or named tuples."""
    is_one = dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    return is_one and cls.__module__.startswith(f"{PACKAGE}.")


def is_array(hint: Any) -> bool:
    """Whether an annotation is one of jaxtyping's."""
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def _spelt(arrays: list[Any]) -> str:
    """The annotation as written, and the known lengths of its axes."""
    with contextlib.redirect_stdout(io.StringIO()) as axes:
        jaxtyping.print_bindings()
    known = ", ".join(axes.getvalue().splitlines()[1:])
    said = " or ".join(dict.fromkeys(f"{option.dtype.__name__}[{option.dim_str!r}]" for option in arrays))
    return f"{said} with {known}" if known else said


def _parts(value: tuple | list | dict, hint: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Key, value and annotation of what a container holds, if the annotation is of such a container."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, dict) and isinstance(origin, type) and issubclass(origin, Mapping):
        yield from ((key, part, args[1]) for key, part in value.items())
    elif isinstance(value, tuple) and origin is tuple and args[-1:] != (...,):
        yield from ((n, part, of_part) for n, (part, of_part) in enumerate(zip(value, args, strict=False)))
    elif not isinstance(value, dict) and isinstance(origin, type) and issubclass(origin, Sequence):
        yield from ((n, part, args[0]) for n, part in enumerate(value))


# --- the hook -------------------------------------------------------------------------------------------------------
#
# jaxtyping's own checks arguments before a function runs, which would hide the errors that users are shown, and wraps
# private and local functions, too.


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its public functions decorated. Nothing of that is written to `__pycache__`."""

    def get_code(self, fullname: str) -> types.CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                _decorate(node)
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        _decorate(method)
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: types.ModuleType) -> None:
        setattr(module, _WRAPPER, checked)
        super().exec_module(module)


def _decorate(node: ast.FunctionDef) -> None:
    if not node.name.startswith("_") or node.name == "__call__":
        node.decorator_list.append(ast.copy_location(ast.Name(_WRAPPER, ast.Load()), node))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if not f"{fullname}.".startswith(tuple(f"{PACKAGE}.{room}." for room in ROOMS)):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From now on, the rooms' modules are imported with the check. To be called before any of them is."""
    loaded = sorted(name for name in sys.modules if name.startswith(f"{PACKAGE}."))
    assert not loaded, f"these would go unchecked: {', '.join(loaded)}"
    sys.meta_path.insert(0, _Finder())
