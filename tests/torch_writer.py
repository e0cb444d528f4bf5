"""Writes files in the zip layout of `torch.save`, without torch: for tests and for `make_full_checkpoint`.

    root = {"args": namespace(model="..."), "model": {"w": Tensor("0", (2,))}}
    write(path, root, [("0", np.zeros(2, np.float32))])

`dumps` emits the same instructions as torch's pickler (protocol 2) for plain values, and arbitrary ones through
`Global` and `Call`, to create malicious files.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np

ALIGNMENT = 64
_STORAGE_CLASSES = {"float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage"}
_STORAGE_CLASSES |= {"bfloat16": "BFloat16Storage", "int64": "LongStorage"}


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function, by name; it need not exist here."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """`function(*arguments)`, then `__setstate__(state)` unless that is None."""

    function: Global
    arguments: tuple[Any, ...] = ()
    state: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; by default all of it, in rows.

    Attributes:
      key: the storage's name.
      shape, offset, stride: in elements.
      dtype: of the storage.
      numel: how many elements the storage is said to have.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    offset: int = 0
    stride: tuple[int, ...] | None = None
    numel: int | None = None


def namespace(**fields: Any) -> Call:
    """An `argparse.Namespace`."""
    return Call(Global("argparse", "Namespace"), state=fields)


def dumps(value: Any) -> bytes:
    """A pickle of protocol 2."""
    out: list[bytes] = [pickle.PROTO + b"\x02"]
    _emit(value, out)
    return b"".join((*out, pickle.STOP))


def write(
    path: pathlib.Path, root: Any, storages: Iterable[tuple[str, np.ndarray]], *, pickled: bytes | None = None
) -> None:
    """Writes a file.

    Args:
      path: where to.
      root: what `torch.load` would return; `Tensor` stands for tensors.
      storages: the numbers of every storage key, taken one after another: they may be made on the way.
      pickled: in place of `root`'s pickle.
    """
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file.tell(), f"{path.stem}/data.pkl", dumps(root) if pickled is None else pickled)
        _add(archive, file.tell(), f"{path.stem}/byteorder", b"little")
        for key, numbers in storages:
            _add(archive, file.tell(), f"{path.stem}/data/{key}", memoryview(numbers.reshape(-1)).cast("B"))
        _add(archive, file.tell(), f"{path.stem}/version", b"3\n")


def _add(archive: zipfile.ZipFile, position: int, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(name)
    gap = -(position + 30 + len(name) + 4) % ALIGNMENT  # a header has 30 bytes, an extra field 4
    info.extra = b"FB" + struct.pack("<H", gap) + b"Z" * gap
    archive.writestr(info, data)


def _emit(value: Any, out: list[bytes]) -> None:
    if value is None or isinstance(value, bool):
        out.append({None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value])
    elif isinstance(value, int):
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        if len(raw) <= 4:
            out.append(pickle.BININT + struct.pack("<i", value))
        elif len(raw) < 256:
            out.append(pickle.LONG1 + bytes([len(raw)]) + raw)
        else:
            out.append(pickle.LONG4 + struct.pack("<i", len(raw)) + raw)
    elif isinstance(value, float):
        out.append(pickle.BINFLOAT + struct.pack(">d", value))
    elif isinstance(value, str):
        raw = value.encode()
        out.append(pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw)
    elif isinstance(value, tuple):
        out.append(pickle.MARK)
        for item in value:
            _emit(item, out)
        out.append(pickle.TUPLE)
    elif isinstance(value, list):
        out += (pickle.EMPTY_LIST, pickle.MARK)
        for item in value:
            _emit(item, out)
        out.append(pickle.APPENDS)
    elif isinstance(value, dict):
        out.append(pickle.EMPTY_DICT)
        _emit_items(value, out)
    elif isinstance(value, Global):
        out.append(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
    elif isinstance(value, Call):
        _emit(value.function, out)
        _emit(value.arguments, out)
        out.append(pickle.REDUCE)
        if value.state is not None:
            _emit(value.state, out)
            out.append(pickle.BUILD)
    elif isinstance(value, Tensor):
        _emit_tensor(value, out)
    else:
        raise TypeError(f"cannot pickle a {type(value).__name__}")


def _emit_items(items: dict[Any, Any], out: list[bytes]) -> None:
    out.append(pickle.MARK)
    for key, item in items.items():
        _emit(key, out)
        _emit(item, out)
    out.append(pickle.SETITEMS)


def _emit_tensor(tensor: Tensor, out: list[bytes]) -> None:
    numel = math.prod(tensor.shape) if tensor.numel is None else tensor.numel
    stride = tensor.stride
    if stride is None:
        stride = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    out += (pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n", pickle.MARK)
    _emit(("storage", Global("torch", _STORAGE_CLASSES[tensor.dtype]), tensor.key, "cpu", numel), out)
    out.append(pickle.BINPERSID)
    for item in (tensor.offset, tensor.shape, stride, False, Call(Global("collections", "OrderedDict"))):
        _emit(item, out)
    out += (pickle.TUPLE, pickle.REDUCE)
