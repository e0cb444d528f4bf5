"""Downloads of models from the Hugging Face hub."""

from __future__ import annotations

import errno
import pathlib
import re
from collections.abc import Sequence
from typing import NoReturn

from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.core.types import Progress, silent

_TIMEOUT_SECONDS = 10.0


def is_name(text: str) -> bool:
    """Whether the text has the form owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None and len(text) <= 96


def fetch(name: str, files: Sequence[str], what: str, progress: Progress = silent) -> pathlib.Path:
    """Returns the folder of a model's files in the hub's own cache; downloads them if any is missing.

    Args:
      name: owner/name.
      files: names of the model's files. The first is requested before anything is downloaded.
      what: kind of model, for error messages: "no ... in that format".
      progress: called with the progress of the download, in files.

    Raises:
      CheckpointError: no network, no such model, or a model without these files. The message says what to download by
        hand.
      OutputError: the download cannot be stored.
    """
    folder = _cached(name, files)
    if folder is None:
        progress("download", 0, len(files), "")
        folder = _download(name, files, what, progress)
    return folder


def _cached(name: str, files: Sequence[str]) -> pathlib.Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(name, file) for file in files]
    folders = {pathlib.Path(path).parent for path in found if isinstance(path, str)}
    return folders.pop() if len(folders) == 1 and all(isinstance(path, str) for path in found) else None


def _download(name: str, files: Sequence[str], what: str, progress: Progress) -> pathlib.Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    path = pathlib.Path()
    try:
        # A short request first: without a network, the download itself would retry for half a minute.
        get_hf_file_metadata(hf_hub_url(name, files[0]), timeout=_TIMEOUT_SECONDS)
        for done, file in enumerate(files, 1):
            path = pathlib.Path(hf_hub_download(name, file, etag_timeout=_TIMEOUT_SECONDS))
            progress("download", done, len(files), "")
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"The hub has no public model {name}. If it is gated, log in: hf auth login.") from error
    except LocalEntryNotFoundError as error:
        _by_hand(name, files, error)
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"The hub's model {name} has no {' and '.join(files)}: no {what} in that format."
        ) from error
    except Exception as error:  # the hub's client may raise errors of any HTTP library
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise OutputError(f"Cannot store the download of {name}: {error.strerror} (folder: HF_HOME).") from error
        _by_hand(name, files, error)
    return path.parent


def _by_hand(name: str, files: Sequence[str], error: Exception) -> NoReturn:
    folder = f"checkpoints/{name.rpartition('/')[2]}"
    raise CheckpointError(
        f"Cannot download {name}: no connection to the hub. By hand: download {' and '.join(files)} from "
        f"https://huggingface.co/{name}/tree/main into a folder, e.g. {folder}/, and pass that folder "
        f"instead of the name."
    ) from error
