"""`scene.npz`: the reconstruction as arrays, the exact form of a result.

The file is not compressed, so its arrays are memory-mapped: a scene of 300 frames of 512x288 pixels (0.6 GB) takes
memory only for the parts that are accessed. Each array is read through once to verify its checksum: about a second for
a scene of that size. Arrays of a file that was compressed later are read completely.
"""

from __future__ import annotations

import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Frames, MotionMaps, Scene4D

#: `format_version` of the files written here. Files without it predate version numbers. Adding an optional array does
#: not need a new version: older readers ignore it.
FORMAT_VERSION = 1

#: key in the file -> (dtype, shape): T, H, W, h, w and I are free, but equal in all arrays.
Layout = Mapping[str, tuple[type[np.generic], tuple[str | int, ...]]]

# Keys whose names differ from their fields of Scene4D.
_FIELDS = {"images": "rgb"}
SCENE: Layout = {
    "world_from_cam": (np.float32, ("T", 4, 4)),
    "intrinsics": (np.float32, ("T", 3, 3)),
    "depth": (np.float32, ("T", "H", "W")),
    "confidence": (np.float32, ("T", "H", "W")),
    "dynamic_mask": (np.bool_, ("T", "H", "W")),
    "dynamic_score": (np.float32, ("T", "H", "W")),
    "static_mask": (np.bool_, ("T", "H", "W")),
    "images": (np.uint8, ("T", "H", "W", 3)),
}
#: Added last: results that predate version numbers may lack it.
STATIC: Layout = {"static_mask": SCENE["static_mask"]}
SOURCE: Layout = {
    "time": (np.float64, ("T",)),
    "source_index": (np.int32, ("T",)),
    "frame_from_source": (np.float64, (3, 3)),
    "source_size": (np.int32, (2,)),
}
NAMES: Layout = {"source_names": (np.str_, ("T",))}
_TEMPORAL = ("mean_src", "std_src", "mean_ref", "std_ref")
MOTION: Layout = {
    **{f"motion_{name}": (np.float32, ("T", "h", "w")) for name in (*_TEMPORAL, "raw_score", "score")},
    "motion_labels": (np.int32, ("T", "h", "w")),
}
#: Of results whose originals had a lens's distortion removed: `Lens` as text.
LENS: Layout = {"lens": (np.str_, ())}
LOSSES: Layout = {"losses": (np.float32, ("I",))}
THRESHOLD: Layout = {"dynamic_threshold": (np.float32, ())}
VERSION: Layout = {"format_version": (np.int32, ())}

_CHUNK = 1 << 20
# Bytes before a file's name in a zip archive: APPNOTE.TXT, section 4.3.7.
_LOCAL_HEADER = 30


def write_scene(
    path: str | os.PathLike,
    scene: Scene4D,
    frames: Frames | None = None,
    *,
    names: Sequence[str] | None = None,
    motion: MotionMaps | None = None,
    threshold: float | None = None,
    losses: np.ndarray | None = None,
) -> None:
    """Writes `scene.npz`. Uncompressed: depths hardly shrink, and a long clip would take minutes.

    Args:
      path: the file.
      scene: the reconstruction.
      frames: the clip, for the times and sources of its frames; None omits these.
      names: file names of the frames, if the clip is a folder of images.
      motion: the maps from which the masks were computed.
      threshold: threshold on the score, above which a pixel is dynamic.
      losses: (iterations,) of the alignment; empty or None omits them.
    """
    arrays: dict[str, Any] = {"format_version": FORMAT_VERSION}
    arrays |= {key: getattr(scene, _FIELDS.get(key, key)) for key in SCENE}
    if frames is not None:
        arrays |= {key: getattr(frames, key) for key in SOURCE}
    if frames is not None and frames.lens is not None:
        arrays["lens"] = str(frames.lens)
    if names is not None:
        arrays["source_names"] = list(names)
    if motion is not None:
        arrays |= {f"motion_{name}": getattr(motion.temporal, name) for name in _TEMPORAL}
        arrays |= {f"motion_{name}": getattr(motion, name) for name in ("raw_score", "labels", "score")}
    if threshold is not None:
        arrays["dynamic_threshold"] = threshold
    if losses is not None and len(losses):
        arrays["losses"] = losses
    layout = {**VERSION, **SCENE, **SOURCE, **NAMES, **LENS, **MOTION, **THRESHOLD, **LOSSES}
    # In C order, as required when reading.
    arrays = {key: np.asarray(value, layout[key][0], order="C") for key, value in arrays.items()}
    np.savez(path, **arrays)


def load_scene(path: str | os.PathLike) -> Scene4D:
    """Reads the geometry of a `scene.npz`, or of the one in a result folder. Nothing in the file is ever executed.

    `easi3r_jax.io.results.load_result` reads a complete result.

    Returns:
      read-only host arrays: memory maps unless the file is compressed.

    Raises:
      InputError: no such file, not an npz archive, damaged, or with arrays missing or of the wrong shape or type.
    """
    return scene_of(read_arrays(path, SCENE))


def scene_of(arrays: Mapping[str, np.ndarray]) -> Scene4D:
    """A scene from the arrays of `SCENE`."""
    return Scene4D(**{_FIELDS.get(key, key): arrays[key] for key in SCENE})


def read_arrays(path: str | os.PathLike, needed: Layout, *optional: Layout) -> dict[str, np.ndarray]:
    """Reads arrays of a scene, by layouts.

    Args:
      path: a `scene.npz`, or a folder with one.
      needed: layout of required arrays.
      optional: layouts that may be missing, but only completely.

    Returns:
      arrays by key, including those of the optional layouts that exist.

    Raises:
      InputError: as `load_scene`.
    """
    path = pathlib.Path(path).expanduser()
    try:
        if path.is_dir():
            path = path / "scene.npz"
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise ValueError("not an npz archive")
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                layout = dict(needed)
                for group in optional:
                    layout |= group if group.keys() & members.keys() else {}
                missing = layout.keys() - members.keys()
                if missing:
                    raise InputError(f"{path} is not a scene: it lacks {', '.join(sorted(missing))}.")
                headers = {key: _Header(archive, members[key]) for key in layout}
                _check_shapes(path, layout, headers)  # all of them, before memory is allocated
                return {key: header.read(archive, file) for key, header in headers.items()}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"No scene at {path}: expected a result folder or its scene.npz.") from error
    # RuntimeError: an encrypted archive. NotImplementedError, a subclass: an unknown compression method.
    # TokenError, SyntaxError: raised by NumPy on a damaged array header.
    except (
        *(OSError, ValueError, EOFError, RuntimeError, SyntaxError),
        *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read the scene {path}: {reason.rstrip('.')}.") from error


def _check_shapes(path: pathlib.Path, layout: Layout, headers: Mapping[str, _Header]) -> None:
    sizes: dict[str, int] = {}
    for key, (dtype, shape) in layout.items():
        header = headers[key]
        fits = len(header.shape) == len(shape) and all(
            size > 0 and size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
            for axis, size in zip(shape, header.shape, strict=True)
        )
        kind_fits = header.dtype.kind == "U" if dtype is np.str_ else header.dtype == dtype
        if not fits or not kind_fits or header.is_fortran:
            expected = ", ".join(str(sizes.get(a, a)) if isinstance(a, str) else str(a) for a in shape)
            order = " in Fortran order" if header.is_fortran else ""
            raise InputError(
                f"{path}: {key} is {header.dtype} {header.shape}{order}, expected {np.dtype(dtype)} ({expected})."
            )


class _Header:
    """The header of an array in an archive."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo):
        self._info = info
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(member)
            elif version == (2, 0):
                header = np.lib.format.read_array_header_2_0(member)
            else:
                raise ValueError(f"{info.filename} has version {version} of the format, which is unknown")
            self.shape, fortran, self.dtype = header
            self._length = member.tell()
        # NumPy calls an array that is both by the other name where it has one axis only.
        self.is_fortran = fortran and len(self.shape) > 1
        if self.dtype.hasobject:
            raise ValueError(f"{info.filename} holds pickled objects, which are never read")
        if self._length + int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} does not have its declared length")

    def read(self, archive: zipfile.ZipFile, file: IO[bytes]) -> np.ndarray:
        """The array, read-only."""
        if self._info.compress_type != zipfile.ZIP_STORED:
            data = archive.read(self._info)
            return np.frombuffer(data, self.dtype, offset=self._length).reshape(self.shape)
        with archive.open(self._info) as member:
            while member.read(_CHUNK):  # at its end the checksum is compared
                pass
        file.seek(self._info.header_offset)
        local = file.read(_LOCAL_HEADER)
        names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        start = self._info.header_offset + _LOCAL_HEADER + names
        # Arrays of length 0 cannot be mapped, but do not occur: scenes have frames, and frames have pixels.
        return np.asarray(np.memmap(file, self.dtype, "r", start + self._length, self.shape))
