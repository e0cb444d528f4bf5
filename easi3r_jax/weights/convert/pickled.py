"""What the pickles of `torch.save` build: descriptions of tensors, options, and placeholders for everything else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert.attacks import runs_something, runs_when_called
from easi3r_jax.weights.convert.tensors import ITEM_SIZES

#: Characters of a class's name with its module's. Longer ones would take long to compare with the names of attacks.
MAX_NAME = 300


@dataclasses.dataclass(frozen=True)
class Storage:
    """A contiguous block of data in the file: `numel` elements of `dtype`, identified by `key`.

    `dtype` is a key of `ITEM_SIZES`; of data that is never read, the name of the storage's class.
    """

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

    So a subclass of `OrderedDict` can hold weights, and a trainer's own class options. It holds either: attributes of
    a dictionary (versions of modules, say) are not its items.
    """

    __slots__ = ("has_attributes", "name")

    def __init__(self, name: str):
        super().__init__()
        self.name, self.has_attributes = name, False

    def __call__(self, *_: Any) -> Placeholder:
        """Stands for the result."""
        if runs_when_called(self.name):
            raise unsafe(f"a call of {self.name}")
        return Placeholder(self.name)

    def expect_items(self) -> None:
        """Refuses items after attributes, which no program writes: they could replace each other."""
        if self.has_attributes:
            raise CheckpointError("the pickle adds items to the attributes of an object")

    def set_attributes(self, state: Dict) -> None:
        """Takes attributes, unless there are items."""
        if self.has_attributes or not self:
            for name, value in list(state.items()):
                self[name] = value
            self.has_attributes = bool(self)


@dataclasses.dataclass(frozen=True)
class PickledClass:
    """Represents a class or function named by the pickle; `make` builds our counterpart from its arguments.

    A storage class cannot be called: its `make` is None. `module` and `member` are the parts of an unknown name.
    """

    name: str
    make: Callable[..., Any] | None = None
    dtype: str | None = None  # of a storage class
    module: str = ""
    member: str = ""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorSpec | Placeholder:
    if isinstance(storage, Placeholder):  # complex or quantised numbers, for example
        return Placeholder(storage.name)
    shape, stride = expect(shape, tuple), expect(stride, tuple)
    if len(shape) != len(stride) or len(shape) > 8 or not all(is_size(n) for n in (offset, *shape, *stride)):
        raise CheckpointError("a tensor has an invalid shape")
    spec = TensorSpec(expect(storage, Storage), offset, shape, stride)
    # Both extent and count: with strides of 0, a tensor could be larger than its data.
    if offset + spec.extent > spec.storage.numel or math.prod(shape) > spec.storage.numel:
        raise CheckpointError(f"a tensor of shape {list(shape)} does not fit its {spec.storage.numel} stored elements")
    return spec


def _rebuild_parameter(tensor: Any, *_: Any) -> TensorSpec | Placeholder:
    return expect(tensor, (TensorSpec, Placeholder))


def _rebuild_marked(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor that has attributes of its own, or is of a subclass: the tensor."""
    del kind
    make = function.make if isinstance(function, PickledClass) else None
    if make is not None and make in (_rebuild_tensor, _rebuild_parameter):
        return make(*expect(arguments, tuple))
    return Placeholder("torch.Tensor")


def _attribute(owner: Any, name: Any, *_: Any) -> PickledClass | Placeholder:
    """What `getattr` gives: how protocols below 4 name a class within a class, a member of an enum, or a method."""
    if not isinstance(name, str):
        return Placeholder("getattr")
    if isinstance(owner, PickledClass):
        return find_class(owner.module, f"{owner.member or owner.name}.{name}" if len(name) <= MAX_NAME else name)
    found = find_class("", name)
    return Placeholder(f"{owner.name}.{found.name}"[:100] if isinstance(owner, Placeholder) else found.name[:100])


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
    ("torch._utils", "_rebuild_parameter_with_state"): PickledClass("_rebuild_parameter", _rebuild_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): PickledClass("_rebuild_from_type_v2", _rebuild_marked),
    ("collections", "OrderedDict"): PickledClass("OrderedDict", _empty_dict),
    ("argparse", "Namespace"): PickledClass("Namespace", _empty_namespace),
    ("builtins", "set"): PickledClass("set", _set),
    ("__builtin__", "set"): PickledClass("set", _set),
    ("builtins", "getattr"): PickledClass("getattr", _attribute),
    ("__builtin__", "getattr"): PickledClass("getattr", _attribute),
} | {("torch", name): PickledClass(name, dtype=dtype) for name, dtype in _STORAGES.items()}
#: Storages whose data is never read, with bytes per element: the legacy format has the data of all in a row.
UNREAD_STORAGES = {
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
    "UntypedStorage": 1,
}
_CLASSES |= {
    (module, name): PickledClass(name, lambda *_: Placeholder("a storage"), dtype=name)
    for module in ("torch", "torch.storage")
    for name in UNREAD_STORAGES
}
assert all(dtype in ITEM_SIZES for dtype in _STORAGES.values())


def find_class(module: str, name: str) -> PickledClass:
    """Our counterpart of a class or function by its name.

    Raises:
      CheckpointError: one that only attacks need, or a name that is longer than any.
    """
    length = len(module) + len(name)
    if length > MAX_NAME:
        raise CheckpointError(f"it names a class in {length} characters, more than any has")
    found = _CLASSES.get((module, name))
    if found is not None:
        return found
    full = f"{module}.{name}" if module else name
    if runs_something(module, name):
        raise unsafe(full)
    return PickledClass(full, lambda *_: Placeholder(full[:100]), module=module, member=name)


def unsafe(request: str) -> CheckpointError:
    """The error for a request that only attacks need. Its text comes from the file, and is printed to a terminal."""
    return CheckpointError(f"it is UNSAFE: it requests {request[:100]!r}; nothing in it was executed")


def expect(value: Any, kind: Any) -> Any:
    """The value, if it is of this kind; else `TypeError`."""
    if not isinstance(value, kind):
        raise TypeError(f"unexpected {type(value).__name__}")
    return value


def is_key(value: Any) -> bool:
    """Whether it may be in a set or a dictionary. Large integers are excluded: they can be made to collide in hash."""
    return isinstance(value, (str, bytes, float, type(None))) or (isinstance(value, int) and -(2**60) < value < 2**60)


def is_size(value: Any) -> bool:
    """Whether it can be a size, an offset or a stride."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
