"""The supported layouts of data sets."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping

from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.io import remote
from easi3r_jax.training.datasets import pairs_folder, pointodyssey, spring, tartanair, waymo
from easi3r_jax.training.datasets.sequence import Dataset, Sequence

#: Name of a layout -> function that lists the sequences in a folder. It returns an empty list if there are none, and
#: raises InputError if one is incomplete. New layouts are added here.
READERS: Mapping[str, Callable[[pathlib.Path], list[Sequence]]] = {
    "pairs": pairs_folder.sequences,
    "pointodyssey": pointodyssey.sequences,
    "spring": spring.sequences,
    "tartanair": tartanair.sequences,
    "waymo": waymo.sequences,
}


def open_dataset(name: str, root: str | os.PathLike[str]) -> Dataset:
    """Finds the sequences of a data set and checks that their files exist. Images and depth are read later.

    Args:
      name: of the layout, one of `READERS`.
      root: the data set's folder, or its address.

    Raises:
      ConfigError: an unknown layout.
      InputError: no such folder, no sequence in this layout, or an incomplete sequence.
    """
    if name not in READERS:
        raise ConfigError(f"Unknown data set {name!r}: choose one of {', '.join(sorted(READERS))}.")
    path = pathlib.Path(remote.local(root)).expanduser()
    if not path.is_dir():
        raise InputError(f"There is no folder {path} for the data set {name!r} (in {pathlib.Path.cwd()}).")
    sequences = READERS[name](path)
    if not sequences:
        raise InputError(
            f"{path} has no sequence in the layout of {name!r}: see docs/datasets.md, or correct the path."
        )
    return Dataset(name, path, tuple(sequences))
