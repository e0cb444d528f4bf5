"""What users drop: linked into the job's folder under names of ours, and errors in their terms."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence

from easi3r_jax.core.errors import InputError, OutputError, UserError
from easi3r_jax.io.files.names import natural_order
from easi3r_jax.io.video.images import SUFFIXES, is_image


class StoppedError(UserError):
    """The job was stopped by the user who started it."""


class ServerError(Exception):
    """An error of the server, not of the user: the message is for the operator."""


class Names:
    """The user's names of the files in the job's folder, for messages and records."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._names: dict[pathlib.Path, str] = {}

    def add(self, path: pathlib.Path, name: str) -> None:
        self._names[path] = name

    def cleaned(self, text: str) -> str:
        """The text with the user's names instead of paths, and without any path of this machine."""
        for path, name in self._names.items():
            text = text.replace(str(path), name)
        return text.replace(f"{self._folder}{os.sep}", "").replace(str(self._folder), "")


@contextlib.contextmanager
def user_errors(names: Names) -> Iterator[None]:
    """Converts errors to those that may be shown to the user."""
    try:
        yield
    except (StoppedError, ServerError):
        raise
    except OutputError as error:  # the user cannot change the output
        raise ServerError(str(error)) from error
    except UserError as error:
        raise type(error)(names.cleaned(str(error))) from error
    except Exception as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            "The server's memory does not suffice for this clip: use fewer frames (fps, first), a smaller size, or a "
            "graph with fewer pairs."
        ) from error


def linked_clip(
    uploads: Sequence[str | os.PathLike], folder: pathlib.Path, names: Names, megabytes: float
) -> pathlib.Path:
    """Links the upload into the job's folder; returns the path for reconstruct's `--seq`.

    Images keep their names, which exports repeat. Whether a file is an image is decided by its content.

    Args:
      uploads: one video, or images.
      folder: of the job.
      names: gets the user's names of the files.
      megabytes: limit of all files together.

    Raises:
      InputError: no files, too large, or files of different kinds.
    """
    paths = natural_order(pathlib.Path(path) for path in uploads)
    if not paths:
        raise InputError("There is nothing to reconstruct: drop a video or images first.")
    try:
        size = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise InputError("The upload has expired: drop the files again.") from error
    if size > 1e6 * megabytes:
        raise InputError(f"The upload has {size / 1e6:.0f} MB, and the limit is {megabytes:g} MB: shorten it.")
    are_images = [is_image(path) or path.suffix.lower() in SUFFIXES for path in paths]
    if not all(are_images) and len(paths) > 1:
        other = paths[are_images.index(False)].name
        raise InputError(f"Drop one video, or images only: {other} is not an image that is read here.")
    if not all(are_images):
        clip = folder / "upload" / _safe(paths[0].stem)
        clip.parent.mkdir()
        _link(paths[0], clip)
        names.add(clip, paths[0].name)
        return clip
    clip = folder / "images"
    clip.mkdir()
    own = [path.name if path.suffix.lower() in SUFFIXES else f"{path.name}.png" for path in paths]
    if len({name.casefold() for name in own}) < len(own) or any(name.startswith(".") for name in own):
        own = [f"{number:05d}{pathlib.PurePath(name).suffix.lower()}" for number, name in enumerate(own)]
    for path, name in zip(paths, own, strict=True):
        _link(path, clip / name)
        names.add(clip / name, path.name)
    return clip


def _safe(name: str) -> str:
    """A visible name for a folder or file of ours."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "video"


def _link(path: pathlib.Path, target: pathlib.Path) -> None:
    """Hard-links a file, so that the original may be removed while the job runs."""
    try:
        os.link(path, target)
    except FileNotFoundError as error:
        raise InputError("The upload has expired: drop the files again.") from error
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(path, target)
