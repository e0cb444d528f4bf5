"""Training states on disk: everything that a run needs to resume exactly.

In a run's `states/` folder, `step_00001000/` has `config.json` (format version, step, options of the run, checksums)
and `weights/`, an Orbax checkpoint of all arrays of the state by name. A state is written atomically; then older ones
are deleted, except one. A run resumes from the newest state, or from the one before if the newest is damaged.
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

from easi3r_jax.core import sharding
from easi3r_jax.core.atomic import atomic_folder
from easi3r_jax.core.errors import CheckpointError, ConfigError
from easi3r_jax.weights.checkpoint import folder as folders

FORMAT = "easi3r_jax training state"
FORMAT_VERSION = 1
#: Number of states kept: the newest, and the one before in case the newest is damaged.
NUM_KEPT = 2

_REMEDY = "Restore it, or start a new run in another folder."

_T = TypeVar("_T")
#: Options that a run may resume with another value of.
_MAY_CHANGE = {"devices"}


def save_state(states: str | os.PathLike[str], step: int, state: Any, options: Mapping[str, Any]) -> pathlib.Path:
    """Writes a state and deletes all others except the one before.

    If its arrays are on the devices of several hosts, all of them call this, and each writes a part of the arrays into
    the folder, which must be on a disk that they share. Process 0 completes the state.

    States of later steps are deleted, too: a run that saves this step has skipped them, because they are unreadable.

    Args:
      states: folder of a run's states.
      step: number in the state's name.
      state: the training state, a pytree of arrays.
      options: options of the run, JSON values; `load_state` compares them.

    Returns:
      The state's folder.

    Raises:
      OutputError: it cannot be written.
    """
    states, arrays = _resolved(states), _named(state)
    path = states / f"step_{step:08d}"
    together = sharding.spans_hosts(sharding.mesh_of(state))
    if not together:
        arrays = {name: np.asarray(leaf) for name, leaf in arrays.items()}
    elif jax.process_index() != 0:
        partial = pathlib.Path(sharding.agreed_text("", sharding.mesh_of(state)))
        folders.write_arrays(path, partial / "weights" / "state", arrays, together=True)
        sharding.agreed_text("", sharding.mesh_of(state))  # see below
        return path
    size = sum(array.nbytes for array in arrays.values()) + (4 << 20)
    # A folder of this name is ours, readable or not: a run that has passed a damaged state over comes by again.
    with atomic_folder(path, marker=pathlib.Path.is_dir, size=size, durable=True) as partial:
        if together:
            sharding.agreed_text(str(partial), sharding.mesh_of(state))
        folders.write_arrays(path, partial / "weights" / "state", arrays, together=together)
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "step": step,
            "options": dict(options),
            "versions": folders.versions(),
            "files": folders.checksums(partial / "weights"),
        }
        (partial / "config.json").write_text(json.dumps(header, indent=1) + "\n")
    if together:  # a process that ended before would take process 0 with it, and the state that it completes
        sharding.agreed_text("", sharding.mesh_of(state))
    kept = [p for p in _all(states) if p.name <= path.name and folders.has_format(p, FORMAT)][-NUM_KEPT:]
    for other in _all(states):
        if other not in kept:
            shutil.rmtree(other, ignore_errors=True)
    return path


def latest_state(states: str | os.PathLike[str]) -> pathlib.Path | None:
    """The newest complete state in a run's states folder, or None."""
    found = [p for p in _all(_resolved(states)) if folders.has_format(p, FORMAT)]
    return found[-1] if found else None


def has_states(states: str | os.PathLike[str]) -> bool:
    """Whether there is anything named like a state in a run's states folder, readable or not."""
    return any(_resolved(states).glob("step_*"))


def state_options(path: pathlib.Path) -> dict[str, Any]:
    """The options of the run that wrote a state, as JSON values.

    Raises:
      CheckpointError: damaged, or of another version.
    """
    return _header(path)["options"]


def load_newest(states: str | os.PathLike[str], like: _T, options: Mapping[str, Any]) -> tuple[_T, int, list[str]]:
    """Reads the newest readable state; see `load_state`.

    Returns:
      The state, its step, and one line for each newer state that was skipped, with the reason.

    Raises:
      CheckpointError: no state is readable; gives the reason for the oldest.
      ConfigError: the states are from a run with other options.
    """
    skipped: list[str] = []
    found = _all(_resolved(states))
    for path in reversed(found):
        try:
            return *load_state(path, like, options), skipped
        except CheckpointError as error:
            if path == found[0]:
                raise
            skipped.append(str(error).removesuffix(f" {_REMEDY}"))
    raise CheckpointError(f"There is no training state in {states}.")


def load_state(path: pathlib.Path, like: _T, options: Mapping[str, Any]) -> tuple[_T, int]:
    """Reads a state that was written with the same options.

    Args:
      path: of the state; see `latest_state`.
      like: the state's structure: arrays or `jax.ShapeDtypeStruct`s with the wanted shardings.
      options: options of the run that resumes.

    Returns:
      The state and its step.

    Raises:
      CheckpointError: damaged, or of another version.
      ConfigError: from a run with other options; lists them.
    """
    path = _resolved(path)
    header = _header(path)
    stored = header["options"]
    options = json.loads(json.dumps(options))  # as after a round trip: lists, not tuples
    names = (stored.keys() | options.keys()) - _MAY_CHANGE
    if changed := sorted(k for k in names if stored.get(k) != options.get(k)):
        differences = "; ".join(f"{k} was {stored.get(k)!r}, is {options.get(k)!r}" for k in changed[:4])
        raise ConfigError(
            f"The run at {path.parent.parent} was started with other options ({differences}). "
            "Resume with the same ones, or start a new run in another folder (from its network: --checkpoint)."
        )
    folders.check_files(path, header["files"], _REMEDY)
    named = _named(like)
    wanted = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for n, a in named.items()}
    arrays = folders.read_arrays(path, path / "weights" / "state", wanted, _REMEDY)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named]), int(header["step"])


def _header(path: pathlib.Path) -> dict[str, Any]:
    """The state's `config.json`, checked for version and entries."""
    damaged = f"The training state at {path} is damaged (config.json). {_REMEDY}"
    try:
        header = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(damaged) from error
    types = {"format_version": int, "step": int, "options": dict, "files": dict}
    if not isinstance(header, dict) or not all(isinstance(header.get(name), kind) for name, kind in types.items()):
        raise CheckpointError(damaged)
    if header["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"The training state at {path} has format version {header['format_version']!r}, not {FORMAT_VERSION}: "
            "resume it with the version that wrote it."
        )
    if header["options"].get("dtype") == "float32":  # the name and value of `precision` in earlier versions
        header["options"] = {k: v for k, v in header["options"].items() if k != "dtype"} | {"precision": "exact"}
    return header


def _resolved(path: str | os.PathLike[str]) -> pathlib.Path:
    """Without links, `~` and dots: Orbax reads absolute paths only."""
    return pathlib.Path(os.path.realpath(os.path.expanduser(path)))


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _all(states: pathlib.Path) -> list[pathlib.Path]:
    """All folders named like a state, readable or not, sorted by step."""
    if not states.is_dir():
        return []
    return sorted(p for p in states.iterdir() if re.fullmatch(r"step_\d{8}", p.name) and p.is_dir())
