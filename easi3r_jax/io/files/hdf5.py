"""Arrays in HDF5 files, including MATLAB files of version 7.3. Needs h5py (extra `datasets`)."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from easi3r_jax.core.errors import InputError


@contextlib.contextmanager
def open_hdf5(path: pathlib.Path, name: str) -> Iterator[Any]:
    """Opens a data set of an HDF5 file, an `h5py.Dataset`: nothing is read before it is indexed.

    Args:
      path: the file.
      name: of the data set. It must be stored in the file itself: a file must not make us read another one.

    Raises:
      InputError: h5py or the file is missing, the file has no such data set, or it is damaged (which may show only
        while it is read).
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError("h5py, which reads HDF5 files, is missing: pip install 'easi3r_jax[datasets]'.") from error
    try:
        with h5py.File(path, "r") as file:
            link = file.get(name, getlink=True)
            data = file[name] if isinstance(link, h5py.HardLink) else None
            if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
                raise ValueError(f'it has no data set "{name}" of its own')
            yield data
    except FileNotFoundError as error:
        raise InputError(f"No file {path}: restore it, or remove the sequence.") from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read {path}: {reason}. Restore it, or remove the sequence.") from error
