"""A pickle reader that cannot execute code.

Python's own `pickle.Unpickler` imports and calls whatever a file names. Even with a restricted `find_class`, a few
bytes can make it allocate any amount of memory (the index of a memo entry is an allocation). This reader is a small
stack machine for the instructions that `torch.save` writes. It builds dictionaries, lists, tuples, sets, strings,
numbers, `argparse.Namespace` contents and descriptions of tensors. It cannot import or call anything else.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import struct
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert.tensors import ITEM_SIZES

#: A full-size training checkpoint has 100 000 instructions in 400 kB. One that copies items counts once per item.
MAX_INSTRUCTIONS = 500_000
MAX_PICKLE_BYTES = 16 << 20


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


class Dict(dict):
    """A pickled dictionary that records duplicate keys."""

    __slots__ = ("duplicates",)  # small, since a file may create many

    def __init__(self):
        super().__init__()
        self.duplicates: list[Any] = []

    def __setitem__(self, key: Any, value: Any) -> None:
        if not _is_key(key):
            raise CheckpointError(f"the pickle uses an unsupported {type(key).__name__} as a dictionary key")
        if key in self:
            self.duplicates.append(key)
        super().__setitem__(key, value)


@dataclasses.dataclass(frozen=True)
class _Class:
    """Represents a class or function named by the pickle; `make` builds our counterpart from its arguments."""

    name: str
    make: Callable[..., Any] | None = None
    dtype: str | None = None  # of a storage class


def load(file: BinaryIO, find_storage: Callable[[str, str, int], Storage]) -> Any:
    """Reads one pickle from the file's current position.

    Args:
      file: a binary stream; read up to the end of the pickle.
      find_storage: (key, dtype, numel) → `Storage`, checked against the file.

    Raises:
      CheckpointError: damaged, or it requests something that weights do not need. The message has no file name.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # `pickletools` warns about invalid escapes in names
            return _Machine(find_storage).run(file)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, RecursionError) as error:
        raise CheckpointError(f"the pickle is damaged ({error})") from error


class _Machine:
    """Stack, memo and instructions; `_op_<name>` executes the instruction of that name."""

    def __init__(self, find_storage: Callable[[str, str, int], Storage]):
        self._find_storage = find_storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = MAX_INSTRUCTIONS

    def run(self, file: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            self._spend(1)
            if opcode.name == "STOP":
                if len(self._stack) != 1:
                    raise CheckpointError("the pickle is damaged (it does not end with one value)")
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise CheckpointError("the pickle has no end")

    def _spend(self, cost: int) -> None:
        # Without this limit, instructions of a few bytes could copy a large container many times.
        self._left -= cost
        if self._left < 0:
            raise CheckpointError("the pickle has more instructions than any checkpoint needs")

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self._fold_tuple(_TUPLES[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            handler = getattr(self, f"_op_{name.lower()}", None)
            if handler is None:
                raise CheckpointError(f"its pickle uses the instruction {name}, which no checkpoint needs")
            handler(argument)

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise IndexError("nothing on the stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _fold_tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError("nothing on the stack")
        items = tuple(self._stack[-size:])
        del self._stack[-size:]
        self._stack.append(items)

    def _op_mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _op_memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _op_pop(self, _: None) -> None:
        self._pop()

    def _op_tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _op_append(self, _: None) -> None:
        item = self._pop()
        _expect(self._stack[-1], list).append(item)

    def _op_appends(self, _: None) -> None:
        items = self._pop_to_mark()
        _expect(self._stack[-1], list).extend(items)

    def _op_additems(self, _: None) -> None:
        items = self._pop_to_mark()
        _expect(self._stack[-1], set).update(_hashable(items))

    def _op_setitem(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        _expect(self._stack[-1], Dict)[key] = value

    def _op_setitems(self, _: None) -> None:
        items = self._pop_to_mark()
        target = _expect(self._stack[-1], Dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def _op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_find_class(module, name))

    def _op_stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(_find_class(_expect(module, str), _expect(name, str)))

    def _op_reduce(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        make = _expect(function, _Class).make
        if make is None:
            raise CheckpointError(f"the pickle calls {function.name}")
        arguments = _expect(arguments, tuple)
        self._spend(len(arguments) + sum(len(a) for a in arguments if isinstance(a, (list, tuple))))
        self._stack.append(make(*arguments))

    _op_newobj = _op_reduce

    def _op_build(self, _: None) -> None:
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, Namespace):
            self._spend(len(_expect(state, Dict)))
            target.update(state)
        elif not isinstance(target, Dict):  # attributes of an OrderedDict (versions of modules) are not needed
            raise CheckpointError("the pickle sets attributes of an object that has none")

    def _op_binpersid(self, _: None) -> None:
        tag, kind, key, _, numel, *view = _expect(self._pop(), tuple)
        kind = _expect(kind, _Class)
        if tag != "storage" or kind.dtype is None or not _is_size(numel) or any(v is not None for v in view):
            raise CheckpointError("the pickle refers to data that does not belong to a plain tensor")
        self._stack.append(self._find_storage(_expect(key, str), kind.dtype, numel))


_LITERALS = frozenset(
    (
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    )
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": Dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorSpec:
    shape, stride = _expect(shape, tuple), _expect(stride, tuple)
    if len(shape) != len(stride) or len(shape) > 8 or not all(_is_size(n) for n in (offset, *shape, *stride)):
        raise CheckpointError("a tensor has an invalid shape")
    spec = TensorSpec(_expect(storage, Storage), offset, shape, stride)
    # Both extent and count: with strides of 0, a tensor could be larger than its data.
    if offset + spec.extent > spec.storage.numel or math.prod(shape) > spec.storage.numel:
        raise CheckpointError(f"a tensor of shape {list(shape)} does not fit its {spec.storage.numel} stored elements")
    return spec


def _rebuild_parameter(tensor: Any, *_: Any) -> TensorSpec:
    return _expect(tensor, TensorSpec)


def _empty_dict(*arguments: Any) -> Dict:
    if arguments:
        raise CheckpointError("the pickle constructs a dictionary in an unsupported way")
    return Dict()


def _empty_namespace(*arguments: Any) -> Namespace:
    if arguments:
        raise CheckpointError("the pickle constructs a Namespace in an unsupported way")
    return Namespace()


def _set(items: Any = ()) -> set:
    return set(_hashable(_expect(items, (list, tuple))))


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
_CLASSES: dict[tuple[str, str], _Class] = {
    ("torch._utils", "_rebuild_tensor"): _Class("_rebuild_tensor", _rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Class("_rebuild_tensor_v2", _rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Class("_rebuild_parameter", _rebuild_parameter),
    ("collections", "OrderedDict"): _Class("OrderedDict", _empty_dict),
    ("argparse", "Namespace"): _Class("Namespace", _empty_namespace),
    ("builtins", "set"): _Class("set", _set),
    ("__builtin__", "set"): _Class("set", _set),
} | {("torch", name): _Class(name, dtype=dtype) for name, dtype in _STORAGES.items()}
assert all(dtype in ITEM_SIZES for dtype in _STORAGES.values())


def _find_class(module: str, name: str) -> _Class:
    found = _CLASSES.get((module, name))
    if found is None:
        # repr: the name comes from the file and is printed to a terminal.
        raise CheckpointError(f"it is UNSAFE: it requests {f'{module}.{name}'[:100]!r}; nothing in it was executed")
    return found


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"unexpected {type(value).__name__}")
    return value


def _hashable(items: Any) -> Any:
    if not all(map(_is_key, items)):
        raise TypeError("a set of unsupported items")
    return items


def _is_key(value: Any) -> bool:
    """Whether it may be in a set or a dictionary. Large integers are excluded: they can be made to collide in hash."""
    return isinstance(value, (str, bytes, float, type(None))) or (isinstance(value, int) and abs(value) < 2**60)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
