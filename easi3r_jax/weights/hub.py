"""Downloads of models from the Hugging Face hub."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.core.types import Progress, silent

_TIMEOUT_SECONDS = 10.0
#: Of errors of a download that ended too early: of HTTP libraries, and of the hub's client.
_BROKEN_OFF = ("peer closed connection", "Consistency check failed", "incomplete", "IncompleteRead", "end of file")


class MissingOnHubError(CheckpointError):
    """The hub's model lacks a file."""


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
      CheckpointError: no network, no such model, a model without these files, or another answer of the hub. The message
        says what to do.
      OutputError: the download cannot be stored.
    """
    folder = cached(name, files)
    if folder is None:
        progress("download", 0, len(files), "")
        folder = _download(name, files, what, progress)
    return folder


def cached(name: str, files: Sequence[str]) -> pathlib.Path | None:
    """The folder of a model's files if the hub's own cache has all of them."""
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
        raise CheckpointError(
            f"The hub has no public model {name}. If it is private or gated, log in: hf auth login, or set HF_TOKEN."
        ) from error
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            raise MissingOnHubError(
                f"The hub's model {name} has no {' and '.join(files)}: no {what} in that format."
            ) from error
        raise _failed(name, files, error) from error
    except Exception as error:  # the hub's client may raise errors of any HTTP library
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise OutputError(f"Cannot store the download of {name}: {error.strerror} (folder: HF_HOME).") from error
        raise _failed(name, files, error) from error
    return path.parent


def _failed(name: str, files: Sequence[str], error: Exception) -> CheckpointError:
    """The error for a failed download: the hub's own answer, if it gave one, and what to do."""
    chain = list(_chain(error))
    statuses = (getattr(getattr(cause, "response", None), "status_code", None) for cause in chain)
    status = next((status for status in statuses if isinstance(status, int)), None)
    if status is not None:
        return CheckpointError(f"Cannot download {name}: {_answer(name, status)}.")
    told = " ".join(str(cause) for cause in chain)
    if any(text in told for text in _BROKEN_OFF):
        return CheckpointError(f"Cannot download {name}: the download broke off. Run the same command again.")
    folder = f"checkpoints/{name.rpartition('/')[2]}"
    return CheckpointError(
        f"Cannot download {name}: no connection to the hub. By hand: download {' and '.join(files)} from "
        f"https://huggingface.co/{name}/tree/main into a folder, e.g. {folder}/, and pass that folder "
        f"instead of the name."
    )


def _answer(name: str, status: int) -> str:
    """What an HTTP status of the hub means, and what to do."""
    if status in (401, 403):
        return (
            f"the hub wants a token that may read it (HTTP {status}). Log in (hf auth login, or HF_TOKEN), and accept "
            f"the model's terms at https://huggingface.co/{name}"
        )
    if status == 404:
        return "the hub has nothing of that name (HTTP 404). Correct it"
    if status == 429:
        return "the hub had too many requests from here (HTTP 429). Wait some minutes, or log in (hf auth login)"
    if status >= 500:
        return f"the hub does not work at the moment (HTTP {status}). Try again later"
    return f"the hub refuses (HTTP {status}). Look at https://huggingface.co/{name}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def naming_damaged(folder: pathlib.Path, files: Sequence[str]) -> Iterator[None]:
    """Adds to a CheckpointError which files of the hub's cache are damaged: it would never download them again.

    The cache names a file's content by its hash.

    Args:
      folder: of a model, see `fetch`.
      files: names of the model's files.
    """
    try:
        yield
    except CheckpointError as error:
        damaged = [path for path in map(os.path.realpath, (folder / file for file in files)) if _is_damaged(path)]
        if not damaged:
            raise
        raise CheckpointError(
            f"{str(error).partition(': download or copy it again')[0].rstrip('.')}. The hub's cache holds it damaged. "
            f"Delete {' and '.join(damaged)}, and run the same command, which then downloads it again."
        ) from error


def _is_damaged(path: str) -> bool:
    """Whether a file of the cache has another hash than its name says; False if the name is no hash."""
    name, content = os.path.basename(path), hashlib.sha1(usedforsecurity=False)
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) or not os.path.isfile(path):
        return False
    if len(name) == 64:
        content = hashlib.sha256()
    else:  # Git's: of a header and the content
        content.update(b"blob %d\0" % os.path.getsize(path))
    with open(path, "rb") as file:
        while block := file.read(4 << 20):
            content.update(block)
    return content.hexdigest() != name
