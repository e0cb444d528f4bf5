"""Training runs on disk: all that is needed to go on exactly where a run stopped.

Below a run's `states/` folder, `step_00001000/` holds `config.json` (format version, step, the run's options,
checksums) and `weights/`, an Orbax checkpoint of every array of the state by name. A state is written under a
temporary name and moved when it is complete, then older ones are deleted: the newest complete state always loads.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from easi3r_jax.checkpoint import folder as folders
from easi3r_jax.errors import CheckpointError

FORMAT = "easi3r_jax training state"
FORMAT_VERSION = 1
#: States kept: the newest, and the one before, should a disk lose the newest.
KEPT = 2

_T = TypeVar("_T")


def save_state(states: str | os.PathLike[str], step: int, state: Any, options: Mapping[str, Any]) -> pathlib.Path:
    """Writes a state and deletes all but the newest two.

    Args:
      states: folder of a run's states.
      step: number in the state's name.
      state: a pytree of arrays, the training state.
      options: of the run, JSON values; `load_state` compares them.

    Returns:
      The state's folder.

    Raises:
      OutputError: it cannot be written.
    """
    states = pathlib.Path(os.path.realpath(os.path.expanduser(states)))
    arrays = {name: np.asarray(leaf) for name, leaf in _named(state).items()}
    path = states / f"step_{step:08d}"
    need = sum(array.nbytes for array in arrays.values()) + (4 << 20)
    with folders.replacing(path, need, lambda p: folders.has_format(p, FORMAT)) as partial:
        folders.write_arrays(path, partial / "weights" / "state", arrays)
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "step": step,
            "options": dict(options),
            "versions": folders.versions(),
            "files": folders.checksums(partial / "weights"),
        }
        (partial / "config.json").write_text(json.dumps(header, indent=1) + "\n")
    for older in _all(states)[:-KEPT]:
        shutil.rmtree(older, ignore_errors=True)
    return path


def latest_state(states: str | os.PathLike[str]) -> pathlib.Path | None:
    """The newest complete state below a run's states folder, or None."""
    found = _all(pathlib.Path(states))
    return found[-1] if found else None


def load_state(path: pathlib.Path, like: _T, options: Mapping[str, Any]) -> tuple[_T, int]:
    """Reads a state that was written with the same options.

    Args:
      path: of `latest_state`.
      like: the state's structure: arrays or `jax.ShapeDtypeStruct`s, with the shardings that the arrays are to get.
      options: of the run that goes on.

    Returns:
      The state and its step.

    Raises:
      CheckpointError: damaged, of another version, or of a run with other options (they are named).
    """
    remedy = "Delete it: the run goes on from the state before."
    try:
        header = json.loads((path / "config.json").read_bytes())
        version, step, stored, files = (header[k] for k in ("format_version", "step", "options", "files"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"The training state at {path} is damaged (config.json). {remedy}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"The training state at {path} has format version {version!r}, not {FORMAT_VERSION}.")
    options = json.loads(json.dumps(options))  # as they look after a round trip: no tuples
    if changed := sorted(k for k in stored.keys() | options.keys() if stored.get(k) != options.get(k)):
        told = "; ".join(f"{k} was {stored.get(k)!r}, is {options.get(k)!r}" for k in changed[:4])
        raise CheckpointError(
            f"The run at {path.parent.parent} was begun with other options ({told}). "
            "Resume with the same ones, or choose another --output."
        )
    folders.check_files(path, files, remedy)
    named = _named(like)
    wanted = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for n, a in named.items()}
    arrays = folders.read_arrays(path, path / "weights" / "state", wanted, remedy)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named]), int(step)


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _all(states: pathlib.Path) -> list[pathlib.Path]:
    if not states.is_dir():
        return []
    return sorted(p for p in states.iterdir() if re.fullmatch(r"step_\d{8}", p.name) and folders.has_format(p, FORMAT))
