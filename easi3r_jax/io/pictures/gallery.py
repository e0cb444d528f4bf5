"""The videos, contact sheets and plots of a scene, and what is omitted because the scene lacks the data."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from easi3r_jax.core import atomic
from easi3r_jax.core.types import MotionMaps, Scene4D
from easi3r_jax.io.pictures import panels as pictures
from easi3r_jax.io.pictures import plots
from easi3r_jax.io.pictures.movies import frame_rate, write_gif, write_mp4
from easi3r_jax.io.pictures.panels import Film, Layer
from easi3r_jax.io.pictures.summary import summary_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILMS = ("panel", "depth", "masks", "attention")
SHEETS = ("image", "depth", "masks")
PLOTS = ("losses", "trajectory", "score")
#: The record of the pictures. Files with the names below are replaced only if it is beside them.
MARKER = "pictures.json"
NAMES = frozenset(
    {MARKER, "report.html", "overview.jpg"}
    | {f"{name}.{suffix}" for name in FILMS for suffix in ("mp4", "gif")}
    | {f"contact_{name}.jpg" for name in SHEETS}
    | {f"plot_{name}.png" for name in PLOTS}
)


class Gallery:
    """The pictures of a scene.

    Args:
      scene: host arrays.
      time: (T,) seconds.
      motion: the maps from which the masks were computed.
      threshold: of the score.
      losses: (iterations,) of the alignment.
      true_centres: (T, 3) true camera centres, aligned to the scene's world.

    Attributes:
      films: name (of `FILMS`) -> film.
      layers: name (of `SHEETS`) -> layer of the contact sheet.
      plots: name (of `PLOTS`) -> function that draws it.
      omitted: name of what is omitted -> reason.
    """

    def __init__(
        self,
        scene: Scene4D,
        time: np.ndarray,
        *,
        motion: MotionMaps | None = None,
        threshold: float | None = None,
        losses: np.ndarray | None = None,
        true_centres: np.ndarray | None = None,
    ):
        self._scene, self._time, self._motion = scene, time, motion
        has_score, has_masks = pictures.has_score(scene, motion), pictures.has_masks(scene, motion)
        depth, image = pictures.depth_layer(scene), pictures.image_layer(scene)
        self.layers: dict[str, Layer] = {"image": image, "depth": depth}
        self.films: dict[str, Film] = {
            "panel": Film(pictures.panel_layers(scene, score=has_score, masks=has_masks), time),
            "depth": Film([depth], time),
        }
        self.plots: dict[str, Callable[[], Figure]] = {
            "trajectory": lambda: plots.trajectory_figure(scene.world_from_cam, true_centres)
        }
        self.omitted: dict[str, str] = {}
        if has_masks:
            self.layers["masks"] = pictures.mask_layer(scene)
            self.films["masks"] = Film([self.layers["masks"]], time)
        else:
            self.omitted["masks"] = "no pixel is marked as dynamic, and no motion cue was used"
        if motion is not None:
            self.films["attention"] = Film(pictures.attention_layers(scene, motion), time, columns=3)
        else:
            self.omitted["attention"] = (
                "the result has no attention maps: no motion cue was used, the clip was reconstructed in windows, "
                "frame by frame or by a network that sees all frames at once, or the result is from an older version"
            )
        if has_score:
            self.plots["score"] = lambda: plots.score_figure(scene.dynamic_score, threshold)
            if threshold is None:
                self.omitted["threshold of the score"] = (
                    "the result has no single threshold: it was reconstructed in windows, or is from an older version"
                )
        else:
            self.omitted["score"] = "no motion cue was used"
        if losses is not None and len(losses):
            self.plots["losses"] = lambda: plots.loss_figure(losses)
        else:
            self.omitted["losses"] = (
                "the result has none: the clip has one or two frames, it was reconstructed in windows, frame by frame "
                "or by a network that sees all frames at once, or the result is from an older version"
            )

    def writers(self, *, videos: bool, gif: bool, stills: bool) -> dict[str, Callable[[pathlib.Path], object]]:
        """File name -> function that writes the file.

        Args:
          videos: include the films as MP4.
          gif: include the films as GIF.
          stills: include the overview, contact sheets and plots.
        """
        found: dict[str, Callable[[pathlib.Path], object]] = {}
        rate = frame_rate(self._time)
        for suffix, write in (("mp4", write_mp4),) * videos + (("gif", write_gif),) * gif:
            found |= {f"{name}.{suffix}": partial(write, pictures=film, rate=rate) for name, film in self.films.items()}
        if stills:
            found["overview.jpg"] = self._write_overview
            found |= {f"contact_{name}.jpg": partial(self._write_sheet, layer=x) for name, x in self.layers.items()}
            found |= {f"plot_{name}.png": partial(_write_plot, draw=draw) for name, draw in self.plots.items()}
        return found

    def _write_sheet(self, path: pathlib.Path, layer: Layer) -> None:
        _write_jpeg(path, pictures.contact_sheet(layer, len(self._time)))

    def _write_overview(self, path: pathlib.Path) -> None:
        """Writes the overview of some frames (see `summary`) as JPEG, which is smaller than `summary.png`."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(summary_figure(self._scene, self._motion, title="", time=self._time))
        canvas.draw()
        _write_jpeg(path, np.array(canvas.buffer_rgba())[..., :3])


def _write_plot(path: pathlib.Path, draw: Callable[[], Figure]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(draw()).print_png(os.fspath(path))


def _write_jpeg(path: pathlib.Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(path, "JPEG", quality=90, subsampling=0)


def ensure_gallery_writable(folder: str | os.PathLike) -> None:
    """Fails early if `gallery_files` would fail at the end.

    Raises:
      OutputError: the folder cannot be written, or has other files that would be replaced.
    """
    atomic.ensure_files_writable(folder, NAMES, marker=MARKER)


def gallery_files(folder: str | os.PathLike) -> AbstractContextManager[pathlib.Path]:
    """A context in which files of `NAMES` are written, see `atomic.atomic_files`."""
    return atomic.atomic_files(folder, NAMES, marker=MARKER)
