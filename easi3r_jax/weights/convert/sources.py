"""Opens sources of weights: files, folders, names on the hub."""

from __future__ import annotations

import os
import pathlib

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.core.types import Progress, silent
from easi3r_jax.models import BACKBONES, released_licence
from easi3r_jax.weights.convert import pth, safetensors_folder
from easi3r_jax.weights.convert.tensors import OpenedWeights
from easi3r_jax.weights.hub import MissingOnHubError, cached, fetch, is_name, naming_damaged

#: Hub names of the released networks.
RELEASED = tuple(name for backbone in BACKBONES for name in backbone.checkpoints)
#: Suffixes of files that `torch.save` wrote.
_TORCH = (".pth", ".pt")


def open_source(source: str | os.PathLike[str], progress: Progress = silent) -> OpenedWeights:
    """Opens a `.pth` file, a folder of `model.safetensors` and `config.json`, or a hub name. Reads no tensor.

    A model on the hub is downloaded unless the hub's own cache has it.

    Raises:
      CheckpointError: it is missing, damaged, unsafe, or cannot be downloaded.
    """
    path = pathlib.Path(os.path.expanduser(source))
    try:
        is_folder, exists = path.is_dir(), path.exists()
        has_weights = safetensors_folder.holds_weights(path)
    except OSError as error:  # no permission, or a name that is too long
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    if is_folder:
        if has_weights:
            return safetensors_folder.open_folder(path)
        if any(map(safetensors_folder.is_part, path.glob("*.safetensors"))):
            raise CheckpointError(
                f"{path} has weights in parts, but no {safetensors_folder.INDEX}, which says what is in which: copy it "
                "there from where the parts are from."
            )
        files = sorted(file for file in path.glob("*.pt*") if file.suffix in _TORCH)
        hint = f" Did you mean {files[0]}?" if files else ""
        raise CheckpointError(f"{path} has no {safetensors_folder.WEIGHTS}.{hint}")
    if exists:
        if path.name == safetensors_folder.WEIGHTS:
            return safetensors_folder.open_folder(path.parent)
        if path.name.endswith(".safetensors.index.json"):
            return safetensors_folder.open_folder(path.parent, index=path.name)
        if path.suffix == ".safetensors":
            index = path.parent / safetensors_folder.INDEX
            if index.exists() and path.name in safetensors_folder.read_index(index).values():
                return safetensors_folder.open_folder(path.parent, index=index.name)
            safetensors_folder.read_header(path)  # reports a damaged file first
            if safetensors_folder.is_part(path):
                raise CheckpointError(
                    f"{path} is one of several parts: copy the others, {safetensors_folder.INDEX} and "
                    f"{safetensors_folder.CONFIG} beside it, and pass the folder."
                )
            raise CheckpointError(
                f"Put {path} into a folder of its own as {safetensors_folder.WEIGHTS}, with its "
                f"{safetensors_folder.CONFIG}, and pass the folder."
            )
        return pth.open_pth(path)
    # What looks like a path is not looked up on the hub: a mistyped path should not leave the machine.
    is_local = path.suffix in (*_TORCH, ".safetensors", ".json") or path.parent.is_dir()
    if is_name(str(source)) and not is_local:
        folder, files = _fetch(str(source), progress)
        licence = released_licence(str(source))
        with naming_damaged(folder, files):
            return safetensors_folder.open_folder(folder, name=str(source), licence=licence)
    raise CheckpointError(
        f"There is no checkpoint at {source}: pass a .pth file, a folder of {safetensors_folder.WEIGHTS} and "
        f"{safetensors_folder.CONFIG}, a converted folder, or a hub name such as {RELEASED[0]}."
    )


def _fetch(name: str, progress: Progress) -> tuple[pathlib.Path, tuple[str, ...]]:
    """The folder of a model on the hub, and its files: the weights in one, or in parts with an index."""
    whole = (safetensors_folder.CONFIG, safetensors_folder.WEIGHTS)
    index = (safetensors_folder.CONFIG, safetensors_folder.INDEX)
    kinds = " or ".join(backbone.name for backbone in BACKBONES)
    if cached(name, index) is None or cached(name, whole) is not None:
        try:
            return fetch(name, whole, kinds, progress), whole
        except MissingOnHubError as error:
            try:
                fetch(name, index, kinds, progress)
            except MissingOnHubError:
                raise error from None
    folder = fetch(name, index, kinds, progress)
    with naming_damaged(folder, index):
        parts = sorted(set(safetensors_folder.read_index(folder / safetensors_folder.INDEX).values()))
    files = (*index, *parts)
    return fetch(name, files, kinds, progress), files
