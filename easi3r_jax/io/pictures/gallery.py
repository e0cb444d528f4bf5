"""Which videos, contact sheets and plots a scene gives, and what it has nothing for."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from easi3r_jax.core import atomic
from easi3r_jax.core.types import MotionMaps, Scene4D
from easi3r_jax.io.pictures import panels as pictures
from easi3r_jax.io.pictures import plots
from easi3r_jax.io.pictures.movies import frame_rate, write_gif, write_mp4
from easi3r_jax.io.pictures.panels import Film, Layer
from easi3r_jax.io.pictures.summary import summary_figure

FILMS = ("panel", "depth", "masks", "attention")
SHEETS = ("image", "depth", "masks")
PLOTS = ("losses", "trajectory", "score")
#: What they are and how they came about. Files of the names below are replaced only where it is beside them.
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
      motion: the maps that the masks were made of.
      threshold: of the score.
      losses: (iterations,) of the alignment.
      true_centres: (T, 3) camera centres of the truth, brought to the scene's world.

    Attributes:
      films: by name, of `FILMS`.
      layers: of contact sheets, by name, of `SHEETS`.
      plots: what draws them, by name, of `PLOTS`.
      left_out: what the scene has nothing for, and why.
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
        self.left_out: dict[str, str] = {}
        if has_masks:
            self.layers["masks"] = pictures.mask_layer(scene)
            self.films["masks"] = Film([self.layers["masks"]], time)
        else:
            self.left_out["masks"] = "nothing is marked as moving, and no cue for motion was asked"
        if motion is not None:
            self.films["attention"] = Film(pictures.attention_layers(scene, motion), time, columns=3)
        else:
            self.left_out["attention"] = (
                "the result has no maps of it: no cue for motion was asked, the clip was done in windows or frame by "
                "frame, or the result is of an older version"
            )
        if has_score:
            self.plots["score"] = lambda: plots.score_figure(scene.dynamic_score, threshold)
            if threshold is None:
                self.left_out["threshold of the score"] = (
                    "the result has not one for the clip: it was done in windows, or is of an older version"
                )
        else:
            self.left_out["score"] = "no cue for motion was asked"
        if losses is not None and len(losses):
            self.plots["losses"] = lambda: plots.loss_figure(losses)
        else:
            self.left_out["losses"] = (
                "the result has none: it is of one or two frames, of windows or frame by frame, or of an older version"
            )

    def writers(self, *, videos: bool, gif: bool, stills: bool) -> dict[str, Callable[[pathlib.Path], object]]:
        """What writes each file, by its name.

        Args:
          videos: the films as MP4.
          gif: the films as GIF.
          stills: the overview, contact sheets and plots.
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
        """The picture of all there is for some frames (see `summary`), as a smaller file than that one."""
        canvas = FigureCanvasAgg(summary_figure(self._scene, self._motion, title="", time=self._time))
        canvas.draw()
        _write_jpeg(path, np.array(canvas.buffer_rgba())[..., :3])


def _write_plot(path: pathlib.Path, draw: Callable[[], Figure]) -> None:
    FigureCanvasAgg(draw()).print_png(os.fspath(path))


def _write_jpeg(path: pathlib.Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(path, "JPEG", quality=90, subsampling=0)


def ensure_gallery_writable(folder: str | os.PathLike) -> None:
    """Fails now where `gallery_files` would fail at the end.

    Raises:
      OutputError: the folder cannot be written, or has files of somebody's own that would be replaced.
    """
    atomic.ensure_files_writable(folder, NAMES, marker=MARKER)


def gallery_files(folder: str | os.PathLike) -> AbstractContextManager[pathlib.Path]:
    """Context in which files of `NAMES` are written: see `atomic.atomic_files`."""
    return atomic.atomic_files(folder, NAMES, marker=MARKER)
