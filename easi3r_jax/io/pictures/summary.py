"""`summary.png`: an overview of the reconstruction."""

from __future__ import annotations

import base64
import html
import io
import os
from typing import TYPE_CHECKING

import numpy as np

from easi3r_jax.core.types import MotionMaps, Reconstruction, Scene4D
from easi3r_jax.io.pictures.colors import Scale, flow_image, tinted
from easi3r_jax.io.pictures.panels import (
    ATTENTION,
    SCORE,
    confidence_scale,
    depth_scale,
    has_masks,
    has_score,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_COLUMNS = 8
# Inches: the largest height of a picture; the smallest width and height of a cell, for its labels.
_MAX_HEIGHT, _MIN_CELL = 3.2, (0.72, 0.42)


def summary_figure(
    scene: Scene4D,
    motion: MotionMaps | None,
    *,
    title: str,
    time: np.ndarray,
    flow: tuple[np.ndarray, np.ndarray] | None = None,
    unit: str = "arbitrary",
) -> Figure:
    """A table of pictures: a column per frame, and rows for RGB, depth, confidence, flow, attention, score and mask.

    Args:
      scene: host arrays.
      motion: attention maps; None omits their rows. The rows of score and mask are omitted if the scene has none.
      title: title of the figure.
      time: (T,) seconds, shown above the columns.
      flow: (E, H, W, 2) optical flow and its pairs (E, 2). For each frame, the flow to its nearest partner is shown.
      unit: of the world, see `Reconstruction.unit`.
    """
    num_frames, height, width = scene.depth.shape
    frames = spread(num_frames, _MAX_COLUMNS)
    rows = _rows(scene, motion, frames, flow, unit)

    # Inches. For very wide or very tall frames the cells are larger than the frames, to hold the labels.
    picture_width = min(2.1 * min(1.0, (width / height) ** 0.5), _MAX_HEIGHT * width / height)
    picture_height = picture_width * height / width
    cell_width, cell_height = max(picture_width, _MIN_CELL[0]), max(picture_height, _MIN_CELL[1])
    left, right, top, bottom, gap = 1.45, 0.8, 0.75 if title else 0.45, 0.12, 0.05
    size = (left + len(frames) * (cell_width + gap) + right, top + len(rows) * (cell_height + gap) + bottom)
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, facecolor="white")

    # One pair of axes for all pictures, in inches: a pair for each would take longer than everything else here.
    page = figure.add_axes((0, 0, 1, 1))
    page.set_axis_off()

    def corner(row: int, column: int, box_height: float) -> tuple[float, float]:
        """Lower left corner of a box in a cell."""
        y = size[1] - top - row * (cell_height + gap) - (cell_height + box_height) / 2
        return left + column * (cell_width + gap), y

    page.text(0.12, size[1] - 0.12, title, va="top", ha="left", fontsize=14, weight="bold", parse_math=False)
    for c, t in enumerate(frames):
        x, y = corner(0, c, cell_height)
        label = f"frame {t}\n{time[t]:.2f} s"
        page.text(x + picture_width / 2, y + cell_height + 0.04, label, va="bottom", ha="center", fontsize=9)
    for r, (label, images, scale) in enumerate(rows):
        for c, image in enumerate(images):
            x, y = corner(r, c, picture_height)
            extent = (x, x + picture_width, y, y + picture_height)
            page.imshow(image if scale is None else scale.colors(image), aspect="auto", extent=extent)
        page.text(left - 0.12, corner(r, 0, 0)[1], label, va="center", ha="right")
        if scale is not None:
            x, y = corner(r, len(images), cell_height)
            bar = (x / size[0], y / size[1], 0.1 / size[0], cell_height / size[1])
            _draw_bar(figure, figure.add_axes(bar), scale)
    page.set(xlim=(0, size[0]), ylim=(0, size[1]))  # after the pictures, which change them
    return figure


def write_summary(
    path: str | os.PathLike,
    scene: Scene4D,
    motion: MotionMaps | None,
    *,
    title: str,
    time: np.ndarray,
    flow: tuple[np.ndarray, np.ndarray] | None = None,
    unit: str = "arbitrary",
) -> None:
    """Writes `summary_figure` as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = summary_figure(scene, motion, title=title, time=time, flow=flow, unit=unit)
    FigureCanvasAgg(figure).print_png(os.fspath(path))


def result_figure(result: Reconstruction) -> Figure:
    """`summary_figure` of a result."""
    given = result.given
    flow = None if given is None or given.flow is None else (np.asarray(given.flow), np.asarray(result.edges))
    title = result.folder.name if result.folder else ""
    time = np.asarray(result.frames.time)
    return summary_figure(result.scene, result.motion, title=title, time=time, flow=flow, unit=result.unit)


def result_html(result: Reconstruction) -> str:
    """A result for notebooks: one line in words, and its summary as a picture within the HTML."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(result_figure(result)).print_png(buffer)
    picture = base64.b64encode(buffer.getvalue()).decode()
    style = "max-width: 100%"
    return (
        f'<p>{html.escape(repr(result))}</p><img style="{style}" alt="summary" src="data:image/png;base64,{picture}">'
    )


def _rows(
    scene: Scene4D,
    motion: MotionMaps | None,
    frames: list[int],
    flow: tuple[np.ndarray, np.ndarray] | None,
    unit: str,
) -> list[tuple[str, np.ndarray, Scale | None]]:
    """For each row its label, (frames, …) images or numbers, and the numbers' scale, which is that of the videos."""
    rgb = np.asarray(scene.rgb[frames])
    rows: list[tuple[str, np.ndarray, Scale | None]] = [
        ("image", rgb, None),
        ("depth\n(metres)" if unit == "metres" else "depth\n(world units)", scene.depth[frames], depth_scale(scene)),
        ("confidence", scene.confidence[frames], confidence_scale(scene)),
    ]
    if flow is not None:
        rows.append(("optical flow\n(colour: direction)", flow_image(_flow_to_nearest(*flow, np.array(frames))), None))
    if motion is not None:
        maps = motion.temporal
        rows += [
            ("attention\nmean, source", np.asarray(maps.mean_src)[frames], ATTENTION),
            ("attention\nstd, source", np.asarray(maps.std_src)[frames], ATTENTION),
            ("attention\nmean, reference", np.asarray(maps.mean_ref)[frames], ATTENTION),
            ("attention\nstd, reference", np.asarray(maps.std_ref)[frames], ATTENTION),
        ]
    if has_score(scene, motion):
        rows.append(("dynamic score", scene.dynamic_score[frames], SCORE))
    if has_masks(scene, motion):
        rows.append(("dynamic\nregions", tinted(rgb, np.asarray(scene.dynamic_mask[frames])), None))
    return rows


def _flow_to_nearest(flow: np.ndarray, edges: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(frames, H, W, 2) flow of each frame to the nearest frame it is paired with; of two, to the later one."""
    edges = np.asarray(edges)
    distance = np.abs(2 * (edges[:, 1] - edges[:, 0]) - 0.5)
    return np.stack([np.asarray(flow[np.where(edges[:, 0] == t, distance, np.inf).argmin()]) for t in frames])


def _draw_bar(figure: Figure, axes: Axes, scale: Scale) -> None:
    """Draws the scale with numbers at its ends and middle. The end labels point inwards, so that bars do not touch."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    norm = LogNorm(scale.low, scale.high) if scale.log else Normalize(scale.low, scale.high)
    bar = figure.colorbar(ScalarMappable(norm, scale.colormap), cax=axes)
    numbers = scale.numbers(np.array([0.0, 0.5, 1.0])).tolist()
    bar.set_ticks(numbers, labels=[f"{number:.3g}" for number in numbers])
    bar.minorticks_off()
    for label, place in zip(axes.get_yticklabels(), ("bottom", "center", "top"), strict=True):
        label.set_verticalalignment(place)
    axes.tick_params(labelsize=8, length=2, pad=2)
