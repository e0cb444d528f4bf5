"""A clip folder: frames and their ground truth, as `reconstruct`, `train` and `study` read it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from easi3r_jax.core import atomic
from easi3r_jax.io.export.jsonfile import write_json

# How the clip was made. Users' own clip folders lack it and are never replaced.
_MARKER = "clip.json"

# name in ground_truth.npz -> (dtype, frames fewer than T, shape of an entry with H, W left open)
_LAYOUT = {
    "depth": (np.float32, 0, ("H", "W")),
    "masks": (np.bool_, 0, ("H", "W")),
    "world_from_cam": (np.float32, 0, (4, 4)),
    "intrinsics": (np.float32, 0, (3, 3)),
    "instance": (np.int32, 0, ("H", "W")),
    "flow_forward": (np.float32, 1, ("H", "W", 2)),
    "flow_backward": (np.float32, 1, ("H", "W", 2)),
    "visible_forward": (np.bool_, 1, ("H", "W")),
    "visible_backward": (np.bool_, 1, ("H", "W")),
}


def ensure_clip_writable(folder: str | os.PathLike) -> None:
    """Fails now where `write_clip` would fail after the rendering.

    Raises:
      OutputError: no permission, a read-only or full disk, a file in the way, or a folder that holds something other
        than a clip written by `write_clip`.
    """
    atomic.ensure_writable(folder, marker=_MARKER)


def write_clip(
    folder: str | os.PathLike, rgb: np.ndarray, truth: Mapping[str, np.ndarray], record: Mapping[str, Any]
) -> pathlib.Path:
    """Writes a clip folder atomically; one written earlier is replaced. See docs/conventions.md.

    Args:
      folder: missing parents are created.
      rgb: (T, H, W, 3) uint8.
      truth: arrays of `ground_truth.npz` by name: `depth`, `masks`, `world_from_cam`, `intrinsics`, `instance`,
        `flow_forward`, `flow_backward`, `visible_forward`, `visible_backward`, any of them.
      record: how the clip was made: `clip.json`.

    Returns:
      the absolute path of the folder.

    Raises:
      ValueError: an unknown array, or one that does not fit the frames.
      OutputError: the folder cannot be written.
    """
    num_frames, height, width, _ = rgb.shape
    arrays: dict[str, Any] = {}
    for name, array in truth.items():
        if name not in _LAYOUT:
            raise ValueError(f"{name} is not an array of a clip's ground truth: {', '.join(_LAYOUT)}.")
        dtype, fewer, entry = _LAYOUT[name]
        shape = (num_frames - fewer, *({"H": height, "W": width}.get(str(axis), axis) for axis in entry))
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}.")
        arrays[name] = array

    target = pathlib.Path(folder).expanduser().resolve()
    with atomic.atomic_folder(target, marker=_MARKER) as new:
        (new / "frames").mkdir()
        for t, frame in enumerate(rgb):
            Image.fromarray(frame).save(new / "frames" / f"{t:05d}.png", compress_level=3)
        np.savez(new / "ground_truth.npz", **arrays)  # uncompressed, so that frames can be read individually
        write_json(new / _MARKER, record)
    return target
