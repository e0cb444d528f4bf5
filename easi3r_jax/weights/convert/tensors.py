"""Tensors that are read from their file only when needed."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Hashable
from typing import Literal, TypeVar

import numpy as np

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from easi3r_jax.models.vggt import VGGTConfig

#: Bytes per element of each dtype, by its name in PyTorch and NumPy.
ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
ByteOrder = Literal["little", "big"]
FLOATS = ("float64", "float32", "float16", "bfloat16")

#: Prefixes that wrappers add to the names of a network.
_WRAPPERS = ("module.", "_orig_mod.")
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a tensor's elements are: `count` of them from byte `offset` on. The file is known to be long enough."""

    path: pathlib.Path
    offset: int
    count: int
    dtype: str
    byteorder: ByteOrder = "little"

    def read(self) -> np.ndarray:
        """Reads the elements as they are stored; bfloat16 as uint16."""
        return read_array(self.path, self.offset, self.count, self.dtype, self.byteorder)


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file, or one that is computed.

    Attributes:
      shape: as stored.
      dtype: a key of `ITEM_SIZES`.
      read: reads it as float32, whatever the stored dtype. The array may be a strided view.
      identity: equal for two tensors that are the same data of the same file.
      location: in the file; None if it is computed.
      decode: what `read` does after reading the location.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    identity: Hashable
    location: Location | None = None
    decode: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def stored(
        cls,
        shape: tuple[int, ...],
        location: Location,
        decode: Callable[[np.ndarray], np.ndarray],
        identity: Hashable,
    ) -> LazyTensor:
        """A tensor at a location. `decode` checks and converts the elements that are stored there."""
        return cls(shape, location.dtype, lambda: decode(location.read()), identity, location, decode)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


@dataclasses.dataclass(frozen=True)
class OpenedWeights:
    """Opened weights; no tensor is read yet.

    Attributes:
      name: as the user gave it.
      files: its files, those of the weights first.
      config: the architecture.
      tensors: the network's tensors by name.
      duplicates: names that occur more than once.
      licence: terms of the weights; None if the source is not known.
      notices: sentences for the user.
    """

    name: str
    files: tuple[pathlib.Path, ...]
    config: DUSt3RConfig | VGGTConfig | FlowConfig
    tensors: dict[str, LazyTensor]
    duplicates: tuple[str, ...]
    licence: str | None = None
    notices: tuple[str, ...] = ()


def without_wrappers(tensors: dict[str, _T]) -> dict[str, _T]:
    """The tensors without the prefixes that wrappers of a network add to all names.

    `DataParallel` and its like add "module.", `torch.compile` "_orig_mod."; `AveragedModel` adds "module." and a
    counter, which is dropped.
    """
    while True:
        named = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
        prefix = next((p for p in _WRAPPERS if named and all(name.startswith(p) for name in named)), None)
        if prefix is None:
            return tensors
        tensors = {name.removeprefix(prefix): tensor for name, tensor in named.items()}


def read_array(path: pathlib.Path, offset: int, count: int, dtype: str, byteorder: ByteOrder = "little") -> np.ndarray:
    """Reads `count` elements from byte `offset` on. The caller has checked that the file is long enough."""
    raw_dtype = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder(byteorder)
    array = np.empty(count, raw_dtype)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            view, got = memoryview(array.data).cast("B") if count else memoryview(b""), 0
            while got < len(view):
                step = file.readinto(view[got:])
                if not step:
                    raise CheckpointError(f"{path} was truncated while it was read: is it still being written?")
                got += step
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    return array


def as_float32(array: np.ndarray, dtype: str) -> np.ndarray:
    """Converts any stored floating-point dtype to float32 in native byte order."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):  # out of float32's range: infinite, which is reported by name
        return array.astype(np.float32, copy=False)
