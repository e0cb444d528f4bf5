"""A pickle reader that cannot execute code.

Python's own `pickle.Unpickler` imports and calls whatever a file names. Even with a restricted `find_class`, a few
bytes can make it allocate any amount of memory (the index of a memo entry is an allocation). This reader is a small
stack machine for the instructions that `torch.save` writes. It builds dictionaries, lists, tuples, sets, strings,
numbers, `argparse.Namespace` contents and descriptions of tensors. It cannot import or call anything else: an object of
another class, as trainers leave them beside the weights, becomes an inert `Placeholder`.
"""

from __future__ import annotations

import pickletools
import struct
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert.pickled import (
    Dict,
    Namespace,
    PickledClass,
    Placeholder,
    Storage,
    TensorSpec,
    expect,
    find_class,
    is_key,
    is_size,
)
from easi3r_jax.weights.convert.tensors import ITEM_SIZES

#: A full-size training checkpoint has 100 000 instructions in 400 kB. One that copies items counts once per item.
MAX_INSTRUCTIONS = 500_000
MAX_PICKLE_BYTES = 16 << 20
#: Instructions that naming a class counts as: what is kept of it takes more memory than most.
_CLASS_COST = 10
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


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
        said = str(error)[:100]  # may quote the file
        raise CheckpointError(f"the pickle is damaged ({said if said.isprintable() else ascii(said)})") from error


class _Machine:
    """Stack, memo and instructions; `_op_<name>` executes the instruction of that name."""

    def __init__(self, find_storage: Callable[[str, str, int], Storage]):
        self._find_storage = find_storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = MAX_INSTRUCTIONS

    def run(self, file: BinaryIO) -> Any:
        while code := file.read(1):
            self._spend(1)
            opcode = _OPCODES.get(code.decode("latin-1"))
            if opcode is None:
                raise CheckpointError(f"the pickle is damaged (unknown instruction {code!r})")
            if opcode.name == "STOP":
                if len(self._stack) != 1:
                    raise CheckpointError("the pickle is damaged (it does not end with one value)")
                return self._stack.pop()
            step = self._step_of(opcode.name)  # before its argument is decoded
            step(None if opcode.arg is None else opcode.arg.reader(file))
        raise CheckpointError("the pickle has no end")

    def _spend(self, cost: int) -> None:
        # Without this limit, instructions of a few bytes could copy a large container many times.
        self._left -= cost
        if self._left < 0:
            raise CheckpointError("the pickle has more instructions than any checkpoint needs")

    def _step_of(self, name: str) -> Callable[[Any], None]:
        if name in _LITERALS:
            return self._stack.append
        if name in _CONSTANTS:
            return lambda _: self._stack.append(_CONSTANTS[name]())
        if name in _TUPLES:
            return lambda _: self._fold_tuple(_TUPLES[name])
        handler = getattr(self, f"_op_{_SAME.get(name, name).lower()}", None)
        if handler is None:
            raise CheckpointError(f"its pickle uses the instruction {name}, which no checkpoint needs")
        return handler

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

    def _op_proto(self, _: Any) -> None:
        """Nothing to do."""

    def _op_binget(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _op_binput(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _op_long4(self, _: int) -> None:
        # A number of more than 255 bytes is none that is needed, and slow to work with.
        self._stack.append(Placeholder("int"))

    def _op_mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _op_memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _op_pop(self, _: None) -> None:
        self._pop()

    def _op_pop_mark(self, _: None) -> None:
        self._pop_to_mark()

    def _op_tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _op_append(self, _: None) -> None:
        item = self._pop()
        if not isinstance(self._stack[-1], Placeholder):
            expect(self._stack[-1], list).append(item)

    def _op_appends(self, _: None) -> None:
        items = self._pop_to_mark()
        if not isinstance(self._stack[-1], Placeholder):
            expect(self._stack[-1], list).extend(items)

    def _op_additems(self, _: None) -> None:
        items = self._pop_to_mark()
        if not isinstance(self._stack[-1], Placeholder):
            expect(self._stack[-1], set).update(filter(is_key, items))

    def _op_frozenset(self, _: None) -> None:
        self._stack.append(set(filter(is_key, self._pop_to_mark())))

    def _op_setitem(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _op_setitems(self, _: None) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = expect(self._stack[-1], Dict)
        if isinstance(target, Placeholder):
            target.expect_items()
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def _op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_class(module, name)

    def _op_stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        self._push_class(expect(module, str), expect(name, str))

    def _push_class(self, module: str, name: str) -> None:
        self._spend(_CLASS_COST)
        self._stack.append(find_class(module, name))

    def _op_reduce(self, _: None) -> None:
        arguments, function = expect(self._pop(), tuple), self._pop()
        self._spend(len(arguments) + sum(len(a) for a in arguments if isinstance(a, (list, tuple))))
        if isinstance(function, Placeholder):
            make = function
        elif (make := expect(function, PickledClass).make) is None:
            raise CheckpointError(f"the pickle calls {function.name}")
        result = make(*arguments)
        self._spend(_CLASS_COST if isinstance(result, PickledClass) else 0)
        self._stack.append(result)

    def _op_newobj_ex(self, _: None) -> None:
        self._pop()  # arguments by name
        self._op_reduce(None)

    def _op_build(self, _: None) -> None:
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, Namespace):
            self._spend(len(expect(state, Dict)))
            target.update(state)
        elif isinstance(target, Placeholder):
            # A pair: attributes in the object's dictionary, and those in slots.
            for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
                if isinstance(part, Dict):
                    self._spend(len(part))
                    target.set_attributes(part)
        elif not isinstance(target, (Dict, TensorSpec, PickledClass)):  # their attributes are not needed
            raise CheckpointError("the pickle sets attributes of an object that has none")

    def _op_binpersid(self, _: None) -> None:
        tag, *rest = expect(self._pop(), tuple)
        if tag == "module":  # the legacy format's way to name a class of a user: (class, file, source)
            self._stack.append(expect(rest[0], PickledClass))
            return
        kind, key, _, numel, *view = rest
        kind = expect(kind, PickledClass)
        if tag != "storage" or not is_size(numel):
            raise CheckpointError("the pickle refers to data that does not belong to a tensor")
        storage = self._find_storage(expect(key, str), kind.dtype or f"{kind.name}.", numel)
        # What is no plain tensor is not read: complex or quantised numbers, for example.
        is_plain = kind.dtype in ITEM_SIZES and all(part is None for part in view)
        self._stack.append(storage if is_plain else Placeholder(f"a tensor of {kind.name[:80]}"))


_LITERALS = frozenset(
    (
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
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
#: Instructions that do the same.
_SAME = {
    "FRAME": "PROTO",
    "LONG_BINGET": "BINGET",
    "LONG_BINPUT": "BINPUT",
    "NEWOBJ": "REDUCE",
}
