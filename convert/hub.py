"""Weights by their name on the Hugging Face hub."""

from __future__ import annotations

import errno
import pathlib
import re
from collections.abc import Callable
from typing import NoReturn

from convert.safetensors_folder import CONFIG, WEIGHTS, open_folder
from convert.tensors import Source
from easi3r_jax.checkpoint import LICENCE_RELEASED
from easi3r_jax.errors import CheckpointError, OutputError

RELEASED = (
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear",
    "Junyi42/MonST3R_PO-TA-S-W_ViTLarge_BaseDecoder_512_dpt",
)
_PATIENCE = 10.0  # seconds


def is_name(text: str) -> bool:
    """Whether the text has the form owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None and len(text) <= 96


def open_name(name: str, progress: Callable[[str, int, int, str], None]) -> Source:
    """Opens a model of the hub; downloads it unless the hub's own cache has it.

    Raises:
      CheckpointError: no network, no such model, or a model in another form. Says what to fetch by hand.
    """
    folder = _cached(name)
    if folder is None:
        progress("download", 0, 2, "")
        folder = _download(name, progress)
    return open_folder(folder, name=name, licence=LICENCE_RELEASED if name in RELEASED else None)


def _cached(name: str) -> pathlib.Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(name, file) for file in (CONFIG, WEIGHTS)]
    folders = {pathlib.Path(path).parent for path in found if isinstance(path, str)}
    return folders.pop() if len(folders) == 1 and all(isinstance(path, str) for path in found) else None


def _download(name: str, progress: Callable[[str, int, int, str], None]) -> pathlib.Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    path = pathlib.Path()
    try:
        # One question first: the download itself would try an absent network for half a minute.
        get_hf_file_metadata(hf_hub_url(name, CONFIG), timeout=_PATIENCE)
        for done, file in enumerate((CONFIG, WEIGHTS), 1):
            path = pathlib.Path(hf_hub_download(name, file, etag_timeout=_PATIENCE))
            progress("download", done, 2, "")
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"The hub has no public model {name} (or it needs a login: hf auth login).") from error
    except LocalEntryNotFoundError as error:
        _by_hand(name, error)
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"The hub's model {name} has no {CONFIG} and {WEIGHTS}: no DUSt3R in that form."
        ) from error
    except Exception as error:  # errors of whichever HTTP library the hub's client uses
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise OutputError(f"Cannot store the download of {name}: {error.strerror} (HF_HOME says where).") from error
        _by_hand(name, error)
    return path.parent


def _by_hand(name: str, error: Exception) -> NoReturn:
    folder = f"checkpoints/{name.rpartition('/')[2]}"
    raise CheckpointError(
        f"Cannot download {name}: no connection to the hub. By hand: fetch {CONFIG} and {WEIGHTS} from "
        f"https://huggingface.co/{name}/tree/main into a folder, e.g. {folder}/, and give that folder "
        f"in place of the name."
    ) from error
