"""What the pickles of `torch.save` build: descriptions of tensors, options, and placeholders for everything else."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert.tensors import ITEM_SIZES


@dataclasses.dataclass(frozen=True)
class Storage:
    """A contiguous block of data in the file: `numel` elements of `dtype`, identified by `key`."""

    key: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A strided view of a storage, in elements. Checked to lie inside the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Number of elements from the first to the last, inclusive."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class Namespace(dict):
    """The attributes of an `argparse.Namespace`."""

    __slots__ = ()


class Dict(dict):
    """A pickled dictionary that records duplicate keys."""

    __slots__ = ("duplicates",)  # small, since a file may create many

    def __init__(self):
        super().__init__()
        self.duplicates: list[Any] = []

    def __setitem__(self, key: Any, value: Any) -> None:
        if not is_key(key):  # no name of a tensor or an option
            return
        if key in self:
            self.duplicates.append(key)
        super().__setitem__(key, value)


class Placeholder(Dict):
    """Stands for an object of a class that is not known; holds its items or attributes, as far as they have names.

    So a subclass of `OrderedDict` can hold weights, and a trainer's own class options.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        super().__init__()
        self.name = name


@dataclasses.dataclass(frozen=True)
class PickledClass:
    """Represents a class or function named by the pickle; `make` builds our counterpart from its arguments.

    A storage class cannot be called: its `make` is None.
    """

    name: str
    make: Callable[..., Any] | None = None
    dtype: str | None = None  # of a storage class


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorSpec:
    shape, stride = expect(shape, tuple), expect(stride, tuple)
    if len(shape) != len(stride) or len(shape) > 8 or not all(is_size(n) for n in (offset, *shape, *stride)):
        raise CheckpointError("a tensor has an invalid shape")
    spec = TensorSpec(expect(storage, Storage), offset, shape, stride)
    # Both extent and count: with strides of 0, a tensor could be larger than its data.
    if offset + spec.extent > spec.storage.numel or math.prod(shape) > spec.storage.numel:
        raise CheckpointError(f"a tensor of shape {list(shape)} does not fit its {spec.storage.numel} stored elements")
    return spec


def _rebuild_parameter(tensor: Any, *_: Any) -> TensorSpec:
    return expect(tensor, TensorSpec)


def _empty_dict(*arguments: Any) -> Dict:
    if arguments:
        raise CheckpointError("the pickle constructs a dictionary in an unsupported way")
    return Dict()


def _empty_namespace(*arguments: Any) -> Namespace:
    if arguments:
        raise CheckpointError("the pickle constructs a Namespace in an unsupported way")
    return Namespace()


def _set(items: Any = ()) -> set:
    return set(filter(is_key, expect(items, (list, tuple))))


_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_CLASSES: dict[tuple[str, str], PickledClass] = {
    ("torch._utils", "_rebuild_tensor"): PickledClass("_rebuild_tensor", _rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): PickledClass("_rebuild_tensor_v2", _rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): PickledClass("_rebuild_parameter", _rebuild_parameter),
    ("collections", "OrderedDict"): PickledClass("OrderedDict", _empty_dict),
    ("argparse", "Namespace"): PickledClass("Namespace", _empty_namespace),
    ("builtins", "set"): PickledClass("set", _set),
    ("__builtin__", "set"): PickledClass("set", _set),
} | {("torch", name): PickledClass(name, dtype=dtype) for name, dtype in _STORAGES.items()}
assert all(dtype in ITEM_SIZES for dtype in _STORAGES.values())


_BUILT_IN = ("eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint", "globals", "vars")
#: What no checkpoint needs, and a file that attacks its reader does. Nothing is executed in either case: this only
#: decides whether the file is refused with a warning.
_ATTACKS = frozenset(
    (
        *("os", "posix", "nt", "posixpath", "ntpath", "subprocess", "sys", "shutil", "runpy", "importlib", "imp"),
        *("socket", "pty", "ctypes", "code", "codeop", "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill"),
        *("pdb", "bdb", "cProfile", "profile", "timeit", "trace", "webbrowser", "multiprocessing", "asyncio"),
        *("signal", "threading", "_thread", "tempfile", "urllib", "http", "ftplib", "requests", "pip", "types"),
        *("operator", "gc", "inspect", "commands", "platform", "zipimport", "site", "atexit"),
        *("torch.hub", "torch.jit", "torch.load", "torch.serialization.load"),
        *("numpy.load", "joblib.load", "pandas.read_pickle"),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILT_IN),
    )
)


def find_class(module: str, name: str) -> PickledClass:
    """Our counterpart of a class or function by its name.

    Raises:
      CheckpointError: one that only attacks need.
    """
    found = _CLASSES.get((module, name))
    if found is not None:
        return found
    full = f"{module}.{name}"
    parts = full.split(".")
    method = "." in name and parts[0] in sys.stdlib_module_names  # such as pathlib's Path.touch
    if method or any(".".join(parts[:count]) in _ATTACKS for count in range(1, len(parts) + 1)):
        # repr: the name comes from the file and is printed to a terminal.
        raise CheckpointError(f"it is UNSAFE: it requests {full[:100]!r}; nothing in it was executed")
    return PickledClass(full, lambda *_: Placeholder(full[:100]))


def expect(value: Any, kind: Any) -> Any:
    """The value, if it is of this kind; else `TypeError`."""
    if not isinstance(value, kind):
        raise TypeError(f"unexpected {type(value).__name__}")
    return value


def is_key(value: Any) -> bool:
    """Whether it may be in a set or a dictionary. Large integers are excluded: they can be made to collide in hash."""
    return isinstance(value, (str, bytes, float, type(None))) or (isinstance(value, int) and abs(value) < 2**60)


def is_size(value: Any) -> bool:
    """Whether it can be a size, an offset or a stride."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
