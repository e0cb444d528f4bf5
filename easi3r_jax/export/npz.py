"""`scene.npz`: the reconstruction as arrays, the exact form of a result."""

from __future__ import annotations

import os
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

from easi3r_jax.errors import InputError
from easi3r_jax.types import Scene4D

# key in the file -> (field of Scene4D, dtype, shape with T, H, W left open)
_LAYOUT = {
    "world_from_cam": ("world_from_cam", np.float32, ("T", 4, 4)),
    "intrinsics": ("intrinsics", np.float32, ("T", 3, 3)),
    "depth": ("depth", np.float32, ("T", "H", "W")),
    "confidence": ("confidence", np.float32, ("T", "H", "W")),
    "dynamic_mask": ("dynamic_mask", np.bool_, ("T", "H", "W")),
    "dynamic_score": ("dynamic_score", np.float32, ("T", "H", "W")),
    "static_mask": ("static_mask", np.bool_, ("T", "H", "W")),
    "images": ("rgb", np.uint8, ("T", "H", "W", 3)),
}


def write_scene(path: str | os.PathLike, scene: Scene4D) -> None:
    """Writes `scene.npz`. Uncompressed: depths hardly shrink, and a long clip would take minutes."""
    arrays: dict[str, Any] = {
        key: np.asarray(getattr(scene, field), dtype) for key, (field, dtype, _) in _LAYOUT.items()
    }
    np.savez(path, **arrays)


def load_scene(path: str | os.PathLike) -> Scene4D:
    """Reads a `scene.npz`, or the one in a result folder, into host arrays. Nothing in the file is ever executed.

    Raises:
      InputError: no such file, not an npz archive, damaged, or with arrays missing or of the wrong shape or type.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        path = path / "scene.npz"
    try:
        arrays = _read(path)
    except FileNotFoundError as error:
        raise InputError(f"No scene at {path}: expected a result folder or its scene.npz.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"Cannot read the scene {path}: {error}.") from error

    missing = _LAYOUT.keys() - arrays.keys()
    if missing:
        raise InputError(f"{path} is not a scene: it lacks {', '.join(sorted(missing))}.")
    sizes: dict[str, int] = {}
    for key, (_, dtype, shape) in _LAYOUT.items():
        array = arrays[key]
        fits = array.ndim == len(shape) and all(
            size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
            for axis, size in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != dtype or array.size == 0:
            raise InputError(
                f"{path}: {key} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} "
                f"({', '.join(str(sizes.get(a, a)) if isinstance(a, str) else str(a) for a in shape)})."
            )
    return Scene4D(**{field: arrays[key] for key, (field, *_) in _LAYOUT.items()})


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:  # opened here: given a path, numpy leaves a damaged file open
        if file.read(2) != b"PK":
            raise ValueError("not an npz archive")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in _LAYOUT if key in archive.files}
