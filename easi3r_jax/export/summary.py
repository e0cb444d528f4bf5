"""`summary.png`: the whole reconstruction at a glance."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

from easi3r_jax.export.colors import tinted
from easi3r_jax.export.flow import flow_image
from easi3r_jax.types import MotionMaps, Scene4D

_MOST_COLUMNS = 8


def summary_figure(
    scene: Scene4D,
    motion: MotionMaps | None,
    *,
    title: str,
    time: np.ndarray,
    flow: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Frames spread over the clip as columns; as rows RGB, depth, confidence, flow, attention maps, score and mask.

    Args:
      scene: host arrays.
      motion: None leaves out the rows of attention maps, score and mask.
      title: heads the picture.
      time: (T,) seconds, heads the columns.
      flow: (E, H, W, 2) optical flow of the pairs (E, 2). A frame's is shown to the nearest frame it is paired with.
    """
    num_frames, height, width = scene.depth.shape
    frames = np.unique(np.linspace(0, num_frames - 1, min(num_frames, _MOST_COLUMNS)).round().astype(int))
    rows = _rows(scene, motion, frames, flow)

    cell_width = 2.1 * min(1.0, (width / height) ** 0.5)
    cell_height = cell_width * height / width
    left, right, top, bottom, gap = 1.45, 0.8, 0.75, 0.12, 0.05
    size = (left + len(frames) * (cell_width + gap) + right, top + len(rows) * (cell_height + gap) + bottom)
    figure = Figure(figsize=size, dpi=100, facecolor="white")

    def box(row: float, column: float, box_width: float, box_height: float) -> tuple[float, float, float, float]:
        x = left + column * (cell_width + gap)
        y = size[1] - top - row * (cell_height + gap) - cell_height
        return x / size[0], y / size[1], box_width / size[0], box_height / size[1]

    figure.text(
        0.12 / size[0], 1 - 0.12 / size[1], title, va="top", ha="left", fontsize=14, weight="bold", parse_math=False
    )
    for r, (label, images, style) in enumerate(rows):
        shown = None
        for c, image in enumerate(images):
            axes = figure.add_axes(box(r, c, cell_width, cell_height))
            axes.set_axis_off()
            shown = axes.imshow(image, aspect="auto", **style)
            if r == 0:
                caption = f"frame {frames[c]}\n{time[frames[c]]:.2f} s"
                axes.set_title(caption, fontsize=9, pad=3)
            if c == 0:
                axes.text(-0.06, 0.5, label, transform=axes.transAxes, va="center", ha="right", fontsize=10)
        if "cmap" in style and shown is not None:
            bar = figure.add_axes(box(r, len(images), 0.1, cell_height))
            _label_ends(figure.colorbar(shown, cax=bar), style["vmin"], style["vmax"])
    return figure


def write_summary(
    path: str | os.PathLike,
    scene: Scene4D,
    motion: MotionMaps | None,
    *,
    title: str,
    time: np.ndarray,
    flow: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Writes `summary_figure` as a PNG."""
    FigureCanvasAgg(summary_figure(scene, motion, title=title, time=time, flow=flow)).print_png(os.fspath(path))


def _rows(
    scene: Scene4D, motion: MotionMaps | None, frames: np.ndarray, flow: tuple[np.ndarray, np.ndarray] | None
) -> list[tuple[str, np.ndarray, dict]]:
    """Label, (frames, …) images and `imshow` arguments of every row."""
    rgb, depth, confidence = (np.asarray(x)[frames] for x in (scene.rgb, scene.depth, scene.confidence))
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)
    rows: list[tuple[str, np.ndarray, dict]] = [
        ("image", rgb, {}),
        ("depth\n(world units)", depth, {"cmap": "magma_r", **_limits(depth)}),
        ("confidence", confidence, {"cmap": "viridis", **_limits(confidence)}),
    ]
    if flow is not None:
        rows.append(("optical flow\n(colour: direction)", flow_image(_flow_onwards(*flow, frames)), {}))
    if motion is not None:
        maps = motion.temporal
        unit = {"cmap": "cividis", "vmin": 0.0, "vmax": 1.0}
        rows += [
            ("attention\nmean, source", np.asarray(maps.mean_src)[frames], unit),
            ("attention\nstd, source", np.asarray(maps.std_src)[frames], unit),
            ("attention\nmean, reference", np.asarray(maps.mean_ref)[frames], unit),
            ("attention\nstd, reference", np.asarray(maps.std_ref)[frames], unit),
            ("dynamic score", np.asarray(scene.dynamic_score)[frames], {"cmap": "inferno", "vmin": 0.0, "vmax": 1.0}),
            ("dynamic mask", tinted(rgb, np.asarray(scene.dynamic_mask)[frames]), {}),
        ]
    return rows


def _flow_onwards(flow: np.ndarray, edges: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(frames, H, W, 2) flow of each frame to the nearest one it is paired with, a later one if there are two."""
    edges = np.asarray(edges)
    distance = np.abs(2 * (edges[:, 1] - edges[:, 0]) - 0.5)
    return np.stack([np.asarray(flow[np.where(edges[:, 0] == t, distance, np.inf).argmin()]) for t in frames])


def _label_ends(bar: Colorbar, low: float, high: float) -> None:
    """Ticks at the ends, set inwards so that neighbouring bars' numbers do not touch, and in the middle."""
    bar.set_ticks([low, (low + high) / 2, high], labels=[f"{x:.3g}" for x in (low, (low + high) / 2, high)])
    for label, place in zip(bar.ax.get_yticklabels(), ("bottom", "center", "top"), strict=True):
        label.set_verticalalignment(place)
    bar.ax.tick_params(labelsize=8, length=2, pad=2)


def _limits(values: np.ndarray) -> dict[str, float]:
    """Colour range between the 1st and 99th percentile: one wild pixel must not darken a whole row."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return {"vmin": 0.0, "vmax": 1.0}
    low, high = (float(x) for x in np.percentile(known, (1, 99)))
    return {"vmin": low, "vmax": high if high > low else low + 1.0}
