"""Finished windows of a long clip, stored beside the output until the clip is complete, to resume from."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.core.types import Scene4D
from easi3r_jax.io.export import load_scene, to_json, write_json, write_scene


class WindowStore:
    """A folder `.NAME.windows` beside the output.

    Args:
      output: folder of the result.
      options: everything except arrays that the scenes depend on. A folder with other options is emptied.
      arrays: the clip and its priors; likewise.
    """

    def __init__(self, output: pathlib.Path, options: dict[str, Any], arrays: Any):
        output = output.expanduser().absolute()
        self.folder = output.with_name(f".{output.name}.windows")
        digest = hashlib.sha256()
        for array in jax.tree.leaves(arrays):
            digest.update(f"{np.shape(array)} {np.asarray(array).dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        key = json.loads(json.dumps(to_json({"arrays": digest.hexdigest(), **options})))
        path = self.folder / "key.json"
        try:
            same = json.loads(path.read_text()) == key
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(path, key)

    def recall(self, number: int) -> Scene4D | None:
        """A window's scene, or (-1) the keyframes'; None if it is missing or incomplete."""
        try:
            return load_scene(self._path(number))
        except InputError:
            return None

    def keep(self, number: int, scene: Scene4D) -> None:
        """Stores a window's scene, atomically."""
        partial = self._path(number).with_suffix(".partial.npz")
        write_scene(partial, scene)
        os.replace(partial, self._path(number))

    def clear(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / (f"window_{number:04d}.npz" if number >= 0 else "keyframes.npz")
