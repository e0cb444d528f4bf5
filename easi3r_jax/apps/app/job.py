"""What becomes of an upload: it is checked, reconstructed by `experiments.reconstruct`, and packed for download.

One job at a time: reconstruct's flags are the process's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from easi3r_jax.apps import reconstruct
from easi3r_jax.apps.app import options
from easi3r_jax.apps.app.store import Store
from easi3r_jax.apps.checkpoints import load_model, on_devices
from easi3r_jax.apps.progress import Stages
from easi3r_jax.core.errors import ConfigError, InputError, OutputError, UserError
from easi3r_jax.io.pictures.gallery import FILMS
from easi3r_jax.io.video.images import SUFFIXES, in_order
from easi3r_jax.models import DUSt3R

#: Told of a stage, how much of it is done, of how much, and how many seconds the rest of it may take (None: unknown).
Report = Callable[[str, int, int | None, float | None], None]

# Text in which reconstruct says where things were.
_TEXT_FILES = {".json", ".html", ".txt"}
# Packed already, and large.
_COMPRESSED = {".npz", ".png", ".jpg", ".glb", ".mp4", ".exr"}


class StoppedError(UserError):
    """The job was stopped by whoever began it."""


class ServerError(Exception):
    """The server's fault, not the user's: the message is for its operator."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a job may be.

    Attributes:
      megabytes: of an upload.
      frames: of a clip.
      minutes: from its beginning to its end, the waiting not counted.
    """

    megabytes: float = 200.0
    frames: int = 64
    minutes: float = 30.0


@dataclasses.dataclass(frozen=True)
class Products:
    """What a job leaves to be shown and downloaded; all of it lies in `folder`.

    Attributes:
      folder: nothing else is in it.
      scene: a GLB.
      films: MP4s by their names in `gallery.FILMS`; those that the options give.
      downloads: the scene, the whole result and each export.
      text: what was done, in a line.
    """

    folder: pathlib.Path
    scene: pathlib.Path
    films: Mapping[str, pathlib.Path]
    downloads: Sequence[pathlib.Path]
    text: str


class Networks:
    """The checkpoints that the operator allows, by the names that the page shows; loaded when it is made.

    Args:
      checkpoints: as `--checkpoint` of reconstruct takes them.
      dtype: as its `--dtype`.
      load: `load_model`, or what stands in for it.

    Attributes:
      names: in the order given; of a path its last part.
    """

    def __init__(self, checkpoints: Sequence[str], dtype: str = "auto", load=load_model):
        self._loaded: dict[str, tuple[DUSt3R, dict[str, Any]]] = {}
        for checkpoint in checkpoints:
            name = pathlib.PurePath(checkpoint).name if pathlib.Path(checkpoint).expanduser().exists() else checkpoint
            if not name or name in self._loaded:
                raise ConfigError(f"--checkpoints: {checkpoint!r} is empty, or one of its name is there already.")
            model, metadata = load(checkpoint, dtype, Stages())
            self._loaded[name] = on_devices(model, 0), metadata
        if not self._loaded:
            raise ConfigError("--checkpoints names no weights: leave it out for the small embedded network.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def load(self, name: str, dtype: str, observer: Stages) -> tuple[DUSt3R, dict[str, Any]]:
        """The network of a name: what reconstruct calls in the place of `load_model`."""
        del dtype, observer
        if name not in self._loaded:
            raise ConfigError(f"checkpoint is one of {', '.join(self._loaded)}.")
        return self._loaded[name]


class Jobs:
    """Runs jobs, one after the other.

    Args:
      store: where they work and what they leave.
      networks: that they may use.
      limits: of each.
    """

    def __init__(self, store: Store, networks: Networks, limits: Limits = Limits()):
        self.store, self.networks, self.limits = store, networks, limits
        self._one_at_a_time = threading.Lock()

    def run(
        self,
        uploads: Sequence[str | os.PathLike],
        checkpoint: str,
        values: Mapping[str, object],
        report: Report = lambda stage, done, total, left: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Products:
        """Reconstructs an upload.

        Args:
          uploads: one video, or images; their names serve in messages and for the order only.
          checkpoint: a name of the networks.
          values: see `options.checked`.
          report: told of progress.
          stopped: asked at every report; the job ends when it says so.

        Raises:
          StoppedError: it was stopped.
          UserError: an upload or options that nothing can be made of; no path of this machine is in the message.
          ServerError: the result cannot be written.
        """
        with self._one_at_a_time, self.store.job() as folder:
            watched = _Watched(report, stopped, self.limits)
            watched("begin", 0, 1)
            names = _Names(folder)
            with _said_to_the_user(names):
                self.networks.load(checkpoint, "", watched)  # an unknown name is refused first
                flags = options.checked(values)
                clip = _clip(uploads, folder, names, self.limits)
                reconstruct.FLAGS.assign(
                    flags
                    | {
                        "seq": clip,
                        "output": folder / "result",
                        "checkpoint": checkpoint,
                        "videos": True,
                    }
                )
                result = reconstruct.run(watched, self.networks.load)
                watched("pack", 0, 1)
                return self._published(result, names, watched)

    def _published(self, result: pathlib.Path, names: _Names, watched: _Watched) -> Products:
        """Moves what is to be had into a folder that is served."""
        for path in result.rglob("*"):
            if path.suffix in _TEXT_FILES:
                path.write_text(names.cleaned(path.read_text(encoding="utf-8")), encoding="utf-8")
        served = self.store.new_result()
        try:
            exports = result / "exports"
            formats = sorted(exports.iterdir()) if exports.is_dir() else []
            packed = [_zip(served / f"{folder.name}.zip", folder, watched) for folder in formats]
            shutil.rmtree(exports, ignore_errors=True)
            whole = _zip(served / "result.zip", result, watched)
            films = {name: result / f"{name}.mp4" for name in FILMS}
            films = {name: _moved(path, served) for name, path in films.items() if path.is_file()}
            scene = _moved(result / "scene.glb", served)
            pages = [_moved(result / "report.html", served)] if (result / "report.html").is_file() else []
            frames = watched.units["read"]
            text = f"{frames} frame{'s' * (frames != 1)} in {watched.elapsed():.0f} s"
            return Products(served, scene, films, [whole, scene, *pages, *packed], text)
        except BaseException:
            self.store.remove(served)
            raise


class _Watched(Stages):
    """Reports progress, and ends the job where it is stopped, takes too long or has too many frames."""

    def __init__(self, report: Report, stopped: Callable[[], bool], limits: Limits):
        super().__init__(quiet=True)
        self._report, self._stopped, self._limits = report, stopped, limits
        self._start = time.monotonic()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if self._stopped():
            raise StoppedError("Stopped.")
        if self.elapsed() > 60 * self._limits.minutes:
            raise InputError(
                f"It takes longer than the {self._limits.minutes:g} minutes that a job may: fewer frames (fps, first), "
                "fewer iterations, or a graph with fewer pairs."
            )
        if stage == "read" and max(done, total or 0) > self._limits.frames:
            most = self._limits.frames
            many = f"has {total} frames, and it may have {most} here" if total else f"has more than {most} frames"
            raise InputError(f"The clip {many}: take fewer (fps, every or first).")
        super().__call__(stage, done, total, note)
        self._report(stage, done, total or None, self._left(stage, done, total or None))

    def _left(self, stage: str, done: int, total: int | None) -> float | None:
        """Seconds to the end of the stage, if it goes on as it went so far."""
        if stage != self._stage or not done or total is None:  # between stages, at the beginning
            return None
        return (time.perf_counter() - self._began) * (total - done) / done

    def elapsed(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._start


class _Names:
    """What the user calls the files that lie in the job's folder, for messages and records."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._names: dict[pathlib.Path, str] = {}

    def add(self, path: pathlib.Path, name: str) -> None:
        self._names[path] = name

    def cleaned(self, text: str) -> str:
        """The text with the user's names in the place of paths, and no path of this machine."""
        for path, name in self._names.items():
            text = text.replace(str(path), name)
        return text.replace(f"{self._folder}{os.sep}", "").replace(str(self._folder), "")


@contextlib.contextmanager
def _said_to_the_user(names: _Names) -> Iterator[None]:
    """Errors as whoever uploaded may read them."""
    try:
        yield
    except (StoppedError, ServerError):
        raise
    except OutputError as error:  # nothing that they could choose another of
        raise ServerError(str(error)) from error
    except UserError as error:
        raise type(error)(names.cleaned(str(error))) from error
    except Exception as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            "The server's memory does not suffice for this clip: fewer frames (fps, first), a smaller size, or a graph "
            "with fewer pairs."
        ) from error


def _clip(uploads: Sequence[str | os.PathLike], folder: pathlib.Path, names: _Names, limits: Limits) -> pathlib.Path:
    """Links the upload into the job's folder, under names of our own: what reconstruct's `--seq` takes.

    Raises:
      InputError: nothing, too much, or files of different kinds.
    """
    paths = in_order(pathlib.Path(path) for path in uploads)
    if not paths:
        raise InputError("There is nothing to reconstruct: drop a video or images first.")
    try:
        size = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise InputError("The upload is not there any more: drop the files again.") from error
    if size > 1e6 * limits.megabytes:
        raise InputError(f"The upload has {size / 1e6:.0f} MB, and it may have {limits.megabytes:g} MB here: cut it.")
    are_images = [path.suffix.lower() in SUFFIXES for path in paths]
    if not all(are_images) and len(paths) > 1:
        raise InputError("Drop one video, or images only: of several videos or a mixture no clip can be made.")
    if not all(are_images):
        clip = folder / "video"
        _link(paths[0], clip)
        names.add(clip, paths[0].name)
        return clip
    clip = folder / "images"
    clip.mkdir()
    for number, path in enumerate(paths):
        copy = clip / f"{number:05d}{path.suffix.lower()}"
        _link(path, copy)
        names.add(copy, path.name)
    return clip


def _link(path: pathlib.Path, target: pathlib.Path) -> None:
    """A second name for a file, so that the first may go while the job runs."""
    try:
        os.link(path, target)
    except FileNotFoundError as error:
        raise InputError("The upload is not there any more: drop the files again.") from error
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, target)


def _moved(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.move(path, folder / path.name))


def _zip(target: pathlib.Path, folder: pathlib.Path, watched: _Watched) -> pathlib.Path:
    """Packs a folder, under its own name."""
    root = target.stem
    with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for done, path in enumerate(files):
            watched("pack", done, len(files))
            method = zipfile.ZIP_STORED if path.suffix in _COMPRESSED else zipfile.ZIP_DEFLATED
            archive.write(path, pathlib.PurePath(root) / path.relative_to(folder), method, 1)
    return target
