"""Files of a model on the Hugging Face hub, by the model's name."""

from __future__ import annotations

import errno
import pathlib
import re
from collections.abc import Sequence
from typing import NoReturn

from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.core.types import Observer, silent

_PATIENCE = 10.0  # seconds


def is_name(text: str) -> bool:
    """Whether the text has the form owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None and len(text) <= 96


def fetch(name: str, files: Sequence[str], what: str, observer: Observer = silent) -> pathlib.Path:
    """Finds files of a model in the hub's own cache, and downloads them unless they are all there.

    Args:
      name: owner/name.
      files: names of the model's files; the first is asked for before anything is downloaded.
      what: such files are, as an error calls it: "no ... in that form".
      observer: told of the download, in files.

    Returns:
      the folder of the cache that holds them.

    Raises:
      CheckpointError: no network, no such model, or a model without these files. Says what to fetch by hand.
      OutputError: the download cannot be stored.
    """
    folder = _cached(name, files)
    if folder is None:
        observer("download", 0, len(files), "")
        folder = _download(name, files, what, observer)
    return folder


def _cached(name: str, files: Sequence[str]) -> pathlib.Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(name, file) for file in files]
    folders = {pathlib.Path(path).parent for path in found if isinstance(path, str)}
    return folders.pop() if len(folders) == 1 and all(isinstance(path, str) for path in found) else None


def _download(name: str, files: Sequence[str], what: str, observer: Observer) -> pathlib.Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    path = pathlib.Path()
    try:
        # One question first: the download itself would try an absent network for half a minute.
        get_hf_file_metadata(hf_hub_url(name, files[0]), timeout=_PATIENCE)
        for done, file in enumerate(files, 1):
            path = pathlib.Path(hf_hub_download(name, file, etag_timeout=_PATIENCE))
            observer("download", done, len(files), "")
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"The hub has no public model {name} (or it needs a login: hf auth login).") from error
    except LocalEntryNotFoundError as error:
        _by_hand(name, files, error)
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"The hub's model {name} has no {' and '.join(files)}: no {what} in that form."
        ) from error
    except Exception as error:  # errors of whichever HTTP library the hub's client uses
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise OutputError(f"Cannot store the download of {name}: {error.strerror} (HF_HOME says where).") from error
        _by_hand(name, files, error)
    return path.parent


def _by_hand(name: str, files: Sequence[str], error: Exception) -> NoReturn:
    folder = f"checkpoints/{name.rpartition('/')[2]}"
    raise CheckpointError(
        f"Cannot download {name}: no connection to the hub. By hand: fetch {' and '.join(files)} from "
        f"https://huggingface.co/{name}/tree/main into a folder, e.g. {folder}/, and give that folder "
        f"in place of the name."
    ) from error
