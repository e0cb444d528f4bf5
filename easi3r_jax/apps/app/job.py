"""Processing of an upload: it is checked, reconstructed by `experiments.reconstruct`, and packed for download.

One job at a time, since reconstruct's flags are global to the process.
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
from easi3r_jax.apps.app.players import SCENES
from easi3r_jax.apps.app.store import Store
from easi3r_jax.apps.app.uploads import Names, StoppedError, linked_clip, user_errors
from easi3r_jax.apps.progress import Stages
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.io.pictures.gallery import FILMS
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.models import DUSt3R
from easi3r_jax.weights.load import load_model_and_metadata, on_devices

#: Called with the stage, the amount done, the total, and the estimated seconds to the stage's end (None: unknown).
Report = Callable[[str, int, int | None, float | None], None]

# Text files of a result, in which reconstruct writes paths.
_TEXT_FILES = {".json", ".html", ".txt"}
# Large files that are already compressed.
_COMPRESSED = {".npz", ".png", ".jpg", ".glb", ".mp4", ".exr"}
# Plain DUSt3R: neither motion nor optical flow. Its result is only looked at beside the other.
_PLAIN = {"motion": "none", "masks": "none", "flow": "none"}
_LEFT, _RIGHT = "1 plain DUSt3R", "2 whole method"


# Seconds between two looks of a waiting job, and what a result may need, in sizes of the largest upload.
_LOOK_SECONDS, _RESULT_COPIES = 0.5, 2


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a job.

    Attributes:
      megabytes: of an upload.
      frames: of a clip.
      minutes: of a job, without waiting.
    """

    megabytes: float = 200.0
    frames: int = 64
    minutes: float = 30.0


@dataclasses.dataclass(frozen=True)
class Products:
    """Files of a job for display and download, all in `folder`.

    Attributes:
      folder: contains nothing else.
      scene: a GLB.
      films: MP4s by their names in `gallery.FILMS`, as far as the options give them.
      downloads: the scene, the complete result and each export.
      text: a one-line summary.
    """

    folder: pathlib.Path
    scene: pathlib.Path
    films: Mapping[str, pathlib.Path]
    downloads: Sequence[pathlib.Path]
    text: str


class Networks:
    """The checkpoints that the operator allows, by the names shown on the page. All are loaded on construction.

    Args:
      checkpoints: as for `--checkpoint` of reconstruct.
      precision: as for its `--precision`.
      load: `load_model_and_metadata`, or a replacement.

    Attributes:
      names: in the given order; for a path its last component.
    """

    def __init__(self, checkpoints: Sequence[str], precision: str = "auto", load=load_model_and_metadata):
        self._loaded: dict[str, tuple[DUSt3R, dict[str, Any]]] = {}
        for checkpoint in checkpoints:
            name = pathlib.PurePath(checkpoint).name if pathlib.Path(checkpoint).expanduser().exists() else checkpoint
            if not name or name in self._loaded:
                raise ConfigError(f"--checkpoints: {checkpoint!r} is empty, or its name occurs twice.")
            model, metadata = load(checkpoint, precision, progress=Stages())
            self._loaded[name] = on_devices(model, 0), metadata
        if not self._loaded:
            raise ConfigError("--checkpoints is empty: omit it for the small embedded network.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def load(self, name: str, precision: str, progress: Stages) -> tuple[DUSt3R, dict[str, Any]]:
        """The network of a name; replaces `load_model` in reconstruct."""
        del precision, progress
        if name not in self._loaded:
            raise ConfigError(f"checkpoint must be one of {', '.join(self._loaded)}.")
        return self._loaded[name]


class Jobs:
    """Runs jobs, one after the other.

    Args:
      store: of their working files and results.
      networks: available checkpoints.
      limits: of each job.
    """

    def __init__(self, store: Store, networks: Networks, limits: Limits = Limits()):
        self.store, self.networks, self.limits = store, networks, limits
        self._one_at_a_time = threading.Lock()
        self._examples_lock = threading.Lock()
        self._examples: dict[str, pathlib.Path] = {}

    @property
    def is_running(self) -> bool:
        """Whether a job is at work."""
        return self._one_at_a_time.locked()

    def run(
        self,
        uploads: Sequence[str | os.PathLike],
        checkpoint: str,
        values: Mapping[str, object],
        report: Report = lambda stage, done, total, left: None,
        stopped: Callable[[], bool] = lambda: False,
        *,
        beside_plain: bool = False,
    ) -> Products:
        """Reconstructs an upload.

        Args:
          uploads: one video, or images; their names are used for the order, in messages and in results.
          checkpoint: a name of the networks.
          values: see `options.checked`.
          report: called with progress.
          stopped: called at every report; the job ends when it returns True.
          beside_plain: reconstruct the clip twice, and show the result beside plain DUSt3R's.

        Raises:
          StoppedError: it was stopped.
          UserError: an invalid upload or invalid options; the message contains no path of this machine.
          ServerError: the result cannot be written.
        """
        with self._turn(report, stopped), self.store.job() as folder:
            if self.store.free_bytes() < _RESULT_COPIES * 1e6 * self.limits.megabytes:
                raise InputError("The server's disk is full: try again later.")
            progress = _JobProgress(report, stopped, self.limits)
            progress("begin", 0, 1)
            names = Names(folder)
            with user_errors(names):
                self.networks.load(checkpoint, "", progress)  # an unknown name is refused first
                flags = options.checked(values)
                if beside_plain and flags.get("mode", "align") != "align":
                    raise ConfigError("Beside plain DUSt3R: this needs the mode align.")
                clip = linked_clip(uploads, folder, names, self.limits.megabytes)
                common = {"seq": clip, "checkpoint": checkpoint}
                plain = None
                if beside_plain:
                    kept = {name: value for name, value in flags.items() if name not in (options.EXPORT, "report")}
                    reconstruct.FLAGS.assign(kept | _PLAIN | common | {"output": folder / "plain"})
                    plain = reconstruct.run(progress, self.networks.load)
                reconstruct.FLAGS.assign(flags | common | {"output": folder / "result", "videos": True})
                result = reconstruct.run(progress, self.networks.load)
                progress("pack", 0, 1)
                products = self._published(result, plain, clip.stem, names, progress)
                if stopped():  # since the last report: the page would show files that are gone
                    self.store.remove(products.folder)
                    raise StoppedError("Stopped.")
                return products

    @contextlib.contextmanager
    def _turn(self, report: Report, stopped: Callable[[], bool]) -> Iterator[None]:
        """Waits for the job before, which may be stopped and on its way to its end."""
        while not self._one_at_a_time.acquire(timeout=_LOOK_SECONDS):
            if stopped():
                raise StoppedError("Stopped.")
            report("waiting for the job before", 0, None, None)
        try:
            yield
        finally:
            self._one_at_a_time.release()

    def example(self, folder: str) -> list[pathlib.Path]:
        """Images of a bundled clip, where they are served; one copy for all pages."""
        with self._examples_lock:
            copies = self._examples.get(folder)
            if copies is None or not copies.is_dir():
                copies = self._examples[folder] = self.store.new_result()
                for path in sorted((CLIPS / folder / "frames").iterdir()):
                    shutil.copyfile(path, copies / path.name)
            for path in (copies, *copies.iterdir()):
                os.utime(path)  # their lifetime begins anew
        return sorted(copies.iterdir())

    def _published(
        self, result: pathlib.Path, plain: pathlib.Path | None, name: str, names: Names, progress: _JobProgress
    ) -> Products:
        """Moves the results into a served folder."""
        for path in [*result.rglob("*"), *(plain.rglob("*") if plain is not None else ())]:
            if path.suffix in _TEXT_FILES:
                path.write_text(names.cleaned(path.read_text(encoding="utf-8")), encoding="utf-8")
        served = self.store.new_result()
        try:
            exports = result / "exports"
            formats = sorted(exports.iterdir()) if exports.is_dir() else []
            packed = [_zip(served / f"{folder.name}.zip", folder, progress) for folder in formats]
            shutil.rmtree(exports, ignore_errors=True)
            archive = _zip(served / "result.zip", result, progress)
            films = {name: result / f"{name}.mp4" for name in FILMS}
            films = {name: _moved(path, served) for name, path in films.items() if path.is_file()}
            scene = _moved(result / "scene.glb", served)
            scenes = served / SCENES
            scenes.mkdir()
            if plain is not None:
                shutil.move(plain, scenes / _LEFT)
            pages = [_moved(result / "report.html", served)] if (result / "report.html").is_file() else []
            frames = progress.units["read"]
            text = f"{frames} frame{'s' * (frames != 1)} in {progress.elapsed():.0f} s"
            shutil.move(result, scenes / (name if plain is None else _RIGHT))
            return Products(served, scene, films, [archive, scene, *pages, *packed], text)
        except BaseException:
            self.store.remove(served)
            raise


class _JobProgress(Stages):
    """Reports progress, and ends the job if it is stopped, takes too long or has too many frames."""

    def __init__(self, report: Report, stopped: Callable[[], bool], limits: Limits):
        super().__init__(quiet=True)
        self._report, self._stopped, self._limits = report, stopped, limits
        self._start = time.monotonic()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if self._stopped():
            raise StoppedError("Stopped.")
        if self.elapsed() > 60 * self._limits.minutes:
            raise InputError(
                f"The job takes longer than the limit of {self._limits.minutes:g} minutes: use fewer frames (fps, "
                "first), fewer iterations, or a graph with fewer pairs."
            )
        if stage == "read" and max(done, total or 0) > self._limits.frames:
            most = self._limits.frames
            count = f"{total} frames, and the limit is {most}" if total else f"more than {most} frames"
            raise InputError(f"The clip has {count}: take fewer (fps, every or first).")
        super().__call__(stage, done, total, note)
        self._report(stage, done, total or None, self._left(stage, done, total or None))

    def _left(self, stage: str, done: int, total: int | None) -> float | None:
        """Estimated seconds to the end of the stage, at its rate so far."""
        if stage != self._stage or not done or not total:  # between stages, or at the start
            return None
        return (time.perf_counter() - self._began) * (total - done) / done

    def elapsed(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._start


def _moved(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.move(path, folder / path.name))


def _zip(target: pathlib.Path, folder: pathlib.Path, progress: _JobProgress) -> pathlib.Path:
    """Packs a folder into a ZIP file."""
    root = target.stem
    with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for done, path in enumerate(files):
            progress("pack", done, len(files))
            method = zipfile.ZIP_STORED if path.suffix in _COMPRESSED else zipfile.ZIP_DEFLATED
            archive.write(path, pathlib.PurePath(root) / path.relative_to(folder), method, 1)
    return target
