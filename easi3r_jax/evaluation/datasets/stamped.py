"""Folders in TUM RGB-D's style: files named by their time stamps, listed in text files as `timestamp file`."""

from __future__ import annotations

import pathlib

import numpy as np

from easi3r_jax.core.errors import InputError
from easi3r_jax.evaluation.datasets import common
from easi3r_jax.io.priors.files import read_text


def stamped_images(folder: pathlib.Path, kind: str) -> tuple[np.ndarray, list[pathlib.Path]]:
    """A recording's images of one kind in order of time: from its list `kind.txt` or, without one, by their names.

    Args:
      folder: of the recording.
      kind: "rgb" or "depth".

    Returns:
      (N,) seconds, increasing, and N paths.

    Raises:
      InputError: there are no images, the list is malformed or names missing files, a name is not a time stamp, or a
        time stamp occurs twice.
    """
    index = folder / f"{kind}.txt"
    if index.is_file():
        stamps, paths = _listed(index)
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(paths)} files that {index} lists are missing (the first: {missing[0]}): "
                "download the sequence again, or remove it."
            )
    else:
        paths = common.frames_in(folder / kind)
        stamps = np.array([_stamp(path) for path in paths])
    order = np.argsort(stamps, kind="stable")
    stamps = stamps[order]
    if np.any(np.diff(stamps) <= 0):
        raise InputError(f"{index if index.is_file() else folder / kind} has one time stamp twice: remove one.")
    return stamps, [paths[entry] for entry in order]


def stamps_of(paths: list[pathlib.Path]) -> np.ndarray | None:
    """(N,) seconds from the names of files; None if a name is not a time stamp or the stamps do not increase."""
    try:
        stamps = np.array([_stamp(path) for path in paths])
    except InputError:
        return None
    return stamps if np.all(np.diff(stamps) > 0) else None


def _listed(index: pathlib.Path) -> tuple[np.ndarray, list[pathlib.Path]]:
    stamps, paths = [], []
    for number, line in enumerate(read_text(index).splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            stamp = float(words[0])
            if len(words) != 2 or not np.isfinite(stamp):
                raise ValueError
            stamps.append(stamp)
        except ValueError as error:
            raise InputError(f"{index}, line {number} is not 'timestamp file': {line.strip()[:60]!r}.") from error
        paths.append(index.parent / words[1])
    if not paths:
        raise InputError(f"{index} lists no files: download the sequence again, or remove it.")
    return np.array(stamps), paths


def _stamp(path: pathlib.Path) -> float:
    try:
        stamp = float(path.stem)
    except ValueError:
        stamp = np.nan
    if not np.isfinite(stamp):
        raise InputError(f"The name of {path} is not a time stamp: restore {path.parent.name}.txt, or the names.")
    return stamp
