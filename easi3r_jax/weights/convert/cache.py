"""A cache of converted checkpoints: the first use of a source converts it, later uses find the result.

The cache is `$EASI3R_JAX_CACHE`, else `$XDG_CACHE_HOME/easi3r_jax`, else `~/.cache/easi3r_jax`. It has a folder for
each source, named by the SHA-256 of its files, and `sources.json`, which remembers checksums: two gigabytes are not
hashed again while a file is unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import tempfile

from easi3r_jax.core.errors import OutputError, UserError
from easi3r_jax.core.types import Progress, silent
from easi3r_jax.weights.checkpoint import is_checkpoint, load_metadata
from easi3r_jax.weights.convert import table
from easi3r_jax.weights.convert.conversion import hash_file, stamp, write
from easi3r_jax.weights.convert.sources import open_source


def cache_folder() -> pathlib.Path:
    """Folder of the cache."""
    common = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    own = os.environ.get("EASI3R_JAX_CACHE") or os.path.join(common, "easi3r_jax")
    return pathlib.Path(os.path.expanduser(own)).absolute()


def resolve(source: str | os.PathLike[str], progress: Progress = silent) -> pathlib.Path:
    """Returns a checkpoint of ours for any source of weights; converts the source on first use.

    Args:
      source: a checkpoint of ours, a `.pth` file, a folder of `model.safetensors` and `config.json`, or a hub name.
      progress: called for the stages "download", "hash" and "convert".

    Returns:
      Folder of a checkpoint that `load_checkpoint` reads.

    Raises:
      CheckpointError: the source is missing, damaged, unsafe or incomplete.
      OutputError: the cache cannot be written.
    """
    path = pathlib.Path(os.path.expanduser(source))
    if is_checkpoint(path):
        return path
    opened = open_source(source, progress)
    stamps = [stamp(file) for file in opened.files]
    digests = [_digest(pathlib.Path(os.path.realpath(file)), progress) for file in opened.files]
    name = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    kept = cache_folder() / name
    if _usable(kept):
        return kept
    recipes, dropped, notices = table.match(opened)
    if not is_checkpoint(kept):  # left over from a conversion: only the cache uses such names
        shutil.rmtree(kept, ignore_errors=True)
    try:
        write(opened, stamps, recipes, dropped, notices, digests[0], kept, progress)
    except OutputError as error:
        if _usable(kept):  # another process has converted it meanwhile
            return kept
        raise OutputError(f"{error} Set EASI3R_JAX_CACHE to a folder with enough space.") from error
    return kept


def _usable(path: pathlib.Path) -> bool:
    try:
        load_metadata(path)
    except UserError:
        return False
    return True


def _digest(path: pathlib.Path, progress: Progress) -> str:
    """SHA-256 of a file; remembered while its size and modification time are unchanged."""
    before = [*stamp(path)]
    known = _read_index().get(str(path))
    if isinstance(known, list) and len(known) == 3 and known[:2] == before and isinstance(known[2], str):
        return known[2]
    digest = hash_file(path, progress)
    _remember(str(path), [*before, digest])
    return digest


def _read_index() -> dict[str, object]:
    try:
        index = json.loads((cache_folder() / "sources.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def _remember(path: str, entry: list[object]) -> None:
    """Best effort: without the index, the next run hashes the file again."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".sources-")
        with os.fdopen(descriptor, "w") as file:
            json.dump(_read_index() | {path: entry}, file, indent=1)
        os.replace(temporary, folder / "sources.json")
    except OSError:
        return
