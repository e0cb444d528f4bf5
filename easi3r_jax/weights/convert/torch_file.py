"""Reads files of `torch.save` without torch: the zip format (since PyTorch 1.6) and the legacy format.

A zip file has `<name>/data.pkl`, a pickle that describes the tensors, `<name>/data/<key>`, their data without
compression, and `<name>/byteorder`. The legacy format is five pickles in a row (magic number, protocol, machine, the
object, the keys of the storages), then for each key an element count (int64) and the data.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import struct
import zipfile
import zlib
from typing import Any, NoReturn

import numpy as np

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert import pickles
from easi3r_jax.weights.convert.pickled import UNREAD_STORAGES, Storage, TensorSpec
from easi3r_jax.weights.convert.tensors import (
    ITEM_SIZES,
    ByteOrder,
    LazyTensor,
    Location,
    as_float32,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ALL_SIZES = ITEM_SIZES | UNREAD_STORAGES


@dataclasses.dataclass(frozen=True)
class _Data:
    """Where a storage's data is: byte offset in the file, and its CRC-32 in the zip, if any."""

    offset: int
    crc: int | None


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """The object of a file; tensors stay in the file."""

    path: pathlib.Path
    root: Any
    data: dict[str, _Data]
    byteorder: ByteOrder

    def lazy(self, spec: TensorSpec) -> LazyTensor:
        """A lazy tensor for one of the object's tensors."""
        dtype, data = spec.storage.dtype, self.data[spec.storage.key]
        identity = (spec.storage.key, dtype, spec.offset, spec.shape, spec.stride)
        start = data.offset + spec.offset * ITEM_SIZES[dtype]
        location = Location(self.path, start, spec.extent, dtype, self.byteorder)
        return LazyTensor.stored(spec.shape, location, lambda flat: self._decode(spec, flat), identity)

    def _decode(self, spec: TensorSpec, flat: np.ndarray) -> np.ndarray:
        dtype, data = spec.storage.dtype, self.data[spec.storage.key]
        # A checksum covers a whole storage. Nearly every tensor is a whole storage.
        if (
            data.crc is not None
            and spec.extent == spec.storage.numel
            and zlib.crc32(flat.view(np.uint8).data) != data.crc
        ):
            refuse(self.path, "its checksum shows that it is damaged: download or copy it again")
        flat = as_float32(flat, dtype)
        steps = tuple(step * flat.itemsize for step in spec.stride)
        # `pickles` has checked that shape and strides stay inside the storage.
        return np.lib.stride_tricks.as_strided(flat, spec.shape, steps, writeable=False)


def open_torch_file(path: pathlib.Path) -> TorchFile:
    """Reads a file's structure, not its tensors.

    Raises:
      CheckpointError: not a file of `torch.save`, damaged, or unsafe.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _open_zip(path, file, size)
            if start[:1] == b"\x80":
                return _open_legacy(path, file, size)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    raise CheckpointError(
        f"Cannot use {path}: it is empty. Was its download interrupted?"
        if size == 0
        else f"Cannot use {path}: it is not a PyTorch checkpoint (neither a zip nor a pickle)."
    )


def refuse(path: pathlib.Path, reason: str, cause: Exception | None = None) -> NoReturn:
    """Raises a `CheckpointError` that names the file."""
    raise CheckpointError(f"Cannot use {path}: {reason.rstrip('.')}.") from cause


def _open_zip(path: pathlib.Path, file: io.BufferedReader, size: int) -> TorchFile:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises struct, value, unicode, overflow and "not implemented" errors
        refuse(path, "it is truncated or damaged (no directory at its end): download or copy it again", error)
    folder = entries[0].filename.split("/")[0] if entries else ""
    records: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        head, _, name = entry.filename.partition("/")
        if ".." in pathlib.PurePosixPath(entry.filename).parts or entry.filename.startswith("/"):
            refuse(path, f"it is UNSAFE: it has an entry outside its own folder, {entry.filename[:100]!r}")
        if head != folder or not name:
            refuse(path, "it is a zip archive, but not one of torch.save (not a single folder)")
        if name in records:
            refuse(path, f"it has two entries named {name[:100]!r}")
        records[name] = entry

    def small(name: str, limit: int) -> bytes:
        entry = records[name]
        if entry.file_size > limit:
            refuse(path, f"its {name} is {entry.file_size} bytes long, more than any checkpoint needs")
        file.seek(_data_offset(path, file, entry, size))
        return file.read(entry.file_size)

    if "data.pkl" not in records:
        refuse(path, "it is a zip archive, but not one of torch.save (no data.pkl)")
    byteorder = small("byteorder", 64).decode("ascii", "replace").strip() if "byteorder" in records else "little"
    if byteorder not in ("little", "big"):
        refuse(path, f"its byte order is {byteorder!r}, not 'little' or 'big'")
    # torch.save can omit checksums; then that of the version number is wrong, too.
    checked = "version" in records and zlib.crc32(small("version", 64)) == records["version"].CRC
    pickled = small("data.pkl", pickles.MAX_PICKLE_BYTES)
    if checked and zlib.crc32(pickled) != records["data.pkl"].CRC:
        refuse(path, "its checksum shows that it is damaged: download or copy it again")

    data: dict[str, _Data] = {}

    def find_storage(key: str, dtype: str, numel: int) -> Storage:
        if dtype not in ITEM_SIZES:  # never read
            return Storage(key, dtype, numel)
        entry = records.get(f"data/{key}")
        if entry is None:
            raise CheckpointError("the data of a tensor is missing")
        if entry.file_size != numel * ITEM_SIZES[dtype]:
            raise CheckpointError(f"{numel} elements of {dtype} do not fill {entry.file_size} bytes")
        if key not in data:
            data[key] = _Data(_data_offset(path, file, entry, size), entry.CRC if checked else None)
        return Storage(key, dtype, numel)

    root = _load(path, io.BytesIO(pickled), find_storage)
    return TorchFile(path, root, data, byteorder)


def _data_offset(path: pathlib.Path, file: io.BufferedReader, entry: zipfile.ZipInfo, size: int) -> int:
    """Byte offset of an entry's data, checked to lie inside the file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        refuse(path, "its entries are compressed or encrypted: torch.save does neither. Unpack it and zip it with -0")
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        refuse(path, "it is damaged (an entry does not begin where the directory says)")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = entry.header_offset + 30 + name_length + extra_length
    if offset + entry.file_size > size:
        refuse(path, "it is truncated or damaged (an entry ends beyond the file): download or copy it again")
    return offset


def _open_legacy(path: pathlib.Path, file: io.BufferedReader, size: int) -> TorchFile:
    # The pickles come first; only the data after them is large.
    head = io.BytesIO(file.read(pickles.MAX_PICKLE_BYTES))
    storages: dict[str, Storage] = {}

    def no_storage(key: str, dtype: str, numel: int) -> NoReturn:
        raise CheckpointError("the pickle is damaged (unexpected reference to data)")

    def find_storage(key: str, dtype: str, numel: int) -> Storage:
        if dtype not in _ALL_SIZES:
            raise CheckpointError(f"it has data of an unknown kind, {dtype[:80]!r}: save it in the zip format")
        if numel * _ALL_SIZES[dtype] > size:
            raise CheckpointError(f"it should have {numel} elements of {dtype}, but it is too short")
        storage = Storage(key, dtype, numel)
        if storages.setdefault(key, storage) != storage:
            raise CheckpointError("it describes the same data in two ways")
        return storage

    magic = _load(path, head, no_storage)
    if magic != _LEGACY_MAGIC:
        refuse(path, "it is a pickle, but not one of torch.save")
    protocol, machine = _load(path, head, no_storage), _load(path, head, no_storage)
    if protocol != _LEGACY_PROTOCOL or not isinstance(machine, dict):
        refuse(path, "it was written by an unknown version of torch.save")
    root = _load(path, head, find_storage)
    keys = _load(path, head, no_storage)
    if (
        not isinstance(keys, list)
        or {k for k in keys if isinstance(k, str)} != set(storages)
        or len(keys) != len(storages)
    ):
        refuse(path, "it is damaged (its list of data does not match its tensors)")

    byteorder = "little" if machine.get("little_endian", True) else "big"
    data, offset = {}, head.tell()
    for key in keys:
        storage = storages[key]
        file.seek(offset)
        count = int.from_bytes(file.read(8), byteorder)  # type: ignore[arg-type]
        offset += 8
        data[key] = _Data(offset, None)
        offset += storage.numel * _ALL_SIZES[storage.dtype]
        if count != storage.numel or offset > size:
            refuse(path, "it is truncated or damaged: download or copy it again")
    return TorchFile(path, root, data, byteorder)


def _load(path: pathlib.Path, file: io.BytesIO, find_storage: Any) -> Any:
    try:
        return pickles.load(file, find_storage)
    except CheckpointError as error:
        refuse(path, str(error), error)
