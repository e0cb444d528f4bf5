"""Contents of folders, and checks that they are complete; the user's cache folder."""

from __future__ import annotations

import os
import pathlib

from easi3r_jax.core.errors import InputError


def cache_folder() -> pathlib.Path:
    """`$EASI3R_JAX_CACHE`, else `$XDG_CACHE_HOME/easi3r_jax`, else `~/.cache/easi3r_jax`."""
    common = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    own = os.environ.get("EASI3R_JAX_CACHE") or os.path.join(common, "easi3r_jax")
    return pathlib.Path(os.path.expanduser(own)).absolute()


def names_in(folder: pathlib.Path) -> list[str]:
    """Names of a folder's entries, sorted, without hidden ones."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"Cannot read the folder {folder}: {error.strerror}.") from error


def folders_with(root: pathlib.Path, marker: str, levels: int) -> list[pathlib.Path]:
    """Folders that hold an entry called `marker`: `root` itself, else those at most `levels` below it, sorted."""
    names = names_in(root)
    if marker in names:
        return [root]
    if not levels:
        return []
    below = (root / name for name in names)
    return [found for folder in below if folder.is_dir() for found in folders_with(folder, marker, levels - 1)]


def numbered_frames(folder: pathlib.Path, template: str, first: int = 0) -> int:
    """Number of frames in a folder whose names are `template` with consecutive numbers from `first` on.

    Raises:
      InputError: there are none, or the numbers have a gap.
    """
    names = set(names_in(folder))
    end = template[template.index("}") + 1 :]
    count = sum(name.endswith(end) for name in names)
    if not count:
        raise InputError(f"No frames {template.format(first)} ... in {folder}: restore them, or remove the sequence.")
    _require(folder, template, first, count, names)
    return count


def require_frames(folder: pathlib.Path, template: str, count: int, first: int = 0) -> None:
    """Raises InputError unless `folder` has a file for each of `count` frames."""
    _require(folder, template, first, count, set(names_in(folder)))


def _require(folder: pathlib.Path, template: str, first: int, count: int, names: set[str]) -> None:
    for number in range(first, first + count):
        if template.format(number) not in names:
            path = folder / template.format(number)
            raise InputError(f"{path}, one of {count} frames, is missing: restore it, or remove the sequence.")


def require_length(path: pathlib.Path, count: int, num_frames: int) -> None:
    """Raises InputError unless a file of poses or intrinsics has an entry for each frame."""
    if count != num_frames:
        raise InputError(
            f"{path} has {count} entries for {num_frames} frames: restore the files, or remove the sequence."
        )
